"""A batch: the requests of one handler call, from the moment it is closed until each has its outcome.

Guarantees:

* A batch is closed when it is made. It is never opened again, and its handler is called by one task, once (or as often
  as its strategy says).
* Nothing of one caller's request is in force for another's: the handler runs in an empty `contextvars` context, in
  which only the batch itself and its latest deadline are set.
* No frame and no traceback of ours keeps the batch alive when its callers are gone.
* A handler that waits for a request which can never be answered is refused (`Batch.wait_for`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Set
from contextvars import Context
from itertools import repeat
from math import inf
from traceback import StackSummary
from typing import TYPE_CHECKING, Any

from .._deadline import pass_on
from .._errors import (
    HandlerAborted,
    clear_our_frames,
    forget_frames,
    handler_waits_for_itself,
    through_a_handler,
    without_our_frames,
)
from .._runtime import handler_name, stack_of_caller
from .request import FAILED, IN_FLIGHT, Ended, Extensible, Request, Timing, end_requests, running

if TYPE_CHECKING:
    from .._instrument import BatcherView
    from .._runtime import Waiter

HandlerCaller = Callable[[list[Request[Any]]], list[Any]]  # calls the handler for some requests: their outputs
Strategy = Callable[[HandlerCaller, list[Request[Any]]], list[Any]]


def plainly(call: HandlerCaller, requests: list[Request[Any]]) -> list[Any]:
    """The strategy of calling the handler once."""
    return call(requests)


class Batch(Extensible):
    """Requests of one call form, closed: one call of the handler. Made and settled under the collector's lock.

    `strategy(call, requests)` makes the call, or several of them: see `plainly`.
    """

    __slots__ = (
        "_alone",
        "_outputs",
        "_strategy",
        "_unbegun",
        "_waits_for",
        "error",
        "observed",
        "reason",
        "requests",
        "stack",
        "stalled",
        "timing",
    )

    def __init__(self, requests: list[Request[Any]], reason: str, started_at: float, strategy: Strategy) -> None:
        self.timing: Timing = Timing(started_at)
        self.requests: list[Request[Any]] = requests
        self.reason: str = reason
        self.observed: bool = False  # its end, by the instruments; or about to be
        self.stalled: bool = False
        self.stack: Callable[[], StackSummary] | None = None
        self.error: Exception | None = None
        self._strategy = strategy
        self._outputs: list[Any] | None = None
        self._waits_for: Request[Any] | None = None
        self._unbegun = [None]
        self._alone: Set[int] = frozenset()  # errors of one request alone, by id

    @property
    def batcher(self) -> BatcherView:
        """The batcher that its calls were made to: name, limits, `statistics()` and `clock()`."""
        return self.requests[0].batcher

    @property
    def name(self) -> str:
        """The batcher's name."""
        return self.requests[0].batcher.name

    @property
    def handler(self) -> Callable[..., Any]:
        """The handler of all of these requests."""
        return self.requests[0].handler

    @property
    def started_at(self) -> float:
        """When it was closed, in the batcher's monotonic seconds."""
        return self.timing.started_at

    @property
    def ended_at(self) -> float | None:
        """When its handler came back, in the same seconds; None where it has not."""
        return self.timing.ended_at

    @property
    def failed(self) -> int:
        """How many of its requests have ended with an error."""
        return sum(request._state >= FAILED for request in self.requests)

    # -----------------------------------------------------------------------------------------------------------------

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
        """Call the handler and keep what comes of it. Raises only `KeyboardInterrupt`, which it keeps as well."""
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

    def run_watched(self) -> None:
        """`run`, such that `stack` tells where the handler is."""
        self.stack = stack_of_caller()
        try:
            self.run()
        finally:
            del self  # as there

    def settle(self) -> Ended:
        """Give each request its outcome. Under the lock."""
        if self._outputs is None and self.error is None:
            self.error = HandlerAborted(f"the handler {_name(self.handler)} was killed")
        return end_requests(self.requests, self._outputs or repeat(self.error), self._alone)

    def wait_for(self, request: Request[Any], waiter: Waiter) -> None:
        """Park, inside the handler, for a request of this or of another batcher; refuse where that can never end.

        Two handlers, A's and B's, may each call the other's batcher at once:

        1. A's thread notes what it waits for, and then looks: B's handler does not wait. It parks.
        2. B's thread notes what it waits for, and then looks: A's handler waits, for a batch behind B's. It is refused.

        Whatever the order of these four steps, the one who looks last finds both notes. It may be that both do, and
        both are refused.
        """
        self._waits_for = request
        try:
            if _never_ends(request, {self}):
                raise handler_waits_for_itself(_name(self.handler))
            waiter.get()
        finally:
            self._waits_for = None

    def _call(self) -> list[Any]:
        """In the handler's context."""
        collector = self.requests[0]._collector
        running.set(self)
        if self.requests[0].deadline_at != inf:  # else not all have one
            latest = max(request.deadline_at for request in self.requests)
            if latest != inf:
                pass_on(latest - collector.clock())
        for observe in collector.observers.handler_started:
            observe(self)
        return self._strategy(collector.handle, self.requests)

    def _keep(self, outputs: list[Any]) -> None:
        errors = [(at, output) for at, output in enumerate(outputs) if isinstance(output, Exception)]
        if errors:
            counts = Counter(id(error) for _, error in errors)
            for at, error in errors:
                if not without_our_frames(error) and error.__traceback__ is not None:
                    forget_frames(error)  # the handler's, which hold this very exception among its outputs
                clear_our_frames(error)
                outputs[at] = through_a_handler(error, handler_name(self.handler))
            self._alone = {id(outputs[at]) for at, error in errors if counts[id(error)] == 1}
        self._outputs = outputs


def running_batch() -> Batch | None:
    """The batch whose handler makes this call, if one does."""
    batch = running.get()
    return batch if isinstance(batch, Batch) else None


# ---------------------------------------------------------------------------------------------------------------------


def _never_ends(request: Request[Any], waiting: set[Batch]) -> bool:
    """Whether `request` waits, through whatever chain, for handlers that all wait themselves."""
    if request.done():
        return False
    batches = request._collector.batches_ahead_of(request)
    return bool(batches) and all(batch in waiting or _is_stuck(batch, waiting) for batch in batches)


def _is_stuck(batch: Batch, waiting: set[Batch]) -> bool:
    request = batch._waits_for
    return request is not None and _never_ends(request, waiting | {batch})


def _name(handler: Callable[..., Any]) -> str:
    return repr(handler_name(handler))
