"""With plain threads, how can a batcher know that nobody else is on the way?

    python -m benchmarks.threads                     # two minutes

Callers in a closed loop, each a thread with one call at a time, and a handler that takes its time for a batch of any
size up to 64: asleep, or busy in Python. So the most that can be had is a full batch each time, and the rules differ in
how near they come. A caller that its answer has woken needs a moment to call again.

* at once: close a batch whenever there is a place at the handler. `timeout=0.0`.
* a yield: give the interpreter's lock away first, and again while that brought a call.
* a moment: park first, for the least time that the system knows, and again while calls came meanwhile. `eager=True`.
* 5 ms: wait so long, or for a full batch. `timeout=0.005`.

Calls per second, mean batch, and p50 of a call in ms: the median of the rounds, in which the rules take turns. "share"
is the part of the best rule's calls per second.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks._report import Report, parser
from ubatch import UBatch
from ubatch._runtime import _threading

CALLERS = (1, 8, 64)
MOMENT = _threading.MOMENT
RULES: dict[str, tuple[float, dict[str, Any]]] = {
    "at once": (MOMENT, {"timeout": 0.0}),
    "a yield": (0.0, {"timeout": 0.005, "eager": True}),
    "a moment": (MOMENT, {"timeout": 0.005, "eager": True}),
    "5 ms": (MOMENT, {"timeout": 0.005}),
}


class Measured(NamedTuple):
    """What one rule came to in one round."""

    calls_per_second: float
    batch: float
    milliseconds: float


def main(arguments: list[str] | None = None) -> int:
    """Run, print, keep, and return the exit status."""
    arguments_parser = parser("threads", __doc__)
    arguments_parser.add_argument("--rounds", type=int, default=5)
    arguments_parser.add_argument("--seconds", type=float, default=0.5, help="of each rule in each round")
    options = arguments_parser.parse_args(arguments)
    rounds, seconds = (1, 0.05) if options.quick else (options.rounds, options.seconds)
    report = Report("threads", __doc__, options, by_turns=True)
    data = []
    for name, handler in HANDLERS.items():
        for callers in CALLERS:
            taken: dict[str, list[Measured]] = {rule: [] for rule in RULES}
            for _ in range(rounds):
                for rule in RULES:
                    taken[rule].append(_measure(rule, handler, callers, seconds))
            data += _rows(name, callers, taken)
    headings = ("handler", "callers", "rule", "calls/s", "share", "mean batch", "p50, ms")
    report.table(headings, [[row[heading] for heading in headings] for row in data])
    return report.save(data, _plot)


# ---------------------------------------------------------------------------------------------------------------------


def _asleep(seconds: float) -> Callable[[list[int]], list[int]]:
    def handler(xs: list[int]) -> list[int]:
        time.sleep(seconds)
        return xs

    return handler


def _busy(seconds: float) -> Callable[[list[int]], list[int]]:
    def handler(xs: list[int]) -> list[int]:
        ends_at = time.thread_time() + seconds
        while time.thread_time() < ends_at:
            pass
        return xs

    return handler


HANDLERS = {
    "nothing": list,
    "asleep, 1 ms": _asleep(0.001),
    "asleep, 10 ms": _asleep(0.010),
    "busy, 1 ms": _busy(0.001),
    "busy, 10 ms": _busy(0.010),
}


def _measure(rule: str, handler: Callable[[list[int]], list[int]], callers: int, seconds: float) -> Measured:
    _threading.MOMENT, options = RULES[rule]
    batcher: UBatch[int, int] = UBatch(max_size=64, runtime="threading", **options).set_handler(handler)
    waits: list[float] = []
    ends_at = time.monotonic() + seconds

    def call() -> None:
        ended = 0.0
        while ended < ends_at:
            began = time.monotonic()
            batcher.ubatch(1)
            ended = time.monotonic()
            waits.append(ended - began)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batch = batcher.statistics().sizes.mean
    batcher.stop()
    _threading.MOMENT = MOMENT
    return Measured(len(waits) / seconds, batch, statistics.median(waits) * 1000)


def _rows(handler: str, callers: int, taken: dict[str, list[Measured]]) -> list[dict[str, Any]]:
    middle = {
        rule: Measured(*(statistics.median(column) for column in zip(*measured, strict=True)))
        for rule, measured in taken.items()
    }
    best = max(each.calls_per_second for each in middle.values())
    return [
        {
            "handler": handler,
            "callers": callers,
            "rule": rule,
            "calls/s": each.calls_per_second,
            "share": each.calls_per_second / best,
            "mean batch": each.batch,
            "p50, ms": each.milliseconds,
        }
        for rule, each in middle.items()
    ]


def _plot(figure: Any, data: list[dict[str, Any]]) -> None:
    for axes, callers in zip(figure.subplots(1, len(CALLERS), sharey=True), CALLERS, strict=True):
        for number, rule in enumerate(RULES):
            shares = [row["share"] for row in data if (row["callers"], row["rule"]) == (callers, rule)]
            places = [place + 0.2 * number for place in range(len(shares))]
            axes.barh(places, shares, height=0.18, label=rule)
        axes.set_yticks([place + 0.3 for place in range(len(HANDLERS))], list(HANDLERS))
        axes.set_title(f"{callers} callers")
        axes.set_xlabel("share of the best")
    figure.legend(*axes.get_legend_handles_labels(), ncols=len(RULES), loc="outside upper center")


if __name__ == "__main__":
    sys.exit(main())
