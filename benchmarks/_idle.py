"""A process that does nothing, or that holds pending calls; `benchmarks.idle` starts one for each row:

    python -I benchmarks/_idle.py idle gevent uBatch 10           # idle for ten seconds
    python -I benchmarks/_idle.py pending gevent submit 100000    # so many calls that wait

It prints one line of JSON. It runs in the environment of uBatch 1.0.0 too, so it imports nothing of this folder.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

BATCHERS = 10
SETTLE = 0.5  # seconds, after which starting has ended


def idle(world: str, system: str, seconds: float) -> dict[str, float]:
    """Voluntary context switches of all threads, and seconds of the processor, while nothing is asked for."""
    if world == "gevent":
        from gevent import monkey

        monkey.patch_all()
    batchers = [_used(system, number) for number in range(BATCHERS)] if system != "bare" else []
    time.sleep(SETTLE)
    switches, processor = _switches(), time.process_time()
    time.sleep(seconds)
    return {
        "switches": _switches() - switches,
        "processor": time.process_time() - processor,
        "threads": len(os.listdir("/proc/self/task")),
        "batchers": len(batchers),
    }


def pending(world: str, how: str, count: int) -> dict[str, float]:
    """Bytes of resident memory for each call that waits, by `submit`, or by `ubatch` in a greenlet or thread each."""
    import gevent
    from gevent.hub import Waiter

    from ubatch import UBatch

    release = threading.Event()
    batcher: Any = UBatch(64, 3600.0, runtime=world, executor="native").set_handler(
        lambda xs: [release.wait() for _ in xs]
    )
    batcher.submit(-1)
    waiting: list[Any] = []

    def park() -> None:
        Waiter().get()

    def one(x: int) -> Any:
        if how == "submit":
            return batcher.submit(x)
        return gevent.spawn(park) if how == "bare greenlets" else gevent.spawn(batcher.ubatch, x)

    for x in range(1000):
        waiting.append(one(x))
    gevent.idle()
    before = _resident()
    for x in range(count):
        waiting.append(one(x))
    gevent.idle()
    bytes_each = (_resident() - before) / count
    print(json.dumps({"bytes": bytes_each}), flush=True)
    os._exit(0)  # a hundred thousand callers have no end to wait for


# ---------------------------------------------------------------------------------------------------------------------


def _used(system: str, number: int) -> Any:
    """A batcher that has answered one call, so that all that it ever starts is running."""
    from ubatch import UBatch

    if system == "uBatch 1.0.0":
        batcher: Any = UBatch(8, 0.01)
        batcher.set_handler(list)
        batcher.start()
    else:
        batcher = UBatch(8, 0.01, eager=system.endswith("eager")).set_handler(list)
    assert batcher.ubatch(number) == number
    return batcher


def _switches() -> int:
    total = 0
    for status in Path("/proc/self/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    what, world_, how_, amount = sys.argv[1:]
    print(json.dumps(idle(world_, how_, float(amount)) if what == "idle" else pending(world_, how_, int(amount))))
