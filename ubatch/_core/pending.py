"""The requests that no batch has taken yet, in the order of the calls.

A request may leave from the middle (cancelled, late), and none is ever looked for: what leaves stays in its queue,
marked, until it would be the first, or until half of the queue is marked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from itertools import islice
from typing import Any


class Pending:
    """One queue for each call form, because a batch has one form.

    Adding, removing and taking one request cost the same however many are pending.
    """

    __slots__ = ("_queues", "count")

    def __init__(self) -> None:
        self._queues: dict[Hashable, Queue] = {}
        self.count = 0

    def add(self, request: Any) -> int:
        """Append one, and return how many there are then."""
        form = request.call_form
        if form in self._queues:
            self._queues[form].requests.append(request)
        else:
            self._queues[form] = Queue(deque((request,)))
        self.count = count = self.count + 1
        return count

    def remove(self, request: Any) -> None:
        """Take out one request, wherever it stands. It must be pending."""
        queue = self._queues[request.call_form]
        queue.remove(request)
        if not queue.requests:
            del self._queues[request.call_form]
        self.count -= 1

    def head(self, form: Hashable, most: int) -> list[Any]:
        """The oldest requests of a form, at most so many."""
        return list(islice(self._queues[form], most))

    def drop(self, form: Hashable, most: int) -> None:
        """Take out those that `head` gave: the oldest of a form, exactly so many."""
        queue = self._queues[form]
        queue.drop(most)
        if not queue.requests:
            del self._queues[form]
        self.count -= most

    def take(self, form: Hashable, most: int) -> list[Any]:
        """Take the oldest requests of a form, at most so many. Not where an exception may come in between."""
        taken = self.head(form, most)
        self.drop(form, len(taken))
        return taken

    def all(self) -> list[Any]:
        """Every one, in the order of call forms."""
        return [request for queue in self._queues.values() for request in queue]

    def rebuild(self, is_pending: Callable[[Any], bool]) -> None:
        """After an exception in the middle of a change: keep those that are pending, whatever was noted of them."""
        queues: dict[Hashable, Queue] = {}
        for form, queue in list(self._queues.items()):
            if requests := deque(request for request in queue.requests if is_pending(request)):
                queues[form] = Queue(requests)
        self._queues = queues
        self.count = sum(len(queue.requests) for queue in queues.values())

    def forms(self) -> list[Hashable]:
        """The call forms of which any are pending."""
        return list(self._queues)

    def size(self, form: Hashable) -> int:
        """How many requests of a form are pending. There must be one."""
        queue = self._queues[form]
        return len(queue.requests) - len(queue.removed)

    def largest(self) -> Hashable:
        """The form of which most are pending. There must be one."""
        queues = self._queues
        return next(iter(queues)) if len(queues) == 1 else max(queues, key=self.size)

    def oldest(self) -> Any:
        """The request that has waited longest. There must be one."""
        if len(self._queues) == 1:
            return next(iter(self._queues.values())).requests[0]
        return min((queue.requests[0] for queue in self._queues.values()), key=lambda request: request.accepted_at)


# ---------------------------------------------------------------------------------------------------------------------


NOTHING_REMOVED: set[Any] = set()  # of every queue, at first: never added to


class Queue:
    """The requests of one call form. The first one is never a removed one, so the oldest is always at hand."""

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
        self._discard_removed_at_the_front()

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
        self._discard_removed_at_the_front()

    def _discard_removed_at_the_front(self) -> None:
        while self.removed and self.requests[0] in self.removed:
            self.removed.discard(self.requests.popleft())
