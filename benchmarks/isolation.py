"""How many calls does it take to find the bad items of a batch, and what is left of the throughput?

    python -m benchmarks.isolation                   # five seconds

Counted, not timed, so the machine does not matter: batches of 64 items, each bad with the same chance, and a handler
that fails where one of its items is bad. Averages of 2,000 batches, after 50 from which the batcher could learn.

* least: what no strategy can do better that only sees whether a call fails: 64 times the entropy of the share.
* uBatch: `isolate_errors=True`.
* halves: each part that fails is halved, and both halves are tried, until the items stand alone. What AWS Lambda calls
  "bisect batch on function error" for a stream (Lambda's documentation, "BisectBatchOnFunctionError").
* alone: after the batch has failed, each item alone.

For uBatch and halves also how many items went through the handler for each item, and the throughput, as a share of that
of good items alone, of a handler that takes as long for one item as for 64 (fixed), of one whose call costs as much as
eight items (mixed), and of one whose items alone cost (items).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import log2
from random import Random
from typing import Any

from benchmarks._report import Report, parser
from ubatch._core.isolation import Isolation

SIZE = 64
SHARES = (0.0, 0.01, 0.02, 0.05, 0.12, 0.25, 0.5)
COSTS = {"fixed": (1.0, 0.0), "mixed": (8.0, 1.0), "items": (0.0, 1.0)}  # of a call, and of each of its items
Call = Callable[[list[int]], list[Any]]


class BadItem(Exception):
    """The handler got one."""


def bisect(call: Call, items: list[int]) -> list[Any]:
    """Both halves of what fails."""
    try:
        return call(items)
    except BadItem as error:
        if len(items) == 1:
            return [error]
    middle = len(items) // 2
    return bisect(call, items[:middle]) + bisect(call, items[middle:])


def alone(call: Call, items: list[int]) -> list[Any]:
    """All together, then each by itself."""
    try:
        return call(items)
    except BadItem:
        return [outcome for item in items for outcome in bisect(call, [item])]


def count(strategy: Callable[[Call, list[int]], list[Any]], share: float, batches: int) -> tuple[float, float]:
    """Calls and items of a batch, on average. Raises AssertionError where a good item is not answered."""
    random = Random(1)
    calls = items = 0
    for number in range(-50, batches):
        bad = {item for item in range(SIZE) if random.random() < share}

        def call(batch: list[int], bad: set[int] = bad, number: int = number) -> list[Any]:
            nonlocal calls, items
            if number >= 0:
                calls += 1
                items += len(batch)
            if not bad.isdisjoint(batch):
                raise BadItem
            return batch

        outcomes = strategy(call, list(range(SIZE)))
        given_up = strategy.__class__ is Isolation and all(isinstance(outcome, BadItem) for outcome in outcomes)
        for item, outcome in enumerate(outcomes):
            assert given_up or isinstance(outcome, BadItem) == (item in bad)
    return calls / batches, items / batches


def entropy(share: float) -> float:
    """Of one item, in bits."""
    return -sum(part * log2(part) for part in (share, 1 - share) if part)


def left(calls: float, items: float) -> list[str]:
    """The throughput for each kind of cost."""
    return [f"{(a + b * SIZE) / (a * calls + b * items):.0%}" for a, b in COSTS.values()]


def main(arguments: list[str] | None = None) -> int:
    """Run, print, keep, and return the exit status."""
    chosen = parser("isolation", __doc__).parse_args(arguments)
    report = Report("isolation", __doc__, chosen, by_turns=True)
    batches = 100 if chosen.quick else 2000
    rows, data = [], []
    for share in SHARES:
        ours = count(Isolation(lambda _: True), share, batches)
        halves, singly = count(bisect, share, batches), count(alone, share, batches)
        least = max(1.0, SIZE * entropy(share))
        rows.append(
            [f"{share:.0%}", f"{least:.1f}", f"{ours[0]:.1f}", f"{halves[0]:.1f}", f"{singly[0]:.1f}"]
            + [f"{ours[1] / SIZE:.1f}", f"{halves[1] / SIZE:.1f}"]
            + [f"{mine} ({theirs})" for mine, theirs in zip(left(*ours), left(*halves), strict=True)]
        )
        data.append({"share": share, "least": least, "ubatch": ours, "halves": halves, "alone": singly})
    heads = ["bad", "least", "uBatch", "halves", "alone", "items, uBatch", "items, halves"]
    report.table([*heads, *(f"{kind}: uBatch (halves)" for kind in COSTS)], rows)
    return report.save({"size": SIZE, "batches": batches, "shares": data}, None)


if __name__ == "__main__":
    sys.exit(main())
