"""What does a batcher cost while nobody calls, and a call while it waits?

    python -m benchmarks.idle                        # two minutes

Linux only: it reads /proc. Each row is a process of its own.

The first table is of ten idle seconds of a process with ten batchers that have answered one call each: voluntary
context switches of all its threads (each is a moment in which something woke and went to sleep again), and processor
time. "bare" is the same process without a batcher. The requirement: no more switches than a bare process has.

The second is of memory: 100,000 calls wait for a handler that does not come back. Resident bytes for each, by `submit`,
and by `ubatch` in a greenlet each, beside greenlets that wait for nothing. The requirement: at most 1.5 KiB for a
pending call, the greenlet not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks._peers import FAILURES, PEERS, environment, reason
from benchmarks._report import Report, number, parser

ROWS = [
    ("gevent", "bare"),
    ("gevent", "uBatch"),
    ("gevent", "uBatch, eager"),
    ("gevent", "uBatch 1.0.0"),
    ("threads", "bare"),
    ("threads", "uBatch"),
    ("threads", "uBatch, eager"),
    ("threads", "uBatch 1.0.0"),
]
MOST_SWITCHES = 0  # above a bare process, in all
MOST_BYTES = 1536
LIMIT = 120.0  # seconds


def main(arguments: list[str] | None = None) -> int:
    """Run, print, keep, and return the exit status."""
    arguments_parser = parser("idle", __doc__)
    arguments_parser.add_argument("--seconds", type=float, default=10.0)
    arguments_parser.add_argument("--calls", type=int, default=100_000)
    arguments_parser.add_argument("--without-peers", action="store_true")
    options = arguments_parser.parse_args(arguments)
    seconds, calls = (0.3, 2000) if options.quick else (options.seconds, options.calls)
    report = Report("idle", __doc__, options, by_turns=True)
    rows = [_idle(*row, seconds) for row in ROWS if not (options.without_peers and row[1] in PEERS)]
    report.table(("world", "process", "switches", "processor, ms", "threads", ""), [list(row.values()) for row in rows])
    memory = _memory(calls)
    report.table(("world", "calls", "bytes each"), [list(row.values()) for row in memory])
    met = _print_requirements(report, rows, memory)
    return report.save({"idle": rows, "memory": memory}, _plot) or int(not met and not options.quick)


# ---------------------------------------------------------------------------------------------------------------------


def _idle(world: str, system: str, seconds: float) -> dict[str, Any]:
    row: dict[str, Any] = {"world": world, "process": system, "switches": None, "processor": None, "threads": None}
    try:
        python = environment(system) if system in PEERS else sys.executable
        found = _run(python, "idle", world, system, seconds)
    except FAILURES as error:
        return row | {"note": reason(error)}
    return row | {
        "switches": found["switches"],
        "processor": found["processor"] * 1000,
        "threads": found["threads"],
        "note": "",
    }


def _memory(calls: int) -> list[dict[str, Any]]:
    rows = [("gevent", "submit"), ("threading", "submit"), ("gevent", "bare greenlets"), ("gevent", "ubatch")]
    found = {row: _run(sys.executable, "pending", *row, calls)["bytes"] for row in rows}
    memory = [{"world": world, "calls": how, "bytes each": each} for (world, how), each in found.items()]
    above = found["gevent", "ubatch"] - found["gevent", "bare greenlets"]
    return [*memory, {"world": "gevent", "calls": "ubatch, without its greenlet", "bytes each": above}]


def _run(python: str, *arguments: Any) -> dict[str, float]:
    command = [python, "-I", str(Path(__file__).with_name("_idle.py")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def _print_requirements(report: Report, rows: list[dict[str, Any]], memory: list[dict[str, Any]]) -> bool:
    bare = {row["world"]: row["switches"] for row in rows if row["process"] == "bare"}
    checks = [
        (
            f"{row['world']}, {row['process']}: switches above a bare process",
            row["switches"] - bare[row["world"]],
            MOST_SWITCHES,
        )
        for row in rows
        if row["process"].startswith("uBatch") and row["process"] not in PEERS and row["switches"] is not None
    ]
    checks += [
        (f"{row['world']}, {row['calls']}: bytes for a pending call", row["bytes each"], MOST_BYTES)
        for row in memory
        if row["calls"] not in ("bare greenlets", "ubatch")
    ]
    report.table(
        ("requirement", "measured", "at most", ""),
        [(what, number(value), number(most), "met" if value <= most else "MISSED") for what, value, most in checks],
    )
    return all(value <= most for _, value, most in checks)


def _plot(figure: Any, data: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    rows = [row for row in data["idle"] if row["switches"] is not None]
    left.barh([f"{row['process']} ({row['world']})" for row in rows], [max(row["switches"], 1) for row in rows])
    left.set_xscale("log")
    left.invert_yaxis()
    left.set_xlabel("context switches while idle")
    memory = data["memory"]
    right.barh([f"{row['calls']} ({row['world']})" for row in memory], [row["bytes each"] for row in memory])
    right.invert_yaxis()
    right.set_xlabel("bytes for each pending call")


if __name__ == "__main__":
    sys.exit(main())
