"""Does a lone call with plain threads ever hang on a busy machine?

    python -m benchmarks.lone_calls --seconds 300    # five minutes

One caller, one call after the other, eager and with a fixed wait in turn, beside two processes for each core that do
nothing but compute. `SimpleQueue.get` with a timeout hangs there within seconds on CPython 3.11 and 3.12
(`ubatch/_runtime/_threading.py` tells why). Prints how many calls were answered, how long the slowest took, and how
many were not answered within 30 seconds; exits with 1 where one was not.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time

from ubatch import UBatch

LIMIT = 30.0  # seconds, after which a call is thought to hang
BUSY = "while True: pass"


def same(xs: list[int]) -> list[int]:
    """The handler."""
    return xs


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and return the exit status."""
    options = argparse.ArgumentParser("lone_calls", description=__doc__)
    options.add_argument("--seconds", type=float, default=20.0, help="for how long to call")
    options.add_argument("--quick", action="store_true", help="for a second")
    chosen = options.parse_args(arguments)
    batchers = [
        UBatch[int, int](64, 0.02, eager=True, runtime="threading", name="eager").set_handler(same),
        UBatch[int, int](64, 0.0005, runtime="threading", name="fixed").set_handler(same),
    ]
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2 * (os.cpu_count() or 1))]
    slowest, answered, hung = dict.fromkeys(["eager", "fixed"], 0.0), 0, 0
    try:
        until = time.monotonic() + (1.0 if chosen.quick else chosen.seconds)
        while (began := time.monotonic()) < until and not hung:
            batcher = batchers[answered % 2]
            try:
                assert batcher.submit(answered).result(LIMIT) == answered
                answered += 1
            except TimeoutError:
                hung += 1
            slowest[batcher.name] = max(slowest[batcher.name], time.monotonic() - began)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    for batcher in batchers:
        batcher.stop(1.0)
    figures = ", ".join(f"the slowest {name} one took {seconds * 1000:.1f} ms" for name, seconds in slowest.items())
    print(f"CPython {platform.python_version()}: {answered:,} lone calls answered, {hung} hung; {figures}")
    return int(hung > 0)


if __name__ == "__main__":
    sys.exit(main())
