"""What does it cost a call that its batcher is observed: by counters, Prometheus, OpenTelemetry?

    python -m benchmarks.observability               # two minutes
    python -m benchmarks.observability --rounds 3 --calls 20000

The first table is of the counters alone, which are always on: what a batch adds to them, timed by itself, per request
in it. The requirement: at most 0.3 us in a batch of 64.

The second is of whole calls: 64 greenlets in one process, each with one call at a time, and a handler that does nothing
as a greenlet, so that nothing but uBatch is measured. Processor time per call, of a process of its own for each cell;
the median of the rounds, in which the cells take turns, and their range.

* nothing counted: the counters taken out. Only this benchmark can.
* statistics: what every batcher does, and "off" for all that follows.
* Prometheus, one process: the instrument, and a scrape of it at the end, which costs nothing per call.
* Prometheus, multiprocess: the instrument, with `PROMETHEUS_MULTIPROC_DIR`.
* OpenTelemetry, no span: the instrument, where no request has a span; each batch still has its own.
* request spans alone: a recording span around each call, as Flask's instrumentation makes one, without the instrument.
* request spans, OpenTelemetry: the same, with it. Spans go to nobody: exporting is the same for all spans.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from ubatch import UBatch, _collector
from ubatch._statistics import Tally

CALLERS = SIZE = 64
MOST = 0.3  # microseconds per request, of the counters
OFF = "statistics"


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.observability", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=60_000, help="of each cell, in each round")
    parser.add_argument("--cell", choices=CELLS, help="run one here, and print the microseconds of a call")
    options = parser.parse_args(arguments)
    if options.cell:
        print(CELLS[options.cell](options.calls))
        return 0
    print(__doc__)
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, {options.rounds} rounds\n")
    most = _print_counters()
    _print_cells(options.rounds, options.calls)
    if most > MOST:
        print(f"\nThe counters take {most:.2f} us per request in a batch of {SIZE}, which is more than {MOST} us.")
    return int(most > MOST)


# ---------------------------------------------------------------------------------------------------------------------


def _print_counters() -> float:
    print("| requests in a batch | the counters, us per request |\n| --- | --- |")
    each = 0.0
    for size in (1, 8, SIZE):
        each = _counting(size)
        print(f"| {size} | {each:.2f} |")
    print()
    return each


def _counting(size: int) -> float:
    """Microseconds per request, the best of five."""
    tally, accepted_at, batches = Tally(), [time.monotonic()] * size, 200_000 // size
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for _ in range(batches):
            tally.batch_closed("full", accepted_at, accepted_at[0] + 0.004)
            tally.batch_ended(size, 0.003)
        best = min(best, time.process_time() - began)
    return best / batches / size * 1e6


def _print_cells(rounds: int, calls: int) -> None:
    taken: dict[str, list[float]] = {cell: [] for cell in CELLS}
    for _ in range(rounds):
        for cell, times in taken.items():
            times.append(_in_a_process(cell, calls))
    off = statistics.median(taken[OFF])
    print("| | us per call | from - to | above statistics |\n| --- | --- | --- | --- |")
    for cell, times in taken.items():
        middle = statistics.median(times)
        print(f"| {cell} | {middle:.1f} | {min(times):.1f} - {max(times):.1f} | {middle - off:+.1f} |")


def _in_a_process(cell: str, calls: int) -> float:
    command = [sys.executable, "-m", "benchmarks.observability", "--cell", cell, "--calls", str(calls)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PROMETHEUS_MULTIPROC_DIR": folder} if "multiprocess" in cell else {}
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _measure(calls: int, *instruments: Any, around: Callable[..., Any] | None = None) -> float:
    """Microseconds of processor time per call."""
    import gevent

    batcher: UBatch[int, int] = UBatch(SIZE, 0.0, executor="greenlet", runtime="gevent", instruments=instruments)
    batcher.set_handler(list)
    ask = batcher.ubatch if around is None else around(batcher.ubatch)

    def call(times: int) -> None:
        for x in range(times):
            ask(x)

    gevent.joinall([gevent.spawn(call, 20) for _ in range(CALLERS)], raise_error=True)  # warm
    began = time.process_time()
    gevent.joinall([gevent.spawn(call, calls // CALLERS) for _ in range(CALLERS)], raise_error=True)
    seconds = time.process_time() - began
    batcher.stop()
    return seconds / (calls // CALLERS * CALLERS) * 1e6


class _Uncounted(Tally):
    def batch_closed(self, reason: str, accepted_at: Any, now: float) -> None:
        pass

    def batch_ended(self, size: int, seconds: float) -> None:
        pass


def _nothing(calls: int) -> float:
    _collector.Tally = _Uncounted  # type: ignore[misc, attr-defined]
    return _measure(calls)


def _prometheus(calls: int) -> float:
    from ubatch.integrations import prometheus

    return _measure(calls, prometheus.instrument())


def _provider() -> Any:
    from opentelemetry.sdk.trace import TracerProvider

    return TracerProvider()


def _opentelemetry(calls: int) -> float:
    from ubatch.integrations import opentelemetry

    return _measure(calls, opentelemetry.instrument(_provider()))


def _in_spans(provider: Any) -> Callable[..., Any]:
    tracer = provider.get_tracer("benchmark")

    def around(ask: Callable[[int], int]) -> Callable[[int], int]:
        def in_a_span(x: int) -> int:
            with tracer.start_as_current_span("GET /predict"):
                return ask(x)

        return in_a_span

    return around


def _spans_alone(calls: int) -> float:
    return _measure(calls, around=_in_spans(_provider()))


def _spans(calls: int) -> float:
    from ubatch.integrations import opentelemetry

    provider = _provider()
    return _measure(calls, opentelemetry.instrument(provider), around=_in_spans(provider))


CELLS: dict[str, Callable[[int], float]] = {
    "nothing counted": _nothing,
    OFF: _measure,
    "Prometheus, one process": _prometheus,
    "Prometheus, multiprocess": _prometheus,
    "OpenTelemetry, no span": _opentelemetry,
    "request spans alone": _spans_alone,
    "request spans, OpenTelemetry": _spans,
}

if __name__ == "__main__":
    sys.exit(main())
