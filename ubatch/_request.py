"""A request, one pending call, and a batch, the requests of one handler call.

Guarantees:

* A request ends exactly once: with an output or with an error. It is pending, then in flight, then done; or pending,
  then done.
* Its state changes under its collector's lock and nowhere else. Reading it needs no lock: it only goes forward.
* A batch is closed when it is made. It is never opened again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Set
from contextvars import Context, ContextVar
from itertools import repeat
from math import inf
from traceback import StackSummary
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from ._deadline import pass_on
from ._errors import (
    DeadlineExceeded,
    HandlerAborted,
    ReentrantCall,
    RequestCancelled,
    ResultLost,
    clear_our_frames,
    copied,
    for_caller,
    forget_frames,
    through_a_handler,
    without_our_frames,
)
from ._runtime import handler_name, stack_of_caller

if TYPE_CHECKING:
    from ._collector import Collector
    from ._runtime import Waiter, Wakeable

Out = TypeVar("Out")

PENDING, IN_FLIGHT, ANSWERED, FAILED, FAILED_ALONE = range(5)  # alone: with an error that nobody else has
NO_TIME = 1e-9  # seconds; less than a clock tells, and more than the error of a difference of floats


class Noted:
    """What instruments may write on. It takes no space until one does."""

    __slots__ = ("_notes",)
    _notes: dict[Any, Any]

    @property
    def notes(self) -> dict[Any, Any]:
        """For instruments, each under a key of its own."""
        try:
            return self._notes
        except AttributeError:
            self._notes = {}
            return self._notes


class Request(Noted, Generic[Out]):
    """One call, waiting for its answer: what `UBatch.submit` returns."""

    __slots__ = (
        "_outcome",
        "_state",
        "_waiters",
        "accepted_at",
        "args",
        "collector",
        "deadline_at",
        "handler",
        "kwargs",
        "shape",
        "timing",
    )

    def __init__(
        self,
        collector: Collector,
        handler: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shape: Hashable,
        accepted_at: float,
        deadline_at: float,
    ) -> None:
        self.collector = collector
        self.handler = handler
        self.args = args
        self.kwargs = kwargs
        self.shape = shape
        self.accepted_at = accepted_at
        self.deadline_at = deadline_at
        self.timing: Timing | None = None
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
        return self.collector.withdraw(self, RequestCancelled("the request was cancelled"))

    def cancelled(self) -> bool:
        """Whether `cancel` ended the request."""
        return self._state == FAILED and type(self._outcome) is RequestCancelled

    def add_done_callback(self, function: Callable[[Request[Out]], object]) -> None:
        """Have `function(request)` called once the request has ended, at once where it has.

        It is called in a task of its own, a greenlet at home or a thread, one function after the other. It may wait,
        for another call of the same batcher as well. What it raises is logged.

        Raises ResultLost for a request that was made before a fork, in another process.
        """
        if not self.collector.is_current():
            raise self._elsewhere()
        callback = _Callback(self, function)
        if not self._add_waiter(callback):
            callback.call()

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
        return f"<Request to {self.collector.name!r}: {state}>"

    # -----------------------------------------------------------------------------------------------------------------

    def expect(self) -> Waiter:
        """A waiter for the caller, ahead of `answer`. Before the request is accepted, so nobody else knows it yet."""
        waiter = self.collector.waiter()
        self._waiters = (waiter,)
        return waiter

    def answer(self, waiter: Waiter) -> Out:
        """Wait for the end, however long, and return the output or raise. For the one caller who made the request."""
        try:
            if self.deadline_at != inf or _running.get() is not None:
                self._wait(waiter)
            while self._state < ANSWERED:  # whatever else may switch to this greenlet
                waiter.get()
        except BaseException:  # the caller gives up: killed, timed out, interrupted
            self.cancel()
            raise
        try:
            return self._outcome_for_caller()
        finally:
            self._outcome = None  # an error that is raised holds this frame: no circle

    def end(self, state: int, outcome: Any) -> tuple[Wakeable, ...]:
        """Set the outcome, unless there is one, and return whom to wake. Under the lock."""
        if self._state >= ANSWERED:
            return ()
        self._outcome = outcome
        self._state = state
        return self._waiters

    def _await(self, timeout: float | None) -> None:
        if self._state >= ANSWERED:
            return
        collector = self.collector
        if not collector.is_current():
            raise self._elsewhere()
        collector.refuse_to_wait()
        until = inf if timeout is None else collector.clock() + timeout
        waiter = collector.runtime.waiter()
        if not self._add_waiter(waiter):
            return
        try:
            if until >= self.deadline_at:
                self._wait(waiter)
                return
            while self._state < ANSWERED:
                left = until - collector.clock()
                if left <= NO_TIME:
                    where = "waiting for a batch" if self._state == PENDING else "at the handler"
                    raise DeadlineExceeded(f"no answer within {timeout} seconds: the request is still {where}")
                waiter.wait(left)
        finally:
            if self._state < ANSWERED:
                self._remove_waiter(waiter)

    def _elsewhere(self) -> ResultLost:
        return ResultLost("the call was made in another process, before a fork: only that one can answer it")

    def _add_waiter(self, waiter: Wakeable) -> bool:
        """Whether there is anything left to wait for."""
        with self.collector.lock:
            waits = self._state < ANSWERED
            if waits:
                self._waiters += (waiter,)
        self.collector.catch_up()
        return waits

    def _remove_waiter(self, waiter: Waiter) -> None:
        with self.collector.lock:
            self._waiters = tuple(other for other in self._waiters if other is not waiter)
        self.collector.catch_up()

    def _wait(self, waiter: Waiter) -> None:
        """Park the caller until the request ends; at its deadline, end it."""
        while self._state < ANSWERED and self.deadline_at - self.collector.clock() > NO_TIME:
            self.wait_once(waiter)
        if self._state < ANSWERED:
            self.collector.expire(self)
        while self._state < ANSWERED:  # whatever else may switch to this greenlet
            waiter.get()

    def wait_once(self, waiter: Waiter) -> None:
        """Park the caller until `waiter` is woken, or the deadline has passed, or something else switches to it.

        Raises ReentrantCall in a handler for which the request would wait for ever.
        """
        if self.deadline_at != inf:
            waiter.wait(max(0.0, self.deadline_at - self.collector.clock()))
        elif (batch := _running.get()) is not None:
            batch.wait_for(self, waiter)
        else:
            waiter.get()

    def _outcome_for_caller(self) -> Out:
        for observe in self.collector.observers.call_ended:
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
        if self._state >= FAILED and not self._asked and type(self._outcome) is not RequestCancelled:
            self.collector.nobody_asked(self._outcome)


class _Callback:
    """Stands among a request's waiters, and is set like one."""

    __slots__ = ("_function", "_request")

    def __init__(self, request: Request[Any], function: Callable[[Any], object]) -> None:
        self._request = request
        self._function = function

    def set(self) -> None:
        self._request.collector.call_back(self)

    def call(self) -> None:
        try:
            self._function(self._request)
        except Exception:
            import logging  # here, because it is seldom needed

            logging.getLogger("ubatch").exception("a done callback must not raise: %r did", self._function)


