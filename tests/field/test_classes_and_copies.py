"""Decorated functions in classes, as attributes, in pickles and copies; batchers that are copied; 1.x's names."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import sys
from functools import partial
from threading import Thread
from typing import Any

import pytest

import ubatch.decorators
import ubatch.ubatch
from ubatch import UBatch, ubatch_decorator
from ubatch._runtime._native import threading_is_patched
from ubatch.testing import VirtualRuntime

HIDES = sys.version_info >= (3, 13)


@ubatch_decorator(max_size=4, timeout=0.01)
def squared(xs: list[int]) -> list[int]:
    return [x * x for x in xs]


def squares(xs: list[int]) -> list[int]:
    return [x * x for x in xs]


class Model:
    bias = 10

    @ubatch_decorator(max_size=4, timeout=0.01)
    @classmethod
    def of_class(cls, xs: list[int]) -> list[int]:
        return [x + cls.bias for x in xs]

    @ubatch_decorator(max_size=4, timeout=0.01)
    @staticmethod
    def static(xs: list[int], ys: list[int]) -> list[int]:
        return [x + y for x, y in zip(xs, ys, strict=True)]

    @classmethod
    @ubatch_decorator(max_size=4, timeout=0.01)
    def under_class(cls, xs: list[int]) -> list[int]:
        return [x + cls.bias for x in xs]

    @staticmethod
    @ubatch_decorator(max_size=4, timeout=0.01)
    def under_static(xs: list[int]) -> list[int]:
        return [x + 1 for x in xs]

    @ubatch_decorator(max_size=4, timeout=0.01)
    def without_self(xs: list[int]) -> list[int]:
        return [x + 2 for x in xs]

    @ubatch_decorator(max_size=4, timeout=0.01)
    def method(self, xs: list[int]) -> list[int]:
        return [x + self.bias + 1 for x in xs]


class Special(Model):
    bias = 20


def both(batched: Any, *args: int) -> tuple[list[int], int]:
    """Called directly, and in a batch."""
    return batched(*([arg] for arg in args)), batched.ubatch(*args)


@pytest.mark.parametrize("through", [Model, Model()], ids=["class", "instance"])
def test_class_and_static_methods_under_and_around_the_decorator(through: Any) -> None:
    assert both(through.of_class, 1) == ([11], 11)
    assert both(through.static, 1, 2) == ([3], 3)
    assert both(through.under_static, 1) == ([2], 2)
    assert both(through.without_self, 1) == ([3], 3)
    assert list(through.of_class.imap([1, 2])) == [11, 12]
    assert through.static.submit(3, 4).result(20) == 7
    if HIDES:
        assert through.under_class([1]) == [11]
        for call in (through.under_class.ubatch, through.under_class.submit, through.under_class.map):
            with pytest.raises(TypeError, match="put @ubatch_decorator above @classmethod"):
                call([1])
    else:
        assert both(through.under_class, 1) == ([11], 11)


def test_a_class_method_has_a_batcher_for_each_class() -> None:
    assert both(Special.of_class, 1) == ([21], 21)
    assert Special.of_class.batcher is not Model.of_class.batcher
    assert Special().of_class.batcher is Special.of_class.batcher
    assert Special.static.batcher is Model.static.batcher
    assert Model().method.batcher is not Model.method.batcher


def test_names_and_modules_of_1x() -> None:
    assert ubatch.ubatch.UBatch is UBatch
    assert ubatch.decorators.ubatch_decorator is ubatch_decorator
    assert issubclass(ubatch.ubatch.HandlerNotSet, Exception)
    assert squared.function([3]) == [9]
    assert squared.function is squared.__wrapped__


def test_attributes_of_1x_take_effect_on_the_next_batch(runtime: VirtualRuntime) -> None:
    sizes: list[int] = []

    @ubatch_decorator(max_size=2, timeout=5.0, runtime=runtime)
    def handler(xs: list[int]) -> list[int]:
        sizes.append(len(xs))
        return xs

    assert (handler.max_size, handler.timeout) == (2, 5.0)
    handler.submit(1)
    runtime.settle()
    handler.max_size, handler.timeout = 3, 1.0
    assert (handler.batcher.max_size, handler.batcher.timeout) == (3, 1.0)
    handler.submit(2)
    runtime.settle()
    assert sizes == []
    handler.submit(3)
    runtime.settle()
    assert sizes == [3]
    handler.submit(4)
    runtime.advance(1.0)
    assert sizes == [3, 1]
    stopping = runtime.call(handler.batcher.stop)
    runtime.settle()
    assert stopping.value is True


def test_the_public_example_of_1x_runs() -> None:
    """Threads that call a decorated function, and a partial of it: what its documentation shows."""
    squared_cube = ubatch_decorator(max_size=5, timeout=0.01)(
        partial(lambda model, a, mode: [n**2 if m == "square" else n**3 for n, m in zip(a, mode, strict=True)], None)
    )
    assert squared_cube([1, 2, 3], ["square", "cube", "square"]) == [1, 8, 9]
    answers: dict[tuple[int, str], int] = {}

    def ask(number: int, mode: str) -> None:
        answers[number, mode] = squared_cube.ubatch(number, mode)

    threads = [Thread(target=ask, args=(n, mode)) for n in range(10) for mode in ("square", "cube")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == {(n, mode): n**2 if mode == "square" else n**3 for n in range(10) for mode in ("square", "cube")}
    squared_cube.batcher.stop()


# Pickles and copies.


@pytest.mark.parametrize("used", [False, True])
def test_a_decorated_function_pickles_by_its_name_and_copies_as_itself(used: bool) -> None:
    if used:
        assert squared.ubatch(2) == 4
    for other in (pickle.loads(pickle.dumps(squared)), copy.copy(squared), copy.deepcopy(squared)):
        assert other is squared
    method = pickle.loads(pickle.dumps(Model().method))
    assert both(method, 1) == ([12], 12)
    assert pickle.loads(pickle.dumps(Model.method)) is Model.method
    nameless = ubatch_decorator(max_size=4, timeout=0.01)(partial(squares))
    with pytest.raises(pickle.PicklingError, match="must have a name"):
        pickle.dumps(nameless)


@pytest.mark.skipif(threading_is_patched(), reason="multiprocessing.Pool waits for ever where gevent has patched")
def test_a_spawned_process_gets_it() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map_async(squared, [[1, 2], [3]]).get(50) == [[1, 4], [9]]
        assert pool.map_async(squared.ubatch, [4, 5]).get(50) == [16, 25]


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
@pytest.mark.parametrize("used", [False, True])
def test_a_copy_of_a_batcher_is_one_that_was_not_called(how: Any, used: bool) -> None:
    first = UBatch[int, int](4, 0.01, max_queue=9, eager=True, isolate_errors=True, name="first").set_handler(squares)
    if used:
        assert first.ubatch(3) == 9
    second = how(first)
    assert "open, not called yet" in repr(second)
    assert (second.max_size, second.timeout, second.max_queue, second.name) == (4, 0.01, 9, "first")
    second.max_size = 5
    assert first.max_size == 4
    first.stop()
    del first
    assert second.ubatch(3) == 9
    assert second.map(range(3)) == [0, 1, 4]
    assert second.statistics().answered == 4
    second.stop()


class Service:
    """What owns a batcher of a method of its own."""

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.batcher = UBatch[int, int](4, 0.01).set_handler(self.handle)

    def handle(self, xs: list[int]) -> list[int]:
        return [x * self.factor for x in xs]


@pytest.mark.parametrize("how", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_the_copy_of_an_owner_answers_for_itself(how: Any) -> None:
    first = Service(2)
    assert first.batcher.ubatch(1) == 2
    second = how(first)
    second.factor = 3
    assert second.batcher.ubatch(1) == 3
    assert first.batcher.ubatch(1) == 2


# Options that change.


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_size", 0, "max_size must be an int of at least 1"),
        ("max_size", 10, "max_size must be an int of at most max_queue=9"),
        ("max_size", 2.5, "max_size must be an int"),
        ("timeout", -1, "timeout must be a number of seconds"),
        ("timeout", 7.0, "deadline must be longer than timeout=7.0"),
        ("max_queue", 3, "max_queue must be an int of at least 4"),
        ("deadline", 0, "deadline must be more than 0"),
        ("deadline", 0.01, "deadline must be longer"),
        ("stall_after", "1", "stall_after must be"),
    ],
)
def test_an_option_that_is_set_is_checked_and_a_bad_one_changes_nothing(option: str, value: Any, message: str) -> None:
    batcher = UBatch[int, int](4, 0.01, max_queue=9, deadline=5.0).set_handler(squares)
    before = getattr(batcher, option)
    with pytest.raises((TypeError, ValueError), match=message):
        setattr(batcher, option, value)
    assert getattr(batcher, option) == before


def test_options_that_are_set_are_in_force_at_once(runtime: VirtualRuntime) -> None:
    batcher = UBatch[int, int](8, 50.0, runtime=runtime).set_handler(squares)
    first = [batcher.submit(x) for x in range(3)]
    runtime.settle()
    batcher.max_size = 3  # what is pending is full now
    runtime.settle()
    assert all(request.done() for request in first)
    late = batcher.submit(1)
    runtime.advance(2.0)
    batcher.timeout = 1.0  # and now overdue
    runtime.settle()
    assert late.done()
    batcher.max_queue = 3
    batcher.timeout = 50.0
    batcher.max_size = 2
    batcher.deadline = 60.0
    batcher.stall_after = 1.0
    assert (batcher.max_queue, batcher.deadline, batcher.stall_after) == (3, 60.0, 1.0)
    batcher.max_queue = batcher.deadline = batcher.stall_after = None
    assert (batcher.max_queue, batcher.deadline, batcher.stall_after) == (None, None, None)
    stopping = runtime.call(batcher.stop)
    runtime.settle()
    assert stopping.value is True


def test_a_stop_tells_whether_it_gave_up(runtime: VirtualRuntime) -> None:
    gate = runtime.gate()

    def handler(xs: list[int]) -> list[int]:
        gate.pass_through()
        return xs

    batcher = UBatch[int, int](1, 0.0, runtime=runtime).set_handler(handler)
    request = batcher.submit(1)
    runtime.settle()
    stopping = runtime.call(batcher.stop, 1.0)
    runtime.advance(1.0)
    assert stopping.value is False
    assert request.exception() is not None
    gate.open()
    runtime.settle()
    assert batcher.stop(1.0) is True


# The test itself.


def test_ten_times_a_tenth_is_one(runtime: VirtualRuntime) -> None:
    batcher = UBatch[int, int](8, 1.0, runtime=runtime).set_handler(squares)
    request = batcher.submit(3)
    for _ in range(9):
        runtime.advance(0.1)
    assert not request.done()
    runtime.advance(0.1)
    assert runtime.clock() == 1.0
    assert request.done()
    stopping = runtime.call(batcher.stop)
    runtime.settle()
    assert stopping.done


def test_what_a_test_submits_is_one_eager_batch(runtime: VirtualRuntime) -> None:
    for _ in range(50):
        sizes: list[int] = []

        def handler(xs: list[int], sizes: list[int] = sizes) -> list[int]:
            sizes.append(len(xs))
            return xs

        batcher = UBatch[int, int](8, 1.0, eager=True, runtime=runtime).set_handler(lambda xs, h=handler: h(xs))
        requests = [batcher.submit(x) for x in range(3)]
        runtime.settle()
        assert [request.result() for request in requests] == [0, 1, 2]
        assert sizes == [3]
        stopping = runtime.call(batcher.stop)
        runtime.settle()
        assert stopping.done


def test_a_test_that_waits_itself_is_told_to_use_call(runtime: VirtualRuntime) -> None:
    batcher = UBatch[int, int](8, 1.0, runtime=runtime).set_handler(squares)
    with pytest.raises(RuntimeError, match=r"call\(batcher\.ubatch"):
        batcher.ubatch(1)
    assert batcher.statistics().pending == 0
    stopping = runtime.call(batcher.stop)
    runtime.settle()
    assert stopping.done
