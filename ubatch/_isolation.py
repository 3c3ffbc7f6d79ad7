"""Finding the items that make a handler fail, so that only their callers do: by halves.

Guarantees, for a batch of n whose first call has failed:

* One failing item costs at most 2·⌈log2 n⌉ further calls, k of them at most 2·k·⌈log2 n⌉ + 4, and never more than 2·n.
* A handler that fails for a reason that is not in the items (a database that is down) costs at most six further calls:
  when both halves fail, four single items, spread over the batch, are tried. If each of them fails too, nothing else is
  tried, and every caller gets the error of the smallest call that its item was in.
* A handler that fails for the size of the batch (out of memory) is answered as soon as the parts are small enough.

It assumes that the handler may be run again with the same items. An output that is not as long as the input counts as
failing; what is no `Exception` (`SystemExit`) ends the search at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ._errors import forget_frames, without_our_frames

T = TypeVar("T")

PROBES = 4  # arbitrary: with half of all items failing, one batch in sixteen is given up too early


def isolate(
    call: Callable[[Sequence[T]], list[Any]], items: Sequence[T], should_isolate: Callable[[Exception], bool]
) -> list[Any]:
    """The outputs of `call(items)`, with the error of each failing item in its place.

    Raises the error of the first call where `should_isolate` says no to it, or where it is about a single item.
    """
    try:
        return call(items)
    except Exception as error:
        if len(items) == 1 or not should_isolate(error):
            raise
        without_our_frames(error)
        forget_frames(error)  # what they hold, the next call may need: the memory, above all
        failed = error
    # Here, where the interpreter does not hold on to the exception as the one that is being handled.
    return _Search(call, items, failed, should_isolate).outcomes()


# ---------------------------------------------------------------------------------------------------------------------


class _Search:
    """Splits the positions of a batch that has failed, and collects an outcome for each."""

    def __init__(
        self,
        call: Callable[[Sequence[T]], list[Any]],
        items: Sequence[T],
        error: Exception,
        should_isolate: Callable[[Exception], bool],
    ) -> None:
        self._call = call
        self._items = items
        self._should_isolate = should_isolate
        self._outcomes: list[Any] = [error] * len(items)
        self._known: set[int] = set()  # positions that need no further call

    def outcomes(self) -> list[Any]:
        failing: list[Sequence[int]] = []
        for half in _halves(range(len(self._items))):
            if not self._try(half):  # in no comprehension: its frame would keep what it closes over
                failing.append(half)
        if len(failing) == 2 and not self._any_single_succeeds():
            return self._outcomes
        for half in failing:
            self._split([position for position in half if position not in self._known])
        return self._outcomes

    def _any_single_succeeds(self) -> bool:
        size = len(self._items)
        probes = {size * probe // PROBES for probe in range(PROBES)} - self._known
        for position in sorted(probes):  # noqa: SIM110 (the same)
            if self._try([position]):
                return True
        return False

    def _split(self, positions: Sequence[int]) -> None:
        """Find out about each of these, which as a whole are thought to fail."""
        if len(positions) == 1:
            self._try(positions)
            return
        for half in _halves(positions):
            if half and not self._try(half) and len(half) > 1:
                self._split(half)

    def _try(self, positions: Sequence[int]) -> bool:
        """Call with these items and keep what comes of it; True where nothing more is to be found out about them."""
        try:
            outcomes = self._call([self._items[position] for position in positions])
        except Exception as error:
            without_our_frames(error)
            forget_frames(error)
            outcomes = [error] * len(positions)
            settled = not self._should_isolate(error)
        else:
            settled = True
        for position, outcome in zip(positions, outcomes, strict=True):
            self._outcomes[position] = outcome
        if settled or len(positions) == 1:
            self._known.update(positions)
        return settled


def _halves(positions: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    middle = (len(positions) + 1) // 2
    return positions[:middle], positions[middle:]
