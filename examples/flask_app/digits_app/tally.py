"""A count of what a handler was called with."""

from __future__ import annotations


class Tally:
    """How many calls there were, and how many items in them.

    Each tally is written from one place at a time (a handler, or the greenlets of one thread),
    so it has no lock. It counts for its own process: with several workers, each has its own.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.items = 0

    def add(self, items: int) -> None:
        self.calls += 1
        self.items += items

    def as_dict(self) -> dict[str, float]:
        mean = self.items / self.calls if self.calls else 0.0
        return {"calls": self.calls, "items": self.items, "mean_batch_size": round(mean, 2)}
