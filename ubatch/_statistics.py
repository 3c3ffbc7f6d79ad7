"""What a batcher has done: plain counters, kept under the collector's lock, and frozen snapshots of them.

Everything is counted per batch; how long its requests queued, too. The figures are those of one batcher in one process,
since its first call there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

from ._runtime._auto import AWAY

OUTCOMES = ("answered", "raised", "rejected", "expired", "abandoned", "closed")
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
WEIGHT = 0.2  # of the latest batch in the average of seconds per request; arbitrary, some ten batches are remembered
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Histogram:
    """How many values were at most each bound, and above the one before; the last count is of those above all.

    >>> histogram = Histogram(bounds=(1.0, 2.0), counts=(3, 1, 0), sum=4.5)
    >>> histogram.count, histogram.mean, histogram.quantile(0.5)
    (4, 1.125, 1.0)
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Their mean; 0.0 without any."""
        return self.sum / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """A bound that a share `q` of the values does not exceed: infinity above the last bound, 0.0 without values."""
        rank, seen = q * self.count, 0
        for bound, count in zip((*self.bounds, inf), self.counts, strict=True):
            seen += count
            if seen >= rank and seen:
                return bound
        return 0.0


@dataclass(frozen=True)
class Cost:
    """The handler's time as a + b·n, in seconds, fitted to the batches of size n by least squares."""

    fixed: float
    per_item: float


@dataclass(frozen=True)
class Statistics:
    """A snapshot of a batcher (`UBatch.statistics`).

    Calls by their outcome: `answered`; `raised` (by the handler, or for its output); `rejected` (the queue was full);
    `expired` (the deadline passed); `abandoned` (the caller left, or cancelled, while pending); `closed` (the batcher
    was stopped). `reasons` says how many batches were closed for which reason. `sizes` are requests per batch, `fills`
    their share of `max_size`; `queue_seconds` is what each request waited for its batch, `handler_seconds` what each
    batch took, and `handler_seconds_by_size` the same for the batches of up to each of `sizes.bounds`, as (batches,
    seconds). `cost` is None until there were batches of two sizes.

    `runs_on` is where the next batch runs: on the "hub", on a "native" thread (both under gevent), or on a "thread".
    With `executor="auto"` `hub_away` is for how many seconds at a time, at most, the handler kept the hub in its latest
    16 batches there; else it is 0.0.
    """

    OUTCOMES: ClassVar[tuple[str, ...]] = OUTCOMES
    SECONDS: ClassVar[tuple[float, ...]] = SECONDS  # the bounds of `queue_seconds` and `handler_seconds`
    SIZES: ClassVar[tuple[int, ...]] = SIZES  # those of `sizes`
    SHARES: ClassVar[tuple[float, ...]] = SHARES  # those of `fills`

    name: str
    runtime: str
    max_size: int
    timeout: float
    eager: bool
    max_in_flight: int
    runs_on: str
    hub_away: float
    pending: int
    in_flight: int
    stalled: bool
    stopped: bool
    answered: int
    raised: int
    rejected: int
    expired: int
    abandoned: int
    closed: int
    batches: int
    items: int
    reasons: Mapping[str, int]
    sizes: Histogram
    fills: Histogram
    queue_seconds: Histogram
    handler_seconds: Histogram
    handler_seconds_by_size: tuple[tuple[int, float], ...]
    cost: Cost | None

    @property
    def keeps_hub_away(self) -> bool:
        """Whether the handler, on the hub, keeps it from other requests for more than 50 ms at a time."""
        return self.runs_on == "hub" and self.hub_away > AWAY

    @property
    def calls(self) -> int:
        """All calls, ended or not."""
        ended = self.answered + self.raised + self.rejected + self.expired + self.abandoned + self.closed
        return ended + self.pending + self.in_flight


class Tally:
    """The counters. Its collector's lock guards it."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.items = 0
        self.batches = 0
        self._sizes = [0] * (len(SIZES) + 1)
        self._fills = [0] * (len(SHARES) + 1)
        self._fill_sum = 0.0
        self._queued = [0] * (len(SECONDS) + 1)
        self._queued_sum = 0.0
        self._handled = [0] * (len(SECONDS) + 1)
        self._handled_sum = 0.0
        self._by_size = [(0, 0.0)] * (len(SIZES) + 1)
        self._seconds_each: float | None = None  # that the handler takes for a request, on average of late
        self._fit = (0, 0.0, 0.0, 0.0)  # of ended batches: how many, sums of n, n·n and n·seconds

    def batch_closed(self, reason: str, accepted_at: Sequence[float], now: float, max_size: int) -> None:
        """A batch was closed, of requests that were accepted at these times, when it could have `max_size`."""
        size = len(accepted_at)
        self._count_queued(sorted(accepted_at), now)
        self._queued_sum += now * size - sum(accepted_at)
        self.batches += 1
        self.items += size
        self.reasons[reason] += 1
        self._sizes[bisect_left(SIZES, size)] += 1
        self._fills[bisect_left(SHARES, size / max_size)] += 1
        self._fill_sum += size / max_size

    def _count_queued(self, accepted_at: list[float], now: float) -> None:
        """Step the histogram for these, the oldest first: a step for each bucket, and not for each of them."""
        left = len(accepted_at)
        bucket = bisect_left(SECONDS, now - accepted_at[-1])
        while left:
            older = bisect_left(accepted_at, now - SECONDS[bucket], 0, left) if bucket < len(SECONDS) else 0
            self._queued[bucket] += left - older
            left = older
            bucket += 1

    def batch_ended(self, size: int, seconds: float) -> None:
        """A handler came back after so many seconds."""
        self._handled[bisect_left(SECONDS, seconds)] += 1
        self._handled_sum += seconds
        bucket = bisect_left(SIZES, size)
        count, total = self._by_size[bucket]
        self._by_size[bucket] = count + 1, total + seconds
        n, sizes, squares, products = self._fit
        self._fit = n + 1, sizes + size, squares + size * size, products + size * seconds
        known, each = self._seconds_each, seconds / size
        self._seconds_each = each if known is None else known + WEIGHT * (each - known)

    def seconds_for(self, requests: int, slots: int) -> float:
        """How long so many requests take with so many slots, at the rate of late; a second before any batch ended."""
        return 1.0 if self._seconds_each is None else requests * self._seconds_each / slots

    def fields(self) -> dict[str, Any]:
        """The fields of a `Statistics` that are counted here."""
        return {
            **{outcome: self.outcomes[outcome] for outcome in OUTCOMES},
            "batches": self.batches,
            "items": self.items,
            "reasons": dict(self.reasons),
            "sizes": Histogram(SIZES, tuple(self._sizes), self.items),
            "fills": Histogram(SHARES, tuple(self._fills), self._fill_sum),
            "queue_seconds": Histogram(SECONDS, tuple(self._queued), self._queued_sum),
            "handler_seconds": Histogram(SECONDS, tuple(self._handled), self._handled_sum),
            "handler_seconds_by_size": tuple(self._by_size),
            "cost": self._cost(),
        }

    def _cost(self) -> Cost | None:
        """The fitted line; None until there were batches of two sizes."""
        n, sizes, squares, products = self._fit
        spread = n * squares - sizes * sizes
        if spread <= 0:
            return None
        per_item = (n * products - sizes * self._handled_sum) / spread
        return Cost((self._handled_sum - per_item * sizes) / n, per_item)
