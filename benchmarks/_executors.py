"""A hub, callers on it, and handlers of one kind; `benchmarks.executors` starts a process for each kind and round:

    python -I benchmarks/_executors.py measure numpy 0.4 native,greenlet,auto 1 20
    python -I benchmarks/_executors.py serve

`measure` prints a line of JSON for each length (in ms), load and executor. `serve` prints a port, and answers requests
there until its input ends: the HTTP handlers ask it. Everything is patched, as in gunicorn's worker.
"""

from __future__ import annotations

import json
import math
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402
from gevent.socket import wait_read  # noqa: E402

from ubatch import UBatch  # noqa: E402

MAX_SIZE = 32  # so that half of the callers can gather while the others are at the handler
OF_ITS_OWN = 0.0002  # seconds: about what a request costs a Flask application without its model
LOADS = {"1 caller": (1, 0.0), "64 callers": (64, 0.0), "64 that work": (64, OF_ITS_OWN)}
TICK = 0.001
WARM = 0.05  # seconds, at least
SETTLED = 20  # batches of a short handler, after which "auto" has chosen
FEWEST = 8  # batches in a window, at least
MOST = 8.0  # seconds for a window, or for warming up, at most

get_ident = monkey.get_original("_thread", "get_ident")
Work = Callable[[], object]


class TooLong(Exception):
    """A handler of this kind takes longer, whatever it does."""


def nothing(_: float) -> Work:
    """Nothing at all: what a call costs is the way to the handler and back."""
    return lambda: None


def python(seconds: float) -> Work:
    """A loop in pure Python: it holds the GIL but for being asked for it."""
    return partial(_spin, _times(_spin, seconds))


def forest(seconds: float) -> Work:
    """A scikit-learn forest of so many trees as take so long, for 32 images: it takes and gives back the GIL often."""
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier

    images, digits = load_digits(return_X_y=True)
    some = images[:MAX_SIZE]
    model = RandomForestClassifier(n_estimators=50, random_state=0).fit(images, digits)
    trees = model.estimators_

    def grow(many: int) -> None:
        model.estimators_ = [trees[n % len(trees)] for n in range(many)]

    def takes(many: int) -> float:
        grow(many)
        return _takes(lambda: model.predict(some))

    one, hundred = takes(1), takes(100)
    many = round(1 + (seconds - one) / (hundred - one) * 99)
    if many < 1:
        raise TooLong(f"one tree takes {one * 1000:.1f} ms")
    grow(many)
    return lambda: model.predict(some)


def numpy(seconds: float) -> Work:
    """Four products of matrices, by BLAS in one thread: each without the GIL."""
    import numpy as np

    def multiply(n: int) -> Work:
        matrix = np.random.default_rng(0).random((n, n), dtype=np.float32)
        return lambda: [matrix @ matrix for _ in range(4)]

    return _sized(multiply, seconds)


def torch(seconds: float) -> Work:
    """Four products of matrices, by torch on the CPU in one thread: each without the GIL."""
    import torch

    torch.set_num_threads(1)

    def multiply(n: int) -> Work:
        matrix = torch.rand(n, n)
        return lambda: [torch.mm(matrix, matrix) for _ in range(4)]

    return _sized(multiply, seconds)


def http(seconds: float) -> Work:
    """A request to a server that takes so long to answer, over a connection of its own: cooperative on the hub.

    Not one that is kept: a thread could not use the hub's, nor the hub a thread's.
    """
    from http.client import HTTPConnection

    port = _server_port()
    milliseconds = seconds * 1000 if seconds >= TICK else 0  # its timers know whole ms

    def ask() -> bytes:
        connection = HTTPConnection("127.0.0.1", port, timeout=MOST)
        try:
            connection.request("GET", f"/{milliseconds}")
            return connection.getresponse().read()
        finally:
            connection.close()

    return ask


KINDS: dict[str, Callable[[float], Work]] = {
    "nothing": nothing,
    "python": python,
    "forest": forest,
    "numpy": numpy,
    "torch": torch,
    "http": http,
}


def measure(kind: str, seconds: str, executors: str, *lengths: str) -> None:
    """Every executor in turn with each load, for handlers of each length."""
    for length in map(float, lengths):
        try:
            work = KINDS[kind](length / 1000)
        except TooLong as error:
            print(json.dumps({"length": length, "failed": str(error)}), flush=True)
            continue
        alone = _takes(work)
        for load in LOADS:
            for executor in executors.split(","):
                found = _measure(work, alone, load, executor, float(seconds))
                row = {"length": length, "alone": alone * 1000, "load": load, "executor": executor, **found}
                print(json.dumps(row), flush=True)


def serve() -> None:
    """Answer `GET /5` after 5 ms, until the input ends: with whoever started this process, however that ended."""
    from gevent.pywsgi import WSGIServer

    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        if milliseconds := float(environ["PATH_INFO"][1:]):
            gevent.sleep(milliseconds / 1000)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    server = WSGIServer(("127.0.0.1", 0), application, log=None)
    server.start()
    print(server.server_port, flush=True)
    gevent.get_hub().threadpool.apply(sys.stdin.read)


