"""`executor="auto"`, the default: where the handler runs, by what it does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from greenlet import error as greenlet_error

from ubatch import UBatch
from ubatch._runtime._auto import AWAY, OFTEN, REMEMBERED, SHORT, WAITED, AutoExecutor
from ubatch._runtime._base import Where
from ubatch._runtime._gevent_locks import why_not_natively
from ubatch._runtime._native import allocate_lock, get_ident

leaves_the_hub = pytest.mark.skipif(why_not_natively() is not None, reason=str(why_not_natively()))


def handler(xs: list[int]) -> list[int]:
    return xs


class Runs:
    """Both executors: they run a job where it stands, and write down where that is."""

    def __init__(self, name: str, world: World) -> None:
        self._name = name
        self._world = world

    def start(self, job: Callable[[], None], done: Callable[[], None], handler: Callable[..., Any]) -> None:
        self.start_watched(job, done, lambda: None)

    def start_watched(self, job: Callable[[], None], done: Callable[[], None], left: Callable[[], None]) -> None:
        self._world.log.append(self._name)
        self._world.here, self._world.left = self._name, left
        try:
            job()
        finally:
            done()
            left()

    def is_here(self) -> bool:
        return self._world.here == "hub"

    def away(self) -> float:
        return self._world.away

    def spawn(self, target: Callable[[], None]) -> None:
        target()

    def raised(self, error: Exception) -> None:
        raise AssertionError

    def where(self) -> Where:
        raise AssertionError

    def close(self) -> None:
        self._world.log.append(f"{self._name} closed")


class World:
    """An executor, and handlers of which each takes so long and waits, or does not."""

    def __init__(self, because: str | None = None) -> None:
        self.log: list[str] = []
        self.here = ""
        self.left: Callable[[], None] = lambda: None
        self.now = 0.0
        self.away = 0.0
        self.ended = 0
        self.waited = False
        hub, native = Runs("hub", self), Runs("native", self)
        self.executor = AutoExecutor(hub, native, lambda: self.now, self.waited_natively, because)

    def run(self, *takes: float, waits: bool = False, raises: Exception | None = None, by: Any = handler) -> list[str]:
        """Run handlers that take so many seconds each, half of them waiting or none, and return where they ran."""
        self.log.clear()
        for seconds in takes:
            self.executor.start(lambda seconds=seconds: self.take(seconds, waits, raises), self.end, by)  # type: ignore[misc]
        return self.log

    def take(self, seconds: float, waits: bool, raises: Exception | None) -> None:
        if waits and self.here == "hub":
            self.left()
        self.waited = waits
        self.now += seconds
        self.away = seconds / 2 if waits else seconds
        if raises is not None:
            self.executor.raised(raises)

    def waited_natively(self) -> bool:
        return self.waited

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def auto() -> World:
    return World()


LONG, QUICK = SHORT * 2, SHORT / 2


def test_a_short_handler_stays_on_the_hub(auto: World) -> None:
    assert set(auto.run(*[QUICK] * 50)) == {"hub"}
    assert auto.ended == 50


def test_a_long_handler_leaves_the_hub_after_its_first_batch(auto: World) -> None:
    assert auto.run(*[LONG] * 50) == ["hub"] + ["native"] * 49
    assert auto.ended == 50


def test_a_handler_that_gets_long_leaves_the_hub_and_comes_back_when_it_is_short_again(auto: World) -> None:
    assert auto.run(QUICK, LONG, *[QUICK] * REMEMBERED, QUICK) == ["hub", "hub", *["native"] * REMEMBERED, "hub"]


def test_a_long_batch_after_many_short_ones_is_forgiven_and_a_second_one_is_not(auto: World) -> None:
    auto.run(*[QUICK] * REMEMBERED)
    assert auto.run(LONG, QUICK, LONG, QUICK) == ["hub", "hub", "hub", "native"]


def test_long_batches_that_are_rare_are_forgiven_each_time(auto: World) -> None:
    for _ in range(10):
        assert set(auto.run(*[QUICK] * REMEMBERED, LONG)) == {"hub"}


def test_one_long_batch_among_short_ones_starts_the_count_anew(auto: World) -> None:
    auto.run(LONG, *[QUICK] * (REMEMBERED - 1))
    assert set(auto.run(LONG, *[QUICK] * REMEMBERED)) == {"native"}
    assert auto.run(QUICK) == ["hub"]


def test_a_handler_that_waits_stays_on_the_hub(auto: World) -> None:
    assert set(auto.run(*[LONG] * 50, waits=True)) == {"hub"}


def test_a_long_answer_now_and_then_sends_no_cooperative_handler_away(auto: World) -> None:
    for _ in range(20):
        assert {*auto.run(LONG, waits=True), *auto.run(LONG, LONG), *auto.run(QUICK)} == {"hub"}


def test_a_wait_now_and_then_keeps_no_computing_handler_on_the_hub(auto: World) -> None:
    auto.run(LONG, waits=True)
    assert auto.run(*[LONG] * (WAITED + 2)) == ["hub"] * (WAITED + 1) + ["native"]


def test_a_handler_that_waits_natively_comes_back_to_the_hub(auto: World) -> None:
    auto.run(LONG)
    assert auto.run(LONG, waits=True) == ["native"]
    assert auto.run(LONG, LONG, waits=True) == ["hub", "hub"]


@pytest.mark.parametrize(
    "error",
    [
        greenlet_error("Cannot switch to a different thread"),
        TypeError("child watchers are only available on the default loop"),
        gevent.exceptions.LoopExit("This operation would block forever"),
    ],
    ids=repr,
)
def test_an_error_of_what_belongs_to_the_hubs_thread_brings_the_handler_back_for_good(
    auto: World, error: Exception
) -> None:
    auto.run(LONG)
    assert auto.run(LONG, raises=error) == ["native"]
    assert set(auto.run(*[LONG] * 50)) == {"hub"}
    assert "executor=" in error.__notes__[0]


def test_an_error_that_came_of_such_a_one_counts_as_one(auto: World) -> None:
    error = RuntimeError("the connection was lost")
    error.__context__ = greenlet_error("Cannot switch to a different thread")
    auto.run(LONG)
    auto.run(LONG, raises=error)
    assert auto.run(LONG) == ["hub"]


def test_other_errors_tell_nothing_of_where_a_handler_should_run(auto: World) -> None:
    error = ValueError("no such column")
    assert auto.run(LONG, LONG, LONG, raises=error) == ["hub", "native", "native"]
    assert not hasattr(error, "__notes__")


def test_on_the_hub_no_error_is_of_the_wrong_thread(auto: World) -> None:
    error = gevent.exceptions.LoopExit("This operation would block forever")
    assert auto.run(LONG, LONG, raises=error)[0] == "hub"
    assert auto.run(QUICK) == ["hub"]


def test_a_handler_that_raises_is_timed_too(auto: World) -> None:
    def job() -> None:
        auto.now += LONG
        raise RuntimeError

    with pytest.raises(RuntimeError):
        auto.executor.start(job, auto.end, handler)
    assert auto.run(LONG) == ["native"]


def test_where_native_threads_are_not_safe_no_handler_leaves_the_hub(caplog: pytest.LogCaptureFixture) -> None:
    auto = World(because="gevent is too old")
    with caplog.at_level(logging.WARNING, "ubatch"):
        assert set(auto.run(*[AWAY * 2] * 10)) == {"hub"}
    assert "It stays on the hub because gevent is too old." in caplog.messages[0]


def test_closing_ends_greenlets_and_threads(auto: World) -> None:
    auto.executor.close()
    assert auto.log == ["hub closed", "native closed"]


def test_it_tells_where_the_handler_runs_and_for_how_long_the_hub_was_away(auto: World) -> None:
    assert auto.executor.where() == Where("hub", 0.0)
    auto.run(0.25)
    assert auto.executor.where() == Where("native", 0.25)


def test_of_a_handler_that_waits_it_tells_how_long_it_computed_at_a_time(auto: World) -> None:
    auto.run(0.25, waits=True)
    assert auto.executor.where() == Where("hub", 0.125)


def test_a_handler_that_keeps_the_hub_away_and_waits_is_told_of_once(
    auto: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ubatch"):
        auto.run(*[AWAY * 4] * (OFTEN - 1), waits=True)
        assert caplog.messages == []
        auto.run(*[AWAY * 4] * 10, waits=True)
    (line,) = caplog.messages
    assert line.startswith("the handler 'handler' keeps the hub away for 100 ms at a time")
    assert "because it waits there as well" in line


def test_a_handler_that_computes_natively_is_not_told_of(auto: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ubatch"):
        auto.run(*[AWAY * 4] * 10)
    assert caplog.messages == []


# In real time.


def where_it_runs(handle: Callable[[list[int]], list[int]], batches: int, **options: Any) -> list[bool]:
    """For each batch, whether it ran on the hub."""
    on_hub: list[bool] = []

    def handler(xs: list[int]) -> list[int]:
        on_hub.append(get_ident() == home)
        return handle(xs)

    home = get_ident()
    with UBatch[int, int](1, 0.0, runtime="gevent", **options).set_handler(handler) as batcher:
        for x in range(batches):
            assert batcher.ubatch(x) == x
    return on_hub


def holds_its_thread(xs: list[int]) -> list[int]:
    held = allocate_lock()
    held.acquire()
    held.acquire(True, 4 * SHORT)
    return xs


def test_in_real_time_a_handler_begins_on_the_hub() -> None:
    assert where_it_runs(list, 1) == [True]


@leaves_the_hub
def test_in_real_time_a_handler_that_holds_its_thread_leaves_the_hub_from_the_second_batch_on() -> None:
    assert where_it_runs(holds_its_thread, 10) == [True] + [False] * 9


def test_in_real_time_a_handler_that_waits_stays_on_the_hub() -> None:
    def wait(xs: list[int]) -> list[int]:
        with gevent.get_hub().loop.timer(4 * SHORT) as timer:
            gevent.get_hub().wait(timer)
        return xs

    assert where_it_runs(wait, 10) == [True] * 10


@pytest.mark.parametrize("parts", [(0, 4, 0), (4, 0, 0), (0, 0, 4)], ids=["between", "before", "after"])
def test_in_real_time_what_a_handler_computes_between_waits_is_told_and_its_waits_are_not(
    parts: tuple[int, int, int],
) -> None:
    def handler(xs: list[int]) -> list[int]:
        for n, part in enumerate(parts):
            if n:
                with gevent.get_hub().loop.timer(20 * SHORT) as timer:
                    gevent.get_hub().wait(timer)
            if part:
                holds_its_thread(xs)
        return xs

    with UBatch[int, int](1, 0.0, runtime="gevent").set_handler(handler) as batcher:
        batcher.ubatch(1)
        assert 4 * SHORT <= batcher.statistics().hub_away < 40 * SHORT  # which it waits
        assert batcher.statistics().runs_on == "hub"


@leaves_the_hub
def test_statistics_tell_where_the_handler_runs() -> None:
    batcher = UBatch[int, int](1, 0.0, runtime="gevent").set_handler(holds_its_thread)
    assert batcher.statistics().runs_on == "none yet"
    batcher.ubatch(1)
    statistics = batcher.statistics()
    assert statistics.runs_on == "native"
    assert statistics.hub_away >= SHORT
    batcher.stop()
