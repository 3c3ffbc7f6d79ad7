"""A request: one pending call, and the caller that waits for its answer.

Guarantees:

* A request ends exactly once: with an output or with an error. It is pending, then in flight, then done; or pending,
  then done.
* Its state changes under its collector's lock and nowhere else, and ends in one way (`end_requests`). Reading it needs
  no lock: it only goes forward, and the outcome is there before the state says so.
* A caller parks in one loop (`Request._park`), which asks for the state each time: whatever else may switch to its
  greenlet ends no wait.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence, Set
from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from .._errors import (
    RequestCancelled,
    UBatchError,
    copied,
    for_caller,
    made_in_another_process,
    no_answer_yet,
)
from .._instrument import BatcherView, Observers

if TYPE_CHECKING:
    from .._runtime import Waiter, Wakeable

Out = TypeVar("Out")

PENDING, IN_FLIGHT, ANSWERED, FAILED, FAILED_ALONE = range(5)  # alone: with an error that nobody else has
NO_TIME = 1e-9  # seconds; less than a clock tells, and more than the error of a difference of floats


class Collecting(BatcherView, Protocol):
    """What a request asks of its collector."""

    observers: Observers
    handle: Callable[[list[Any]], list[Any]]

    def batches_ahead_of(self, request: Request[Any]) -> Sequence[Any]:
        """The batches of which at least one must end before the request can."""

    def waiter(self) -> Waiter:
        """A waiter for the caller."""

    def is_current(self) -> bool:
        """Whether this is the process that the call was made in."""

    def refuse_to_wait(self) -> None:
        """Raise ReentrantCall where the caller has interrupted a section of its own thread."""

    def add_waiter(self, request: Request[Any], waiter: Wakeable) -> bool:
        """Have it set when the request ends; False where it has ended."""

    def remove_waiter(self, request: Request[Any], waiter: Wakeable) -> None:
        """The caller waits no more."""

    def withdraw(self, request: Request[Any], error: UBatchError) -> bool:
        """End the request with `error` if no batch has taken it."""

    def expire(self, request: Request[Any]) -> None:
        """Its deadline has passed: end it, wherever it is."""

    def call_back(self, callback: DoneCallback) -> None:
        """Call it, in a task that may wait."""

    def nobody_asked(self, error: Exception) -> None:
        """It was dropped with this error."""


class RunningBatch(Protocol):
    """The batch whose handler makes a call."""

    def wait_for(self, request: Request[Any], waiter: Waiter) -> None:
        """Park inside the handler. Raises ReentrantCall where that would be for ever."""


class Extensible:
    """What instruments may write on. It takes no space until one does."""

    __slots__ = ("_extensions",)
    _extensions: dict[Any, Any]

    @property
    def extensions(self) -> dict[Any, Any]:
        """For instruments, each under a key of its own."""
        try:
            return self._extensions
        except AttributeError:
            self._extensions = {}
            return self._extensions


class Request(Extensible, Generic[Out]):
    """One call, waiting for its answer: what `UBatch.submit` returns."""

    __slots__ = (
        "_collector",
        "_outcome",
        "_state",
        "_waiters",
        "accepted_at",
        "args",
        "call_form",
        "deadline_at",
        "handler",
        "kwargs",
        "timing",
    )

    def __init__(
        self,
        collector: Collecting,
        handler: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        call_form: Hashable,
        accepted_at: float,
        deadline_at: float,
    ) -> None:
        self._collector = collector
        # A decorated method is bound to its instance by each request, so that the instance's batcher, which lives as
        # long as the instance, need not keep it alive.
        self.handler: Callable[..., Any] = handler
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self.call_form: Hashable = call_form
        self.accepted_at: float = accepted_at
        self.deadline_at: float = deadline_at
        self.timing: Timing | None = None  # its batch's
        self._state = PENDING
        self._outcome: Any = None
        self._waiters: tuple[Wakeable, ...] = ()

    def result(self, timeout: float | None = None) -> Out:
        """Return the answer, waiting for it at most `timeout` seconds (None: as long as it takes).

        Raises what the handler raised, or another `UBatchError`; `DeadlineExceeded` when the wait is over before the
        request: it goes on, and may be asked again or cancelled.
        """
        self._await(timeout)
        return self._outcome_for_caller()

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Return the exception that `result` would raise, or None; waits as `result` does."""
        self._await(timeout)
        return self._error() if self._state >= FAILED else None

    def done(self) -> bool:
        """Whether the request has ended."""
        return self._state >= ANSWERED

    def cancel(self) -> bool:
        """Take the request out of the queue: True when the handler will never see it, False when it is too late."""
        return self._collector.withdraw(self, RequestCancelled("the request was cancelled"))

    def cancelled(self) -> bool:
        """Whether `cancel` ended the request."""
        return self._state == FAILED and type(self._outcome) is RequestCancelled

    def add_done_callback(self, function: Callable[[Request[Out]], object]) -> None:
        """Have `function(request)` called once the request has ended, at once where it has.

        It is called in a task of its own, a greenlet of the collector's loop or a thread, one function after the other.
        It may wait, for another call of the same batcher as well. What it raises is logged.

        Raises ResultLost for a request that was made before a fork, in another process.
        """
        if not self._collector.is_current():
            raise made_in_another_process()
        callback = DoneCallback(self, function)
        if not self._collector.add_waiter(self, callback):
            callback.call()

    @property
    def batcher(self) -> BatcherView:
        """The batcher that it was made to: name, limits, `statistics()` and `clock()`."""
        return self._collector

    @property
    def queue_seconds(self) -> float | None:
        """Seconds from the call until a batch took it; None where none has."""
        return None if self.timing is None else self.timing.started_at - self.accepted_at

    @property
    def handler_seconds(self) -> float | None:
        """Seconds that the handler took for its batch; None where it has not come back."""
        timing = self.timing
        return None if timing is None or timing.ended_at is None else timing.ended_at - timing.started_at

    def __repr__(self) -> str:
        state = ("pending", "in flight", "answered", "failed", "failed")[self._state]
        return f"<Request to {self._collector.name!r}: {state}>"

    # -----------------------------------------------------------------------------------------------------------------

    def expect(self) -> Waiter:
        """A waiter for the caller, ahead of `answer`. Before the request is accepted, so nobody else knows it yet."""
        waiter = self._collector.waiter()
        self._waiters = (waiter,)
        return waiter

    def answer(self, waiter: Waiter) -> Out:
        """Wait for the end, however long, and return the output or raise. For the one caller who made the request."""
        try:
            self._park(waiter)
        except BaseException:  # the caller gives up: killed, timed out, interrupted
            self.cancel()
            raise
        try:
            return self._outcome_for_caller()
        finally:
            self._outcome = None  # an error that is raised holds this frame: no circle

    def _await(self, timeout: float | None) -> None:
        """Wait as one of several who may ask for the result."""
        if self._state >= ANSWERED:
            return
        collector = self._collector
        if not collector.is_current():
            raise made_in_another_process()
        collector.refuse_to_wait()
        until = inf if timeout is None else collector.clock() + timeout
        waiter = collector.waiter()
        if not collector.add_waiter(self, waiter):
            return
        try:
            self._park(waiter, until)
        finally:
            if self._state < ANSWERED:
                collector.remove_waiter(self, waiter)
        if self._state < ANSWERED:
            raise no_answer_yet(timeout, seen=self._state != PENDING)

    def _park(self, waiter: Waiter, until: float = inf) -> None:
        """Park the caller until the request has ended, or that time has come. Its deadline ends it.

        1. A greenlet parks here.
        2. Something that it waited for before, and that has kept its `switch`, switches to it.
        3. It is awake, and the request has not ended: so it looks, and parks again.
        """
        unbounded = until == inf and self.deadline_at == inf and running.get() is None
        while self._state < ANSWERED:
            if unbounded:
                waiter.get()
            elif not self.wait_once(waiter, until):
                if until < self.deadline_at:
                    return
                self._collector.expire(self)
                unbounded = True  # it has ended, or will at the end of the section that this thread is in

    def wait_once(self, waiter: Waiter, until: float = inf) -> bool:
        """Park the caller until `waiter` is set, or something else switches to it. False where its time is over.

        Raises ReentrantCall in a handler for which the request would wait for ever.
        """
        until = min(until, self.deadline_at)
        if until != inf:
            left = until - self._collector.clock()
            if left <= NO_TIME:
                return False
            waiter.wait(left)
        elif (batch := running.get()) is not None:
            batch.wait_for(self, waiter)
        else:
            waiter.get()
        return True

    def _outcome_for_caller(self) -> Out:
        for observe in self._collector.observers.call_ended:
            observe(self)
        if self._state >= FAILED:
            raise self._error()
        output: Out = self._outcome
        return output

    def _error(self) -> Exception:
        """The error to raise in a caller."""
        error: Exception = self._outcome
        if self._state == FAILED:
            return for_caller(error)
        # Its own, then copies for who asks again: an error that is raised holds the frames that hold this request.
        self._outcome = copied(error)
        return error


