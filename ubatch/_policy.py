"""When is a batch due, and what goes into it.

Pure: time is an argument. There is no clock here, no lock, no queue, and nothing that waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from itertools import islice
from math import inf
from typing import Any, NamedTuple


class Close(NamedTuple):
    """A batch is due: the oldest `size` requests of this shape. `reason` is "full", "timeout", "idle" or "drain"."""

    shape: Hashable
    size: int
    reason: str


class Wait(NamedTuple):
    """Nothing is due before the time `until` (infinity: no such time), nor before `wanted` requests are pending.

    With `or_quiet` something may be due before that: as soon as home has nothing else to do, and no call comes then.
    """

    until: float
    wanted: int
    or_quiet: bool = False


class Pending:
    """The requests that no batch has taken yet, in the order of the calls, apart by shape.

    Adding, removing and taking one request cost the same however many are pending.
    """

    __slots__ = ("_lines", "count")

    def __init__(self) -> None:
        self._lines: dict[Hashable, Line] = {}
        self.count = 0

    def add(self, request: Any) -> int:
        """Append one, and return how many there are then."""
        shape = request.shape
        if shape in self._lines:
            self._lines[shape].requests.append(request)
        else:
            self._lines[shape] = Line(deque((request,)))
        self.count = count = self.count + 1
        return count

    def remove(self, request: Any) -> None:
        """Take out one request, wherever it stands. It must be pending."""
        line = self._lines[request.shape]
        line.remove(request)
        if not line.requests:
            del self._lines[request.shape]
        self.count -= 1

    def head(self, shape: Hashable, most: int) -> list[Any]:
        """The oldest requests of a shape, at most so many."""
        return list(islice(self._lines[shape], most))

    def drop(self, shape: Hashable, most: int) -> None:
        """Take out those that `head` gave: the oldest of a shape, exactly so many."""
        line = self._lines[shape]
        line.drop(most)
        if not line.requests:
            del self._lines[shape]
        self.count -= most

    def take(self, shape: Hashable, most: int) -> list[Any]:
        """Take the oldest requests of a shape, at most so many. Not where an exception may come in between."""
        taken = self.head(shape, most)
        self.drop(shape, len(taken))
        return taken

    def all(self) -> list[Any]:
        """Every one, in the order of shapes."""
        return [request for line in self._lines.values() for request in line]

    def rebuild(self, is_pending: Callable[[Any], bool]) -> None:
        """After an exception in the middle of a change: keep those that are pending, whatever was noted of them."""
        lines: dict[Hashable, Line] = {}
        for shape, line in list(self._lines.items()):
            if requests := deque(request for request in line.requests if is_pending(request)):
                lines[shape] = Line(requests)
        self._lines = lines
        self.count = sum(len(line.requests) for line in lines.values())

    def size(self, shape: Hashable) -> int:
        """How many requests of a shape are pending. There must be one."""
        line = self._lines[shape]
        return len(line.requests) - len(line.removed)

    def largest(self) -> Hashable:
        """The shape of which most are pending. There must be one."""
        lines = self._lines
        return next(iter(lines)) if len(lines) == 1 else max(lines, key=self.size)

    def oldest(self) -> Any:
        """The request that has waited longest. There must be one."""
        if len(self._lines) == 1:
            return next(iter(self._lines.values())).requests[0]
        return min((line.requests[0] for line in self._lines.values()), key=lambda request: request.accepted_at)


NOTHING_REMOVED: set[Any] = set()  # of every line, at first: never added to


class Line:
    """Requests of one shape. What was removed stands in line until it would be the first, or half of the line; so the
    first one never is, and nothing is ever looked for.
    """

    __slots__ = ("removed", "requests")

    def __init__(self, requests: deque[Any]) -> None:
        self.requests = requests
        self.removed = NOTHING_REMOVED

    def __iter__(self) -> Iterator[Any]:
        return iter(self.requests) if not self.removed else (r for r in self.requests if r not in self.removed)

    def remove(self, request: Any) -> None:
        if not self.removed:
            self.removed = set()
        self.removed.add(request)
        if 2 * len(self.removed) > len(self.requests):
            self.requests, self.removed = deque(self), NOTHING_REMOVED
        self._forget_the_first()

    def drop(self, most: int) -> None:
        """Take out the first so many that were not removed."""
        requests, removed = self.requests, self.removed
        if not removed:
            if most == len(requests):
                requests.clear()
                return
            for _ in range(most):
                requests.popleft()
            return
        while most:
            request = requests.popleft()
            if request in removed:
                removed.discard(request)
            else:
                most -= 1
        self._forget_the_first()

    def _forget_the_first(self) -> None:
        while self.removed and self.requests[0] in self.removed:
            self.removed.discard(self.requests.popleft())


NOTHING = Wait(inf, 1)


class FixedWait:
    """Close a batch when it is full, or when its oldest request has waited for `timeout` seconds.

    A batch has one shape. A shape that fills a batch goes ahead of an older request of another shape that is not due.

    >>> FixedWait(max_size=2, timeout=5.0).decide(Pending(), now=100.0, draining=False)
    Wait(until=inf, wanted=1, or_quiet=False)
    """

    __slots__ = ("max_size", "timeout")
    eager = False

    def __init__(self, max_size: int, timeout: float) -> None:
        self.max_size = max_size
        self.timeout = timeout

    def decide(
        self, pending: Pending, now: float, draining: bool, quiet: bool = False, free_at: float = -inf
    ) -> Close | Wait:
        """What to do now, given that there is a place at the handler, and has been since `free_at`.

        `quiet` is what `Wait.or_quiet` asked for.
        """
        if not pending.count:
            return NOTHING
        oldest = pending.oldest()
        shape = oldest.shape
        missing = self.max_size - pending.size(shape)
        if missing <= 0 or draining:
            return Close(shape, self.max_size, "full" if missing <= 0 else "drain")
        due_at = oldest.accepted_at + self.timeout  # from then on the oldest comes before all others
        largest = pending.largest()
        if largest != shape:
            missing = self.max_size - pending.size(largest)
        if missing <= 0 and now < due_at:
            return Close(largest, self.max_size, "full")
        if self.eager and missing > 0:  # while a batch is full, no place is kept free for the company of another
            due_at = max(due_at, free_at + self.timeout)
        if quiet or now >= due_at:
            return Close(shape, self.max_size, "idle" if quiet else "timeout")
        return Wait(due_at, pending.count + missing, self.eager)


class Eager(FixedWait):
    """Close a batch when it is full, or when nobody else can be on the way to it right now.

    Nobody can where home had nothing else to do, and meanwhile no call came (`quiet`). Where that does not come about,
    a batch is closed once its oldest request has waited for `timeout` seconds in vain: while there was a place for it.

    >>> Eager(max_size=2, timeout=5.0).decide(Pending(), now=100.0, draining=False)
    Wait(until=inf, wanted=1, or_quiet=False)
    """

    __slots__ = ()
    eager = True
