"""`map` and `imap`: many calls of one caller, longer than the queue, beside others, half done, and given up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import pytest

from tests.conftest import Harness
from ubatch import (
    HandlerNotSet,
    NotProcessed,
    QueueClosed,
    QueueFull,
    QueueTimeout,
    ReentrantCall,
    Request,
    ResultLost,
    ResultTimeout,
    UBatch,
    deadline,
    ubatch_decorator,
)
from ubatch.testing import Gate, VirtualRuntime

SIZE = 4
WINDOW = 2 * SIZE


def double(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]


def test_a_map_longer_than_the_queue_is_answered(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(double, max_size=SIZE, max_queue=SIZE)
    call = runtime.call(batcher.map, range(103))
    runtime.advance(5.0)
    assert call.value == double(list(range(103)))
    assert sum(map(len, calls)) == 103
    assert [len(xs) for xs in calls] == [SIZE] * 25 + [3]
    assert batcher.statistics().rejected == 0


@pytest.mark.parametrize("window", [None, 1, 3, WINDOW, 50])
def test_no_more_than_the_window_is_on_the_way(
    harness: Harness, runtime: VirtualRuntime, gate: Gate, window: int | None
) -> None:
    batcher, _calls = harness.batcher(double, gate=gate, max_size=SIZE)
    taken: list[int] = []
    call = runtime.call(batcher.map, (taken.append(x) or x for x in range(40)), window=window)
    runtime.settle()
    statistics = batcher.statistics()
    width = min(40, window or WINDOW)
    assert statistics.pending + statistics.in_flight == width
    assert len(taken) <= width + 1
    gate.open()
    runtime.advance(5.0 * 40)
    assert call.value == double(list(range(40)))


def test_others_get_their_turn_beside_a_long_map(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, calls = harness.batcher(double, gate=gate, max_size=SIZE)
    long = runtime.call(batcher.map, range(1000))
    runtime.settle()
    short = runtime.call(batcher.ubatch, -1)
    runtime.settle()
    gate.open()
    runtime.advance(5.0)
    assert short.value == -2
    assert long.done
    assert [-1 in xs for xs in calls].index(True) == 2  # after the window that was there before it


def test_the_hub_goes_round_at_each_batch_of_a_long_map() -> None:
    import gevent

    batcher = UBatch[int, int](64, 0.01, runtime="gevent").set_handler(double)
    rounds = 0

    def other() -> None:
        nonlocal rounds
        while True:
            gevent.sleep(0)
            rounds += 1

    greenlet = gevent.spawn(other)
    try:
        assert batcher.map(range(20_000)) == double(list(range(20_000)))
    finally:
        greenlet.kill()
        batcher.stop()
    assert rounds >= 20_000 // 64


def test_maps_that_share_a_full_queue_are_all_answered(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(double, max_size=SIZE, max_queue=SIZE)
    calls = [runtime.call(batcher.map, range(n, n + 57)) for n in range(5)]
    runtime.advance(5.0)
    for n, call in enumerate(calls):
        assert call.value == double(list(range(n, n + 57)))


def filled(harness: Harness, runtime: VirtualRuntime, gate: Gate, **options: Any) -> tuple[UBatch[Any, Any], list[Any]]:
    """A batcher whose queue is full of others' requests."""
    batcher, calls = harness.batcher(double, gate=gate, max_size=SIZE, max_queue=SIZE, **options)
    for _ in range(2):
        for x in range(SIZE):
            batcher.submit(-x)
        runtime.settle()
    with pytest.raises(QueueFull):
        batcher.submit(0)
    return batcher, calls


