"""What belongs to one thread: seen in a handler before it runs elsewhere."""

from __future__ import annotations

import logging
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any

import pytest

from ubatch._runtime._bound import add_note, find_bound, is_bound_error
from ubatch._runtime._native import threading_is_patched

Items = list[int]
connection = sqlite3.connect(":memory:")
pool = ThreadPoolExecutor(1)
log = logging.getLogger("app")
lock = threading.RLock()


def of_the_module(xs: Items) -> Any:
    return connection.execute("select 1")


def by_another_function(xs: Items) -> Any:
    return [of_the_module(xs) for _ in xs]


@wraps(by_another_function)
def decorated(xs: Items, _inner: Any = of_the_module) -> Any:
    return _inner(xs)


class Model:
    def __init__(self, **held: Any) -> None:
        self.held = held

    def handle(self, xs: Items) -> Items:
        return xs

    __call__ = handle


def enclosing(held: Any) -> Any:
    def handler(xs: Items) -> Any:
        return held, xs

    return handler


@pytest.mark.parametrize(
    "handler",
    [
        of_the_module,
        by_another_function,
        decorated,
        enclosing(connection),
        enclosing([connection]),
        partial(lambda database, xs: xs, connection),
        partial(lambda xs, database: xs, database=connection),
        Model(database=connection),
        Model(database=connection).handle,
        partial(Model(database=connection).handle),
    ],
)
def test_a_connection_is_found_wherever_a_handler_holds_it(handler: Any) -> None:
    assert "a Connection" in str(find_bound(handler))


def test_what_is_found_is_told_by_its_name() -> None:
    assert find_bound(of_the_module) == "'connection', a Connection"


def uses_none_of_it(xs: Items) -> Items:
    with lock:
        log.info("a batch of %d", len(xs))
        return xs


@pytest.mark.parametrize(
    "handler", [list, uses_none_of_it, Model(weights=[1.0] * 1000), enclosing(None), lambda xs: xs]
)
def test_a_handler_that_holds_nothing_of_the_kind_may_go(handler: Any) -> None:
    assert find_bound(handler) is None


def test_a_pool_belongs_to_the_hub_where_it_is_made_of_greenlets() -> None:
    assert (find_bound(lambda xs: pool.map(int, xs)) is not None) == threading_is_patched()


def test_a_log_handler_is_not_looked_into() -> None:
    assert find_bound(enclosing(logging.StreamHandler())) is None


def test_a_handler_that_holds_itself_comes_to_an_end() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert find_bound(enclosing(circle)) is None


def test_sqlites_own_words_are_known() -> None:
    def elsewhere() -> None:
        try:
            connection.execute("select 1")
        except sqlite3.ProgrammingError as error:
            found.append(error)

    import gevent

    found: list[Exception] = []
    gevent.get_hub().threadpool.apply(elsewhere)
    assert is_bound_error(found[0])
    assert not is_bound_error(sqlite3.ProgrammingError("no such table: seen"))


def test_a_note_is_added_once_beside_others() -> None:
    error = ValueError()
    for _ in range(2):
        add_note(error, "first")
    add_note(error, "second")
    assert error.__notes__ == ["first", "second"]
