"""What the benchmarks share: the machine, medians with their spread, tables, and results that are kept or refused.

    report = Report("cost", __doc__, options)          # before the first measurement; `options` are `parser`'s
    report.precise("to the floor", ratios, 1.3)        # a doubt where they do not tell whether it is 1.3
    report.table(["callers", "us"], [[64, spread(values)]])
    return report.save(data, plot)                     # 0, or 1 where the result is refused

A result is `benchmarks/results/<name>.json` with the machine's description, the values of rounds as their median and
spread, and the plot as `.svg`. It is refused where there is a doubt: another process had the machine, its speed
changed, or ratios differ too much. What is refused, and what `--quick` measured, goes to `.bench/results/`, which git
ignores, with each value.

The core of a virtual machine changes its speed by half from one second to the next, with what its host does else. A
ratio of two neighbours in time still holds there, and so does the median of many. So a benchmark whose systems take
turns (`by_turns=True`) is not refused for the machine's speed: that is told, and its figures in seconds lie that far
apart.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / ".bench" / "results"

OTHERS = 0.25  # cores that other processes may use, at most
DRIFT = 0.20  # by which the machine's speed may change
IMPRECISE = 0.10  # of the median that its confidence interval may lie to either side
CONFIDENCE = 0.95
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]

COLOURS = {  # a system has the same one in every plot
    "eager": "#d55e00",
    "fixed": "#e69f00",
    "native": "#0072b2",
    "floor": "#333333",
    "unbatched": "#777777",
    "uBatch 1.0.0": "#009e73",
    "batched": "#56b4e9",
    "service-streamer": "#cc79a7",
}


def parser(name: str, document: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    arguments = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=question(document))
    arguments.add_argument("--quick", action="store_true", help="a few seconds, for a look: the result is not kept")
    arguments.add_argument("--results", type=Path, help="the folder for the result, kept or not")
    return arguments


def question(document: str | None) -> str:
    """The first line of a module's docstring."""
    return (document or "").partition("\n")[0]


class Spread(NamedTuple):
    """A median, and between what the values lay."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)} - {number(self.high)})"


def spread(values: Iterable[float]) -> Spread:
    """The median of the values, the least and the most."""
    values = sorted(values)
    return Spread(statistics.median(values), values[0], values[-1])


def interval(values: Iterable[float]) -> Spread:
    """The median of the values, and between what the median of all that could be measured lies, with a confidence of
    95 %; of fewer than six values, between the least and the most of them.

    By the binomial distribution of how many values lie below it, which holds whatever they are distributed like
    (W. J. Conover, Practical Nonparametric Statistics, 3rd edition, section 3.2).
    """
    values = sorted(values)
    n = len(values)
    below, outside = 0, 0.0  # of the values, and the probability that so many or fewer lie below the median
    while (outside := outside + math.comb(n, below) / 2**n) <= (1 - CONFIDENCE) / 2:
        below += 1
    least = max(below - 1, 0)
    return Spread(statistics.median(values), values[least], values[n - 1 - least])


def tells(values: Sequence[float], bound: float) -> bool:
    """Whether the values tell on which side of a bound their median is, or else that it is near: not where its
    confidence interval has the bound in it and is wide.
    """
    found = interval(values)
    wide = max(found.high - found.median, found.median - found.low) > IMPRECISE * abs(found.median)
    return not (wide and found.low <= bound <= found.high)


def number(value: float) -> str:
    """It, with about three digits."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


