"""What is left of a server's work at ten times its capacity, with and without `max_queue`?

    python -m benchmarks.overload                    # two minutes
    python -m benchmarks.overload --seconds 4 --load 1 10

The server is `gunicorn -k gevent` with one worker and a Flask application. Its handler takes a batch of at most eight
and 80 ms for it, asleep on a native thread: 100 requests a second, and no more. The load comes from this process over
loopback, and is open: a request is sent when it is due, whatever became of those before, and its time counts from
then. A client waits for a second; an answer that comes later is worth nothing. Each row of the table has a server of
its own, and the first two seconds do not count. Linux only.

* good: answers with status 200 within that second, per second. The requirement: at 10 x no less than 95 % of the most.
* p99: of these, in ms.
* refused: answers with status 503, per second, and the p99 of their time.
* gave up: clients whose second was over, per second.
* memory: of the worker at its largest, and what of it came with the load.

A row is marked where the load generator itself was late. Exits with 1 where the requirement is not met.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
from gevent import socket as green

from ubatch import QueueFull, UBatch
from ubatch._runtime._native import ThreadWaiter

if TYPE_CHECKING:
    from flask import Flask

SIZE, SECONDS = 8, 0.080
CAPACITY = SIZE / SECONDS  # requests per second
MAX_QUEUE = 2 * SIZE
PATIENCE = 1.0  # seconds that a client waits
WARM = 2.0  # seconds that do not count
LATE = 0.050  # seconds, of the load generator, after which a row is marked
LEAST = 0.95  # of the most good answers per second
REFUSALS = 20_000


def app() -> Flask:
    """The application, for gunicorn."""
    from flask import Flask

    from ubatch.integrations.flask import UBatchExtension

    max_queue = os.environ.get("OVERLOAD_MAX_QUEUE")
    batcher: UBatch[int, int] = UBatch(SIZE, 0.005, max_queue=int(max_queue) if max_queue else None)
    batcher.set_handler(_handle)
    app = Flask(__name__)
    UBatchExtension(app)
    app.add_url_rule("/predict/<int:x>", "predict", lambda x: {"answer": batcher.ubatch(x)})
    app.add_url_rule("/pid", "pid", lambda: str(os.getpid()))
    return app


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overload", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of load for each row, after the first two")
    parser.add_argument("--load", type=float, nargs="+", default=[0.5, 1, 2, 10], help="in capacities")
    options = parser.parse_args(arguments)
    _allow_many_sockets()
    print(_heading(options.seconds), flush=True)
    bounded = []
    for max_queue in (MAX_QUEUE, None):
        for load in options.load:
            row = measure(load, max_queue, options.seconds)
            print(row.line(), flush=True)
            if max_queue is not None:
                bounded.append(row)
    best = max(row.good for row in bounded)
    kept = bounded[-1].good / best
    print(f"\nWith max_queue, {options.load[-1]:g} x keeps {kept:.1%} of the most good answers ({best:.0f} a second).")
    print(f"A refusal, in microseconds: {refusal('gevent'):.1f} in a greenlet, {refusal('threading'):.1f} in a thread, "
          f"{refusal_in_flask():.0f} with Flask and the extension around it.")  # fmt: skip
    return 0 if kept >= LEAST else 1


@dataclass(frozen=True)
class Row:
    """What was measured at one load."""

    load: float
    max_queue: int | None
    good: float
    p99: float
    refused: float
    refused_p99: float
    gave_up: float
    memory: float
    growth: float
    late: float

    def line(self) -> str:
        """It, in the table."""
        note = f" (load late by {self.late * 1000:.0f} ms)" if self.late > LATE else ""
        return (
            f"| {self.max_queue or 'none'} | {self.load:g} x ({self.load * CAPACITY:.0f}/s){note} | {self.good:.0f} | "
            f"{_ms(self.p99)} | {self.refused:.0f} | {_ms(self.refused_p99)} | {self.gave_up:.0f} | "
            f"{self.memory:.0f} MiB ({self.growth:+.0f}) |"
        )


def measure(load: float, max_queue: int | None, seconds: float) -> Row:
    """One server, under one load."""
    with _server(max_queue) as port:
        client = _Client(port)
        pid = int(client.body_of("/pid"))
        before = _largest(pid)
        client.run(load * CAPACITY, WARM + seconds)
        memory = _largest(pid)
    replies = [reply for reply in client.replies if WARM <= reply.ended < WARM + seconds]
    good = sorted(reply.seconds for reply in replies if reply.status == 200)
    refused = sorted(reply.seconds for reply in replies if reply.status == 503)
    gave_up = [reply for reply in replies if reply.status not in (200, 503)]
    return Row(
        load=load,
        max_queue=max_queue,
        good=len(good) / seconds,
        p99=_percentile(good, 0.99),
        refused=len(refused) / seconds,
        refused_p99=_percentile(refused, 0.99),
        gave_up=len(gave_up) / seconds,
        memory=memory,
        growth=memory - before,
        late=_percentile(sorted(reply.late for reply in client.replies), 0.99),
    )


def refusal(runtime: str) -> float:
    """Microseconds for a call that is refused, in this process."""
    with _full(runtime) as batcher:

        def refuse() -> float:
            start = time.perf_counter()
            for x in range(REFUSALS):
                with suppress(QueueFull):
                    batcher.ubatch(x)
            return (time.perf_counter() - start) / REFUSALS * 1e6

        return float(gevent.spawn(refuse).get()) if runtime == "gevent" else refuse()


def refusal_in_flask() -> float:
    """Microseconds for a request that is refused: Flask, its extension and the JSON, without a server around it."""
    from flask import Flask

    from ubatch.integrations.flask import UBatchExtension

    app = Flask(__name__)
    UBatchExtension(app)
    with _full("threading") as batcher:
        app.get("/predict/<int:x>")(lambda x: {"answer": batcher.ubatch(x)})
        start = time.perf_counter()
        for x in range(REFUSALS // 10):
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": f"/predict/{x}", "SERVER_NAME": "x", "SERVER_PORT": "80",
                       "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO()}  # fmt: skip
            body: Any = app(environ, lambda *_: None)  # type: ignore[arg-type]
            list(body)
            body.close()
        return (time.perf_counter() - start) / (REFUSALS // 10) * 1e6


# ---------------------------------------------------------------------------------------------------------------------


def _handle(xs: list[int]) -> list[int]:
    ThreadWaiter().wait(SECONDS)  # a native lock: this thread sleeps, and nothing else does
    return [x * x for x in xs]


@contextmanager
def _full(runtime: str) -> Iterator[UBatch[int, int]]:
    """A batcher whose queue is full."""
    begun, free = ThreadWaiter(), ThreadWaiter()

    def hold(xs: list[int]) -> list[int]:
        if xs == [0]:
            begun.set()
            free.get()
        return xs

    with UBatch[int, int](1, 0.0, max_queue=1, runtime=runtime).set_handler(hold) as batcher:
        batcher.submit(0)
        gevent.get_hub().threadpool.apply(begun.wait, (10.0,))
        batcher.submit(1)
        try:
            yield batcher
        finally:
            free.set()


class _Reply(NamedTuple):
    status: int  # 0: none
    ended: float  # seconds after the load began
    seconds: float
    late: float  # of the load generator


class _Client:
    """Sends requests when they are due, each on a connection that is free or new."""

    def __init__(self, port: int) -> None:
        self.replies: list[_Reply] = []
        self._port = port
        self._free: list[Any] = []

    def body_of(self, path: str) -> bytes:
        return self._ask(self._connect(), path)[1]

    def run(self, rate: float, seconds: float) -> None:
        start = time.monotonic() + 0.1
        greenlets = []
        for number in range(int(rate * seconds)):
            due = start + number / rate
            gevent.sleep(max(0.0, due - time.monotonic()))
            greenlets.append(gevent.spawn(self._request, number, start, due))
        gevent.joinall(greenlets, timeout=PATIENCE + 10)
        for connection in self._free:
            connection.close()

    def _request(self, number: int, start: float, due: float) -> None:
        late = time.monotonic() - due
        status, connection = 0, None
        try:
            with gevent.Timeout(PATIENCE - late, False):
                connection = self._free.pop() if self._free else self._connect()
                status, _ = self._ask(connection, f"/predict/{number % 1000}")
        except OSError:
            status = 0
        if status:
            self._free.append(connection)
        elif connection is not None:
            connection.close()
        now = time.monotonic()
        self.replies.append(_Reply(status, now - start, now - due, late))

    def _connect(self) -> Any:
        connection = green.create_connection(("127.0.0.1", self._port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _ask(self, connection: Any, path: str) -> tuple[int, bytes]:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        received = b""
        while b"\r\n\r\n" not in received:
            received += _more(connection)
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        while len(body) < length:
            body += _more(connection)
        return int(head.split()[1]), body


def _more(connection: Any) -> bytes:
    received: bytes = connection.recv(65536)
    if not received:
        raise ConnectionError("the server closed the connection")
    return received


@contextmanager
def _server(max_queue: int | None) -> Iterator[int]:
    """The port of a server. Its socket listens before it runs, so that a request waits for it."""
    command = [sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "1", "--worker-connections", "20000"]
    command += ["--keep-alive", "30", "--graceful-timeout", "1", "--log-level", "error", "--no-control-socket"]
    environment = os.environ | {"OVERLOAD_MAX_QUEUE": str(max_queue or "")}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)
        port = int(listener.getsockname()[1])
        server = subprocess.Popen(
            [*command, "--bind", f"fd://{listener.fileno()}", "benchmarks.overload:app()"],
            cwd=Path(__file__).parents[1],
            pass_fds=[listener.fileno()],
            env=environment,
            start_new_session=True,
        )
    try:
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # what it still has to answer, nobody waits for
        server.wait()


def _allow_many_sockets() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _largest(pid: int) -> float:
    """The most memory that a process has had, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{pid}/status must tell VmHWM")


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds else "-"


def _heading(seconds: float) -> str:
    return (
        f"python -m benchmarks.overload: Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"{seconds:g} s a row\n\n"
        "| `max_queue` | load | good/s | their p99 | refused/s | their p99 | gave up/s | memory |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |"
    )


if __name__ == "__main__":
    sys.exit(main())
