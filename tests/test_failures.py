"""Nobody hangs: whatever a handler or a caller does, each call ends, and the next batch runs. In virtual time."""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import gevent
import numpy as np
import pytest
from gevent.event import Event
from greenlet import greenlet

from ubatch import (
    BadBatchOutput,
    BadBatchOutputSize,
    HandlerAborted,
    NotProcessed,
    QueueClosed,
    ReentrantCall,
    UBatch,
)
from ubatch._runtime._gevent import GeventRuntime
from ubatch.testing import Gate, VirtualRuntime

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


# Handlers that wait for themselves.


def test_a_handler_that_waits_for_its_own_batcher_is_refused(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(lambda xs: [batcher.ubatch(x + 1) for x in xs], max_size=1)
    request = batcher.submit(1)
    runtime.settle()
    error = request.exception()
    assert type(error) is ReentrantCall
    assert "'recording_handler' waits for its own batcher" in str(error)
    assert calls == [[1]]
    assert "0 pending" in repr(batcher)


def test_a_handler_that_finds_a_free_slot_is_answered(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(
        lambda xs: [x if x == 0 else batcher.ubatch(x - 1) for x in xs], max_size=1, max_in_flight=3
    )
    shallow, deep = batcher.submit(2), None
    runtime.settle()
    assert shallow.result() == 0
    deep = batcher.submit(3)
    runtime.settle()
    assert isinstance(deep.exception(), ReentrantCall)


def test_two_handlers_that_wait_for_each_other_are_found(harness: Harness, runtime: VirtualRuntime) -> None:
    ping, _ = harness.batcher(lambda xs: [pong.ubatch(x) for x in xs], max_size=1)
    pong, _ = harness.batcher(lambda xs: [ping.ubatch(x) for x in xs], max_size=1)
    request = ping.submit(1)
    runtime.settle()
    assert isinstance(request.exception(), ReentrantCall)


def test_slots_that_wait_for_each_other_are_found(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    def handler(xs: list[int]) -> list[int]:
        if xs[0] < 10:
            gate.pass_through()
            return [batcher.ubatch(xs[0] + 10)]
        return xs

    batcher, _ = harness.batcher(handler, max_size=1, max_in_flight=2)
    requests = [batcher.submit(1), batcher.submit(2)]
    runtime.settle()
    gate.open()
    runtime.settle()
    outcomes = sorted(type(request.exception()).__name__ for request in requests)
    assert outcomes in (["NoneType", "ReentrantCall"], ["ReentrantCall", "ReentrantCall"])


def test_a_handler_may_wait_for_another_batcher(harness: Harness, runtime: VirtualRuntime) -> None:
    inner, _ = harness.batcher(lambda xs: [x + 1 for x in xs], max_size=1)
    outer, _ = harness.batcher(lambda xs: [inner.ubatch(x) for x in xs], max_size=1)
    request = outer.submit(1)
    runtime.settle()
    assert request.result() == 2


def test_a_handler_may_submit_to_its_own_batcher_without_waiting(harness: Harness, runtime: VirtualRuntime) -> None:
    later: list[Any] = []

    def handler(xs: list[int]) -> list[int]:
        later.extend(batcher.submit(x + 10) for x in xs if x < 10)
        return xs

    batcher, calls = harness.batcher(handler, max_size=1)
    batcher.submit(1)
    runtime.settle()
    assert later[0].result() == 11
    assert calls == [[1], [11]]


def test_a_handler_that_waits_for_its_own_stop_is_refused(harness: Harness, runtime: VirtualRuntime) -> None:
    def handler(xs: list[int]) -> list[int]:
        batcher.stop()
        return xs

    batcher, _ = harness.batcher(handler, max_size=1)
    request = batcher.submit(1)
    runtime.settle()
    assert isinstance(request.exception(), ReentrantCall)


# Callers and collectors that are killed.

gevent_only = pytest.mark.parametrize(
    "world", [("gevent", "auto"), ("gevent", "native"), ("gevent", "greenlet")], ids="-".join, indirect=True
)


@gevent_only
def test_a_killed_caller_leaves_the_queue(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(timeout=5.0)
    callers = [runtime.call(batcher.ubatch, x) for x in range(3)]
    runtime.settle()
    callers[1].kill()
    runtime.settle()
    assert isinstance(callers[1].error, gevent.GreenletExit)
    runtime.advance(5.0)
    assert calls == [[0, 2]]
    assert [callers[0].value, callers[2].value] == [0, 2]


@gevent_only
def test_a_caller_in_a_gevent_timeout_leaves_the_queue(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(timeout=5.0)
    caller = runtime.call(batcher.ubatch, 0)
    runtime.settle()
    caller.kill(gevent.Timeout(1))
    runtime.settle()
    assert isinstance(caller.error, gevent.Timeout)
    runtime.advance(5.0)
    assert calls == []


@gevent_only
def test_a_caller_that_is_killed_while_its_batch_runs_harms_nobody(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, calls = harness.batcher(gate=gate, max_size=2)
    callers = [runtime.call(batcher.ubatch, x) for x in range(2)]
    runtime.settle()
    callers[0].kill()
    runtime.settle()
    gate.open()
    runtime.settle()
    assert callers[1].value == 1
    assert calls == [[0, 1]]


def greenlets_named(start: str) -> list[Any]:
    everything = gc.get_objects()  # asked for their type: `isinstance` would follow a proxy whose object is gone
    living = [g for g in everything if issubclass(type(g), greenlet) and not g.dead]
    return [g for g in living if getattr(g, "name", "").startswith(start)]


@gevent_only
def test_a_killed_collector_fails_the_pending_and_the_next_call_starts_another(
    harness: Harness, runtime: VirtualRuntime
) -> None:
    batcher, calls = harness.batcher(timeout=5.0, name="killed")
    request = batcher.submit(1)
    runtime.settle()
    (collector,) = greenlets_named("ubatch-collector:killed")
    collector.kill()
    runtime.settle()
    assert type(request.exception()) is NotProcessed
    again = batcher.submit(2)
    runtime.advance(5.0)
    assert again.result() == 2
    assert calls == [[2]]


@gevent_only
def test_a_batch_survives_its_collector(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=1, name="survivor")
    request = batcher.submit(1)
    runtime.settle()
    (collector,) = greenlets_named("ubatch-collector:survivor")
    collector.kill()
    stopping = runtime.call(batcher.stop)
    runtime.settle()
    assert not stopping.done
    gate.open()
    runtime.settle()
    assert request.result() == 1
    assert stopping.done


@pytest.mark.parametrize("world", [("gevent", "greenlet")], ids="-".join, indirect=True)
def test_a_killed_handler_greenlet_fails_its_batch_and_frees_the_slot(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=1, name="victim")
    request = batcher.submit(1)
    runtime.settle()
    (handler,) = greenlets_named("ubatch-handler:victim")
    gevent.kill(handler)
    runtime.settle()
    assert isinstance(request.exception(), HandlerAborted)
    gate.open()
    again = batcher.submit(2)
    runtime.settle()
    assert again.result() == 2


class Worked:
    """Batches run one after the other by the executor "greenlet", each from a callback of the loop."""

    def __init__(self) -> None:
        self.executor = GeventRuntime().executor("greenlet", 1, "worker")
        self.ended = 0
        self.greenlets: list[int] = []  # that the jobs ran in, by identity

    def run(self, job: Callable[[], object]) -> None:
        def kept() -> None:
            self.greenlets.append(id(gevent.getcurrent()))
            job()

        self.executor.start(kept, self.end, list)
        gevent.idle()

    def end(self) -> None:
        self.ended += 1


def test_a_handler_greenlet_that_nobody_knows_is_used_again() -> None:
    worked = Worked()
    for job in (lambda: None, gevent.idle, lambda: None, lambda: None):
        worked.run(job)
        gevent.idle()
    assert (worked.ended, len(greenlets_named("worker"))) == (4, 1)
    assert len(set(worked.greenlets)) == 1


def test_what_a_handler_leaves_behind_hits_no_other_batch() -> None:
    worked = Worked()
    left: list[Callable[..., Any]] = []
    go_on = Event()
    hit: list[BaseException] = []

    def waits() -> None:
        try:
            go_on.wait()
        except BaseException as error:
            hit.append(error)
            raise

    worked.run(lambda: left.append(gevent.getcurrent().throw))  # as a running `gevent.Timeout` has it
    worked.run(waits)
    gevent.get_hub().loop.run_callback(left[0], gevent.Timeout(1))
    gevent.idle()
    go_on.set()
    gevent.idle()
    assert (worked.ended, hit) == (2, [])


@pytest.mark.parametrize("strike", [gevent.Timeout(1), gevent.GreenletExit()], ids=repr)
def test_a_strike_between_two_batches_ends_the_greenlet_and_nothing_else(
    strike: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    worked = Worked()
    worked.run(lambda: None)
    gevent.kill(greenlets_named("worker")[0], strike)
    gevent.idle()
    assert greenlets_named("worker") == []
    worked.run(lambda: None)
    assert worked.ended == 2
    assert capfd.readouterr() == ("", "")


def test_a_handler_greenlet_that_was_killed_ends_with_its_batch() -> None:
    worked = Worked()
    killed: list[Any] = []

    def waits() -> None:
        with suppress(gevent.GreenletExit):
            killed.append(gevent.getcurrent())
            Event().wait()

    worked.run(waits)
    gevent.kill(killed[0])
    gevent.idle()
    worked.run(lambda: None)
    assert (worked.ended, len(set(worked.greenlets))) == (2, 2)


def test_no_handler_greenlet_is_left_when_the_batcher_stops() -> None:
    with UBatch[int, int](1, 0, executor="greenlet", runtime="gevent", name="over").set_handler(list) as batcher:
        batcher.ubatch(1)
        assert len(greenlets_named("ubatch-handler:over")) == 1
    assert greenlets_named("ubatch-handler:over") == []


def test_an_executor_that_nobody_needs_takes_its_greenlets_along() -> None:
    worked = Worked()
    worked.run(lambda: None)
    del worked
    gc.collect()
    assert greenlets_named("worker") == []


def test_the_library_logs_nothing_and_prints_nothing_when_a_handler_fails(
    harness: Harness, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO):
        (request,) = submit_and_settle(harness, raising(SystemExit(1)), 1)
        assert request.exception() is not None  # what nobody asks for is logged
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


# A batcher that goes away.


def test_a_batcher_that_nobody_holds_answers_what_it_accepted(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher: UBatch[int, int] = UBatch(4, 5.0, runtime=runtime, executor=harness.executor).set_handler(list)
    request = batcher.submit(1)
    del batcher
    gc.collect()
    runtime.settle()
    assert request.result() == 1


def test_stop_fails_only_the_calls_of_its_own_batcher(harness: Harness, runtime: VirtualRuntime) -> None:
    one, _ = harness.batcher(timeout=5.0)
    two, _ = harness.batcher(timeout=5.0)
    request = two.submit(2)
    runtime.call(one.stop)
    runtime.settle()
    with pytest.raises(QueueClosed):
        one.submit(1)
    runtime.advance(5.0)
    assert request.result() == 2
