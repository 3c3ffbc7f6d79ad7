"""What a collector's lock guards. It decides, and returns what is to be done as data; the collector does it.

Pure: time is an argument. Nothing here reads a clock, wakes, waits, logs, or calls what a user wrote, and every method
is called with the lock held. So a decision can be tested by a table, without a runtime.

Invariants, whenever the lock is free:

* A request that has not ended is in `pending` or in a batch of `in_flight`, never in both, never in none.
* `task` is the collector's current task; there is one as long as any request is pending.
* While the task sleeps, a call that makes a batch due wakes it: `wake_at_count` is at most the number of pending
  requests at which one is due. While it sleeps for want of a slot, `slot_wanted` says so.
* A drain ends for everybody in `drain_waiters` when nothing is left and no task is.

An exception from outside may break off any method here. The truth is in the state of each request and in `task`; the
rest is made anew from these (`mend`, `recover`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from math import inf
from sys import maxsize
from typing import TYPE_CHECKING, Any, TypeAlias

from .._errors import UBatchError, batcher_is_stopped, deadline_passed, killed, lost, queue_is_full, stopped_before
from .._statistics import Tally
from .batch import Batch
from .options import Options
from .pending import Pending
from .policy import Close
from .request import IN_FLIGHT, PENDING, Ended, Request, end_requests
from .stall import StallWatch

if TYPE_CHECKING:
    from .._runtime import Waiter, Wakeable

NEVER = maxsize  # requests; more than will ever be pending


# What is to be done, outside the lock. `then` is what to do after it. (Slots, and not frozen: both are made for each
# batch, and that costs half of what a NamedTuple does.)


@dataclass(slots=True)
class Sleep:
    """Sleep until the wakeup, or until that time."""

    until: float


@dataclass(slots=True)
class SleepUntilIdle:
    """The same, but no longer than until the loop has nothing else to do. So many requests are pending now."""

    until: float
    pending: int


@dataclass(slots=True)
class Dispatch:
    """Give the batch to the executor."""

    batch: Batch
    then: Action | None = None


@dataclass(slots=True)
class Wake:
    """Wake callers."""

    waiters: list[Wakeable]
    then: Action | None = None


@dataclass(slots=True)
class StartTask:
    """Start the collector's task."""

    task: Task


@dataclass(slots=True)
class WakeCollector:
    """A batch is due."""

    pending: int


@dataclass(slots=True)
class RenewSlots:
    """So many batches were given up while their handlers ran, which may never end: make new slots for those to come."""

    given_up: int


@dataclass(slots=True)
class ReportStall:
    """Tell of batches whose handlers do not come back."""

    batches: list[Batch]
    now: float


@dataclass(slots=True)
class TellInstruments:
    """Tell them of batches that have ended."""

    batches: int


@dataclass(slots=True)
class ReportUnasked:
    """Log errors that nobody asked for."""

    errors: int


@dataclass(slots=True)
class Refuse:
    """The call is refused."""

    error: UBatchError


@dataclass(slots=True)
class WaitForRoom:
    """The queue is full, and the caller patient."""

    pending: int


Action: TypeAlias = (
    Sleep
    | SleepUntilIdle
    | Dispatch
    | Wake
    | StartTask
    | WakeCollector
    | RenewSlots
    | ReportStall
    | TellInstruments
    | ReportUnasked
    | Refuse
    | WaitForRoom
)


class Lifecycle:
    """Whether a batcher is stopped: said here, and nowhere else, for the batcher and all of its collectors."""

    __slots__ = ("stopped",)

    def __init__(self, stopped: bool = False) -> None:
        self.stopped = stopped


