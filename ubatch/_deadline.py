"""Deadlines of callers: how long, at most, a call may take from now on in this greenlet or thread."""

from __future__ import annotations

from contextlib import ContextDecorator
from contextvars import ContextVar
from math import inf
from time import monotonic

from ._validation import flag
from ._validation import seconds as checked_seconds


class deadline(ContextDecorator):
    """Bound every call made inside the block, in this greenlet or thread, to so many seconds from now.

    Nested, the earlier deadline wins, unless the inner one is `fresh`: it begins anew, as each message of a websocket
    or each event of a stream does under the deadline of its request. A call whose deadline passes while it is pending
    raises `QueueTimeout`, and the handler never sees it; at the handler, `ResultTimeout`. Calls that a handler makes
    are bound by the latest deadline of its batch. Raises TypeError or ValueError for what is no number of seconds, at
    least 0. It decorates functions as well.

    >>> from ubatch import QueueTimeout, UBatch
    >>> batcher = UBatch[int, int](max_size=8, timeout=60.0).set_handler(list)
    >>> try:
    ...     with deadline(0.01):
    ...         batcher.ubatch(1)
    ... except QueueTimeout as error:
    ...     print(error)
    the deadline passed while the request was pending in 'list': the handler never saw it
    >>> batcher.stop()
    True
    """

    def __init__(self, seconds: float, *, fresh: bool = False) -> None:
        self._seconds = checked_seconds("deadline", seconds)
        self._fresh = flag("fresh", fresh)
        self._before = inf

    def __enter__(self) -> deadline:
        self._before = before = _deadline_at.get()
        at = monotonic() + self._seconds
        try:  # an exception from outside leaves nothing behind
            _deadline_at.set(at if self._fresh else min(at, before))
        except BaseException:
            _deadline_at.set(before)
            raise
        return self

    def lift(self) -> None:
        """End it before the block ends; what was in force outside of the block is in force again.

        In the greenlet or thread that runs the block: such as a view that has found out that its answer is a stream.
        """
        _deadline_at.set(self._before)

    def __exit__(self, *_: object) -> None:
        _deadline_at.set(self._before)

    def _recreate_cm(self) -> deadline:
        """For each call of a function that it decorates."""
        return deadline(self._seconds, fresh=self._fresh)


def pass_on(seconds: float) -> None:
    """In a handler's own context: its batch is waited for that long."""
    _deadline_at.set(monotonic() + seconds)


def time_left(own: float) -> float:
    """Seconds until the earlier of a call's `own` deadline (from now) and the one in force; infinity without any."""
    at = _deadline_at.get()
    return own if at == inf else min(own, at - monotonic())


# ---------------------------------------------------------------------------------------------------------------------

_deadline_at: ContextVar[float] = ContextVar("ubatch_deadline", default=inf)
