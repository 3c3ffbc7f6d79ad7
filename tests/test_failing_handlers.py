"""Whatever a handler raises or returns, each call ends, and the next batch runs. In virtual time."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import gevent
import numpy as np
import pytest

from ubatch import (
    BadBatchOutput,
    BadBatchOutputSize,
    HandlerAborted,
)
from ubatch.testing import VirtualRuntime

from .conftest import Harness


def raising(error: BaseException) -> Callable[[list[Any]], list[Any]]:
    def handler(xs: list[Any]) -> list[Any]:
        raise error

    return handler


def submit_and_settle(harness: Harness, function: Callable[..., Any], count: int, **options: Any) -> list[Any]:
    """The requests of one batch, ended."""
    batcher, _ = harness.batcher(function, **({"max_size": count} | options))
    requests = [batcher.submit(x) for x in range(count)]
    harness.runtime.settle()
    return requests


# What a handler raises.


def test_an_exception_of_the_handler_reaches_every_caller_as_its_own_type(harness: Harness) -> None:
    original = LookupError("no such row", 7)
    requests = submit_and_settle(harness, raising(original), 3)
    errors = [request.exception() for request in requests]
    assert [type(error) for error in errors] == [LookupError] * 3
    assert [error.args for error in errors] == [("no such row", 7)] * 3
    assert len({id(error) for error in [*errors, original]}) == 4
    assert all(error.__cause__ is original for error in errors)


def test_a_callers_traceback_does_not_grow_with_its_neighbours(harness: Harness) -> None:
    requests = submit_and_settle(harness, raising(ValueError("x")), 8)
    lengths = []
    for request in requests:
        with pytest.raises(ValueError, match="x") as caught:
            request.result()
        lengths.append(len(caught.traceback))
        assert caught.value.__context__ is None or caught.value.__context__ is caught.value.__cause__
    assert len(set(lengths)) == 1


def test_after_a_failed_batch_the_next_one_runs(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(lambda xs: [1 // x for x in xs], max_size=1)
    failed, answered = batcher.submit(0), batcher.submit(1)
    runtime.settle()
    assert isinstance(failed.exception(), ZeroDivisionError)
    assert answered.result() == 1
    assert calls == [[0], [1]]


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), gevent.GreenletExit("bye"), gevent.Timeout(1.0), GeneratorExit("odd"), KeyboardInterrupt("late")],
    ids=lambda error: type(error).__name__,
)
def test_what_would_end_a_process_or_greenlet_reaches_callers_as_an_exception(
    harness: Harness, runtime: VirtualRuntime, error: BaseException
) -> None:
    if isinstance(error, KeyboardInterrupt) and runtime.name == "gevent" and harness.executor != "native":
        pytest.skip("on the hub it is Ctrl-C, and goes on to the main greenlet: test_reality.py")
    requests = submit_and_settle(harness, raising(error), 2)
    for request in requests:
        caught = request.exception()
        assert type(caught) is HandlerAborted
        assert str(caught) == f"the handler 'recording_handler' ended with {error!r}"
        assert caught.__cause__ is error


def test_an_exception_at_a_position_is_raised_for_that_caller_alone(harness: Harness) -> None:
    bad = LookupError("row 1")
    requests = submit_and_settle(harness, lambda xs: [x if x != 1 else bad for x in xs], 3)
    assert [requests[0].result(), requests[2].result()] == [0, 2]
    with pytest.raises(LookupError, match="row 1") as caught:
        requests[1].result()
    assert caught.value is bad
    assert requests[1].exception() is not bad  # who asks again gets a copy, for no circle


# What a handler returns.


@pytest.mark.parametrize(
    "outputs",
    [[10, 20], (10, 20), np.array([10, 20]), range(10, 30, 10), OrderedDict([("a", 10), ("b", 20)]).values()],
    ids=lambda outputs: type(outputs).__name__,
)
def test_anything_with_a_length_and_an_order_is_an_output(harness: Harness, outputs: Any) -> None:
    requests = submit_and_settle(harness, lambda xs: outputs, 2)
    assert [request.result() for request in requests] == [10, 20]


def test_rows_of_an_array_are_outputs(harness: Harness) -> None:
    requests = submit_and_settle(harness, lambda xs: np.eye(2), 2)
    assert [request.result().tolist() for request in requests] == [[1.0, 0.0], [0.0, 1.0]]


class Frame:
    """Looks like a pandas or polars DataFrame: iterating gives columns."""

    columns = ("a", "b")

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Any:
        return iter(self.columns)


@pytest.mark.parametrize(
    "outputs",
    ["ab", b"ab", bytearray(b"ab"), {"a": 1, "b": 2}, {1, 2}, frozenset({1, 2}), Frame(), iter([1, 2]), None, 7,
     np.array(3)],
    ids=lambda outputs: type(outputs).__name__,
)  # fmt: skip
def test_what_has_no_length_or_no_order_is_refused(harness: Harness, outputs: Any) -> None:
    requests = submit_and_settle(harness, lambda xs: outputs, 2)
    for request in requests:
        error = request.exception()
        assert type(error) is BadBatchOutput
        assert str(error).startswith(
            "the handler 'recording_handler' must return a list, tuple, array or Series with one output per input; "
            f"got {type(outputs).__name__}"
        )
        assert ("of shape (): a squeeze() of a batch of one?" in str(error)) == isinstance(outputs, np.ndarray)


@pytest.mark.parametrize("outputs", [[], [1], [1, 2, 3]], ids=len)
def test_another_number_of_outputs_than_inputs_fails_every_caller(harness: Harness, outputs: list[int]) -> None:
    requests = submit_and_settle(harness, lambda xs: outputs, 2)
    for request in requests:
        error = request.exception()
        assert isinstance(error, BadBatchOutputSize)
        assert (error.input_size, error.output_size) == (2, len(outputs))


def test_a_list_that_the_handler_uses_again_does_not_change_the_answers(harness: Harness) -> None:
    kept: list[int] = []

    def handler(xs: list[int]) -> list[int]:
        kept[:] = xs
        return kept

    first, second = submit_and_settle(harness, handler, 2)
    kept.clear()
    assert [first.result(), second.result()] == [0, 1]


def test_the_handler_runs_in_an_empty_context(harness: Harness, runtime: VirtualRuntime) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")

    def call() -> Any:
        variable.set("of one request")
        return batcher.ubatch(0)

    batcher, _ = harness.batcher(lambda xs: [variable.get() for _ in xs], max_size=1)
    answer = runtime.call(call)
    runtime.settle()
    assert answer.value == "unset"


def test_the_library_logs_nothing_and_prints_nothing_when_a_handler_fails(
    harness: Harness, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO):
        (request,) = submit_and_settle(harness, raising(SystemExit(1)), 1)
        assert request.exception() is not None  # what nobody asks for is logged
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