class Task:
    """One life of the collector's task. What an earlier one still does, once another is current, counts for nothing."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: dict[str, object] = {}

    def has_begun(self) -> bool:
        """Whether its greenlet or thread has come up."""
        return bool(self._runs)

    def is_run_by(self, who: object) -> bool:
        """Whether `who` was the first to ask: to spawn one twice is harmless."""
        return self._runs.setdefault("by", who) is who


class State:
    """Of one batcher in one process."""

    def __init__(self, name: str, options: Options, lifecycle: Lifecycle) -> None:
        self.name = name
        self.options = options
        self.lifecycle = lifecycle
        self.pending = Pending()
        self.in_flight: list[Batch] = []
        self.task: Task | None = None
        self.tally = Tally()
        self.drain_waiters: dict[Waiter, None] = {}  # in order
        self.room_waiters: dict[Waiter, None] = {}  # who waits for a place in the queue, in order
        self.wake_at_count = NEVER  # pending requests
        self.slot_wanted = False
        self.slot_free_at = -inf  # since when there has been a slot at the handler
        self.loop_was_idle = False  # as `SleepUntilIdle` found it, and meanwhile no call came
        self.earliest_deadline = inf  # of the pending requests, or before that
        self.given_up = 0  # batches whose handlers may hold on to their slots, and nobody waits for them
        self._stalls = StallWatch()

    # A call arrives, or leaves.

    def admit(self, request: Request[Any], patient: bool) -> Action | None:
        """Put a request among the pending ones, and say whom to wake for it, if anybody; or refuse it."""
        if self.lifecycle.stopped or self.pending.count >= self.options.max_queue:
            return self._admit_at_the_limit(request, patient)
        count = self.pending.add(request)
        self.earliest_deadline = min(self.earliest_deadline, request.deadline_at)
        if self.task is None:
            self.task = Task()
            return StartTask(self.task)
        if count >= self.wake_at_count:
            self.wake_at_count = NEVER
            return WakeCollector(count)
        return None

    def withdraw(self, request: Request[Any], error: UBatchError) -> list[Wakeable] | None:
        """End a request with `error`, and return whom to wake; None if it is too late for that."""
        if request._state != PENDING:
            return None
        return self._end_pending([request], error, "abandoned")

    def expire(self, request: Request[Any], now: float) -> list[Wakeable]:
        """The deadline of a request has passed: end it, wherever it is, and return whom to wake."""
        if request._state == PENDING:
            return self._end_late([request], now)
        if request._state == IN_FLIGHT:
            return self._count(end_requests((request,), (self._late_error(now, seen=True),)), "expired").waiters
        return []

    def expire_outside(self, request: Request[Any], now: float) -> UBatchError:
        """The same for one that was never admitted, and waited for that. Returns its error."""
        error = self._late_error(now)
        self._count(end_requests((request,), (error,)), "expired")
        return error

    def has_room(self) -> bool:
        """Whether a call would be accepted, or refused for another reason than that the queue is full."""
        return self.lifecycle.stopped or self.pending.count < self.options.max_queue

    # The collector asks what to do.

    def decide(self, now: float) -> Action | None:
        """What the collector does now; None is to end."""
        self.wake_at_count, self.slot_wanted = NEVER, False
        if self.given_up:
            given_up, self.given_up = self.given_up, 0
            return RenewSlots(given_up)
        if self.options.stall_after != inf:
            stalled = self._stalls.begin(self.in_flight, self.options.stall_after, now)
            if stalled:
                return ReportStall(stalled, now)
        return self._close_or_sleep(now)

    def saw_idle_loop(self, pending: int) -> None:
        """A `SleepUntilIdle` has ended because the loop was idle. By the collector's task alone, without the lock."""
        self.loop_was_idle = self.pending.count == pending

    def _close_or_sleep(self, now: float) -> Dispatch | Wake | Sleep | SleepUntilIdle | None:
        stopped = self.lifecycle.stopped
        # Nothing is left of a drain: the task ends, in the section that decides it, so that the next call after a
        # start() makes another.
        ended = stopped and not self.pending.count
        if ended and not self.in_flight:
            self.task = None
            return None
        # A slot first, then a batch: while all are taken requests gather, and the fullest batch goes when one frees.
        if ended or len(self.in_flight) >= self.options.max_in_flight:
            self.slot_wanted = True
            return self._sleep(inf)
        idle, self.loop_was_idle = self.loop_was_idle, False
        step = self.options.policy.decide(self.pending, now, stopped, idle, self.slot_free_at)
        if isinstance(step, Close):
            return self._close(step, now)
        self.wake_at_count = step.wake_at_count
        if step.or_idle:
            return SleepUntilIdle(step.until, self.pending.count)
        return self._sleep(step.until)

    def _close(self, step: Close, now: float) -> Dispatch | Wake:
        requests = self.pending.head(step.call_form, step.size)
        # In a step of its own, end those whose deadline has passed: nobody waits for their answers.
        if late := [request for request in requests if request.deadline_at <= now]:
            return Wake(self._end_late(late, now))
        # Among those in flight first, then marked so, then off the queue: at no line would a request be in none.
        batch = Batch(requests, step.reason, now, self.options.strategy)
        self.in_flight.append(batch)
        batch.take()
        self.pending.drop(step.call_form, len(requests))
        self.tally.batch_closed(step.reason, [request.accepted_at for request in requests], now, step.size)
        # With nothing left the next step can only be to sleep, so it is decided in this section.
        return Dispatch(batch, None if self.pending.count else self._close_or_sleep(now))

    def _sleep(self, until: float) -> Sleep:
        """Not past the time at which a batch stalls."""
        if self.options.stall_after != inf:
            until = min(until, self._stalls.next_at(self.in_flight, self.options.stall_after))
        return Sleep(until)

    # A batch ends, or all of them do.

    def finish(self, batch: Batch, now: float) -> tuple[list[Wakeable], bool]:
        """The handler has come back. Returns whom to wake, and whether the collector is to be woken too.

        Something from outside may break it off and have it done again:

        1. The batch leaves `in_flight`; an exception comes before the collector is woken.
        2. The executor calls again. The batch is not there any more, so whatever 1. may have left undone is done: every
           waiter is set again, and the collector woken in any case.
        """
        again = batch not in self.in_flight
        if not again:
            batch.timing.ended_at = now
            self.tally.batch_ended(len(batch.requests), now - batch.started_at)
            if len(self.in_flight) == self.options.max_in_flight:
                self.slot_free_at = now
            self.in_flight.remove(batch)
        waiters = self._count(batch.settle(), "raised").waiters
        # The collector has slept for want of a slot. There is one: wake it for a request, or for the end of a drain;
        # else it may sleep on, now for want of requests.
        wake = again
        if self.slot_wanted:
            self.slot_wanted = False
            if self.pending.count or self.lifecycle.stopped:
                wake = True
            else:
                self.wake_at_count = 1
        if self.drain_waiters:
            waiters += self.drain_ended()
        return waiters, wake

    def end_task(self, task: Task) -> list[Wakeable] | None:
        """The collector's task ends: as it should, or killed, or it never came up. None where another is current."""
        if self.task is not None and self.task is not task:
            return None
        self.task = None
        self.wake_at_count, self.slot_wanted = NEVER, False
        waiters = self._fail_pending(killed(self.name))
        for batch in [batch for batch in self.in_flight if batch.begin()]:  # killed on the way to the handler
            batch.error = killed(self.name)
            self.in_flight.remove(batch)
            waiters += self._count(batch.settle(), "closed").waiters
        return waiters + self.drain_ended()

    def fail_all(self, because: str, doomed: list[Request[Any]]) -> tuple[int, list[Wakeable]]:
        """End every request, wherever it is; a handler may still run, for nobody. Returns how many, and whom to wake.

        `doomed` collects them, for who does it again after an exception from outside.
        """
        failed = self.left()
        doomed += self.pending.all()
        doomed += (request for batch in self.in_flight for request in batch.requests)
        self._fail_pending(stopped_before(because))
        for batch in self.in_flight:
            batch.error = lost(because)
            self._count(batch.settle(), "closed")
            self.given_up += 1
        self.in_flight.clear()
        return failed, [waiter for request in doomed for waiter in request._waiters] + self.drain_ended()

    def drain_ended(self) -> list[Wakeable]:
        """Whom to tell that the drain is over, if it is."""
        return list(self.drain_waiters) if self.is_drained() else []

    def is_drained(self) -> bool:
        """Whether a drain is over, or was called off by a start."""
        return not self.lifecycle.stopped or (self.task is None and not self.in_flight)

    # An exception from outside.

    def mend(self) -> None:
        """In the section that it broke off, before another thread can see what it left half done."""
        self.pending.rebuild(lambda request: request._state == PENDING)

    def recover(self, request: Request[Any], error: UBatchError) -> Task | None:
        """It has hit the thread that was about this request, at whatever line. Returns a task to start, if one must be.

        The request ends with `error`, unless it was taken or has ended. The others are pending, and there is a task if
        they need one. A task that has not begun may never do so:

        1. A caller finds no task, makes one, and is hit in `Runtime.spawn`, before the thread was started, or after.
        2. Another is made here. If the first comes up after all, it is not the current one, and ends.
        """
        if request._state == PENDING:
            self._count(end_requests((request,), (error,)), "abandoned")
        self.mend()
        if self.task is not None and not self.task.has_begun():
            self.task = None
        if self.task is None and self.pending.count:
            self.task = Task()
            return self.task
        return None

    # Figures.

    def left(self) -> int:
        """How many requests have not ended."""
        return self.pending.count + self._count_in_flight()

    def counts(self) -> tuple[int, int, bool]:
        """How many requests are pending, how many are in flight, and whether a handler is stalled."""
        return self.pending.count, self._count_in_flight(), any(batch.stalled for batch in self.in_flight)

    def batches_ahead_of(self, request: Request[Any]) -> list[Batch]:
        """The batches of which at least one must end before `request` can; none where there is a slot for it."""
        if request._state == PENDING:
            return list(self.in_flight) if len(self.in_flight) >= self.options.max_in_flight else []
        return [batch for batch in self.in_flight if request in batch.requests]

    def fields(self) -> dict[str, Any]:
        """The fields of a `Statistics` that are known here."""
        policy, options = self.options.policy, self.options
        pending, in_flight, stalled = self.counts()
        return {
            "name": self.name,
            "max_size": policy.max_size,
            "timeout": policy.timeout,
            "eager": policy.eager,
            "max_in_flight": options.max_in_flight,
            "stopped": self.lifecycle.stopped,
            "pending": pending,
            "in_flight": in_flight,
            "stalled": stalled,
            **self.tally.fields(),
        }

    # -----------------------------------------------------------------------------------------------------------------

    def _admit_at_the_limit(self, request: Request[Any], patient: bool) -> Action | None:
        """The batcher is stopped, or the queue full; full of requests that are late, perhaps, and keep others out."""
        now = request.accepted_at
        if now >= self.earliest_deadline:
            return Wake(self._end_all_late(now), self.admit(request, patient))
        if self.lifecycle.stopped:
            self.tally.outcomes["closed"] += 1
            return Refuse(batcher_is_stopped(self.name))
        if patient:
            return WaitForRoom(self.pending.count)
        self.tally.outcomes["rejected"] += 1
        retry_after = self.tally.seconds_for(self.pending.count, self.options.max_in_flight)
        return Refuse(queue_is_full(self.name, self.options.max_queue, retry_after, self._stall_note(now)))

    def _end_all_late(self, now: float) -> list[Wakeable]:
        pending = self.pending.all()
        self.earliest_deadline = min((r.deadline_at for r in pending if r.deadline_at > now), default=inf)
        return self._end_late([request for request in pending if request.deadline_at <= now], now)

    def _end_late(self, requests: list[Request[Any]], now: float) -> list[Wakeable]:
        return self._end_pending(requests, self._late_error(now), "expired") if requests else []

    def _end_pending(self, requests: list[Request[Any]], error: UBatchError, outcome: str) -> list[Wakeable]:
        waiters: list[Wakeable] = []
        for request in requests:
            ended = end_requests((request,), (error,))  # first: `recover` puts the rest right
            self.pending.remove(request)
            self.wake_at_count -= 1  # one less is there, of those that it was counted from
            waiters += self._count(ended, outcome).waiters
        return waiters

    def _fail_pending(self, error: UBatchError) -> list[Wakeable]:
        ended = end_requests(self.pending.all(), repeat(error))
        self.pending = Pending()
        return self._count(ended, "closed").waiters

    def _count(self, ended: Ended, outcome: str) -> Ended:
        """`outcome` is that of the failed ones."""
        if ended.answered:
            self.tally.outcomes["answered"] += ended.answered
        if ended.failed:
            self.tally.outcomes[outcome] += ended.failed
        return ended

    def _late_error(self, now: float, seen: bool = False) -> UBatchError:
        return deadline_passed(self.name, seen, self._stall_note(now))

    def _stall_note(self, now: float) -> str:
        return self._stalls.note(self.in_flight, now)

    def _count_in_flight(self) -> int:
        """Without those whose callers have given up."""
        return sum(not request.done() for batch in self.in_flight for request in batch.requests)
