"""Two or four batchers under `gunicorn -k gevent`, where handlers, views and instruments log: for `logging_soak`.

`BATCHERS`, `EXECUTOR` and `LONG` (ms for a batch) come from the environment.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import queue
import tempfile
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import gevent
import numpy as np

from ubatch import Batch, Instrument, UBatch

LONG = float(os.environ["LONG"]) / 1000
MATRIX = np.random.default_rng(0).random((200, 200))
CALLERS = 8  # greenlets of one HTTP request

lines: queue.Queue[Any] = queue.Queue(10_000)
listener = logging.handlers.QueueListener(lines, logging.NullHandler())
folder = tempfile.TemporaryDirectory()
logging.basicConfig(
    level=logging.INFO,
    handlers=[
        logging.StreamHandler(open(os.devnull, "w")),  # noqa: SIM115 (as long as the process)
        logging.handlers.RotatingFileHandler(f"{folder.name}/log", maxBytes=200_000, backupCount=2),
        logging.handlers.QueueHandler(lines),
    ],
)
log = logging.getLogger("app")
listener.start()  # a greenlet


class Logging(Instrument):
    """Logs each batch."""

    def batch_ended(self, batch: Batch) -> None:
        log.info("a batch of %d has ended", len(batch.requests))


def handler(xs: list[int]) -> list[int]:
    log.info("a batch of %d", len(xs))
    compute()
    log.info("done")
    return [x * x for x in xs]


def compute() -> None:
    ends = perf_counter() + LONG
    while perf_counter() < ends:
        MATRIX @ MATRIX  # without the interpreter's lock


batchers = [
    UBatch[int, int](
        64, 0.02, eager=True, executor=os.environ["EXECUTOR"], name=f"model {n}", instruments=[Logging()]
    ).set_handler(handler)
    for n in range(int(os.environ["BATCHERS"]))
]


def ask(first: int, count: int) -> int:
    """So many calls, one after the other, each with a line in the log; how many were answered wrongly."""
    wrong = 0
    for x in range(first, first + count):
        log.info("a request for %d", x)
        wrong += batchers[x % len(batchers)].ubatch(x) != x * x
    return wrong


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """`/ask?500` makes so many calls and says how many answers were wrong; `/statistics`."""
    if environ["PATH_INFO"] == "/ask":
        each = int(environ["QUERY_STRING"]) // CALLERS
        greenlets = [gevent.spawn(ask, n * each, each) for n in range(CALLERS)]
        gevent.joinall(greenlets, raise_error=True)
        answer: Any = sum(greenlet.value for greenlet in greenlets)
    else:
        found = [batcher.statistics() for batcher in batchers]
        answer = {
            "answered": sum(each.answered for each in found),
            "batches": sum(each.batches for each in found),
            "runs on": sorted({each.runs_on for each in found}),
        }
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
