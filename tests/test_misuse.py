"""Every message that a mistake in a program gets. What must be, and what was got."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ubatch import HandlerAlreadySet, HandlerNotSet, UBatch, deadline, ubatch_decorator

INT = "must be an int of at least 1; got"
SECONDS = "must be a number of seconds, at least 0; got"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_size": 0}, ValueError, f"max_size {INT} 0"),
        ({"max_size": -1}, ValueError, f"max_size {INT} -1"),
        ({"max_size": 1.5}, TypeError, f"max_size {INT} 1.5"),
        ({"max_size": True}, TypeError, f"max_size {INT} True"),
        ({"max_size": "8"}, TypeError, f"max_size {INT} '8'"),
        ({"max_size": None}, TypeError, f"max_size {INT} None"),
        ({"timeout": -0.1}, ValueError, f"timeout {SECONDS} -0.1"),
        ({"timeout": float("nan")}, ValueError, f"timeout {SECONDS} nan"),
        ({"timeout": float("inf")}, ValueError, f"timeout {SECONDS} inf"),
        ({"timeout": None}, TypeError, f"timeout {SECONDS} None"),
        ({"timeout": "0.1"}, TypeError, f"timeout {SECONDS} '0.1'"),
        ({"timeout": False}, TypeError, f"timeout {SECONDS} False"),
        ({"max_in_flight": 0}, ValueError, f"max_in_flight {INT} 0"),
        ({"max_in_flight": 2.0}, TypeError, f"max_in_flight {INT} 2.0"),
        ({"executor": "process"}, ValueError, "executor must be one of 'auto', 'native', 'greenlet'; got 'process'"),
        ({"executor": None}, ValueError, "executor must be one of 'auto', 'native', 'greenlet'; got None"),
        ({"runtime": "asyncio"}, ValueError, "runtime must be one of 'auto', 'gevent', 'threading'; got 'asyncio'"),
        ({"max_queue": 7}, ValueError, "max_queue must be an int of at least 8; got 7"),
        ({"max_queue": "9"}, TypeError, "max_queue must be an int of at least 8; got '9'"),
        ({"deadline": -1}, ValueError, f"deadline {SECONDS} -1"),
        (
            {"deadline": 0},
            ValueError,
            "deadline must be more than 0 seconds, else every call fails; None is no deadline",
        ),
        (
            {"deadline": 0.5, "timeout": 0.5},
            ValueError,
            "deadline must be longer than timeout=0.5, for which a lone call waits for company, or the batcher eager; "
            "got 0.5",
        ),
        ({"deadline": "1"}, TypeError, f"deadline {SECONDS} '1'"),
        ({"stall_after": float("inf")}, ValueError, f"stall_after {SECONDS} inf"),
        ({"isolate_errors": 1}, TypeError, "isolate_errors must be True or False; got 1"),
        ({"isolate_errors": True, "should_isolate": 1}, TypeError, "should_isolate must be callable; got 1"),
        ({"should_isolate": bool}, ValueError, "should_isolate must come with isolate_errors=True"),
        ({"name": ""}, TypeError, "name must be a str that is not empty, or None; got ''"),
        ({"name": 7}, TypeError, "name must be a str that is not empty, or None; got 7"),
    ],
)
def test_a_bad_option_is_refused_at_construction(options: dict[str, Any], error: type, message: str) -> None:
    options = {"max_size": 8, "timeout": 0.01} | options
    with pytest.raises(error) as caught:
        UBatch(**options)
    assert str(caught.value) == message
    with pytest.raises(error) as caught:
        ubatch_decorator(**options)
    assert str(caught.value) == message


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="max_sise"):
        UBatch(max_size=8, timeout=0.01, max_sise=1)  # type: ignore[call-arg]


def test_whole_numbers_of_other_types_are_counts_and_seconds() -> None:
    batcher: UBatch[int, int] = UBatch(max_size=np.int64(8), timeout=np.float32(0.5))  # type: ignore[arg-type]
    assert repr(batcher) == "<UBatch 'no handler' max_size=8 timeout=0.5: no handler>"


def test_a_call_without_a_handler_is_refused() -> None:
    batcher: UBatch[int, int] = UBatch(8, 0.01)
    for call in (batcher.ubatch, batcher.submit, lambda x: batcher.map([x]), lambda _: batcher.start()):
        with pytest.raises(HandlerNotSet) as caught:
            call(1)
        assert str(caught.value) == "a handler must be set before the first call: set_handler(handler)"


def test_a_second_handler_is_refused() -> None:
    batcher: UBatch[int, int] = UBatch[int, int](8, 0.01).set_handler(list)
    with pytest.raises(HandlerAlreadySet) as caught:
        batcher.set_handler(sorted)
    assert str(caught.value) == "the handler is 'list' already: make another UBatch"


def test_a_handler_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError) as caught:
        UBatch(8, 0.01).set_handler([1])  # type: ignore[arg-type]
    assert str(caught.value) == "handler must be callable; got [1]"


def test_a_call_that_does_not_fit_the_handler_is_refused_in_its_caller() -> None:
    def handler(a: list[int], *, b: list[int]) -> list[int]:
        return a

    batcher: UBatch[int, int] = UBatch[int, int](8, 0.01).set_handler(handler)
    signature = "the arguments must fit the handler handler(a: 'list[int]', *, b: 'list[int]') -> 'list[int]': "
    for arguments, message in [
        (((1,), {}), signature + "missing a required keyword-only argument: 'b'"),
        (((1, 2), {}), signature + "too many positional arguments"),
        (((1,), {"c": 2}), signature + "missing a required keyword-only argument: 'b'"),
        (((), {}), "a call to 'handler' must have at least one argument; got none"),
    ]:
        args, kwargs = arguments  # type: ignore[misc]
        with pytest.raises(TypeError) as caught:
            batcher.ubatch(*args, **kwargs)  # type: ignore[has-type]
        assert str(caught.value).replace("missing a required argument", "missing a required keyword-only argument") == (
            message
        )
    assert batcher.ubatch(1, b=2) == 1
    batcher.stop()


@pytest.mark.parametrize("timeout", [-1, "1", float("nan")])
def test_a_bad_timeout_of_stop_is_refused(timeout: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="timeout must be a number of seconds, at least 0; got"):
        UBatch[int, int](8, 0.01).set_handler(list).stop(timeout)


def test_a_method_of_a_class_without_weak_references_is_refused() -> None:
    class Slotted:
        __slots__ = ()

        @ubatch_decorator(max_size=8, timeout=0.01)
        def double(self, xs: list[int]) -> list[int]:
            return [2 * x for x in xs]

    with pytest.raises(TypeError) as caught:
        Slotted().double.ubatch(1)
    assert str(caught.value) == (
        "the class of a method under ubatch_decorator must allow weak references; Slotted does not: "
        "add '__weakref__' to its __slots__"
    )


@pytest.mark.parametrize("value", [-1, "1", float("nan"), None])
def test_a_bad_deadline_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught, deadline(value):
        pass
    assert str(caught.value) == f"deadline must be a number of seconds, at least 0; got {value!r}"
