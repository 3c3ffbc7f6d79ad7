"""How long is the hub away while a handler computes for 50 ms?

    python -m benchmarks.hub                         # a minute

A greenlet ticks every millisecond. The longest gap between two of its ticks during a batch is how long, at worst, no
other request of the worker was served: the median of the batches, and their range. The worker is patched as gunicorn's
is, and numpy and torch use one thread.

* idle hub: nothing but the ticker.
* auto, native, greenlet: uBatch with this executor, from its second batch on. uBatch 1.0.0 runs its handler on the hub.
* python: a handler in pure Python, which holds the interpreter's lock wherever it runs, for 5 ms at a time.

The requirement: with numpy and torch, by default and on a native thread, at most 1 ms more than an idle hub.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks._peers import FAILURES, PEERS, environment, reason, same
from benchmarks._report import COLOURS, Report, number, parser, spread

KINDS = ("numpy", "torch", "python")
WAYS = ("idle hub", "auto", "native", "greenlet", "uBatch 1.0.0")
RELEASING = ("numpy", "torch")  # they compute without the interpreter's lock
MOST = 1.0  # ms above an idle hub
LIMIT = 120.0  # seconds


def main(arguments: list[str] | None = None) -> int:
    """Run, print, keep, and return the exit status."""
    arguments_parser = parser("hub", __doc__)
    arguments_parser.add_argument("--batches", type=int, default=20, help="of each round")
    arguments_parser.add_argument("--rounds", type=int, default=3)
    arguments_parser.add_argument("--without-peers", action="store_true")
    options = arguments_parser.parse_args(arguments)
    batches, rounds = (2, 1) if options.quick else (options.batches, options.rounds)
    ways = [way for way in WAYS if not (options.without_peers and way in PEERS)]
    report = Report("hub", __doc__, options, by_turns=True)
    kinds = [kind for kind in KINDS if kind == "python" or find_spec(kind)]
    for kind in set(KINDS) - set(kinds):
        print(f"{kind} is not installed: no row\n")
    gaps: dict[tuple[str, str], list[float]] = {(kind, way): [] for kind in kinds for way in ways}
    notes: dict[tuple[str, str], str] = {}
    for _ in range(rounds):
        for cell, found in gaps.items():
            try:
                found.extend(_run(*cell, batches))
            except FAILURES as error:
                notes[cell] = reason(error)
    rows = [[*cell, spread(found) if found else notes[cell]] for cell, found in gaps.items()]
    report.table(("handler", "way", "longest gap, ms"), rows)
    met = _print_requirements(report, gaps)
    data = [{"handler": kind, "way": way, "gaps": found} for (kind, way), found in gaps.items()]
    return report.save(data, _plot) or int(not met and not options.quick)


# ---------------------------------------------------------------------------------------------------------------------


def _run(kind: str, way: str, batches: int) -> list[float]:
    python = environment(way, *(same(kind) if kind != "python" else [])) if way in PEERS else sys.executable
    command = [python, "-I", str(Path(__file__).with_name("_hub.py")), kind, way, str(batches)]
    one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(command, env=os.environ | one, capture_output=True, text=True, check=True, timeout=LIMIT)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def _print_requirements(report: Report, gaps: dict[tuple[str, str], list[float]]) -> bool:
    above = {
        (kind, way): spread(gaps[kind, way]).median - spread(gaps[kind, "idle hub"]).median
        for kind in RELEASING
        for way in ("auto", "native")
        if gaps.get((kind, way))
    }
    report.table(
        ("requirement", "measured, ms", "at most", ""),
        [
            (f"{kind}: {way} above an idle hub", number(value), number(MOST), "met" if value <= MOST else "MISSED")
            for (kind, way), value in above.items()
        ],
    )
    return all(value <= MOST for value in above.values())


def _plot(figure: Any, data: list[dict[str, Any]]) -> None:
    axes = figure.subplots()
    rows = [row for row in data if row["gaps"]]
    labels = [f"{row['handler']}: {row['way']}" for row in rows]
    colours = [COLOURS.get(row["way"], COLOURS["unbatched"]) for row in rows]
    axes.barh(labels, [spread(row["gaps"]).median for row in rows], color=colours)
    axes.invert_yaxis()
    axes.set_xlabel("longest gap of a ticker of 1 ms, in ms")


if __name__ == "__main__":
    sys.exit(main())
