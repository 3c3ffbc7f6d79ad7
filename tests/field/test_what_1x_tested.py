"""What the public tests of uBatch 1.x ask for, with imports adapted, written anew for the behaviour that they showed.

1.0.0's tests of `DataRequest` and `DataRequestBuffer` were of its insides, which are gone: what those were for (who is
in a batch, when it is due, in what order) is asked of the batcher here.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Harness
from ubatch.decorators import ubatch_decorator
from ubatch.testing import VirtualRuntime
from ubatch.ubatch import BadBatchOutputSize, HandlerAlreadySet, HandlerNotSet, UBatch


class MyError(Exception):
    """After which the batcher must go on."""


def squared_but_for_six(numbers: list[int]) -> list[int]:
    if 6 in numbers:
        raise MyError
    return [number**2 for number in numbers]


def test_eleven_callers_make_three_batches_and_the_second_fails(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(squared_but_for_six, max_size=5, timeout=0.1)
    callers = []
    for number in range(11):
        callers.append(runtime.call(batcher.ubatch, number))
        runtime.settle()
    assert batcher.start() is batcher
    runtime.advance(0.1)
    assert calls == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10]]
    for number, caller in enumerate(callers):
        if 5 <= number <= 9:
            assert type(caller.error) is MyError
        else:
            assert caller.value == number**2


def test_a_batch_is_closed_when_it_is_full(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(max_size=10, timeout=5.0)
    for number in range(10):
        batcher.submit(number)
    runtime.settle()
    assert calls == [list(range(10))]


def test_a_batch_is_closed_when_the_time_of_its_oldest_is_over_and_the_others_go_along(
    harness: Harness, runtime: VirtualRuntime
) -> None:
    batcher, calls = harness.batcher(max_size=10, timeout=5.0)
    batcher.submit("first")
    runtime.advance(4.0)
    batcher.submit("second")
    assert calls == []
    runtime.advance(1.0)
    assert calls == [["first", "second"]]


def test_an_exception_is_for_all_of_a_batch(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(squared_but_for_six, max_size=2, timeout=5.0)
    requests = [batcher.submit(number) for number in (6, 7)]
    runtime.settle()
    assert [type(request.exception()) for request in requests] == [MyError, MyError]


def test_another_number_of_outputs_than_inputs_is_told_with_both(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(lambda _: [1, 2, 3], max_size=1)
    request = batcher.submit(1)
    runtime.settle()
    with pytest.raises(BadBatchOutputSize) as raised:
        request.result()
    assert (raised.value.input_size, raised.value.output_size) == (1, 3)


def test_without_a_handler_nothing_starts_and_a_second_one_is_refused() -> None:
    batcher: UBatch[Any, Any] = UBatch(max_size=10, timeout=5)
    with pytest.raises(HandlerNotSet):
        batcher.start()
    with pytest.raises(HandlerNotSet):
        batcher.ubatch("bar")
    batcher.set_handler(handler=squared_but_for_six)
    with pytest.raises(HandlerAlreadySet):
        batcher.set_handler(squared_but_for_six)


def test_a_decorated_function_is_itself_and_batches() -> None:
    @ubatch_decorator(max_size=5, timeout=0.05)
    def squared(numbers: list[int]) -> list[int]:
        return [number**2 for number in numbers]

    assert squared([3]) == [9]
    assert squared.ubatch(5) == 25
    assert (squared.function([2]), squared.max_size, squared.timeout) == ([4], 5, 0.05)
    squared.batcher.stop()
