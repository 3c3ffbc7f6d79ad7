"""Do CUDA streams on the native pool's threads overlap, and what does batching bring on a GPU?

    python -m benchmarks.gpu                         # half a minute, with a GPU; says that it was skipped without
    python -m benchmarks.gpu --device cpu            # the same code on the processor: no figure to keep

256 greenlets, each with one call at a time, send one row of 2,048 numbers to a perceptron of eight layers in half
precision. Each thread of the native pool has a CUDA stream of its own; a batch is copied there from pinned memory,
computed, copied back, and waited for without holding the interpreter's lock, so that the hub keeps turning.

* unbatched: one row for each handler call.
* one stream: batches of up to 64, one at the GPU at a time.
* two streams, four streams: `max_in_flight=2` and `4`: one batch is copied while another is computed.

Calls per second, mean batch, p50 and p99 of a call in ms: the median of the rounds, in which the rows take turns.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import gevent

from benchmarks._report import Report, parser
from ubatch import UBatch

CALLERS = 256
WIDTH, LAYERS = 2048, 8
ROWS: dict[str, dict[str, int]] = {
    "unbatched": {"max_size": 1, "max_in_flight": 1},
    "one stream": {"max_size": 64, "max_in_flight": 1},
    "two streams": {"max_size": 64, "max_in_flight": 2},
    "four streams": {"max_size": 64, "max_in_flight": 4},
}


def main(arguments: list[str] | None = None) -> int:
    """Run, print, keep, and return the exit status."""
    arguments_parser = parser("gpu", __doc__)
    arguments_parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    arguments_parser.add_argument("--rounds", type=int, default=5)
    arguments_parser.add_argument("--seconds", type=float, default=1.0, help="of each row in each round")
    options = arguments_parser.parse_args(arguments)
    if missing := _missing(options.device):
        print(f"SKIPPED: {missing}")
        return 0
    options.quick = options.quick or options.device == "cpu"
    rounds, seconds = (1, 0.1) if options.quick else (options.rounds, options.seconds)
    report = Report("gpu", __doc__, options, by_turns=True)
    handler = Model(options.device)
    taken: dict[str, list[dict[str, float]]] = {row: [] for row in ROWS}
    for _ in range(rounds):
        for row, measured in taken.items():
            measured.append(_measure(handler, seconds, ROWS[row]))
    data = [{"": row, **_middle(measured)} for row, measured in taken.items()]
    report.table(list(data[0]), [list(row.values()) for row in data])
    return report.save({"device": handler.name, "rows": data}, _plot)


# ---------------------------------------------------------------------------------------------------------------------


def _missing(device: str) -> str | None:
    """Why this cannot be measured here."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    if device == "cuda" and not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    return None


class Model:
    """The handler. Each thread that calls it gets a stream of its own."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch = torch
        self._device = device
        self._local = threading.local()
        layers = [layer for _ in range(LAYERS) for layer in (torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU())]
        self._model = torch.nn.Sequential(*layers).eval()
        if device == "cuda":
            self._model = self._model.half().to(device)
        self.name = torch.cuda.get_device_name() if device == "cuda" else "the processor"
        self._call: Callable[[list[Any]], list[Any]] = self._on_stream if device == "cuda" else self._compute

    def __call__(self, rows: list[Any]) -> list[Any]:
        with self._torch.inference_mode():
            return self._call(rows)

    def row(self) -> Any:
        """An input."""
        return self._torch.randn(WIDTH)

    def _compute(self, rows: list[Any]) -> list[Any]:
        return list(self._model(self._torch.stack(rows)))

    def _on_stream(self, rows: list[Any]) -> list[Any]:
        torch = self._torch
        stream = getattr(self._local, "stream", None)
        if stream is None:
            stream = self._local.stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            batch = torch.stack(rows).pin_memory().to(self._device, torch.float16, non_blocking=True)
            answers = self._model(batch).to("cpu", non_blocking=True)
        stream.synchronize()  # it waits without the interpreter's lock
        return list(answers)


def _measure(handler: Model, seconds: float, options: dict[str, int]) -> dict[str, float]:
    batcher: UBatch[Any, Any] = UBatch(timeout=0.02, eager=True, executor="native", runtime="gevent", **options)
    batcher.set_handler(handler)
    waits: list[float] = []
    row = handler.row()
    batcher.map([row] * 2 * options["max_size"] * options["max_in_flight"])  # threads, streams, kernels
    before = batcher.statistics()
    began = time.monotonic()

    def call() -> None:
        ended = began
        while ended < began + seconds:
            called = time.monotonic()
            batcher.ubatch(row)
            ended = time.monotonic()
            waits.append(ended - called)

    gevent.joinall([gevent.spawn(call) for _ in range(CALLERS)], raise_error=True)
    took = time.monotonic() - began
    after = batcher.statistics()
    batcher.stop()
    cuts = statistics.quantiles(waits, n=100)
    return {
        "calls/s": len(waits) / took,
        "mean batch": (after.items - before.items) / (after.batches - before.batches),
        "p50, ms": cuts[49] * 1000,
        "p99, ms": cuts[98] * 1000,
    }


def _middle(measured: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(each[key] for each in measured) for key in measured[0]}


def _plot(figure: Any, data: dict[str, Any]) -> None:
    axes = figure.subplots()
    axes.bar([row[""] for row in data["rows"]], [row["calls/s"] for row in data["rows"]])
    axes.set_ylabel("calls per second")
    axes.set_title(data["device"])


if __name__ == "__main__":
    sys.exit(main())
