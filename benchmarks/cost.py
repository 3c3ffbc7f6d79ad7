"""What does a call cost, beside the least that it can cost, and beside other batching libraries?

    python -m benchmarks.cost                        # five minutes
    python -m benchmarks.cost --quick                # ten seconds, 1 and 64 callers, without the peers
    python -m benchmarks.cost --callers 1 64 --rounds 1

Callers in a closed loop, each with one call at a time, and a handler that gives back what it is given, so that nothing
but the batching is measured. A batch is of as many as there are callers, and at most of 64, for every system: nobody
waits for company that does not come. Each figure is from a process of its own, in an environment of its own, between
two moments at which all callers are at it. In the gevent world everything is patched, as in gunicorn's worker.

* floor: a queue (`SimpleQueue`), one thing to wait on for each call (gevent: an `AsyncResult`; threads: a lock), a
  collector that takes what is there, and nothing else: no time limits, no errors, no statistics.
* greenlet, native, auto, threads: uBatch with this executor, or with plain threads. "fixed" waits up to 5 ms for a full
  batch, which comes at once here; "eager" sends what is there when nobody else can come.
* uBatch 1.0.0 (timeout 0), batched 0.1.5 (timeout 0) and service-streamer 0.1.2 (`ThreadedStreamer`, 5 ms): of the
  settings tried, those that are fastest over all numbers of callers. (batched with 1 ms is a little faster with 64
  threads, and ten times slower with one.) Polling is what some of them cost with few callers.

Microseconds per call: the wall time that passes, divided by the calls that end; and of the processor, all threads
together. Medians of the rounds, in which the systems take turns (in parentheses the least and the most). The ratio is
to the floor of the same world in the same round. At 64 callers uBatch and the floor have more rounds.

The requirements, of uBatch, both fixed and eager: at 64 callers at most 1.3 x the floor with greenlets, 1.6 x with
native threads under gevent, 1.3 x with plain threads; at 4,096 callers at most 1.5 x the cost at 64. Exits with 1 where
one is not met, or the result is refused.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._callers import SYSTEMS
from benchmarks._peers import FAILURES, PEERS, environment, reason
from benchmarks._report import COLOURS, Report, parser, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CALLERS = (1, 4, 16, 64, 256, 4096)
AT = 64
MANY = 4096
MORE = 2  # rounds at 64 callers before each whole round
LIMIT = 20.0  # seconds for one figure
MOST = {
    "greenlet, fixed": 1.3,
    "greenlet, eager": 1.3,
    "native, fixed": 1.6,
    "native, eager": 1.6,
    "threads, fixed": 1.3,
    "threads, eager": 1.3,
}  # times the floor, at 64 callers
MOST_GROWTH = 1.5  # times the cost at 64 callers, at 4,096


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and return the exit status."""
    options = parser("cost", __doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--callers", type=int, nargs="+", help=f"default: {' '.join(map(str, CALLERS))}")
    options.add_argument("--seconds", type=float, default=0.2, help="for each figure")
    chosen = options.parse_args(arguments)
    chosen.callers = chosen.callers or ((1, AT) if chosen.quick else CALLERS)
    if chosen.quick:
        chosen.rounds, chosen.seconds = 1, 0.05
    report = Report("cost", __doc__, chosen)
    costs = Costs(chosen.seconds)
    for _ in range(chosen.rounds):
        for _ in range(0 if chosen.quick else MORE):
            costs.round([AT], peers=False)
        costs.round(chosen.callers, peers=not chosen.quick)
        report.look()
    for world in SYSTEMS:
        _print_world(report, costs, world, chosen.callers)
    met = _print_requirements(report, costs)
    return report.save(costs.data(), plot) or int(not met and not chosen.quick)


class Costs:
    """All figures, by world, system and number of callers, then by round; and what could not be measured, and why."""

    def __init__(self, seconds: float) -> None:
        self.rounds = 0
        self.failed: dict[tuple[str, str, int], str] = {}
        self._seconds = seconds
        self._figures: dict[tuple[str, str, int], dict[int, dict[str, float]]] = defaultdict(dict)

    def round(self, callers: Sequence[int], peers: bool) -> None:
        """Measure each system once with each number of callers, in turn; in every other round backwards."""
        for world, systems in SYSTEMS.items():
            for many in callers:
                for system in list(systems)[:: -1 if self.rounds % 2 else 1]:
                    if peers or system not in PEERS:
                        self._measure((world, system, many))
        self.rounds += 1

    def of(self, cell: tuple[str, str, int], what: str) -> list[float]:
        """A cell's wall, cpu or batch, of all rounds."""
        return [figures[what] for figures in self._figures.get(cell, {}).values()]

    def ratios(self, cell: tuple[str, str, int], to: tuple[str, str, int]) -> list[float]:
        """Of the wall times of two cells, in the rounds that have both."""
        ours, theirs = self._figures.get(cell, {}), self._figures.get(to, {})
        return [ours[n]["wall"] / theirs[n]["wall"] for n in ours if n in theirs]

    def data(self) -> list[dict[str, Any]]:
        """For the result: a row for each cell."""
        return [
            {
                "world": cell[0],
                "system": cell[1],
                "callers": cell[2],
                **{what: self.of(cell, what) for what in ("wall", "cpu", "batch")},
                "ratio to the floor": self.ratios(cell, (cell[0], "floor", cell[2])),
                **({"failed": self.failed[cell]} if cell in self.failed else {}),
            }
            for cell in sorted({*self._figures, *self.failed})
        ]

    def _measure(self, cell: tuple[str, str, int]) -> None:
        if cell in self.failed:  # it would take the same time to fail again
            return
        try:
            self._figures[cell][self.rounds] = _in_a_process(*cell, self._seconds)
        except FAILURES as error:
            self.failed[cell] = reason(error)


def plot(figure: Figure, rows: list[dict[str, Any]]) -> None:
    """The median wall time by callers, and its range, in each world."""
    both: Any = figure.subplots(1, 2, sharey=True)
    for axes, world in zip(both, SYSTEMS, strict=True):
        for system in SYSTEMS[world]:
            _draw(axes, system, [row for row in rows if (row["world"], row["system"]) == (world, system)])
        axes.set(title=world, xlabel="callers", xscale="log", yscale="log")
        axes.set_xticks(CALLERS, [f"{n:,}" for n in CALLERS])
        axes.minorticks_off()
        axes.legend(fontsize=7)
    both[0].set_ylabel("µs per call")


# ---------------------------------------------------------------------------------------------------------------------


def _in_a_process(world: str, system: str, callers: int, seconds: float) -> dict[str, float]:
    python = environment(system) if system in PEERS else sys.executable
    script = Path(__file__).with_name("_callers.py")
    command = [python, "-I", str(script), world, system, str(callers), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def _print_world(report: Report, costs: Costs, world: str, callers: Sequence[int]) -> None:
    print(f"{world}: microseconds per call, by callers\n")
    rows = []
    for system in SYSTEMS[world]:
        figures = [costs.of((world, system, many), "wall") for many in callers]
        if any(figures):
            rows.append([system, *(spread(each).median if each else "none" for each in figures)])
    report.table(["", *(f"{many:,}" for many in callers)], rows)
    if AT in callers:
        print(f"{world}: at {AT} callers\n")
        report.table(["", "us per call", "of the processor", "ratio to the floor", "batch"], _at(costs, world))
    for (where, system, many), why in costs.failed.items():
        if where == world:
            print(f"none: {system}, {many:,} callers: {why}")
    report.steady(f"{world}, the floor at {AT} callers", costs.of((world, "floor", AT), "wall"))
    print()


def _at(costs: Costs, world: str) -> Iterator[list[object]]:
    for system in SYSTEMS[world]:
        cell = (world, system, AT)
        if wall := costs.of(cell, "wall"):
            batch = spread(costs.of(cell, "batch")).median
            ratio = costs.ratios(cell, (world, "floor", AT))
            yield [system, spread(wall), spread(costs.of(cell, "cpu")), spread(ratio) if ratio else "-", batch]


def _print_requirements(report: Report, costs: Costs) -> bool:
    """Whether all that were measured are met. Beside the growth stands the floor's own, which is the machine's."""
    rows: list[tuple[str, str, str, list[float], float]] = []
    everything = [(world, system) for world in SYSTEMS for system in SYSTEMS[world]]
    for world, system in everything:
        at, many, floor = (world, system, AT), (world, system, MANY), (world, "floor", AT)
        if system in MOST:
            rows.append((world, system, f"ratio to the floor at {AT}", costs.ratios(at, floor), MOST[system]))
        if system in (*MOST, "floor"):
            most = MOST_GROWTH if system in MOST else math.inf
            rows.append((world, system, f"cost at {MANY:,} to that at {AT}", costs.ratios(many, at), most))
    rows = [row for row in rows if row[3]]
    if rows:
        report.table(["world", "system", "requirement", "at most", "measured", ""], map(_verdict, rows))
    failed = any(system in MOST for _, system, _ in costs.failed)
    return not failed and all(spread(values).median <= most for *_, values, most in rows)


def _verdict(row: tuple[str, str, str, list[float], float]) -> list[object]:
    *words, values, most = row
    measured = spread(values)
    if most == math.inf:
        return [*words, "-", measured, ""]
    return [*words, most, measured, "met" if measured.median <= most else "MISSED"]


def _draw(axes: Axes, system: str, rows: list[dict[str, Any]]) -> None:
    points = sorted((row["callers"], *spread(row["wall"])) for row in rows if row["wall"])
    if not points:
        return
    x, middle, low, high = zip(*points, strict=True)
    style = "--" if system.endswith("fixed") else ":" if system.startswith("auto") else "-"
    colour = next((COLOURS[name] for name in COLOURS if system.startswith(name)), COLOURS["eager"])
    axes.plot(x, middle, style, color=colour, marker=".", label=system)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


if __name__ == "__main__":
    sys.exit(main())