class Report:
    """One run of a benchmark, from before its first measurement to the end."""

    def __init__(
        self, name: str, document: str | None, options: argparse.Namespace | None = None, by_turns: bool = False
    ) -> None:
        self.name = name
        self.by_turns = by_turns
        self.question = question(document)
        self.quick = bool(getattr(options, "quick", False))
        self.doubts: list[str] = []
        self._folder: Path | None = getattr(options, "results", None)
        self._others: list[float] = []
        self._speeds: list[float] = []
        self.machine = machine()
        self.look()
        print(f"{document}\n{describe(self.machine)}\n", flush=True)

    def look(self) -> None:
        """See what the machine is like now. Call it where nothing of this benchmark runs; `save` does too."""
        self._others.append(busy_cores())
        self._speeds.append(_loop_seconds())

    def precise(self, what: str, values: Sequence[float], bound: float) -> None:
        """Doubt the result where the values do not tell whether a bound is kept."""
        if not tells(values, bound):
            found = interval(values)
            self.doubts.append(f"{what}: the median is between {number(found.low)} and {number(found.high)}")

    def table(self, headings: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
        """Print it, in Markdown."""
        print(f"| {' | '.join(map(str, headings))} |\n|{' --- |' * len(headings)}")
        for row in rows:
            print(f"| {' | '.join(number(x) if isinstance(x, float) else str(x) for x in row)} |")
        print(flush=True)

    def save(self, data: Any, plot: Callable[[Figure, Any], None] | None = None) -> int:
        """Write the result, and its plot as `plot(figure, data)` draws it. Return 1 if it is refused, else 0."""
        self.look()
        speed = self._doubt_the_machine()
        folder = self._folder or (SCRATCH if self.quick or self.doubts else RESULTS)
        folder.mkdir(parents=True, exist_ok=True)
        kept = aggregated(data) if folder == RESULTS else data
        (folder / f"{self.name}.json").write_text(_written(_short(self._result(kept))) + "\n")
        drawn = plot is not None and _draw(plot, data, folder / self.name)
        print(f"{'Not kept' if self.quick else 'REFUSED' if self.doubts else 'Kept'}: "
              f"{_relative(folder)}/{self.name}.{'{json,svg}' if drawn else 'json'}")  # fmt: skip
        print(f"    {speed}")
        for doubt in self.doubts:
            print(f"    in doubt: {doubt}")
        return int(bool(self.doubts) and not self.quick)

    def _doubt_the_machine(self) -> str:
        """And tell of its speed."""
        if max(self._others) > OTHERS:
            self.doubts.append(f"other processes used up to {max(self._others):.2f} cores")
        drift = max(self._speeds) / min(self._speeds) - 1
        if drift > DRIFT and not self.by_turns:
            self.doubts.append(f"the machine's speed changed by {drift:.0%}")
        return (
            f"A fixed loop took {number(min(self._speeds) * 1000)} to {number(max(self._speeds) * 1000)} ms meanwhile."
        )

    def _result(self, data: Any) -> dict[str, Any]:
        return {
            "benchmark": self.name,
            "question": self.question,
            "command": " ".join(["python -m", f"benchmarks.{self.name}", *sys.argv[1:]]),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "machine": self.machine,
            "cores used by others": self._others,
            "milliseconds of a fixed loop": [seconds * 1000 for seconds in self._speeds],
            "doubts": self.doubts,
            "data": data,
        }


def aggregated(data: Any) -> Any:
    """The same with the median, the least and the most in place of four values and more; of rounds that have several
    figures each, the medians.
    """
    if isinstance(data, dict):
        return {key: aggregated(value) for key, value in data.items()}
    if not isinstance(data, (list, tuple)) or not data:
        return data
    if all(isinstance(value, dict) and all(map(_is_number, value.values())) for value in data):
        if len({tuple(value) for value in data}) == 1 < len(data):
            return {key: statistics.median(value[key] for value in data) for key in data[0]}
    elif all(map(_is_number, data)):
        return list(spread(data)) if len(data) > 3 else data
    return [aggregated(value) for value in data]


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "gevent": gevent.__version__,
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "load average": round(os.getloadavg()[0], 2),
    }


def describe(machine: dict[str, Any]) -> str:
    """The same, in one line."""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['python']}, gevent {machine['gevent']}, "
        f"{machine['kernel']}, load average {machine['load average']} at the start"
    )


def busy_cores(seconds: float = 0.5) -> float:
    """How many cores are in use while this process sleeps so long. 0 where the system does not tell."""
    busy_before, all_before = _processor_time()
    time.sleep(seconds)
    busy, total = _processor_time()
    cores = os.cpu_count() or 1
    return (busy - busy_before) / max(total - all_before, 1) * cores


# ---------------------------------------------------------------------------------------------------------------------


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _processor_time() -> tuple[int, int]:
    """Ticks in use, and all ticks, of all cores together."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0, 0
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # without idle and iowait


def _loop_seconds() -> float:
    """Of a loop that is always the same, the best of some."""

    def once() -> float:
        began = time.perf_counter()
        total = 0
        for x in range(200_000):
            total += x & 7
        return time.perf_counter() - began

    return min(once() for _ in range(15))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _written(value: Any, indent: str = "") -> str:
    """JSON, with a line for each row: what has no rows of its own."""
    rows = isinstance(value, (list, dict)) and any(isinstance(each, (list, dict)) for each in _parts(value))
    if not rows:
        return json.dumps(value)
    inner = indent + " "
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(key)}: {_written(each, inner)}" for key, each in value.items()]
    elif all(isinstance(each, dict) for each in value):
        lines = [inner + json.dumps(each) for each in value]
    else:
        return json.dumps(value)
    start, end = "{}" if isinstance(value, dict) else "[]"
    return start + "\n" + ",\n".join(lines) + f"\n{indent}{end}"


def _parts(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


def _short(value: Any) -> Any:
    """The same with floats of five digits, and NaN, which JSON does not know, as None."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _short(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(each) for each in value]
    return value


def _draw(plot: Callable[[Figure, Any], None], data: Any, path: Path) -> bool:
    """The same data give the same SVG."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        print("No plot: Matplotlib is missing. `make bench` installs it, or: pip install -e '.[bench]'")
        return False
    mpl.use("Agg")
    style = {"svg.hashsalt": "ubatch", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
    with mpl.rc_context(style):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        plot(figure, data)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    return True


def _relative(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
