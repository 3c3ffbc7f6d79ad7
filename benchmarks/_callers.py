"""Callers in a closed loop around one system, in a process of its own, which `benchmarks.cost` starts:

    python -I benchmarks/_callers.py gevent "uBatch 1.0.0" 64 0.03

Every so many seconds it prints a line of JSON, and never ends: when they began (of the system's monotonic clock),
microseconds of wall and of processor time per call, and the mean batch. It has no time limit of its own. It runs in the
peers' environments too, so it imports nothing of this folder; `ubatch` is there 1.0.0, and here the installed one.

Each caller has one call at a time. A batch is at most `size`: as many as there are callers, and at most 64, the same
for every system; so nobody has to wait for company that does not come, and what is measured is the cost alone. The
handler gives back what it is given. In the world "gevent" everything is patched, as in gunicorn's worker, and callers
are greenlets; in "threads" nothing is.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

MAX_SIZE = 64
WARM = 0.05  # seconds, at least; each caller must have had two answers
FEWEST = 5  # calls of each caller in a line
MOST = 1.0  # seconds, where callers are so slow that the time asked for has fewer calls

Handler = Callable[[list[int]], list[int]]
Ask = Callable[[int], int]


def floor_gevent(size: int, handler: Handler) -> Ask:
    """A queue, a place for each answer, and nothing else."""
    import gevent
    from gevent.event import AsyncResult
    from gevent.queue import SimpleQueue

    queue = SimpleQueue()

    def collect() -> None:
        while True:
            batch = [queue.get()]
            while len(batch) < size and queue.qsize():
                batch.append(queue.get())
            answers = handler([x for x, _ in batch])
            for (_, result), answer in zip(batch, answers, strict=True):
                result.set(answer)

    def ask(x: int) -> int:
        result = AsyncResult()
        queue.put((x, result))
        return result.get()  # type: ignore[no-any-return]

    gevent.spawn(collect)
    return ask


def floor_threads(size: int, handler: Handler) -> Ask:
    """A queue, a lock for each call, and nothing else."""
    from _thread import allocate_lock
    from queue import SimpleQueue

    queue: SimpleQueue[list[Any]] = SimpleQueue()

    def collect() -> None:
        while True:
            batch = [queue.get()]
            while len(batch) < size and queue.qsize():
                batch.append(queue.get())
            answers = handler([cell[0] for cell in batch])
            for cell, answer in zip(batch, answers, strict=True):
                cell[0] = answer
                cell[1].release()

    def ask(x: int) -> int:
        lock = allocate_lock()
        lock.acquire()
        cell = [x, lock]
        queue.put(cell)
        lock.acquire()
        return cell[0]  # type: ignore[return-value]

    threading.Thread(target=collect, daemon=True).start()
    return ask


def ours(**options: Any) -> Callable[[int, Handler], Ask]:
    """UBatch of this repository. The wait is never waited out here: batches fill, or go when nobody else can come."""

    def make(size: int, handler: Handler) -> Ask:
        from ubatch import UBatch

        return UBatch[int, int](size, 0.005, **options).set_handler(handler).ubatch

    return make


def ubatch_1(size: int, handler: Handler) -> Ask:
    """UBatch 1.0.0. With no timeout a batch goes when the queue is empty: the fastest that it can."""
    from ubatch import UBatch

    batcher: Any = UBatch(size, 0)
    batcher.set_handler(handler)
    batcher.start()
    return batcher.ubatch  # type: ignore[no-any-return]


def batched(size: int, handler: Handler) -> Ask:
    """Batched 0.1.5. It sleeps between batches; without a time it yields only, and spins where nobody calls."""
    from batched import dynamically

    return dynamically(handler, batch_size=size, timeout_ms=0)  # type: ignore[no-any-return]


def service_streamer(size: int, handler: Handler) -> Ask:
    """service-streamer 0.1.2. Its latency is for each item that it waits for; with 0 each batch would be of one."""
    from service_streamer import ThreadedStreamer

    predict = ThreadedStreamer(handler, batch_size=size, max_latency=0.005).predict
    return lambda x: predict([x])[0]  # type: ignore[no-any-return]


SYSTEMS: dict[str, dict[str, Callable[[int, Handler], Ask]]] = {
    "gevent": {
        "floor": floor_gevent,
        "greenlet, fixed": ours(executor="greenlet"),
        "greenlet, eager": ours(executor="greenlet", eager=True),
        "native, fixed": ours(executor="native"),
        "native, eager": ours(executor="native", eager=True),
        "auto, eager": ours(executor="auto", eager=True),
        "uBatch 1.0.0": ubatch_1,
        "batched 0.1.5": batched,
        "service-streamer 0.1.2": service_streamer,
    },
    "threads": {
        "floor": floor_threads,
        "threads, fixed": ours(),
        "threads, eager": ours(eager=True),
        "uBatch 1.0.0": ubatch_1,
        "batched 0.1.5": batched,
        "service-streamer 0.1.2": service_streamer,
    },
}


def main(world: str, system: str, callers: str, seconds: str) -> None:
    """Start one, and print until killed."""
    if world == "gevent":
        from gevent import monkey

        monkey.patch_all()
    _measure(SYSTEMS[world][system], int(callers), float(seconds))


# ---------------------------------------------------------------------------------------------------------------------


def _measure(make: Callable[[int, Handler], Ask], callers: int, seconds: float) -> None:
    """Between moments at which all callers are at it, so that neither the start nor an end is in it."""
    batches = [0]

    held = threading.Lock()

    def handler(xs: list[int]) -> list[int]:
        if held.locked():  # only with threads: see _start_callers
            with held:
                pass
        batches[0] += 1
        return xs

    counts = _start_callers(make(min(callers, MAX_SIZE), handler), callers, held)
    began = time.monotonic()
    while time.monotonic() < began + WARM or min(counts) < 2:
        time.sleep(0.01)
    while True:
        began, processor, calls, before = time.monotonic(), time.process_time(), sum(counts), batches[0]
        done, wall = 0, 0.0
        while not done or (done < FEWEST * callers and wall < MOST):
            time.sleep(seconds)
            wall, processor_spent = time.monotonic() - began, time.process_time() - processor
            done, in_batches = sum(counts) - calls, batches[0] - before
        line = {
            "began": began,
            "wall": wall / done * 1e6,
            "cpu": processor_spent / done * 1e6,
            "batch": done / max(in_batches, 1),
        }
        print(json.dumps(line), flush=True)


def _start_callers(ask: Ask, callers: int, held: threading.Lock) -> list[int]:
    """Callers that never end, and how many answers each has had.

    With threads no handler ends before all have made their first call. Were the loop running when the last come, most
    of thousands would still be waiting for the GIL for the first time after half a minute: it is not fair to a crowd,
    and a crowd that waits for it takes the processor.
    """
    counts = [-1] * callers

    def call(caller: int) -> None:
        counts[caller] = 0
        while True:
            if ask(caller) != caller:
                os.write(2, b"the answer of another call\n")
                os._exit(1)
            counts[caller] += 1

    if gevent := sys.modules.get("gevent"):
        for caller in range(callers):
            gevent.spawn(call, caller)
        return counts
    held.acquire()
    threading.stack_size(256 * 1024)
    for caller in range(callers):
        threading.Thread(target=call, args=(caller,), daemon=True).start()
    while min(counts) < 0:
        time.sleep(0.01)
    held.release()
    return counts


if __name__ == "__main__":
    main(*sys.argv[1:])