class Submitted(Request[Out]):
    """A request that `submit` has returned. If it fails, and is dropped before anybody asked, that is logged."""

    __slots__ = ("_asked",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._asked = False

    def cancel(self) -> bool:
        self._asked = True  # by who does not want it
        return super().cancel()

    def _error(self) -> Exception:
        self._asked = True
        return super()._error()

    def __del__(self) -> None:
        if getattr(self, "_state", PENDING) < FAILED:  # it has none where `__init__` was interrupted
            return
        if not self._asked and type(self._outcome) is not RequestCancelled:
            self._collector.nobody_asked(self._outcome)


class Timing:
    """When a batch was closed, and when its handler came back. Its requests share it, and not the batch, which would
    hold them in a circle.
    """

    __slots__ = ("ended_at", "started_at")

    def __init__(self, started_at: float) -> None:
        self.started_at: float = started_at
        self.ended_at: float | None = None


class Ended(NamedTuple):
    """Whom to wake, and how many requests ended just now, and how."""

    waiters: list[Wakeable]
    answered: int
    failed: int


def end_requests(requests: Iterable[Request[Any]], outcomes: Iterable[Any], alone: Set[int] = frozenset()) -> Ended:
    """End requests, each with its outcome: an output, or an `Exception`. Under the collector's lock.

    One that has ended keeps the outcome that it has: its caller has given up, or an exception from outside came in the
    midst of this and it is done again. Then its waiters may not have been told: so they are told again. `alone` are the
    ids of errors that one request has for itself.
    """
    waiters: list[Wakeable] = []
    answered = failed = 0
    for request, outcome in zip(requests, outcomes, strict=False):
        if request._state < ANSWERED:
            request._outcome = outcome  # before the state, which is read without the lock
            if isinstance(outcome, Exception):
                failed += 1
                request._state = FAILED_ALONE if id(outcome) in alone else FAILED
            else:
                answered += 1
                request._state = ANSWERED
        waiters += request._waiters
    return Ended(waiters, answered, failed)


class DoneCallback:
    """Stands among a request's waiters, and is set like one."""

    __slots__ = ("_function", "_request")

    def __init__(self, request: Request[Any], function: Callable[[Any], object]) -> None:
        self._request = request
        self._function = function

    def set(self) -> None:
        self._request._collector.call_back(self)

    def call(self) -> None:
        try:
            self._function(self._request)
        except Exception:
            import logging  # here, because it is seldom needed

            logging.getLogger("ubatch").exception("a done callback must not raise: %r did", self._function)


running: ContextVar[RunningBatch | None] = ContextVar("ubatch_running", default=None)  # in a handler: its batch
