"""A page that shows what batchers do: the figures of one process, and in plain words what limits it now.

Guarantees:

* Nothing is measured for it. It reads `UBatch.statistics` when a browser asks, and costs nothing while none does.
* "Recent" is the difference to a snapshot that an earlier look has left behind, at most `WINDOW` seconds ago; without
  one there is no such thing, and the page shows everything since the first call.
* The page is one file and asks for nothing outside of it, which its Content-Security-Policy enforces; it names the
  script that may run by its hash. The file is read as a resource of the package, so from a zip as well.
* What the server tells is figures and the batchers' names. Workers are told apart by a number at random, batchers by
  their order.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from hashlib import sha256
from importlib.resources import files
from math import inf
from secrets import token_hex
from time import monotonic, time
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from .. import Cost, Histogram, Statistics, UBatch, called_batchers, native_lock

WINDOW = 30.0  # seconds; arbitrary: long enough for some batches, short enough to be "now"
KEPT_EVERY = 1.0  # seconds between the snapshots that are kept
MOST_SHOWN = 50  # batchers; arbitrary: a decorated method has one per instance


class Answer(NamedTuple):
    """A body with its headers."""

    headers: list[tuple[str, str]]
    body: bytes


class Page:
    """The page of some batchers, or, without them, of all that have been called in the process that answers."""

    def __init__(
        self, batchers: Iterable[UBatch[Any, Any]] | None = None, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._batchers = None if batchers is None else tuple(batchers)
        self._clock = clock
        self._lock = native_lock()
        self._numbers: WeakKeyDictionary[UBatch[Any, Any], int] = WeakKeyDictionary()
        self._next = 1
        self._kept: WeakKeyDictionary[UBatch[Any, Any], deque[_Look]] = WeakKeyDictionary()

    def html(self) -> Answer:
        """The page itself."""
        body, policy = _page()
        headers = [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ]
        return Answer(headers, body)

    def json(self) -> Answer:
        """What it shows."""
        body = json.dumps(self.snapshot(), allow_nan=False).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-store"),
        ]
        return Answer(headers, body)

    def snapshot(self) -> dict[str, Any]:
        """The same, as a dict."""
        batchers = called_batchers() if self._batchers is None else self._batchers
        return {
            "worker": _worker(os.getpid()),
            "at": time(),
            "more": max(0, len(batchers) - MOST_SHOWN),
            "batchers": [self._of(batcher) for batcher in batchers[:MOST_SHOWN]],
        }

    def _of(self, batcher: UBatch[Any, Any]) -> dict[str, Any]:
        now, statistics = self._clock(), batcher.statistics()
        with self._lock:
            kept = self._kept.setdefault(batcher, deque())
            earlier = _earlier(kept, now)
            number = self._numbers.setdefault(batcher, self._next)
            self._next = max(self._next, number + 1)
            if not kept or now - kept[-1].at >= KEPT_EVERY:
                kept.append(_Look(now, os.getpid(), statistics))
        recent = None if earlier is None else since(earlier.statistics, statistics)
        return {
            "id": number,
            "name": statistics.name,
            "runtime": statistics.runtime,
            "max_size": statistics.max_size,
            "timeout": statistics.timeout,
            "eager": statistics.eager,
            "max_in_flight": statistics.max_in_flight,
            "runs_on": statistics.runs_on,
            "hub_away": statistics.hub_away,
            "pending": statistics.pending,
            "in_flight": statistics.in_flight,
            "stalled": statistics.stalled,
            "stopped": statistics.stopped,
            "total": _told(statistics, None),
            "recent": None if recent is None or earlier is None else _told(recent, now - earlier.at),
        }


def since(before: Statistics, now: Statistics) -> Statistics | None:
    """What was counted between two snapshots; None where the second does not go on where the first ended."""
    outcomes: dict[str, Any] = {
        outcome: getattr(now, outcome) - getattr(before, outcome) for outcome in Statistics.OUTCOMES
    }
    reasons = {reason: count - before.reasons.get(reason, 0) for reason, count in now.reasons.items()}
    if now.batches < before.batches or min(*outcomes.values(), *reasons.values(), 0) < 0:
        return None
    by_size = zip(now.handler_seconds_by_size, before.handler_seconds_by_size, strict=True)
    return replace(
        now,
        **outcomes,
        batches=now.batches - before.batches,
        items=now.items - before.items,
        reasons={reason: count for reason, count in reasons.items() if count},
        sizes=_difference(before.sizes, now.sizes),
        fills=_difference(before.fills, now.fills),
        queue_seconds=_difference(before.queue_seconds, now.queue_seconds),
        handler_seconds=_difference(before.handler_seconds, now.handler_seconds),
        handler_seconds_by_size=tuple((n - m, s - t if n > m else 0.0) for (n, s), (m, t) in by_size),
    )


def what_limits(statistics: Statistics) -> str:
    """In plain words, what keeps this batcher from answering more calls, or sooner, and what would change that.

    >>> what_limits(UBatch[int, int](64, 0.005).set_handler(list).statistics())
    'There has been no batch: nothing can be said yet.'
    """
    return " ".join([*_troubles(statistics), _limit(statistics)])


# ---------------------------------------------------------------------------------------------------------------------


@cache
def _page() -> tuple[bytes, str]:
    """The page, and what its browser may load and run for it."""
    page = files(__package__).joinpath("_page.html").read_bytes()
    scripts = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    hashes = (f"'sha256-{b64encode(sha256(script).digest()).decode()}'" for script in scripts)
    policy = (
        "default-src 'none'",
        f"script-src {' '.join(hashes)}",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return page, "; ".join(policy)


@cache
def _worker(_pid: int) -> str:
    """What tells this process from others, and nobody anything else."""
    return token_hex(3)


class _Look(NamedTuple):
    """A snapshot, and when and where it was made."""

    at: float
    pid: int
    statistics: Statistics


def _earlier(kept: deque[_Look], now: float) -> _Look | None:
    """The oldest look that is not too old; forgets those that are."""
    while kept and (kept[0].at < now - WINDOW or kept[0].pid != os.getpid()):
        kept.popleft()
    return kept[0] if kept and kept[0].at < now else None


def _difference(before: Histogram, now: Histogram) -> Histogram:
    counts = tuple(n - b for n, b in zip(now.counts, before.counts, strict=True))
    return Histogram(now.bounds, counts, now.sum - before.sum if any(counts) else 0.0)


def _told(statistics: Statistics, seconds: float | None) -> dict[str, Any]:
    """What JSON can say of it. `seconds` is how long it was counted, where that is known."""
    return {
        "seconds": seconds,
        "limit": what_limits(statistics),
        **{outcome: getattr(statistics, outcome) for outcome in Statistics.OUTCOMES},
        "calls": statistics.calls,
        "batches": statistics.batches,
        "items": statistics.items,
        "reasons": dict(statistics.reasons),
        "sizes": _histogram(statistics.sizes),
        "fill": statistics.fills.mean,
        "queue_seconds": _histogram(statistics.queue_seconds),
        "handler_seconds": _histogram(statistics.handler_seconds),
        "handler_seconds_by_size": [list(pair) for pair in statistics.handler_seconds_by_size],
        "cost": None if statistics.cost is None else [statistics.cost.fixed, statistics.cost.per_item],
    }


def _histogram(histogram: Histogram) -> dict[str, Any]:
    quantiles = {f"p{round(q * 100)}": histogram.quantile(q) for q in (0.5, 0.95)}
    return {
        "bounds": histogram.bounds,
        "counts": histogram.counts,
        "mean": histogram.mean,
        **{name: None if value == inf else value for name, value in quantiles.items()},
    }


# What limits it.

LONE = 1.5  # requests per batch, below which most are alone
MOSTLY = 0.7  # of the batches
TIMER = 0.002  # seconds that a timer may be late
SMALL_PART = 0.1  # of a batch's time


def _troubles(statistics: Statistics) -> list[str]:
    """What should not be, the worst first."""
    told = []
    if statistics.stalled:
        told.append("The handler is stuck: it has not come back for longer than stall_after.")
    if statistics.keeps_hub_away:
        told.append(
            f"The handler keeps the event loop away for {_time(statistics.hub_away)}: no other request of this worker "
            "is served meanwhile."
        )
    if statistics.stopped:
        told.append("It is stopped, and refuses calls.")
    if statistics.rejected:
        told.append(f"{_calls(statistics.rejected, statistics)} refused, because the queue was full.")
    if statistics.expired:
        told.append(f"{_calls(statistics.expired, statistics)} not answered before the deadline.")
    return told


def _limit(statistics: Statistics) -> str:
    if not statistics.batches:
        return "There has been no batch: nothing can be said yet."
    if statistics.max_size == 1:
        return "max_size is 1: every call is a batch of its own."
    if _waits_for_a_slot(statistics):
        return _handler_limits(statistics)
    counts = dict(statistics.reasons)
    if counts.get("drain", 0) < MOSTLY * statistics.batches:  # what is left tells of the load
        counts.pop("drain", None)
    most = max(counts, key=counts.__getitem__)
    if counts[most] >= MOSTLY * sum(counts.values()):
        return _reason_limits(most, statistics)
    if "idle" in counts:
        return _several_reasons_limit(statistics)
    return (
        f"Some batches are closed full and some by the timeout, {_filled(statistics)} on average: max_size and timeout "
        "fit each other at this load. A larger max_size needs a longer timeout to be filled."
    )


def _waits_for_a_slot(statistics: Statistics) -> bool:
    """Whether requests wait for longer than a batch would be kept open while there is a slot at the handler."""
    return statistics.queue_seconds.mean > statistics.timeout + _noticeable(statistics)


def _noticeable(statistics: Statistics) -> float:
    """Seconds of waiting that are more than what a timer may be late."""
    return max(TIMER, statistics.handler_seconds.mean / 4)


def _handler_limits(statistics: Statistics) -> str:
    waits, slots = _time(statistics.queue_seconds.mean), statistics.max_in_flight
    told = f"The handler is the limit: requests wait {waits} on average for {_slots(slots)} at it"
    if statistics.sizes.mean < MOSTLY * statistics.max_size:
        return (
            f"{told}, longer than the timeout of {_time(statistics.timeout)}, so neither timeout nor max_size matters. "
            "A faster handler, a higher max_in_flight or another worker would help."
        )
    return f"{told}, and batches go with {_filled(statistics)}. {_would_larger_help(statistics)}"


def _would_larger_help(statistics: Statistics) -> str:
    cost, size = statistics.cost, statistics.max_size
    if cost is None or cost.per_item <= 0 or cost.fixed < 0:
        return "A larger max_size, a higher max_in_flight or another worker may help."
    if _fixed_part(cost, size) > SMALL_PART:
        return (
            f"A larger max_size would help: {_percent(_fixed_part(cost, size))} of the time of a batch of {size} does "
            "not depend on its size."
        )
    return (
        f"A larger max_size would hardly help, because a batch of {size} spends nearly all of its time on its items. "
        "A faster handler, a higher max_in_flight or another worker would."
    )


def _reason_limits(reason: str, statistics: Statistics) -> str:
    if reason == "full":
        return _size_limits(statistics)
    if reason == "timeout":
        return _load_limits(statistics)
    if reason == "idle":
        return _company_limits(statistics)
    return "Most batches were closed because the batcher was stopping: this says nothing of the load."


def _size_limits(statistics: Statistics) -> str:
    told = (
        f"Batches are closed full, with {_filled(statistics)}, before the timeout: at this load a longer timeout "
        "changes nothing, and max_size decides."
    )
    cost, size = statistics.cost, statistics.max_size
    if cost is None or cost.per_item <= 0 or cost.fixed < 0:
        return f"{told} The handler keeps up."
    saved = _fixed_part(cost, size)
    return (
        f"{told} The handler keeps up; a larger max_size could save it at most {_percent(saved)} of its time, and each "
        "request would wait longer."
    )


def _load_limits(statistics: Statistics) -> str:
    told = (
        f"Batches are closed by the timeout with {_filled(statistics)}: at this load a larger max_size changes nothing."
    )
    if not statistics.timeout:
        return f"{told} With a timeout of 0 nobody waits for company while there is a slot at the handler."
    if statistics.sizes.mean < LONE:
        return f"{told} Calls come alone, so batching saves nothing now, and {_sooner(statistics)}"
    told = (
        f"{told} A longer timeout would fill them more, and a shorter one would answer sooner: requests wait "
        f"{_time(statistics.queue_seconds.mean)} on average, and the handler takes "
        f"{_time(statistics.handler_seconds.mean)}."
    )
    return told if statistics.eager else f"{told} With eager=True they would wait only while others are on the way."


def _sooner(statistics: Statistics) -> str:
    """What would spare a lone call its wait."""
    if statistics.eager:
        return "a shorter timeout would answer each of them sooner: the process has other work for longer than it."
    return f"eager=True would answer each of them {_time(statistics.timeout)} sooner."


def _company_limits(statistics: Statistics) -> str:
    told = (
        f"Batches are closed because nobody else is on the way, with {_filled(statistics)}: at this load neither "
        "timeout nor max_size matters."
    )
    if statistics.queue_seconds.mean > _noticeable(statistics):
        return (
            f"{told} Requests wait {_time(statistics.queue_seconds.mean)} on average, mostly for a slot at the "
            f"handler, which takes {_time(statistics.handler_seconds.mean)}: a faster one would answer sooner."
        )
    if statistics.sizes.mean < LONE:
        return f"{told} Calls come alone, and each goes at once: batching saves nothing now, and costs no wait."
    return f"{told} The handler keeps up, and nobody waits in vain."


def _several_reasons_limit(statistics: Statistics) -> str:
    """Of a batcher with `eager`, where no reason prevails."""
    told = f"Some batches are closed because nobody else is on the way, and some {{}}, {_filled(statistics)} on average"
    if statistics.reasons.get("full", 0) >= statistics.reasons.get("timeout", 0):
        return (
            f"{told.format('full')}: the timeout does not matter. A larger max_size would take more when many calls "
            "come at once."
        )
    return (
        f"{told.format('by the timeout')}: at times others are on the way for longer than that. A longer timeout would "
        "fill these batches more, and a shorter one would answer sooner."
    )


def _calls(count: int, statistics: Statistics) -> str:
    return f"{count} of {statistics.calls} calls {'was' if count == 1 else 'were'}"


def _filled(statistics: Statistics) -> str:
    return f"{statistics.sizes.mean:.3g} of {statistics.max_size}"


def _slots(slots: int) -> str:
    return "the one slot" if slots == 1 else f"one of the {slots} slots"


def _fixed_part(cost: Cost, size: int) -> float:
    """The part of a batch's time that does not depend on its size."""
    return cost.fixed / (cost.fixed + cost.per_item * size)


def _percent(part: float) -> str:
    return f"{part * 100:.0f} %"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