class Timing:
    """When a batch was closed, and when its handler came back. Its requests share it, and not the batch, which would
    hold them in a circle.
    """

    __slots__ = ("ended_at", "started_at")

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
        self.ended_at: float | None = None


class Batch(Noted):
    """Requests of one shape, closed: one call of the handler. Made and settled under the collector's lock.

    `strategy(call, requests)` makes the call, or several of them: see `plainly`.
    """

    __slots__ = (
        "_outputs",
        "_own",
        "_strategy",
        "_unbegun",
        "_waits_for",
        "error",
        "reason",
        "requests",
        "shown",
        "stack",
        "stalled",
        "timing",
    )

    def __init__(self, requests: list[Request[Any]], reason: str, started_at: float, strategy: Strategy) -> None:
        self.timing = Timing(started_at)
        self.requests = requests
        self.reason = reason
        self.shown = False  # to who observes its end, or about to be
        self.stalled = False
        self.stack: Callable[[], StackSummary] | None = None
        self.error: Exception | None = None
        self._strategy = strategy
        self._outputs: list[Any] | None = None
        self._waits_for: Request[Any] | None = None
        self._unbegun = [None]
        self._own: Set[int] = frozenset()  # errors of one request alone

    def take(self) -> None:
        """The requests are in flight from now on. Under the collector's lock."""
        for request in self.requests:
            request.timing = self.timing
            request._state = IN_FLIGHT

    def begin(self) -> bool:
        """True for the first who asks, in whatever thread: to run the batch, or to give it up."""
        try:
            self._unbegun.pop()
        except IndexError:
            return False
        return True

    def run(self) -> None:
        """Call the handler and keep what comes of it. Raises nothing but `KeyboardInterrupt`, which it keeps as well.

        The handler runs in an empty context: nothing of one caller's request must be in force for another's.
        """
        if not self.begin():  # given up
            return
        try:
            self._keep(Context().run(self._call))
        except Exception as error:
            without_our_frames(error)
            clear_our_frames(error)
            self.error = through_a_handler(error, handler_name(self.handler))
        except BaseException as error:
            without_our_frames(error)
            clear_our_frames(error)
            self.error = HandlerAborted(f"the handler {_name(self.handler)} ended with {error!r}")
            self.error.__cause__ = error
            if isinstance(error, KeyboardInterrupt):
                raise
        finally:
            del self  # the handler's frame keeps this one, and what it refers to

    def _keep(self, outputs: list[Any]) -> None:
        errors = [(at, output) for at, output in enumerate(outputs) if isinstance(output, Exception)]
        if errors:
            counts = Counter(id(error) for _, error in errors)
            for at, error in errors:
                if not without_our_frames(error) and error.__traceback__ is not None:
                    forget_frames(error)  # the handler's, which hold this very exception among its outputs
                clear_our_frames(error)
                outputs[at] = through_a_handler(error, handler_name(self.handler))
            self._own = {id(outputs[at]) for at, error in errors if counts[id(error)] == 1}
        self._outputs = outputs

    def run_watched(self) -> None:
        """`run`, such that `stack` tells where the handler is."""
        self.stack = stack_of_caller()
        try:
            self.run()
        finally:
            del self  # as there

    def settle(self) -> Settled:
        """Give each request its outcome. Under the lock."""
        if self._outputs is None and self.error is None:
            self.error = HandlerAborted(f"the handler {_name(self.handler)} was killed")
        waiters: list[Wakeable] = []
        answered = failed = 0
        for request, output in zip(self.requests, self._outputs or repeat(self.error), strict=False):
            if request._state == IN_FLIGHT:  # else its caller has given up, or this was interrupted and is done again
                request._outcome = output  # before the state, which is read without the lock
                if isinstance(output, Exception):
                    failed += 1
                    request._state = FAILED_ALONE if id(output) in self._own else FAILED
                else:
                    answered += 1
                    request._state = ANSWERED
            waiters += request._waiters
        return Settled(waiters, answered, failed)

    def wait_for(self, request: Request[Any], waiter: Waiter) -> None:
        """Park, inside the handler, for a request of this or of another batcher; refuse where that can never end."""
        self._waits_for = request
        try:
            if _never_ends(request, {self}):
                raise ReentrantCall(
                    f"the handler {_name(self.handler)} waits for its own batcher, which has no place left to answer: "
                    "call the function directly, or give the batcher a higher max_in_flight"
                )
            waiter.get()
        finally:
            self._waits_for = None

    @property
    def name(self) -> str:
        """The batcher's name."""
        return self.requests[0].collector.name

    @property
    def started_at(self) -> float:
        """When it was closed, in the runtime's monotonic seconds."""
        return self.timing.started_at

    @property
    def handler(self) -> Callable[..., Any]:
        """The handler of all of these requests."""
        return self.requests[0].handler

    def _call(self) -> list[Any]:
        collector = self.requests[0].collector
        _running.set(self)
        if self.requests[0].deadline_at != inf:  # else not all have one
            latest = max(request.deadline_at for request in self.requests)
            if latest != inf:
                pass_on(latest - collector.clock())
        for observe in collector.observers.handler_started:
            observe(self)
        return self._strategy(collector.handle, self.requests)


