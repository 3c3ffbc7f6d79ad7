"""What does a call cost, beside the least that it can cost, and beside other batching libraries?

    python -m benchmarks.cost                        # ten minutes
    python -m benchmarks.cost --quick                # ten seconds, 1 and 64 callers, without the peers
    python -m benchmarks.cost --callers 1 64 --rounds 10

Callers in a closed loop, each with one call at a time, and a handler that gives back what it is given, so that nothing
but the batching is measured. A batch is of as many as there are callers, and at most of 64, for every system: nobody
waits for company that does not come. Each system runs in a process of its own, in an environment of its own, which is
halted (not ended) while another is measured, for some hundredths of a second between two moments at which all callers
are at it. In the gevent world everything is patched, as in gunicorn's worker. Linux.

* floor: a queue (`SimpleQueue`), one thing to wait on for each call (gevent: an `AsyncResult`; threads: a lock), a
  collector that takes what is there, and nothing else: no time limits, no errors, no statistics.
* greenlet, native, auto, threads: uBatch with this executor, or with plain threads. "fixed" waits up to 5 ms for a full
  batch, which comes at once here; "eager" sends what is there when nobody else can come.
* uBatch 1.0.0 (timeout 0), batched 0.1.5 (timeout 0) and service-streamer 0.1.2 (`ThreadedStreamer`, 5 ms): of the
  settings tried, those that are fastest over all numbers of callers. (batched with 1 ms is a little faster with 64
  threads, and ten times slower with one.) Polling is what some of them cost with few callers.

Microseconds per call: the wall time that passes, divided by the calls that end; and of the processor, all threads
together. Medians of the rounds, in which the systems take turns, with the least and the most in parentheses. A ratio is
to the floor of the same world, measured just before and just after; what has one thread only, on the same core (a host
gives its cores different speeds). Of a ratio the parentheses have the 95 % confidence interval of the median. At 64
callers uBatch has more rounds, and where they do not tell whether a requirement is met.

The requirements, of uBatch, both fixed and eager: at 64 callers at most 1.3 x the floor with greenlets, 1.6 x with
native threads under gevent, 1.3 x with plain threads; at 4,096 callers at most 1.5 x the cost at 64. Exits with 1 where
one is not met, or the result is refused.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks._callers import SYSTEMS
from benchmarks._peers import FAILURES, PEERS, environment, reason
from benchmarks._report import COLOURS, CORES, Report, interval, parser, spread, tells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CALLERS = (1, 4, 16, 64, 256, 4096)
AT = 64
MANY = 4096
LIMIT = 20.0  # seconds for one figure
GENERATION = 6  # rounds, after which the processes are started anew: each has a speed of its own, by some hundredths
MOST = {
    "greenlet, fixed": 1.3,
    "greenlet, eager": 1.3,
    "native, fixed": 1.6,
    "native, eager": 1.6,
    "threads, fixed": 1.3,
    "threads, eager": 1.3,
}  # times the floor, at 64 callers
MORE = 3  # times that what does not tell is measured again, at most
MOST_GROWTH = 1.5  # times the cost at 64 callers, at 4,096

Cell = tuple[str, str, int]  # world, system, number of callers


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and return the exit status."""
    options = parser("cost", __doc__)
    options.add_argument("--rounds", type=int, default=50, help=f"at {AT} callers; a fifth of it elsewhere")
    options.add_argument("--callers", type=int, nargs="+", help=f"default: {' '.join(map(str, CALLERS))}")
    options.add_argument("--seconds", type=float, default=0.03, help="for each figure")
    chosen = options.parse_args(arguments)
    chosen.callers = chosen.callers or ((1, AT) if chosen.quick else CALLERS)
    if chosen.quick:
        chosen.rounds = 2
    report = Report("cost", __doc__, chosen, by_turns=True)
    costs = Costs(chosen.seconds)
    few = max(1, chosen.rounds // 5)
    for world, systems in SYSTEMS.items():
        ours = [system for system in systems if system not in ("floor", *PEERS)]
        peers = [] if chosen.quick else [system for system in systems if system in PEERS]
        for many in chosen.callers:
            costs.take_turns([(world, system, many) for system in [*ours, *peers]], _floor, few)
            report.look()
        if AT in chosen.callers:
            costs.take_turns([(world, system, AT) for system in ours], _floor, chosen.rounds - few)
        if {AT, MANY} <= set(chosen.callers):
            costs.take_turns([(world, system, MANY) for system in ["floor", *ours]], _with_fewer, few)
        report.look()
    for _ in range(0 if chosen.quick else MORE):
        unclear = [each for each in requirements(costs) if not tells(costs.ratios(each.cell, each.to), each.most)]
        for beside in (_floor, _with_fewer):
            costs.take_turns([each.cell for each in unclear if each.to == beside(each.cell)], beside, 2 * few)
    for world in SYSTEMS:
        _print_world(report, costs, world, chosen.callers)
    met = _print_requirements(report, costs)
    return report.save(costs.data(), plot) or int(not met and not chosen.quick)


class Costs:
    """All figures, by world, system and number of callers; and what could not be measured, and why."""

    def __init__(self, seconds: float) -> None:
        self.failed: dict[Cell, str] = {}
        self._seconds = seconds
        self._figures: dict[Cell, list[dict[str, float]]] = defaultdict(list)
        self._ratios: dict[tuple[Cell, Cell], list[float]] = defaultdict(list)

    def take_turns(self, cells: Sequence[Cell], beside: Callable[[Cell], Cell], rounds: int) -> None:
        """Measure each of the cells between two measurements of the one it is compared with."""
        for begun in range(0, rounds, GENERATION):
            with ExitStack() as stack:
                running: dict[Cell, _Callers] = {}
                for cell in dict.fromkeys([*map(beside, cells), *cells]):
                    self._start(cell, running, stack)
                for n in range(begun, min(begun + GENERATION, rounds)):
                    for cell in cells[:: -1 if n % 2 else 1]:
                        self._compare(cell, beside(cell), running, n)

    def of(self, cell: Cell, what: str) -> list[float]:
        """A cell's wall, cpu or batch, of all rounds."""
        return [figures[what] for figures in self._figures.get(cell, [])]

    def ratios(self, cell: Cell, to: Cell) -> list[float]:
        """Of the wall time of one cell to that of its neighbours in time of another."""
        return self._ratios.get((cell, to), [])

    def data(self) -> list[dict[str, Any]]:
        """For the result: a row for each cell."""
        return [
            {
                "world": cell[0],
                "system": cell[1],
                "callers": cell[2],
                **{what: self.of(cell, what) for what in ("wall", "cpu", "batch")},
                "ratio to the floor": self.ratios(cell, _floor(cell)),
                f"ratio to {AT} callers": self.ratios(cell, (*cell[:2], AT)),
                **({"failed": self.failed[cell]} if cell in self.failed else {}),
            }
            for cell in sorted({*self._figures, *self.failed})
        ]

    def _start(self, cell: Cell, running: dict[Cell, _Callers], stack: ExitStack) -> None:
        if cell in self.failed:  # it would take the same time to fail again
            return
        try:
            running[cell] = stack.enter_context(_Callers(cell, self._seconds))
        except FAILURES as error:
            self.failed[cell] = reason(error)

    def _compare(self, cell: Cell, to: Cell, running: dict[Cell, _Callers], n: int) -> None:
        before, ours, after = (self._measure(each, running, n) for each in (to, cell, to))
        if before and ours and after:
            self._ratios[cell, to].append(ours["wall"] / ((before["wall"] + after["wall"]) / 2))

    def _measure(self, cell: Cell, running: dict[Cell, _Callers], n: int) -> dict[str, float] | None:
        if cell not in running:
            return None
        try:
            figures = running[cell].measure(CORES[n % len(CORES)])
        except FAILURES as error:
            self.failed[cell] = reason(error)
            del running[cell]
            return None
        self._figures[cell].append(figures)
        return figures


class Requirement(NamedTuple):
    """That one cell costs at most so many times what another does."""

    cell: Cell
    to: Cell
    words: str
    most: float


def requirements(costs: Costs) -> list[Requirement]:
    """Those that were measured."""
    rows = []
    for world, system in [(where, each) for where in SYSTEMS for each in SYSTEMS[where]]:
        at, many = (world, system, AT), (world, system, MANY)
        rows.append(Requirement(at, _floor(at), f"ratio to the floor at {AT}", MOST.get(system, math.inf)))
        most = MOST_GROWTH if system in MOST else math.inf
        rows.append(Requirement(many, at, f"cost at {MANY:,} to that at {AT}", most))
    judged = [row for row in rows if row.most < math.inf or row.cell[1:] == ("floor", MANY)]
    return [row for row in judged if costs.ratios(row.cell, row.to)]


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


class _Callers:
    """A process of one cell, which is halted but where it is measured."""

    def __init__(self, cell: Cell, seconds: float) -> None:
        world, system, callers = cell
        self._one_thread = world == "gevent" and not system.startswith("native")
        python = environment(system) if system in PEERS else sys.executable
        script = Path(__file__).with_name("_callers.py")
        self._errors = TemporaryFile("w+")  # noqa: SIM115 - it is closed with the process
        self._process = subprocess.Popen(
            [python, "-I", str(script), world, system, str(callers), str(seconds)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> _Callers:
        try:
            self._line(since=0.0)
            self._process.send_signal(signal.SIGSTOP)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def measure(self, core: int) -> dict[str, float]:
        """Let it run until it has told of a time that began meanwhile; on this core, if it has one thread only."""
        if self._one_thread:
            os.sched_setaffinity(self._process.pid, {core})
        self._process.send_signal(signal.SIGCONT)
        try:
            return self._line(since=time.monotonic())
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def _line(self, since: float) -> dict[str, float]:
        lines = self._process.stdout
        assert lines is not None
        given_up = threading.Timer(LIMIT, self._process.kill)
        given_up.start()
        try:
            for line in lines:
                figures: dict[str, float] = json.loads(line)
                if figures.pop("began") >= since:
                    return figures
        finally:
            given_up.cancel()
        if (status := self._process.wait()) == -signal.SIGKILL:
            raise subprocess.TimeoutExpired(self._process.args, LIMIT)
        self._errors.seek(0)
        raise subprocess.CalledProcessError(status, self._process.args, stderr=self._errors.read())


def _floor(cell: Cell) -> Cell:
    return (cell[0], "floor", cell[2])


def _with_fewer(cell: Cell) -> Cell:
    return (*cell[:2], AT)


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
    print()


def _at(costs: Costs, world: str) -> Iterator[list[object]]:
    for system in SYSTEMS[world]:
        cell = (world, system, AT)
        if wall := costs.of(cell, "wall"):
            batch = spread(costs.of(cell, "batch")).median
            ratio = costs.ratios(cell, _floor(cell))
            yield [system, spread(wall), spread(costs.of(cell, "cpu")), interval(ratio) if ratio else "-", batch]


def _print_requirements(report: Report, costs: Costs) -> bool:
    """Whether all that were measured are met. Beside the growth stands the floor's own, which is the machine's."""
    rows = []
    met = not any(system in MOST for _, system, _ in costs.failed)
    for cell, to, words, most in requirements(costs):
        values = costs.ratios(cell, to)
        measured = interval(values)
        verdict = "" if most == math.inf else "met" if measured.median <= most else "MISSED"
        rows.append([*cell[:2], words, "-" if most == math.inf else most, measured, verdict])
        report.precise(f"{cell[0]}, {cell[1]}, {words}", values, most)
        met &= measured.median <= most
    if rows:
        report.table(["world", "system", "requirement", "at most", "measured", ""], rows)
    return met


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
