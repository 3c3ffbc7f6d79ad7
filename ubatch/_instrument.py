"""The seam for observers: metrics, traces, logs.

An instrument's methods run in the caller, in the collector's own greenlet or thread, or in the handler's: never on the
hub itself, and never under a lock. They may block for a moment, and whatever they raise is logged once per instrument
and method, and harms nothing. What they know of a request or of a batch they keep in its `extensions`. A batcher
without instruments pays nothing for this.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ._runtime._native import allocate_lock

if TYPE_CHECKING:
    from ._core.batch import Batch
    from ._core.request import Request
    from ._statistics import Statistics

METHODS = (
    "batcher_opened",
    "call_made",
    "call_accepted",
    "call_ended",
    "batch_started",
    "handler_started",
    "batch_ended",
    "batcher_closed",
)


class BatcherView(Protocol):
    """What a request, a batch and an instrument know of their batcher, in one process. It keeps the batcher from
    nothing, and outlives it.
    """

    @property
    def name(self) -> str:
        """The name given, or the handler's."""

    @property
    def max_size(self) -> int:
        """The most requests in one handler call."""

    @property
    def timeout(self) -> float:
        """Seconds that the oldest request waits for company, at most."""

    @property
    def eager(self) -> bool:
        """Whether a batch is closed as soon as nobody else can be on the way."""

    @property
    def max_in_flight(self) -> int:
        """How many batches may be at the handler at once."""

    @property
    def max_queue(self) -> int | None:
        """How many requests may be pending; None is no limit."""

    @property
    def deadline(self) -> float | None:
        """Seconds that a call may take; None is no limit."""

    @property
    def gone(self) -> bool:
        """Whether nothing will be counted any more: the batcher is gone, or its loop, and so are its requests."""

    @property
    def of_this_process(self) -> bool:
        """False in a child that a fork has given a copy of its parent's."""

    def clock(self) -> float:
        """Now, in the monotonic seconds of `accepted_at`, `started_at` and `ended_at`."""

    def statistics(self) -> Statistics:
        """The same as `UBatch.statistics`."""


class Instrument:
    """Derive from it and override what you want to see; nothing else is called.

    >>> from ubatch import UBatch
    >>> seen = []
    >>> class Recorder(Instrument):
    ...     def batch_ended(self, batch):
    ...         seen.append((batch.name, len(batch.requests), batch.reason))
    >>> batcher = UBatch[int, int](2, 60.0, instruments=[Recorder()]).set_handler(sorted)
    >>> batcher.map([1, 2])
    [1, 2]
    >>> batcher.stop()
    True
    >>> seen
    [('sorted', 2, 'full')]
    """

    def batcher_opened(self, batcher: BatcherView) -> None:
        """A batcher gets its first call in this process, or the first after its loop has ended. In that caller."""

    def call_made(self, request: Request[Any]) -> None:
        """A call is about to be accepted, or refused. In its caller, and before any batch can hold it."""

    def call_accepted(self, request: Request[Any]) -> None:
        """A call was accepted. In its caller; with threads its batch may have started by then, in another one."""

    def call_ended(self, request: Request[Any]) -> None:
        """A caller has the end of its call in hand, and is about to return or raise. In that caller.

        `request.queue_seconds` and `request.handler_seconds` say how long it took (None for what never began); not
        called for a request of `submit` that nobody asks for its result.
        """

    def batch_started(self, batch: Batch) -> None:
        """A batch was closed and goes to the handler now. In the collector."""

    def handler_started(self, batch: Batch) -> None:
        """The handler is about to run. In its own thread or greenlet, and in its own, empty `contextvars` context.

        A context variable that is set here holds in the handler, and nowhere else.
        """

    def batch_ended(self, batch: Batch) -> None:
        """The handler came back; `batch.error` is what failed all of it, or None. In the collector, shortly after.

        Where the collector has ended before the handler did (killed, or stopped within a time), in a task of its own.
        """

    def batcher_closed(self, batcher: BatcherView) -> None:
        """A batcher was stopped, or is gone, and its last request has ended. In the collector, as its last act.

        It is opened by the next call after a `start`, without another `batcher_opened`.
        """


def native_lock() -> Any:
    """A lock for what an instrument keeps: a native one, whatever gevent has patched, because greenlets and native
    threads may call an instrument at once. To be held for a few steps that wait for nothing.

    >>> with native_lock():
    ...     pass
    """
    return allocate_lock()


class Observers:
    """The instruments of one batcher, by method. False where no instrument overrides any."""

    __slots__ = (*METHODS, "deferred")

    def __init__(self, instruments: Sequence[Instrument]) -> None:
        self.deferred: deque[Batch] = deque()  # that have ended; the collector tells of them
        for method in METHODS:
            overriding = [i for i in instruments if getattr(type(i), method) is not getattr(Instrument, method)]
            setattr(self, method, [_guarded(getattr(instrument, method)) for instrument in overriding])

    def defer_batch_ended(self, batch: Batch) -> bool:
        """Whether the collector has to tell of it. Under its lock."""
        if batch.observed:
            return False
        batch.observed = True
        self.deferred.append(batch)
        return True

    def tell_batch_ended(self) -> None:
        """In the collector, or apart from it where it has ended."""
        while self.deferred:
            batch = self.deferred.popleft()
            for observe in self.batch_ended:
                observe(batch)

    if TYPE_CHECKING:
        call_made: list[Callable[[Any], None]]
        call_accepted: list[Callable[[Any], None]]
        call_ended: list[Callable[[Any], None]]
        batch_started: list[Callable[[Any], None]]
        handler_started: list[Callable[[Any], None]]
        batch_ended: list[Callable[[Any], None]]
        batcher_opened: list[Callable[[Any], None]]
        batcher_closed: list[Callable[[Any], None]]


def debug_log() -> tuple[Instrument, ...]:
    """What writes one line per batch, where the logger "ubatch" wants DEBUG when a batcher starts in a process."""
    logging = sys.modules.get("logging")  # not imported by anyone: then nobody has asked for a log
    if logging is None:
        return ()
    # `getLogger` and `isEnabledFor` take logging's own lock. Where gevent has patched that, an exception from outside
    # may leave it taken, for the whole program.
    manager = logging.root.manager
    named = manager.loggerDict.get("ubatch")
    logger = named if isinstance(named, logging.Logger) else logging.root
    if manager.disable >= logging.DEBUG or logger.getEffectiveLevel() > logging.DEBUG:
        return ()
    return (_DebugLog(logging.getLogger("ubatch").debug),)


# ---------------------------------------------------------------------------------------------------------------------


class _DebugLog(Instrument):
    def __init__(self, debug: Callable[..., None]) -> None:
        self._debug = debug

    def batch_ended(self, batch: Batch) -> None:
        first, size = batch.requests[0], len(batch.requests)
        waited, handled = first.queue_seconds or 0.0, first.handler_seconds or 0.0
        outcome = "answered" if batch.error is None else f"failed with {batch.error!r}"
        line = "%s: a batch of %d (%s) waited %.1f ms, was handled in %.1f ms, %s"
        self._debug(line, batch.name, size, batch.reason, waited * 1e3, handled * 1e3, outcome)


def _guarded(method: Callable[[Any], None]) -> Callable[[Any], None]:
    told = False

    def call(subject: Any) -> None:
        nonlocal told
        try:
            method(subject)
        except Exception:
            if not told:
                told = True
                import logging  # here, because it is seldom needed

                logging.getLogger("ubatch").exception("an instrument must not raise: %r did, told once", method)

    return call
