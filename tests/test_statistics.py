"""What is counted, and who may observe. In virtual time."""

from __future__ import annotations

import dataclasses
import logging
from contextvars import ContextVar
from math import inf
from typing import Any

import pytest

from ubatch import Batch, Histogram, Instrument, QueueFull, Request, UBatch
from ubatch.testing import Gate, RecordingHandler, VirtualRuntime

from .conftest import Harness


def test_a_batcher_that_was_not_called_has_done_nothing() -> None:
    statistics = UBatch[int, int](8, 0.01, name="new").set_handler(list).statistics()
    assert (statistics.calls, statistics.batches, statistics.runtime) == (0, 0, "none yet")
    assert (statistics.cost, statistics.sizes.mean, statistics.queue_seconds.quantile(0.5)) == (None, 0.0, 0.0)


def test_calls_are_counted_by_their_end(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    def handler(xs: list[int]) -> list[Any]:
        return [ValueError(x) if x < 0 else x for x in xs]

    batcher, _ = harness.batcher(handler, gate=gate, max_size=2, max_queue=3, timeout=5.0)
    batcher.submit(1), batcher.submit(-1)
    runtime.settle()
    cancelled = batcher.submit(2)
    batcher.submit(3), batcher.submit(4)
    with pytest.raises(QueueFull):
        batcher.submit(5)
    cancelled.cancel()
    now = batcher.statistics()
    assert (now.in_flight, now.pending, now.calls) == (2, 2, 6)
    gate.open(1)
    runtime.settle()
    runtime.call(batcher.stop, 1.0)
    runtime.advance(1.0)
    end = batcher.statistics()
    assert (end.answered, end.raised, end.rejected, end.abandoned, end.expired, end.closed) == (1, 1, 1, 1, 0, 2)
    assert (end.in_flight, end.pending, end.calls, end.stopped) == (0, 0, 6, True)


def test_expired_calls_are_counted(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=1, deadline=2.0)
    calls = [runtime.call(batcher.ubatch, x) for x in range(2)]
    runtime.advance(2.0)
    assert all(call.done for call in calls)
    gate.open()
    runtime.settle()
    statistics = batcher.statistics()
    assert (statistics.expired, statistics.answered, statistics.calls) == (2, 0, 2)


def test_batches_are_counted_by_the_reason_they_were_closed(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(max_size=2, timeout=5.0)
    for x in range(3):
        batcher.submit(x)
    runtime.advance(5.0)
    batcher.submit(3)
    runtime.call(batcher.stop)
    runtime.settle()
    statistics = batcher.statistics()
    assert statistics.reasons == {"full": 1, "timeout": 1, "drain": 1}
    assert (statistics.batches, statistics.items, statistics.sizes.mean) == (3, 4, 4 / 3)
    assert statistics.fills.counts == (0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0)


def test_waits_and_handler_times_are_measured(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=4, timeout=5.0)
    request = batcher.submit(1)
    runtime.advance(3.0)
    batcher.submit(2)
    runtime.advance(2.0)
    assert (request.queue_seconds, request.handler_seconds) == (5.0, None)
    runtime.advance(7.0)
    gate.open()
    runtime.settle()
    statistics = batcher.statistics()
    assert (statistics.queue_seconds.count, statistics.queue_seconds.sum) == (2, 7.0)
    assert (statistics.handler_seconds.count, statistics.handler_seconds.sum) == (1, 7.0)
    assert (request.queue_seconds, request.handler_seconds) == (5.0, 7.0)
    assert statistics.handler_seconds_by_size[1] == (1, 7.0)


def test_the_cost_is_a_line_fitted_to_sizes_and_times(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=8, timeout=0)
    for size in (1, 2, 4):
        batcher.submit(0)
        runtime.settle()
        for x in range(size):
            batcher.submit(x)
        runtime.advance(3.0 + 0.5 * 1)
        gate.open(1)
        runtime.settle()
        runtime.advance(3.0 + 0.5 * size)
        gate.open(1)
        runtime.settle()
    cost = batcher.statistics().cost
    assert cost is not None
    assert (cost.fixed, cost.per_item) == (pytest.approx(3.0), pytest.approx(0.5))


def test_a_snapshot_is_frozen(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(max_size=1)
    before = batcher.statistics()
    batcher.submit(1)
    runtime.settle()
    assert (before.answered, batcher.statistics().answered) == (0, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.answered = 7  # type: ignore[misc]


@pytest.mark.parametrize(("q", "bound"), [(0.0, 1.0), (0.5, 1.0), (0.75, 1.0), (0.76, 2.0), (1.0, inf)])
def test_a_quantile_is_a_bound_that_this_share_does_not_exceed(q: float, bound: float) -> None:
    assert Histogram((1.0, 2.0), (6, 1, 1), 20.0).quantile(q) == bound


# Observers.


class Log(Instrument):
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def call_accepted(self, request: Request[Any]) -> None:
        self.events.append(("accepted", request.args[0]))

    def call_ended(self, request: Request[Any]) -> None:
        self.events.append(("ended", request.args[0], request.queue_seconds))

    def batch_started(self, batch: Batch) -> None:
        self.events.append(("started", len(batch.requests), batch.reason))

    def batch_ended(self, batch: Batch) -> None:
        self.events.append(("done", batch.name, type(batch.error).__name__))


def test_an_instrument_sees_calls_and_batches(harness: Harness, runtime: VirtualRuntime) -> None:
    log = Log()
    batcher, _ = harness.batcher(max_size=2, instruments=[log], name="seen")
    calls = [runtime.call(batcher.ubatch, x) for x in range(2)]
    runtime.settle()
    assert [call.value for call in calls] == [0, 1]
    calls_seen = {("accepted", 0), ("accepted", 1), ("ended", 0, 0.0), ("ended", 1, 0.0)}
    assert set(log.events) == calls_seen | {("started", 2, "full"), ("done", "seen", "NoneType")}
    assert len(log.events) == 6


def test_an_instrument_sees_every_batch_end_before_stop_returns(harness: Harness, runtime: VirtualRuntime) -> None:
    log = Log()
    batcher, _ = harness.batcher(max_size=2, instruments=[log])
    batcher.submit(1)
    stopping = runtime.call(batcher.stop)
    runtime.settle()
    assert stopping.done
    assert ("done", "recording_handler", "NoneType") in log.events


def test_an_instrument_sees_the_end_of_a_batch_that_outlives_its_batcher(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    log = Log()
    batcher, _ = harness.batcher(gate=gate, max_size=1, instruments=[log])
    batcher.submit(1)
    runtime.settle()
    stopping = runtime.call(batcher.stop, 1.0)
    runtime.advance(1.0)
    assert stopping.done
    assert {event[0] for event in log.events} == {"accepted", "started"}
    gate.open()
    runtime.settle()
    assert log.events[2:] == [("done", "recording_handler", "ResultLost")]


class Broken(Instrument):
    def call_accepted(self, request: Request[Any]) -> None:
        raise RuntimeError("accepted")

    def batch_ended(self, batch: Batch) -> None:
        raise RuntimeError("ended")


def test_what_an_instrument_raises_is_logged_once_and_harms_nothing(
    harness: Harness, runtime: VirtualRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    batcher, _ = harness.batcher(max_size=1, instruments=[Broken()])
    requests = [batcher.submit(x) for x in range(5)]
    runtime.settle()
    assert [request.result() for request in requests] == list(range(5))
    assert len(caplog.records) == 2
    assert all("an instrument must not raise" in record.getMessage() for record in caplog.records)


def test_debug_tells_each_batch_in_one_line(
    harness: Harness, runtime: VirtualRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "ubatch"):
        batcher, _ = harness.batcher(max_size=4, timeout=5.0)
        batcher.submit(1)
        runtime.advance(5.0)
    assert caplog.messages == [
        "recording_handler: a batch of 1 (timeout) waited 5000.0 ms, was handled in 0.0 ms, answered"
    ]


current: ContextVar[str] = ContextVar("current", default="nothing")


class Around(Instrument):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def call_made(self, request: Request[Any]) -> None:
        request.extensions[self] = request.args[0]

    def batch_started(self, batch: Batch) -> None:
        self.events.append([request.extensions[self] for request in batch.requests])

    def handler_started(self, batch: Batch) -> None:
        self.events.append(current.get())
        current.set("the batch")


def test_what_an_instrument_notes_of_a_call_is_there_when_a_batch_has_it(
    harness: Harness, runtime: VirtualRuntime
) -> None:
    around = Around()
    batcher, _ = harness.batcher(max_size=2, instruments=[around])
    batcher.submit(1), batcher.submit(2)
    runtime.settle()
    assert around.events[0] == [1, 2]


def test_a_context_variable_that_an_instrument_sets_holds_in_one_handler_call(
    harness: Harness, runtime: VirtualRuntime
) -> None:
    seen: list[str] = []

    def handler(xs: list[int]) -> list[int]:
        seen.append(current.get())
        return xs

    around = Around()
    batcher, _ = harness.batcher(handler, max_size=1, instruments=[around])
    batcher.submit(1), batcher.submit(2)
    runtime.settle()
    assert seen == ["the batch", "the batch"]
    assert around.events == [[1], "nothing", [2], "nothing"]
    assert current.get() == "nothing"


def test_something_that_is_no_instrument_is_refused() -> None:
    with pytest.raises(TypeError, match="instruments must be Instruments; got 'log'"):
        UBatch[int, int](8, 0.01, instruments=["log"])  # type: ignore[list-item]


def test_stalls_are_told_once_a_minute_at_most(
    harness: Harness, runtime: VirtualRuntime, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=1, stall_after=3.0)
    for x in range(30):
        batcher.submit(x)
        runtime.advance(4.0)
        assert batcher.stalled
        gate.open(1)
        runtime.settle()
    assert len(caplog.records) == 2


def test_statistics_work_with_a_recording_handler(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher: UBatch[int, int] = UBatch(1, 0, runtime=runtime).set_handler(RecordingHandler())
    batcher.submit(1)
    runtime.settle()
    assert batcher.statistics().name == "recording_handler"
