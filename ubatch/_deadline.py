"""Deadlines of callers: how long, at most, a call may take from now on in this greenlet or thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from time import monotonic

from ._options import seconds as checked_seconds


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Bound every call made inside the block, in this greenlet or thread, to so many seconds from now.

    Nested, the earlier deadline wins. A call whose deadline passes while it is pending raises `QueueTimeout`, and the
    handler never sees it; at the handler, `ResultTimeout`. Raises TypeError or ValueError for what is no number of
    seconds, at least 0.

    >>> from ubatch import QueueTimeout, UBatch
    >>> batcher = UBatch[int, int](max_size=8, timeout=60.0).set_handler(list)
    >>> try:
    ...     with deadline(0.01):
    ...         batcher.ubatch(1)
    ... except QueueTimeout as error:
    ...     print(error)
    the deadline passed while the request was pending in 'list': the handler never saw it
    >>> batcher.stop()
    """
    at = monotonic() + checked_seconds("deadline", seconds)
    token = _deadline_at.set(min(at, _deadline_at.get()))
    try:
        yield
    finally:
        _deadline_at.reset(token)


def time_left(own: float) -> float:
    """Seconds until the earlier of a call's `own` deadline (from now) and the one in force; infinity without any."""
    at = _deadline_at.get()
    return own if at == inf else min(own, at - monotonic())


# ---------------------------------------------------------------------------------------------------------------------

_deadline_at: ContextVar[float] = ContextVar("ubatch_deadline", default=inf)
