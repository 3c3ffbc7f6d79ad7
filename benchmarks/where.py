"""Where does the time of a call go that is alone?

    python -m benchmarks.where                       # ten seconds

One caller under gevent, one call after the other, and a handler that gives back what it is given. An instrument notes
when each stage of a call is reached, which takes a microsecond or two of it. Microseconds of each stage: medians of the
calls, and of the whole.

* fixed 0: `UBatch(64, 0, executor="greenlet")`, which asks nobody whether somebody else is on the way.
* eager: `UBatch(64, 0.02, executor="greenlet", eager=True)`. native: the same with its handler on a native thread.
* cold: eager, and between two calls Flask answers a request and a small network computes, as in a server whose view
  makes the call; so the batcher's code and data are not in the processor's caches.
* bare: what an eager call cannot do without, and nothing else: a greenlet to collect and one to handle, an idle watcher
  and its timer, and the switches between them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gevent
from flask import Flask
from gevent.hub import Waiter

from benchmarks._company_app import light
from benchmarks._report import Report, parser
from ubatch import Batch, Instrument, Request, UBatch

WAYS: dict[str, dict[str, Any]] = {
    "fixed 0": {"timeout": 0, "executor": "greenlet"},
    "eager": {"timeout": 0.02, "executor": "greenlet", "eager": True},
    "cold": {"timeout": 0.02, "executor": "greenlet", "eager": True},
    "native": {"timeout": 0.02, "executor": "native", "eager": True},
}
STAGES = (
    "the call is made and accepted",
    "the collector wakes, asks whether home is quiet, and closes the batch",
    "the batch gets to its handler",
    "the answer is checked and gets to its caller",
    "the caller returns",
)


class Stages(Instrument):
    """When each stage ended, of the one call at a time."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def call_accepted(self, request: Request[Any]) -> None:
        self.times.append(time.perf_counter())

    def batch_started(self, batch: Batch) -> None:
        self.times.append(time.perf_counter())

    def handle(self, xs: list[int]) -> list[int]:
        """The handler."""
        self.times.append(time.perf_counter())
        return xs

    def call_ended(self, request: Request[Any]) -> None:
        self.times.append(time.perf_counter())


def main(arguments: list[str] | None = None) -> int:
    """Run, print, keep, and return the exit status."""
    options = parser("where", __doc__)
    options.add_argument("--calls", type=int, default=2000, help="of each way")
    chosen = options.parse_args(arguments)
    report = Report("where", __doc__, chosen, by_turns=True)
    taken: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    bare: list[float] = []
    calls = 10 if chosen.quick else chosen.calls // 10
    for _ in range(1 if chosen.quick else 10):
        for way in WAYS:
            taken[way] += gevent.spawn(_calls, way, calls).get()
        bare += gevent.spawn(_bare, calls).get()
    columns = {way: [statistics.median(stage) for stage in zip(*calls, strict=True)] for way, calls in taken.items()}
    whole = {way: statistics.median(map(sum, calls)) for way, calls in taken.items()}
    whole["bare"] = statistics.median(bare)
    rows = [[stage, *(columns[way][n] for way in WAYS), ""] for n, stage in enumerate(STAGES)]
    report.table(["microseconds", *WAYS, "bare"], [*rows, ["the whole call", *whole.values()]])
    return report.save({"stages": list(STAGES), "microseconds": columns, "the whole call": whole}, _plot)


# ---------------------------------------------------------------------------------------------------------------------


def _calls(way: str, count: int) -> list[list[float]]:
    stages = Stages()
    batcher = UBatch[int, int](64, runtime="gevent", instruments=[stages], **WAYS[way]).set_handler(stages.handle)
    with batcher:
        for _ in range(20):
            batcher.ubatch(1)
        between = _elsewhere() if way == "cold" else lambda: None
        found = []
        for x in range(count):
            between()
            stages.times = [time.perf_counter()]
            batcher.ubatch(x)
            stages.times.append(time.perf_counter())
            found.append([(end - begin) * 1e6 for begin, end in pairwise(stages.times)])
    return found


def _elsewhere() -> Callable[[], object]:
    """What a request costs beside its call."""
    app = Flask(__name__)
    predict = light(Path())

    @app.get("/")
    def answer() -> dict[str, int]:
        return {"digit": predict([[0.5] * 64])[0]}

    client = app.test_client()
    return lambda: client.get("/")


def _bare(count: int) -> list[float]:
    hub = gevent.get_hub()
    run = hub.loop.run_callback

    def collect() -> None:
        nonlocal rung
        idle = hub.loop.idle()
        while True:
            rung = Waiter(hub)
            rung.get()
            quiet = Waiter(hub)
            idle.start(quiet.switch, None)
            with hub.loop.timer(0.02) as timer:
                timer.start(quiet.switch, None)
                quiet.get()
            idle.stop()
            run(handling.switch, None)

    def handle() -> None:
        nonlocal handling
        while True:
            handling = Waiter(hub)
            handling.get()
            run(caller.switch, None)

    rung = handling = caller = Waiter(hub)
    tasks = [gevent.spawn(collect), gevent.spawn(handle)]
    gevent.idle()
    found = []
    for _ in range(count):
        began = time.perf_counter()
        caller = Waiter(hub)
        run(rung.switch, None)
        caller.get()
        found.append((time.perf_counter() - began) * 1e6)
    gevent.killall(tasks)
    return found


def _plot(figure: Any, data: dict[str, Any]) -> None:
    axes = figure.subplots()
    begins = [0.0] * len(WAYS)
    for n, stage in enumerate(data["stages"]):
        widths = [data["microseconds"][way][n] for way in WAYS]
        axes.barh(list(WAYS), widths, left=begins, label=stage)
        begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("microseconds of a call that is alone")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", fontsize=7)


if __name__ == "__main__":
    sys.exit(main())
