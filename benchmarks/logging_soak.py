"""Is a batcher ever stuck where handlers, views and instruments log?

    python -m benchmarks.logging_soak                    # a million calls through two batchers, and through four
    python -m benchmarks.logging_soak --calls 20000
    python -m benchmarks.logging_soak --executor native

gevent's patched locks lose wake-ups between native threads (gevent #2013, `python -m benchmarks.gevent_lock`), and each
log handler has one. Here a real `gunicorn -k gevent` logs each call in its view, each batch twice in its handler and
once in an instrument, to a StreamHandler, a RotatingFileHandler that rotates all the time, and a QueueHandler. Half of
the calls meet handlers that do nothing, the other half such that compute for 6 ms, which run natively. An HTTP request
makes 1,000 calls from eight greenlets; sixteen clients ask. One that has no answer after two minutes is stuck.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

CLIENTS = 16
EACH = 1000  # calls of one HTTP request
STUCK = 120.0  # seconds
APP = "benchmarks._logging_app:app"
ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Run, print a line for each server, and return how many calls were wrong or not answered."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.logging_soak", description=__doc__)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("--calls", type=int, default=1_000_000, help="through two batchers, and as many through four")
    options.add_argument("--executor", default="auto", choices=("auto", "native", "greenlet"))
    chosen = options.parse_args(arguments)
    failed = 0
    for batchers in (2, 4):
        for long in (0, 6):
            failed += soak(batchers, long, chosen.executor, chosen.calls // 2)
    return min(failed, 1)


def soak(batchers: int, long: float, executor: str, calls: int) -> int:
    """One server; how many calls were wrong or not answered."""
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        port = listener.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-k", "gevent", "--no-control-socket", "--log-level", "warning",
             "--bind", f"fd://{listener.fileno()}", APP],
            cwd=ROOT,
            env={**os.environ, "BATCHERS": str(batchers), "LONG": str(long), "EXECUTOR": executor,
                 "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        wrong, unanswered = _ask_all(port, calls)
        told = {} if unanswered else _get(port, "/statistics")
    finally:
        server.terminate()
        try:
            server.wait(40)
        except subprocess.TimeoutExpired:  # stuck
            server.kill()
            server.wait()
    seconds = time.monotonic() - began
    print(
        f"{batchers} batchers, executor={executor!r}, handlers of {long:g} ms: {calls:,} calls, {wrong} wrong, "
        f"{unanswered:,} unanswered, in {told.get('batches', 0):,} batches ({', '.join(told.get('runs on', []))}), "
        f"{seconds:.0f} s",
        flush=True,
    )
    return wrong + unanswered


def _ask_all(port: int, calls: int) -> tuple[int, int]:
    """How many answers were wrong, and how many calls had none."""
    left = [EACH] * (calls // EACH)
    wrong: list[int] = []

    def client() -> None:
        while True:
            try:
                count = left.pop()
            except IndexError:
                return
            wrong.append(_get(port, f"/ask?{count}"))

    clients = [threading.Thread(target=client, daemon=True) for _ in range(CLIENTS)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    return sum(wrong), (calls // EACH - len(wrong)) * EACH


def _get(port: int, path: str) -> Any:
    connection = HTTPConnection("127.0.0.1", port, timeout=STUCK)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
