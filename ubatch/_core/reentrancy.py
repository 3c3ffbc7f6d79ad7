"""Who comes in the midst of a section that its own thread holds: a signal handler, a finalizer, or a greenlet that one
of these switched to.

It must not wait for the lock, which it would for ever, and must not change what the section has half done. So it reads
what there is, and leaves its change for the end of the section:

1. A call holds the lock. A signal arrives, and its handler calls `submit`, which finds that its own thread holds it.
2. It appends what it wants done to the deferred actions (`defer`), and returns to the section.
3. The section ends, and the thread does what was deferred (`run_deferred`).

One thread at a time does it, so it is done in its order; one that finds the other at it waits for it. A signal in the
midst of that only defers once more: the loop that is running finds it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .._runtime._native import RLock


class Reentrancy:
    """The lock of one collector, native, so that a hub may take it as well as a thread; and what was deferred."""

    __slots__ = ("_running", "deferred", "lock")

    def __init__(self) -> None:
        self.lock = RLock()
        self.deferred: deque[Callable[[], object]] = deque()
        self._running = RLock()

    def is_inside(self) -> bool:
        """Whether this thread holds the lock already: the caller has interrupted a section."""
        return bool(self.lock._is_owned())

    def defer(self, action: Callable[[], object]) -> None:
        """Do it at the end of the section. One step, that allocates next to nothing."""
        self.deferred.append(action)

    def run_deferred(self) -> None:
        """At the end of a section, outside of it: do what was deferred."""
        while self.deferred and not self._running._is_owned():
            with self._running:  # an exception from outside cannot come in between, as it could before a `try`
                while self.deferred:
                    self.deferred.popleft()()
