"""Native, or on the hub: where should a handler of which kind and length run?

    python -m benchmarks.executors                   # eight minutes
    python -m benchmarks.executors --quick           # half a minute: two lengths, one round
    python -m benchmarks.executors --kinds numpy --lengths 5 20
    python -m benchmarks.executors --required        # three minutes: what the default must not make worse

`UBatch(32, 0.02, eager=True)` with each executor: native, greenlet (on the hub), and auto, the default, which leaves
the hub for a handler that computes for more than 5 ms. A process for each kind and round, patched as gunicorn's worker
is, in which the executors take turns. A handler takes as long for 32 as for one.

* nothing: it returns what it was given. python: a loop in pure Python. forest: scikit-learn's, of as many trees as fit.
  numpy, torch: four products of matrices, by one thread. http: a request to a server that takes so long to answer; not
  asked to take a part of a ms.
* 1 caller, and 64 callers: greenlets that call again as soon as they have their answer. 64 that work: they wait at a
  socket and compute for 0.2 ms before each call, which is about what a request costs a Flask application.

Alone is what the handler really takes, by itself. Requests per second, from the end of a batch to that of another; p50
and p99 of a call; gap is the longest between two ticks of a greenlet that wants one each millisecond: how long, at
worst, no other request was served. Latencies and gaps are in ms. Medians of the rounds; all values, and the mean batch,
the processor time per request and how many batches ran on the hub, are in the result. 64 callers that do not work leave
the loop no time to look at its timers, so their gaps on the hub are several batches long: no server does that.

The ratios are of the requests per second in the same round: native to greenlet; and auto to whichever of the two was
faster in the median. The requirement: auto answers at least 0.95 of what the executor does that one would choose for
a handler that does nothing, computes for 0.3 ms or waits for 20 ms (greenlet), or computes for 20 ms without the
interpreter's lock (native). For the rest there is none: a handler that holds the interpreter's lock for long is faster
on the hub, and every other request pays for it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks._report import Report, Spread, number, parser, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = Path(__file__).with_name("_executors.py")
EXECUTORS = ("native", "greenlet", "auto")
KINDS = {
    "nothing": None,
    "python": None,
    "forest": "sklearn",
    "numpy": "numpy",
    "torch": "torch",
    "http": None,
}  # what they need
LENGTHS = (0.2, 1.0, 5.0, 20.0, 100.0)  # ms
REQUIRED = {  # how long, in ms, and what one would choose
    "nothing": (0.0, "greenlet"),
    "python": (0.3, "greenlet"),
    "numpy": (20.0, "native"),
    "torch": (20.0, "native"),
    "http": (20.0, "greenlet"),
}
LEAST = 0.95  # of what that answers
SHOWN = ("requests", "p50", "p99", "gap")
LIMIT = 180.0  # seconds for a process, at most


class Cell(NamedTuple):
    """What is compared with each executor."""

    load: str
    kind: str
    length: float


Rounds = dict[str, list[dict[str, float]]]  # by executor, what each round found


def main(arguments: list[str] | None = None) -> int:
    """Run, print, keep, and return the exit status."""
    options = _options(arguments)
    report = Report("executors_required" if options.required else "executors", __doc__, options, by_turns=True)
    cells, failed = measure(report, options)
    for load in dict.fromkeys(cell.load for cell in cells):
        _print_load(report, load, {cell: rounds for cell, rounds in cells.items() if cell.load == load})
    for what, reason in failed.items():
        print(f"no row for {what}: {reason}")
    print("\nIn words:\n")
    for line in in_words(cells):
        print(f"* {line}")
    print()
    met = _print_requirement(report, cells)
    data = {
        "rows": [{**cell._asdict(), "executor": executor, "rounds": found}
                 for cell, rounds in cells.items() for executor, found in rounds.items()],
        "failed": failed,
    }  # fmt: skip
    return report.save(data, plot if cells else None) or int(not met and not options.quick)


def measure(report: Report, options: argparse.Namespace) -> tuple[dict[Cell, Rounds], dict[str, str]]:
    """What was found for each cell, and why for others nothing was."""
    cells: dict[Cell, Rounds] = defaultdict(lambda: {executor: [] for executor in EXECUTORS})
    failed = {kind: f"{needs} is not installed" for kind, needs in KINDS.items() if needs and not find_spec(needs)}
    for n in range(options.rounds):
        for kind in options.kinds:
            if kind in failed:
                continue
            try:
                for row in _run(kind, options.seconds, EXECUTORS[:: -1 if n % 2 else 1], _lengths(kind, options)):
                    length = row.pop("length")
                    if "failed" in row:
                        failed[f"{kind}, {number(length)} ms"] = row["failed"]
                    else:
                        cells[Cell(row.pop("load"), kind, length)][row.pop("executor")].append(row)
            except subprocess.SubprocessError as error:
                failed[kind] = _reason(error)
            report.look()
    return {cell: rounds for cell, rounds in sorted(cells.items(), key=_order) if all(rounds.values())}, failed


def ratios(rounds: Rounds, ours: str, theirs: str, what: str = "requests") -> list[float]:
    """One executor's figures to another's, of the same round."""
    return [one[what] / other[what] for one, other in zip(rounds[ours], rounds[theirs], strict=False)]


def auto_ratios(rounds: Rounds) -> list[float]:
    """What auto answered, to the better of the other two, in the same round."""
    better = max(("native", "greenlet"), key=lambda name: _median(rounds[name], "requests"))
    return ratios(rounds, "auto", better)


def in_words(cells: dict[Cell, Rounds]) -> Iterator[str]:
    """A sentence for each kind and load."""
    for kind, load in dict.fromkeys((cell.kind, cell.load) for cell in sorted(cells, key=lambda cell: cell.kind)):
        here = {cell.length: rounds for cell, rounds in cells.items() if (cell.kind, cell.load) == (kind, load)}
        native = ", ".join(
            f"{spread(ratios(rounds, 'native', 'greenlet')).median:.2f} x at {length:g} ms"
            for length, rounds in here.items()
        )
        worst = min(here, key=lambda length: spread(auto_ratios(here[length])).median)
        gaps = {name: max(_median(rounds[name], "gap") for rounds in here.values()) for name in ("native", "greenlet")}
        yield (
            f"{kind}, {load}: native answers {native} of what greenlet does. The hub is away for up to "
            f"{number(gaps['native'])} ms with native, {number(gaps['greenlet'])} ms with greenlet. auto answers at "
            f"least {spread(auto_ratios(here[worst])).median:.2f} x the better one (at {worst:g} ms)."
        )


def plot(figure: Figure, data: dict[str, Any]) -> None:
    """Native to greenlet, and dashed auto to greenlet, by the length that was asked for."""
    cells: dict[Cell, Rounds] = defaultdict(dict)
    for row in data["rows"]:
        cells[Cell(row["load"], row["kind"], row["length"])][row["executor"]] = row["rounds"]
    loads = list(dict.fromkeys(cell.load for cell in cells))
    panels: Any = figure.subplots(1, len(loads), squeeze=False, sharey=True)
    for axes, load in zip(panels[0], loads, strict=True):
        for n, kind in enumerate(KINDS):
            here = {cell.length: rounds for cell, rounds in cells.items() if (cell.load, cell.kind) == (load, kind)}
            if not here:
                continue
            for executor, style in (("native", "-"), ("auto", ":")):
                y = [spread(ratios(rounds, executor, "greenlet")).median for rounds in here.values()]
                label = kind if executor == "native" else None
                axes.plot(list(here), y, style, color=f"C{n}", marker=".", label=label)
        axes.axhline(1.0, color="#333333", linewidth=1)
        axes.set(title=load, xlabel="the handler takes, ms", xscale="log")
    panels[0][0].set_ylabel("requests per second, to greenlet's\n(native; dotted: auto)")
    panels[0][-1].legend(fontsize=7)


# ---------------------------------------------------------------------------------------------------------------------


def _options(arguments: list[str] | None) -> argparse.Namespace:
    options = parser("executors", __doc__)
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options.add_argument("--lengths", type=float, nargs="+", help="of the handler, in ms")
    options.add_argument("--required", action="store_true", help="only what is judged, in seven rounds")
    options.add_argument("--rounds", type=int)
    options.add_argument("--seconds", type=float, help="of load for each figure, at least")
    chosen = options.parse_args(arguments)
    chosen.lengths = sorted(chosen.lengths or ((1.0, 20.0) if chosen.quick else LENGTHS))
    chosen.kinds = [kind for kind in chosen.kinds if kind in REQUIRED or not chosen.required]
    chosen.rounds = chosen.rounds or (1 if chosen.quick else 7 if chosen.required else 3)
    chosen.seconds = chosen.seconds or (0.1 if chosen.quick else 0.25)
    return chosen


def _lengths(kind: str, options: argparse.Namespace) -> list[float]:
    if kind == "nothing":
        return [0.0]
    return [REQUIRED[kind][0]] if options.required else list(options.lengths)


def _print_requirement(report: Report, cells: dict[Cell, Rounds]) -> bool:
    """Whether auto was good enough wherever that is required and was measured."""
    rows = []
    for cell, rounds in cells.items():
        length, choice = REQUIRED.get(cell.kind, (None, ""))
        if length == cell.length:
            ratio = spread(ratios(rounds, "auto", choice)).median
            told = f"{cell.kind}, {cell.length:g} ms, {cell.load}: auto to {choice}"
            rows.append((told, number(ratio), number(LEAST), "met" if ratio >= LEAST else "MISSED"))
    if rows:
        report.table(("requirement", "measured", "at least", ""), rows)
    return all(row[-1] == "met" for row in rows)


def _run(kind: str, seconds: float, executors: tuple[str, ...], lengths: list[float]) -> list[dict[str, Any]]:
    command = [sys.executable, "-I", str(SCRIPT), "measure", kind, str(seconds), ",".join(executors)]
    one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        [*command, *map(str, lengths)],
        env=os.environ | one,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _reason(error: subprocess.SubprocessError) -> str:
    lines = str(getattr(error, "stderr", None) or error).splitlines()
    return lines[-1] if lines else repr(error)


def _order(item: tuple[Cell, Rounds]) -> tuple[int, float]:
    """By kind and length; loads stay in the order in which they were measured."""
    return list(KINDS).index(item[0].kind), item[0].length


def _median(found: list[dict[str, float]], what: str) -> float:
    return spread(each[what] for each in found).median if found else math.nan


def _print_load(report: Report, load: str, cells: dict[Cell, Rounds]) -> None:
    print(f"{load}: native / greenlet / auto\n")
    rows = []
    for cell, rounds in cells.items():
        alone = _median([each for found in rounds.values() for each in found], "alone")
        figures = [" / ".join(number(_median(rounds[name], what)) for name in EXECUTORS) for what in SHOWN]
        judged = [_spread(ratios(rounds, "native", "greenlet")), _spread(auto_ratios(rounds))]
        rows.append([cell.kind, f"{cell.length:g}", alone, *figures, *judged])
    headings = ["handler", "ms", "alone", "req/s", "p50", "p99", "gap", "native to greenlet", "auto to the better"]
    report.table(headings, rows)


def _spread(values: list[float]) -> Spread | float:
    return spread(values) if len(values) > 1 else values[0]


if __name__ == "__main__":
    sys.exit(main())