def plainly(call: Callable[[list[Request[Any]]], list[Any]], requests: list[Request[Any]]) -> list[Any]:
    """The strategy of calling the handler once."""
    return call(requests)


class Settled(NamedTuple):
    """What came of a batch: whom to wake, and how many of its requests ended just now, and how."""

    waiters: list[Wakeable]
    answered: int
    failed: int


Strategy = Callable[[Callable[[list[Request[Any]]], list[Any]], list[Request[Any]]], list[Any]]

_running: ContextVar[Batch | None] = ContextVar("ubatch_running", default=None)  # in a handler: the batch it runs


def running_batch() -> Batch | None:
    """The batch whose handler makes this call, if one does."""
    return _running.get()


# ---------------------------------------------------------------------------------------------------------------------


def _never_ends(request: Request[Any], waiting: set[Batch]) -> bool:
    """Whether `request` waits, through whatever chain, for handlers that all wait themselves.

    Between two threads that find themselves in each other's way at once: each has said what it waits for before it
    looks, so at least one of them sees both.
    """
    if request.done():
        return False
    batches = request.collector.batches_ahead_of(request)
    return bool(batches) and all(batch in waiting or _is_stuck(batch, waiting) for batch in batches)


def _is_stuck(batch: Batch, waiting: set[Batch]) -> bool:
    request = batch._waits_for
    return request is not None and _never_ends(request, waiting | {batch})


def _name(handler: Callable[..., Any]) -> str:
    return repr(handler_name(handler))
