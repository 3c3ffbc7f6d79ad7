"""Random schedules against the contract.

Every call ends exactly once, with its own answer, in order; the handler sees no request that was cancelled, refused or
late; never more than `max_queue` are pending; with one failing item per batch isolated, its neighbours are answered.
After each step, with a slot free at the handler: no batch is full, no request has waited for longer than the timeout,
none at all is left behind by an eager batcher or by one that stops; whatever other call forms, cancels, deadlines,
stops and restarts there were.
"""

from __future__ import annotations

import re
from typing import Any

import gevent
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ubatch import (
    BadBatchOutputSize,
    BatcherClosed,
    NotProcessed,
    QueueFull,
    ResultLost,
    ResultTimeout,
    UBatch,
    deadline,
)
from ubatch.testing import RecordingHandler, VirtualRuntime

CALL, ODD_CALL, HURRIED_CALL, ADVANCE, OPEN, CANCEL, KILL, STOP, START = range(9)
MAX_QUEUE = 6

OFTEN = [*[CALL] * 6, *[ODD_CALL] * 3, HURRIED_CALL, ADVANCE, OPEN, *[CANCEL] * 3, *[KILL] * 2, STOP, START]
SECONDS = [0.0, 0.5, 1.0, 2.5, 10.0]
STOP_WITHIN = [None, 0.0, 1.0]

steps = st.lists(st.tuples(st.sampled_from(OFTEN), st.integers(0, 59)), max_size=40)


class Poison(Exception):
    pass


def handler(xs: list[tuple[int, int]], odd: list[Any] | None = None) -> list[Any]:
    """Negative values are poison: -1 fails its caller, -2 its batch, -3 makes the output too short."""
    values = [value for _, value in xs]
    if -2 in values:
        raise Poison("batch")
    outputs: list[Any] = [Poison("item") if value == -1 else (key, value * value) for key, value in xs]
    return outputs[:-1] if -3 in values else outputs


class Schedule:
    """Applies steps to a batcher, and knows what each call may come to."""

    def __init__(
        self, runtime: VirtualRuntime, executor: str, max_size: int, places: int, isolate: bool, eager: bool
    ) -> None:
        self.runtime = runtime
        self.gate = runtime.gate()
        self.handler = RecordingHandler(handler, self.gate)
        self.batcher: UBatch[Any, Any] = UBatch(
            max_size,
            1.0,
            eager=eager,
            executor=executor,
            max_in_flight=places,
            max_queue=MAX_QUEUE,
            isolate_errors=isolate,
            stall_after=5.0,
            runtime=runtime,
        ).set_handler(self.handler)
        self.max_size = max_size
        self.places = places
        self.eager = eager
        self.isolate = isolate
        self.requests: list[Any] = []  # (key, value, Request), as accepted
        self.callers: list[Any] = []  # (key, value, Call)
        self.stops: list[Any] = []
        self.keys = 0

    def apply(self, kind: int, argument: Any) -> None:
        if kind in (CALL, ODD_CALL, HURRIED_CALL):
            self.call(argument % 30 - 3, odd=kind == ODD_CALL, hurried=kind == HURRIED_CALL)
        elif kind == ADVANCE:
            self.runtime.advance(SECONDS[argument % 5])
        elif kind == OPEN:
            self.gate.open(argument % 10 + 1)
        elif kind == CANCEL and self.requests:
            self.requests[-1 - argument % min(3, len(self.requests))][2].cancel()  # one of the last: most are pending
        elif kind == KILL and self.callers and self.runtime.name == "gevent":
            self.runtime.settle()  # so that it has begun
            call = self.callers[-1 - argument % min(3, len(self.callers))][2]
            if not call.done:
                call.kill()
        elif kind == STOP:
            self.stops.append(self.runtime.call(self.batcher.stop, STOP_WITHIN[argument % 3]))
            self.runtime.settle()
        elif kind == START:
            try:
                self.batcher.start()
            except BatcherClosed:
                assert not all(stop.done for stop in self.stops)
        self.runtime.settle()
        self.check_that_none_waits_in_vain()

    def check_that_none_waits_in_vain(self) -> None:
        collector = self.batcher._collector_here()
        if collector is None or len(collector._state.in_flight) >= self.places:
            return
        pending = collector._state.pending
        assert all(pending.size(form) < self.max_size for form in pending.forms())
        for request in pending.all():
            assert not self.batcher.stopped
            assert not self.eager
            assert request.accepted_at + self.batcher.timeout > self.runtime.clock()

    def call(self, value: int, odd: bool, hurried: bool) -> None:
        self.keys += 1
        item = (self.keys, value)
        args = (item, None) if odd else (item,)
        if self.keys % 2:
            self.callers.append((*item, self.runtime.call(self.ubatch_within, 2.0 if hurried else 1e6, args)))
            self.runtime.settle()
        else:
            self.runtime.settle()  # so that no batch is being closed
            try:
                self.requests.append((*item, self.batcher.submit(*args)))
            except BatcherClosed:
                assert self.stops
            except QueueFull:
                assert self.pending() == MAX_QUEUE
        assert self.pending() <= MAX_QUEUE

    def ubatch_within(self, seconds: float, args: Any) -> Any:
        with deadline(seconds):
            return self.batcher.ubatch(*args)

    def pending(self) -> int:
        found = re.search(r"(\d+) pending", repr(self.batcher))
        return int(found[1]) if found else 0

    def end(self) -> None:
        self.gate.open()
        self.stops.append(self.runtime.call(self.batcher.stop))
        self.runtime.advance(100.0)

    def check(self) -> None:
        assert all(stop.done and stop.error is None for stop in self.stops)
        batches = [call[0] if isinstance(call, tuple) else call for call in self.handler.calls]
        seen = [key for batch in batches for key, _ in batch]
        assert self.isolate or len(seen) == len(set(seen))
        assert all(len(batch) <= self.max_size for batch in batches)
        assert all([key for key, _ in batch] == sorted(key for key, _ in batch) for batch in batches)
        outcomes = {key: (value, *self.outcome(request)) for key, value, request in self.requests}
        for key, value, call in self.callers:
            assert call.done
            outcomes[key] = (value, call.value, call.error)
        for key, (value, answer, error) in outcomes.items():
            self.check_outcome(key, value, answer, error, seen)
        assert "0 pending, 0 in flight" in repr(self.batcher) or "not called yet" in repr(self.batcher)

    def outcome(self, request: Any) -> tuple[Any, BaseException | None]:
        assert request.done()
        error = request.exception()
        return (None, error) if error else (request.result(), None)

    def check_outcome(self, key: int, value: int, answer: Any, error: Any, seen: list[int]) -> None:
        if error is None:
            assert answer == (key, value * value)
            assert key in seen
        elif isinstance(error, NotProcessed):
            assert key not in seen
        elif isinstance(error, Poison) and error.args == ("item",):
            assert value == -1
        elif isinstance(error, Poison | BadBatchOutputSize | ResultTimeout | ResultLost):
            assert key in seen
        else:
            assert isinstance(error, gevent.GreenletExit)


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_every_call_ends_once_with_its_own_answer(world: tuple[str, str], max_in_flight: int) -> None:
    @settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(steps=steps, max_size=st.integers(1, 5), isolate=st.booleans(), eager=st.booleans())
    def schedule(steps: list[tuple[int, Any]], max_size: int, isolate: bool, eager: bool) -> None:
        running = Schedule(VirtualRuntime(world[0]), world[1], max_size, max_in_flight, isolate, eager)
        try:
            for step in steps:
                running.apply(*step)
        finally:
            running.end()
        running.check()

    schedule()
