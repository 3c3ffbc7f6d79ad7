"""A handler that does not come back: noticed once per batch, told in the log, and in the messages of those it keeps.

Pure, but for `report`. Its collector's lock guards the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from .._runtime import handler_name
from .batch import Batch

REPORTED_EVERY = 60.0  # seconds, at most; arbitrary: a handler that is always slow must not fill the log


class StallWatch:
    """Which batches have been at the handler for `stall_after` seconds; infinity: none ever has."""

    __slots__ = ("_reported_at",)

    def __init__(self) -> None:
        self._reported_at = -inf

    def next_at(self, batches: Iterable[Batch], stall_after: float) -> float:
        """When the next of them stalls. None does a second time."""
        return min((b.started_at + stall_after for b in batches if not b.stalled), default=inf)

    def begin(self, batches: Iterable[Batch], stall_after: float, now: float) -> list[Batch]:
        """Mark those that stall now, and return them if they shall be reported."""
        begun = [batch for batch in batches if not batch.stalled and batch.started_at + stall_after <= now]
        for batch in begun:
            batch.stalled = True
        if not begun or now - self._reported_at < REPORTED_EVERY:
            return []
        self._reported_at = now
        return begun

    def note(self, batches: Iterable[Batch], now: float) -> str:
        """What to add to the message of a request that was refused, or was late, behind a stalled batch."""
        seconds = max((now - batch.started_at for batch in batches if batch.stalled), default=0.0)
        return f"; it has not come back for {seconds:.1f} seconds" if seconds else ""


def report(batches: Iterable[Batch], now: float) -> None:
    """Log where their handlers are."""
    import logging  # here, because it is seldom needed

    for batch in batches:
        stack = "".join(batch.stack().format()) if batch.stack is not None else ""
        logging.getLogger("ubatch").error(
            "the handler %r has not come back for %.1f seconds, with a batch of %d; it is at:\n%s",
            handler_name(batch.handler), now - batch.started_at, len(batch.requests),
            stack or "(no frame: it runs right now)",
        )  # fmt: skip
