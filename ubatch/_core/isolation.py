"""Finding the items that make a handler fail, so that only their callers do: by halves, in groups of a learned size.

How: a part that fails is halved until an item stands alone. When its first half is answered the failing item is in the
second, which needs no call to say so; when the first half fails nothing is known of the second any more, and it goes
back to the untested. Those are tried in groups, as large as the share of bad items, in this batch and in those before
it, makes it worth while: the largest power of two that is not above the number of good items per bad one (F. K. Hwang,
"A Method for Detecting All Defective Members in a Population by Group Testing", JASA 67, 1972). One in three and more,
and each item is tried alone. A batcher that has learned of many bad items begins with such groups.

Guarantees, for a batch of n whose first call has failed:

* No strategy that only sees whether a call fails can do with fewer calls, on average, than n times the entropy of the
  share p of bad items, H(p) = -p·log2 p - (1-p)·log2 (1-p). This one stays within a fifth of that for p from 2 % to
  25 % (`python -m benchmarks.isolation`); at 12 % it makes 39 calls for a batch of 64, where 34 are needed.
* One failing item costs at most 2·⌈log2 n⌉ further calls, k of them at most 2·k·⌈log2 n⌉ + 4, where nothing has been
  learned; and never are there more than 2·n calls.
* A handler that fails for a reason that is not in the items (a database that is down) costs at most six further calls:
  when both halves fail, four single items, spread over the batch, are tried. If each of them fails too, nothing else is
  tried, every caller gets the error of the smallest call that its item was in, and nothing is learned.
* A handler that fails for the size of the batch (out of memory) is answered as soon as the parts are small enough. No
  item is thought to fail that has not failed alone.

It assumes that the handler may be run again with the same items. An output that is not as long as the input counts as
failing; what is no `Exception` (`SystemExit`) ends the search at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .._errors import forget_frames, without_our_frames

T = TypeVar("T")

PROBES = 4  # arbitrary: with half of all items failing, one batch in sixteen is given up too early
REMEMBERED = 512  # items; arbitrary: by then a rate of a few in a hundred is known to a third of itself
WEIGHT = 0.25  # of what was learned before, in batches; with much more a change of the rate costs more than 2·n calls


class Isolation:
    """The strategy of one batcher, and what it has learned of its items.

    Several batches may run at once: then one's lesson may be lost.
    """

    def __init__(self, should_isolate: Callable[[Exception], bool]) -> None:
        self._should_isolate = should_isolate
        self._share = 0.0  # of bad items
        self._seen = 0  # items that it was learned from

    def __call__(self, call: Callable[[list[T]], list[Any]], items: list[T]) -> list[Any]:
        """The outputs of `call(items)`, with the error of each failing item in its place.

        Raises the error of a first call with all of them where `should_isolate` says no to it, or where it is about a
        single item.
        """
        search = _Search(call, items, self._should_isolate, self._share, min(self._seen, WEIGHT * len(items)))
        if search.run():
            self._learn(search.bad, len(items))
        return search.outcomes

    def _learn(self, bad: int, size: int) -> None:
        seen = min(self._seen, REMEMBERED - size) if size < REMEMBERED else 0
        self._share = (self._share * seen + bad) / (seen + size)
        self._seen = seen + size


# ---------------------------------------------------------------------------------------------------------------------


class _Search:
    """Splits the positions of one batch, and collects an outcome for each.

    What calls the handler is in no comprehension or generator expression: their frames keep what they close over.
    """

    def __init__(
        self,
        call: Callable[[list[T]], list[Any]],
        items: list[T],
        should_isolate: Callable[[Exception], bool],
        share: float,
        weight: float,
    ) -> None:
        self._call = call
        self._items = items
        self._should_isolate = should_isolate
        self._share = share
        self._weight = weight
        self._known: set[int] = set()  # positions that need no further call
        self._untested: deque[int] = deque()
        self._largest = len(items)  # that a call may be: less where a part failed, and none of its items did
        self.outcomes: list[Any] = [None] * len(items)
        self.bad = 0

    def run(self) -> bool:
        """Find an outcome for each position. False where it gave up."""
        everything = range(len(self._items))
        size = self._group_size()
        if size >= len(everything):
            if self._try_all():
                return True
            parts: tuple[Sequence[int], ...] = _halves(everything)
        else:
            parts = (everything[:size],)
            self._untested.extend(everything[size:])
        failing: list[Sequence[int]] = []
        for part in parts:
            if not self._try(part):
                failing.append(part)
        if len(failing) == len(parts) and not self._any_single_succeeds():
            rest = self._take(len(everything))
            return bool(rest) and self._try(rest)
        for part in failing:
            self._narrow(part)
        while group := self._take(self._group_size()):
            if not self._try(group):
                self._narrow(group)
        return True

    def _group_size(self) -> int:
        bad = self._share * self._weight + self.bad
        if not bad:
            return self._largest
        good_for_each = int((self._weight + len(self._known)) / bad - 1)
        return min(self._largest, 1 << max(0, good_for_each.bit_length() - 1))

    def _take(self, size: int) -> list[int]:
        """So many of the untested positions, fewer where there are no more; in the order of the calls."""
        taken: list[int] = []
        while self._untested and len(taken) < size:
            position = self._untested.popleft()
            if position not in self._known:
                taken.append(position)
        return sorted(taken)

    def _any_single_succeeds(self) -> bool:
        size = len(self._items)
        for position in sorted({size * probe // PROBES for probe in range(PROBES)} - self._known):
            if self._try([position]):
                return True
        return False

    def _narrow(self, positions: Sequence[int]) -> None:
        """Find one item that fails among these, which fail together."""
        left: Sequence[int] = [position for position in positions if position not in self._known]
        if any(isinstance(self.outcomes[position], Exception) for position in self._known.intersection(positions)):
            self._untested.extend(left)  # a probe was the one, or one of those
            return
        bad = self.bad
        fitted = 1
        while len(left) > 1:
            first, second = _halves(left)
            if self._try(first):
                left = second
                fitted = max(fitted, len(first))
            else:
                left = first
                self._untested.extend(second)
        if left and left[0] not in self._known:
            self._try(left)
        if self.bad == bad:
            self._largest = min(self._largest, fitted)

    def _try_all(self) -> bool:
        try:
            self.outcomes = self._call(self._items)
            return True
        except Exception as error:
            if len(self._items) == 1 or not self._should_isolate(error):
                raise
            without_our_frames(error)
            forget_frames(error)  # what they hold, the next call may need: the memory, above all
            self.outcomes = [error] * len(self._items)
            return False

    def _try(self, positions: Sequence[int]) -> bool:
        """Call with these items and keep what comes of it; True where nothing more is to be found out about them."""
        try:
            outcomes = self._call([self._items[position] for position in positions])
        except Exception as error:
            without_our_frames(error)
            forget_frames(error)
            outcomes = [error] * len(positions)
            settled = not self._should_isolate(error)
            self.bad += not settled and len(positions) == 1
        else:
            settled = True
        for position, outcome in zip(positions, outcomes, strict=True):
            self.outcomes[position] = outcome
        if settled or len(positions) == 1:
            self._known.update(positions)
        return settled


def _halves(positions: Sequence[int]) -> tuple[Sequence[int], ...]:
    middle = (len(positions) + 1) // 2
    return positions[:middle], positions[middle:]