def test_it_waits_for_a_place_among_others(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, _ = filled(harness, runtime, gate)
    call = runtime.call(batcher.map, range(9))
    runtime.settle()
    assert not call.done
    gate.open()
    runtime.advance(5.0)
    assert call.value == double(list(range(9)))


def test_its_wait_for_a_place_ends_with_its_deadline(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, calls = filled(harness, runtime, gate)

    def in_time() -> list[Any]:
        with deadline(2.0):
            return batcher.map([1, 2])

    call = runtime.call(in_time)
    runtime.advance(1.9)
    assert not call.done
    runtime.advance(0.2)
    assert type(call.error) is QueueTimeout
    assert batcher.statistics().expired == 1
    gate.open()
    runtime.settle()
    assert not any(1 in xs for xs in calls)


def test_its_wait_for_a_place_ends_when_the_batcher_is_stopped(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, _ = filled(harness, runtime, gate)
    call = runtime.call(batcher.map, [1, 2])
    runtime.settle()
    stopping = runtime.call(batcher.stop, 0.5)
    runtime.advance(1.0)
    assert stopping.done
    assert type(call.error) is QueueClosed


def test_a_place_that_a_cancel_or_a_deadline_frees_is_taken(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, _ = harness.batcher(double, gate=gate, max_size=SIZE, max_queue=SIZE)
    held = [batcher.submit(-x) for x in range(SIZE)]
    runtime.settle()
    held = [batcher.submit(-x) for x in range(SIZE)]
    call = runtime.call(batcher.map, [1])
    runtime.settle()
    assert batcher.statistics().pending == SIZE
    assert held[0].cancel()
    runtime.settle()
    assert batcher.statistics().pending == SIZE
    gate.open()
    runtime.advance(5.0)
    assert call.value == [2]


def test_in_its_own_handler_it_is_refused_where_it_would_wait_for_ever(
    harness: Harness, runtime: VirtualRuntime
) -> None:
    errors: list[BaseException] = []

    def nested(xs: list[int]) -> list[int]:
        if errors:
            return xs
        for x in range(SIZE):
            batcher.submit(x)
        try:
            batcher.map(range(10))
        except ReentrantCall as error:
            errors.append(error)
        return xs

    batcher, _calls = harness.batcher(nested, max_size=SIZE, max_queue=SIZE)
    request = batcher.submit(1)
    runtime.advance(5.0)
    assert request.result() == 1
    assert type(errors[0]) is ReentrantCall


def failing(at: int) -> Callable[[list[int]], list[int]]:
    def handler(xs: list[int]) -> list[int]:
        if at in xs:
            raise ConnectionError("the database is down")
        return double(xs)

    return handler


def test_the_first_error_ends_it_and_what_no_batch_has_taken_is_cancelled(
    harness: Harness, runtime: VirtualRuntime
) -> None:
    batcher, calls = harness.batcher(failing(9), max_size=SIZE)
    call = runtime.call(batcher.map, range(1000))
    runtime.advance(5.0)
    assert type(call.error) is ConnectionError
    assert len(calls) <= 4
    assert batcher.statistics().pending == 0


def test_with_return_exceptions_each_stands_in_its_place(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(failing(9), max_size=SIZE)
    call = runtime.call(batcher.map, range(20), return_exceptions=True)
    runtime.advance(5.0)
    found = call.value
    assert [type(y) is ConnectionError for y in found] == [8 <= x < 12 for x in range(20)]
    assert [y for y in found if isinstance(y, int)] == [2 * x for x in range(20) if not 8 <= x < 12]


def test_with_return_exceptions_what_a_stop_refuses_stands_in_its_place_too(
    harness: Harness, runtime: VirtualRuntime
) -> None:
    batcher, _ = harness.batcher(double, max_size=SIZE)

    def items() -> Iterator[int]:
        yield from range(10)
        batcher.stop(0)
        yield from range(10, 20)

    call = runtime.call(batcher.map, items(), return_exceptions=True)
    runtime.advance(5.0)
    found = call.value
    assert len(found) == 20
    assert found[:2] == [0, 2]
    assert all(type(y) is QueueClosed for y in found[10:])


def test_with_return_exceptions_what_comes_from_outside_is_raised(
    harness: Harness, runtime: VirtualRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Alarm(Exception):
        pass

    result = Request.result

    def interrupted(self: Any, timeout: float | None = None) -> Any:
        answer = result(self, timeout)
        if answer == 12:
            raise Alarm  # its answer has come, but not yet to the caller
        return answer

    batcher, _ = harness.batcher(double, max_size=SIZE)
    monkeypatch.setattr(Request, "result", interrupted)
    call = runtime.call(batcher.map, range(20), return_exceptions=True)
    runtime.advance(5.0)
    assert type(call.error) is Alarm


def test_a_mistake_is_raised_also_with_return_exceptions(runtime: VirtualRuntime) -> None:
    batcher = UBatch[Any, Any](4, 1.0, runtime=runtime)
    with pytest.raises(HandlerNotSet):
        batcher.map([1], return_exceptions=True)
    batcher.set_handler(double)
    with pytest.raises(TypeError, match="window must be"):
        batcher.map([1], window=1.5)
    with pytest.raises(ValueError, match="window must be"):
        batcher.imap([1], window=0)
    with pytest.raises(TypeError, match="return_exceptions must be"):
        batcher.map([1], return_exceptions=1)
    with pytest.raises(TypeError, match="must fit"):
        batcher.map([1], [2], return_exceptions=True)


def test_half_done_it_is_not_called_safe_to_try_again(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(double, max_size=SIZE)

    def upload() -> Iterator[int]:
        yield from range(10)
        batcher.stop(0)
        yield from range(10, 20)

    call = runtime.call(batcher.map, upload())
    runtime.advance(5.0)
    assert calls
    assert type(call.error) is ResultLost
    assert "not safe" in str(call.error)
    assert type(call.error.__cause__) is QueueClosed


def test_half_done_at_its_deadline_it_is_not_called_safe_to_try_again(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, _ = harness.batcher(double, gate=gate, max_size=SIZE, max_queue=SIZE)

    def in_time() -> list[Any]:
        with deadline(2.0):
            return batcher.map(range(20), window=20)

    call = runtime.call(in_time)
    runtime.advance(2.1)
    assert type(call.error) is ResultTimeout


def test_with_nothing_done_it_is_called_safe_to_try_again(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(double, max_size=SIZE)

    def upload() -> Iterator[int]:
        yield from range(3)
        batcher.stop(0)
        yield 3

    call = runtime.call(batcher.map, upload())
    runtime.advance(5.0)
    assert not calls
    assert isinstance(call.error, NotProcessed)


def test_imap_takes_items_as_it_gives_answers(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(double, max_size=SIZE)
    taken: list[int] = []
    answers = batcher.imap(taken.append(x) or x for x in count())
    assert not taken
    call = runtime.call(lambda: list(islice(answers, 30)))
    runtime.advance(5.0)
    assert call.value == double(list(range(30)))
    assert len(taken) <= 30 + WINDOW


def test_what_imap_has_not_begun_is_cancelled_when_it_is_closed(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, calls = harness.batcher(double, gate=gate, max_size=SIZE)
    answers: Any = batcher.imap(count())
    call = runtime.call(next, answers)
    runtime.settle()
    assert batcher.statistics().pending == SIZE
    gate.open(1)
    runtime.settle()
    assert call.value == 0
    batcher.submit(-1)
    assert list(islice(answers, SIZE - 1)) == [2, 4, 6]  # and asks for as many more
    assert batcher.statistics().pending == SIZE
    answers.close()
    assert batcher.statistics().pending == 1  # another's
    assert batcher.statistics().abandoned > 0
    assert len(calls) <= 3


def test_a_decorated_function_and_a_method_have_them_too(runtime: VirtualRuntime) -> None:
    @ubatch_decorator(SIZE, 1.0, runtime=runtime)
    def doubled(xs: list[int]) -> list[int]:
        return double(xs)

    class Model:
        @ubatch_decorator(SIZE, 1.0, runtime=runtime)
        def doubled(self, xs: list[int], ys: list[int]) -> list[int]:
            return [x + y for x, y in zip(xs, ys, strict=True)]

    model = Model()
    for call, expected in [
        (runtime.call(doubled.map, range(10), window=3), double(list(range(10)))),
        (runtime.call(lambda: list(doubled.imap(range(10)))), double(list(range(10)))),
        (runtime.call(model.doubled.map, range(10), range(10)), double(list(range(10)))),
        (runtime.call(lambda: list(model.doubled.imap(range(10), range(9)))), double(list(range(9)))),
    ]:
        runtime.advance(20.0)
        assert call.value == expected
    for batcher in (doubled.batcher, model.doubled.batcher):
        stopping = runtime.call(batcher.stop)
        runtime.settle()
        assert stopping.done
