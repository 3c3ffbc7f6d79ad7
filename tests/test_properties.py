"""Random schedules against the contract, as a state machine of hypothesis that looks at public state alone.

Every call ends exactly once, with its own answer, in order; the handler sees no request that was cancelled, refused or
late; never more than `max_queue` are pending; with one failing item per batch isolated, its neighbours are answered.
After each step, with a slot free at the handler: no batch is full, no request has waited for longer than the timeout,
none at all is left behind by an eager batcher or by one that stops; whatever other call forms, cancels, deadlines,
stops and restarts there were.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import gevent
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ubatch import (
    BadBatchOutputSize,
    Batch,
    BatcherClosed,
    Instrument,
    NotProcessed,
    QueueFull,
    Request,
    ResultLost,
    ResultTimeout,
    UBatch,
    deadline,
)
from ubatch.testing import RecordingHandler, VirtualRuntime

MAX_QUEUE = 6
TIMEOUT = 1.0
VALUES = st.integers(-3, 26)


class Poison(Exception):
    pass


def handler(xs: list[tuple[int, int]], odd: list[Any] | None = None) -> list[Any]:
    """Negative values are poison: -1 fails its caller, -2 its batch, -3 makes the output too short."""
    values = [value for _, value in xs]
    if -2 in values:
        raise Poison("batch")
    outputs: list[Any] = [Poison("item") if value == -1 else (key, value * value) for key, value in xs]
    return outputs[:-1] if -3 in values else outputs


class Seen(Instrument):
    """What a batcher has told of."""

    def __init__(self) -> None:
        self.requests: list[Request[Any]] = []
        self.batches: list[Batch] = []

    def call_accepted(self, request: Request[Any]) -> None:
        self.requests.append(request)

    def batch_started(self, batch: Batch) -> None:
        self.batches.append(batch)

    def pending(self) -> list[Request[Any]]:
        return [request for request in self.requests if request.queue_seconds is None and not request.done()]


class Schedules(RuleBasedStateMachine):
    """Steps for one batcher. It knows what each call may come to."""

    world: tuple[str, str]
    slots: int

    @initialize(max_size=st.integers(1, 5), isolate=st.booleans(), eager=st.booleans())
    def begin(self, max_size: int, isolate: bool, eager: bool) -> None:
        self.runtime = VirtualRuntime(self.world[0])
        self.gate = self.runtime.gate()
        self.handler = RecordingHandler(handler, self.gate)
        self.seen = Seen()
        self.batcher: UBatch[Any, Any] = UBatch(
            max_size,
            TIMEOUT,
            eager=eager,
            executor=self.world[1],
            max_in_flight=self.slots,
            max_queue=MAX_QUEUE,
            isolate_errors=isolate,
            stall_after=5.0,
            instruments=[self.seen],
            runtime=self.runtime,
        ).set_handler(self.handler)
        self.eager, self.isolate, self.max_size = eager, isolate, max_size
        self.requests: list[Any] = []  # (key, value, Request), as accepted
        self.callers: list[Any] = []  # (key, value, Call)
        self.stops: list[Any] = []
        self.stopping: list[Any] = []  # those that were not done at the last look, and whether they have a time
        self.given_up: set[int] = set()  # batches, by id: a stop that gave up has left their handlers running
        self.keys = 0

    # A request of `submit`, a call of `ubatch`; each of either form.

    @rule(value=VALUES, odd=st.sampled_from([False, False, True]))
    def submit(self, value: int, odd: bool) -> None:
        self.runtime.settle()  # so that no batch is being closed
        item, args = self.item(value, odd)
        try:
            self.requests.append((*item, self.batcher.submit(*args)))
        except BatcherClosed:
            assert self.stops
        except QueueFull:
            assert self.batcher.statistics().pending == MAX_QUEUE

    @rule(values=st.lists(VALUES, min_size=1, max_size=4), odd=st.sampled_from([False, False, True]))
    def call(self, values: list[int], odd: bool) -> None:
        self.calls(values, odd, 1e6)

    @rule(value=VALUES)
    def hurried_call(self, value: int) -> None:
        self.calls([value], False, 2.0)

    # Time passes, handlers come back.

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 2.5, 10.0]))
    def advance(self, seconds: float) -> None:
        self.runtime.advance(seconds)

    @rule(passes=st.integers(1, 10))
    def open(self, passes: int) -> None:
        self.gate.open(passes)

    # Callers leave; the latest ones, of which most are pending.

    @precondition(lambda self: self.requests)
    @rule(back=st.integers(0, 2))
    def cancel(self, back: int) -> None:
        self.requests[-1 - min(back, len(self.requests) - 1)][2].cancel()

    @precondition(lambda self: self.callers and self.world[0] == "gevent")
    @rule(back=st.integers(0, 2))
    def kill(self, back: int) -> None:
        self.runtime.settle()  # so that it has begun
        call = self.callers[-1 - min(back, len(self.callers) - 1)][2]
        if not call.done:
            call.kill()

    # The batcher stops and starts.

    @rule(within=st.sampled_from([None, 0.0, 1.0]))
    def stop(self, within: float | None) -> None:
        self.stops.append(self.runtime.call(self.batcher.stop, within))
        self.stopping.append((self.stops[-1], within is not None))

    @rule()
    def start(self) -> None:
        try:
            self.batcher.start()
        except BatcherClosed:
            assert not all(stop.done for stop in self.stops)

    @invariant()
    def none_waits_in_vain(self) -> None:
        self.runtime.settle()
        if any(stop.done and bounded for stop, bounded in self.stopping):
            self.given_up |= {id(batch) for batch in self.seen.batches if batch.ended_at is None and ended(batch)}
        self.stopping = [(stop, bounded) for stop, bounded in self.stopping if not stop.done]
        pending = self.seen.pending()
        assert self.batcher.statistics().pending == len(pending) <= MAX_QUEUE
        at_handler = [batch for batch in self.seen.batches if batch.ended_at is None and id(batch) not in self.given_up]
        if len(at_handler) >= self.slots:
            return
        assert all(n < self.max_size for n in Counter(len(request.args) for request in pending).values())
        for request in pending:
            assert not self.batcher.stopped
            assert not self.eager
            assert request.accepted_at + TIMEOUT > self.runtime.clock()

    def teardown(self) -> None:
        if not hasattr(self, "gate"):
            return
        self.gate.open()
        self.stops.append(self.runtime.call(self.batcher.stop))
        self.runtime.advance(100.0)
        assert all(stop.done and stop.error is None for stop in self.stops)
        batches = [call[0] if isinstance(call, tuple) else call for call in self.handler.calls]
        reached = [key for batch in batches for key, _ in batch]
        assert self.isolate or len(reached) == len(set(reached))
        assert all(len(batch) <= self.max_size for batch in batches)
        assert all([key for key, _ in batch] == sorted(key for key, _ in batch) for batch in batches)
        outcomes = {key: (value, *outcome(request)) for key, value, request in self.requests}
        for key, value, call in self.callers:
            assert call.done
            outcomes[key] = (value, call.value, call.error)
        for key, (value, answer, error) in outcomes.items():
            check_outcome(key, value, answer, error, reached)
        statistics = self.batcher.statistics()
        assert (statistics.pending, statistics.in_flight) == (0, 0)

    # ---------------------------------------------------------------------------------------------------------------

    def item(self, value: int, odd: bool) -> tuple[tuple[int, int], tuple[Any, ...]]:
        self.keys += 1
        item = (self.keys, value)
        return item, (item, None) if odd else (item,)

    def calls(self, values: list[int], odd: bool, seconds: float) -> None:
        for value in values:
            item, args = self.item(value, odd)
            self.callers.append((*item, self.runtime.call(self.ubatch_within, seconds, args)))
            self.runtime.settle()

    def ubatch_within(self, seconds: float, args: Any) -> Any:
        with deadline(seconds):
            return self.batcher.ubatch(*args)


def ended(batch: Batch) -> bool:
    return all(request.done() for request in batch.requests)


def outcome(request: Any) -> tuple[Any, BaseException | None]:
    assert request.done()
    error = request.exception()
    return (None, error) if error else (request.result(), None)


def check_outcome(key: int, value: int, answer: Any, error: Any, reached: list[int]) -> None:
    if error is None:
        assert answer == (key, value * value)
        assert key in reached
    elif isinstance(error, NotProcessed):
        assert key not in reached
    elif isinstance(error, Poison) and error.args == ("item",):
        assert value == -1
    elif isinstance(error, Poison | BadBatchOutputSize | ResultTimeout | ResultLost):
        assert key in reached
    else:
        assert isinstance(error, gevent.GreenletExit)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_every_call_ends_once_with_its_own_answer(world: tuple[str, str], max_in_flight: int) -> None:
    machine = type("Schedules", (Schedules,), {"world": world, "slots": max_in_flight})
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    steps = settings(max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=checks)
    run_state_machine_as_test(machine, settings=steps)