# ---------------------------------------------------------------------------------------------------------------------


class _Callers:
    """Greenlets that call in a closed loop until told to end, and how long each call took, in seconds.

    Those that work have waited at a socket before, as requests do. Without, the loop has callbacks to run all the time,
    and looks at its timers and sockets after each fifty of them only.
    """

    def __init__(self, ask: Callable[[int], int], many: int, own: float) -> None:
        self.latencies: list[float] = []
        self._ask = ask
        self._times = _times(_spin, own) if own else 0
        self._readable, self._other_end = socket.socketpair()
        self._other_end.send(b"x")  # never read, so it is always readable
        self._going = True
        self._greenlets = [gevent.spawn(self._call, number) for number in range(many)]

    def end(self) -> None:
        self._going = False
        gevent.joinall(self._greenlets, timeout=MOST, raise_error=True)
        self._readable.close()
        self._other_end.close()

    def _call(self, number: int) -> None:
        while self._going:
            if self._times:
                wait_read(self._readable.fileno())
                _spin(self._times)
            began = time.perf_counter()
            if self._ask(number) != number:
                raise AssertionError("the answer of another")
            self.latencies.append(time.perf_counter() - began)


def _measure(work: Work, alone: float, load: str, executor: str, seconds: float) -> dict[str, float]:
    """What a window of so many seconds shows, or longer, so that there are enough batches in it."""
    batches: list[tuple[float, int, bool]] = []  # when it ended, its size, whether on the hub
    home = get_ident()

    def handler(xs: list[int]) -> list[int]:
        work()
        batches.append((time.perf_counter(), len(xs), get_ident() == home))
        return xs

    many, own = LOADS[load]
    settled = SETTLED if alone < 0.01 else 2
    with UBatch[int, int](MAX_SIZE, 0.02, eager=True, executor=executor).set_handler(handler) as batcher:
        callers = _Callers(batcher.ubatch, many, own)
        _wait(WARM, lambda: len(batches) > settled)
        batches.clear()
        callers.latencies.clear()
        with _ticker() as gaps:
            processor = time.process_time()
            _wait(seconds, lambda: len(batches) > FEWEST)
            processor = time.process_time() - processor
        latencies, ended = sorted(callers.latencies), list(batches)
        callers.end()
    return _figures(ended, latencies, max(gaps), processor)


def _figures(
    ended: list[tuple[float, int, bool]], latencies: list[float], gap: float, processor: float
) -> dict[str, float]:
    """Requests per second are from the end of one batch to that of another, so that no part of a batch counts."""
    requests = sum(size for _, size, _ in ended[1:])
    return {
        "requests": requests / (ended[-1][0] - ended[0][0]),
        "p50": statistics.median(latencies) * 1000,
        "p99": latencies[math.ceil(0.99 * len(latencies)) - 1] * 1000,
        "gap": gap * 1000,
        "batch": requests / (len(ended) - 1),
        "cpu": processor / len(latencies) * 1e6,
        "on the hub": sum(on_hub for *_, on_hub in ended) / len(ended),
    }


def _wait(seconds: float, enough: Callable[[], bool]) -> None:
    """So long, and until there is enough."""
    began = time.monotonic()
    gevent.sleep(seconds)
    while not enough():
        if time.monotonic() > began + MOST:
            raise TimeoutError(f"too few batches in {MOST:.0f} s")
        gevent.sleep(0.01)


@contextmanager
def _ticker() -> Iterator[list[float]]:
    """The gaps between the ticks of a greenlet that wants one each millisecond, in seconds."""
    gaps: list[float] = []

    def tick() -> None:
        last = time.perf_counter()
        while True:
            gevent.sleep(TICK)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    ticker = gevent.spawn(tick)
    try:
        yield gaps
        gevent.sleep(2 * TICK)  # so that a gap which has begun is counted
    finally:
        ticker.kill()


def _spin(times: int) -> int:
    total = 0
    for x in range(times):
        total += x & 7
    return total


def _times(work: Callable[[int], object], seconds: float) -> int:
    """How often it has to be done to take so long."""
    times = 1000
    return max(1, round(times * seconds / _takes(partial(work, times))))


def _sized(make: Callable[[int], Work], seconds: float) -> Work:
    """Of the size that takes so long, where the time grows with the cube of the size. In two steps."""
    size = 128.0
    for _ in range(2):
        size = max(8.0, size * (seconds / _takes(make(round(size)))) ** (1 / 3))
    return make(round(size))


def _takes(work: Work) -> float:
    """Seconds, the median."""
    work()
    found: list[float] = []
    ends = time.perf_counter() + 0.03
    while len(found) < 3 or time.perf_counter() < ends:
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


_server: list[Any] = []  # its process and its port, once started


def _server_port() -> int:
    if not _server:
        command = [sys.executable, "-I", __file__, "serve"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        _server.extend([process, int(process.stdout.readline())])
    return _server[1]  # type: ignore[no-any-return]


if __name__ == "__main__":
    {"measure": measure, "serve": serve}[sys.argv[1]](*sys.argv[2:])
