"""When is a batch due, and what goes into it.

Pure: time is an argument. There is no clock here, no lock, and nothing that waits.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import inf
from typing import NamedTuple

from .pending import Pending


class Close(NamedTuple):
    """A batch is due: the oldest `size` requests of this call form.

    `reason` is "full", "timeout", "idle" or "drain".
    """

    call_form: Hashable
    size: int
    reason: str


class Wait(NamedTuple):
    """Nothing is due before the time `until` (infinity: no such time), nor before `wake_at_count` requests
    are pending.

    With `or_idle` something may be due before that: as soon as the collector's loop has nothing else to do, and no call
    comes then.
    """

    until: float
    wake_at_count: int
    or_idle: bool = False


NOTHING_PENDING = Wait(inf, 1)


class FixedWait:
    """Close a batch when it is full, or when its oldest request has waited for `timeout` seconds.

    A batch has one call form. A form that fills a batch goes ahead of an older request of another form that is not due.

    >>> FixedWait(max_size=2, timeout=5.0).decide(Pending(), now=100.0, draining=False)
    Wait(until=inf, wake_at_count=1, or_idle=False)
    """

    __slots__ = ("max_size", "timeout")
    eager = False

    def __init__(self, max_size: int, timeout: float) -> None:
        self.max_size = max_size
        self.timeout = timeout

    def decide(
        self, pending: Pending, now: float, draining: bool, idle: bool = False, slot_free_at: float = -inf
    ) -> Close | Wait:
        """What to do now, given that there is a slot at the handler, and has been since `slot_free_at`.

        `idle` is what `Wait.or_idle` asked for.
        """
        if not pending.count:
            return NOTHING_PENDING
        # First the form of the oldest request: it is due when it fills a batch, and in a drain at once.
        oldest = pending.oldest()
        form = oldest.call_form
        missing = self.max_size - pending.size(form)
        if missing <= 0 or draining:
            return Close(form, self.max_size, "full" if missing <= 0 else "drain")
        # Then a form that fills a batch, until the oldest is due: from then on the oldest comes before all others.
        due_at = oldest.accepted_at + self.timeout
        largest = pending.largest()
        if largest != form:
            missing = self.max_size - pending.size(largest)
        if missing <= 0 and now < due_at:
            return Close(largest, self.max_size, "full")
        # Last the oldest request with what company it has. Eager, only the time while there was a slot counts as
        # waiting for company, unless a batch of another form is full: no slot is kept free beside that.
        if self.eager and missing > 0:
            due_at = max(due_at, slot_free_at + self.timeout)
        if idle or now >= due_at:
            return Close(form, self.max_size, "idle" if idle else "timeout")
        return Wait(due_at, pending.count + missing, self.eager)


class Eager(FixedWait):
    """Close a batch when it is full, or when no other call can be on the way to it right now.

    That is known when the collector's loop had nothing else to do, and meanwhile no call came (`idle`). A loop that is
    never idle closes a batch when its oldest request has waited for `timeout` seconds while there was a slot for it.

    >>> Eager(max_size=2, timeout=5.0).decide(Pending(), now=100.0, draining=False)
    Wait(until=inf, wake_at_count=1, or_idle=False)
    """

    __slots__ = ()
    eager = True
