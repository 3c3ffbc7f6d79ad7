"""A hub with a ticker, and a handler that takes 50 ms; `benchmarks.hub` starts one for each row:

    python -I benchmarks/_hub.py numpy native 20

It prints one line of JSON: the longest gap between two ticks, in ms, of each of so many batches. It runs in the
environment of uBatch 1.0.0 too, so it imports nothing of this folder. Everything is patched, as in gunicorn's worker.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402

TICK = 0.001
LONG = 0.050  # seconds that the handler takes
Handler = Callable[[list[int]], list[int]]


def gaps(ask: Callable[[], object] | None, rounds: int) -> list[float]:
    """The longest gap of a ticker, in ms, during each call of `ask`, or during as long without one."""
    longest = 0.0

    def tick() -> None:
        nonlocal longest
        last = time.monotonic()
        while True:
            gevent.sleep(TICK)
            now = time.monotonic()
            longest, last = max(longest, now - last), now

    ticker = gevent.spawn(tick)
    gevent.sleep(0.05)
    found = []
    for _ in range(rounds):
        longest = 0.0
        if ask is None:
            gevent.sleep(LONG)
        else:
            ask()
        gevent.sleep(2 * TICK)
        found.append(longest * 1000)
    ticker.kill()
    return found


def handler_of(kind: str) -> Handler:
    """A handler that takes about `LONG` seconds."""
    work = {"numpy": _numpy, "torch": _torch, "python": _python}[kind]()
    work(1)
    began = time.perf_counter()
    work(3)
    times = max(1, round(LONG / ((time.perf_counter() - began) / 3)))

    def handler(xs: list[int]) -> list[int]:
        work(times)
        return xs

    return handler


def ask_of(how: str, handler: Handler) -> Callable[[], object] | None:
    """A call of a batcher, or None for an idle hub."""
    if how == "idle hub":
        return None
    from ubatch import UBatch

    if how == "uBatch 1.0.0":
        old: Any = UBatch(8, 0.001)
        old.set_handler(handler)
        old.start()
        return lambda: old.ubatch(1)
    batcher = UBatch[int, int](8, 0.02, eager=True, executor=how).set_handler(handler)
    return lambda: batcher.ubatch(1)


# ---------------------------------------------------------------------------------------------------------------------


def _numpy() -> Callable[[int], None]:
    import numpy as np

    matrix = np.random.default_rng(0).random((256, 256))

    def work(times: int) -> None:
        for _ in range(times):
            matrix @ matrix

    return work


def _torch() -> Callable[[int], None]:
    import torch

    matrix = torch.rand(256, 256)

    def work(times: int) -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)

    return work


def _python() -> Callable[[int], None]:
    def work(times: int) -> None:
        for _ in range(times):
            sum(x & 7 for x in range(5000))

    return work


if __name__ == "__main__":
    kind_, how_, rounds_ = sys.argv[1:]
    ask_ = ask_of(how_, handler_of(kind_))
    if ask_ is not None:
        ask_()
    print(json.dumps(gaps(ask_, int(rounds_))))
