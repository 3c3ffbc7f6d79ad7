"""Starts the application and its title service as processes of their own, and stops them.

Guarantees:

- The port is free: it is bound here and handed over, listening, to the process. A request made
  before that process is ready waits in the socket's backlog, so nobody has to ask again and again.
- A process that ends takes its socket along: whoever waits for an answer gets an error at once.
- Whatever happens in the `with` block, the process is stopped on the way out, within
  `STOP_LIMIT` seconds, and after that by force.

It needs a checkout: `gunicorn.conf.py` lies beside the package.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

READY_LIMIT = 60.0
STOP_LIMIT = 15.0

PROJECT = Path(__file__).resolve().parents[1]


class ServerError(Exception):
    """A server did not start, or is gone; the message is for the person at the terminal."""


class Stopped(SystemExit):
    """A signal asked this program to stop; `code` is the exit status that says which."""


class Server:
    """A running process that serves HTTP on the loopback interface."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], port: int) -> None:
        self.port = port
        self._name = name
        self._process = process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get_json(self, path: str) -> dict[str, Any]:
        """What GET `path` answers, waiting for a start that takes up to `READY_LIMIT` seconds.

        Raises `ServerError` if it does not answer with status 200 and a JSON object.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=READY_LIMIT)
        try:
            with contextlib.closing(connection):
                connection.request("GET", path)
                response = connection.getresponse()
                answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerError(f"{self._name} does not answer GET {path} ({error!r})") from error
        if response.status != 200 or not isinstance(answer, dict):
            raise ServerError(f"{self._name} answers GET {path} with status {response.status}")
        return answer

    def wait(self) -> int:
        """Return the exit status, when the process ends by itself."""
        return self._process.wait()

    def terminate(self) -> None:
        """Ask the process to end, and do not wait for it."""
        self._process.terminate()

    def stop(self) -> None:
        """End the process: politely, then by force if that is too slow or interrupted."""
        self.terminate()
        try:
            self._process.wait(STOP_LIMIT)
        except BaseException as error:  # a second Ctrl-C too must leave nothing behind
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise


@contextlib.contextmanager
def running_upstream(*, log: IO[bytes] | None = None) -> Iterator[Server]:
    """The title service, answering. `log` takes what it prints (`None`: the terminal)."""
    command = [sys.executable, "-m", "digits_demo.upstream", "--bind"]
    with _running("the title service", command, os.environ, port=0, log=log) as server:
        server.get_json("/stats")
        yield server


@contextlib.contextmanager
def running_app(
    upstream_url: str, *, workers: int = 1, port: int = 0, log: IO[bytes] | None = None
) -> Iterator[Server]:
    """The application under gunicorn (`gunicorn.conf.py`) with so many workers, answering.

    The environment's settings hold, but for the number of workers: the counts of GET /stats
    belong to one process. `port` 0 is a free one.
    """
    environ = {
        **os.environ,
        "UPSTREAM_URL": upstream_url,
        "GUNICORN_WORKERS": str(workers),
        # The title service is on this machine, where no proxy finds it.
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "gunicorn", "--bind"]
    with _running("the application", command, environ, port=port, log=log) as server:
        server.get_json("/healthz")
        yield server


def stop_on_signals() -> None:
    """Let Ctrl-C, SIGTERM and a closed terminal unwind the program by the exception `Stopped`.

    Ctrl-C too, because gevent's hub prints every KeyboardInterrupt that passes through it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)


# ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _running(
    name: str,
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    port: int,
    log: IO[bytes] | None,
) -> Iterator[Server]:
    server = _start(name, command, environ, port=port, log=log)
    try:
        yield server
    finally:
        server.stop()


def _start(
    name: str,
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    port: int,
    log: IO[bytes] | None,
) -> Server:
    try:
        listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    except (OSError, OverflowError) as error:
        raise ServerError(f"{name} cannot listen on port {port}: {error}") from error
    with listener:  # this process closes its own copy
        process = subprocess.Popen(
            [*command, f"fd://{listener.fileno()}"],
            cwd=PROJECT,  # where gunicorn finds its settings
            env=environ,
            pass_fds=[listener.fileno()],
            # A group of its own: Ctrl-C reaches this program alone, which then stops the others.
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT if log else None,
        )
        return Server(name, process, listener.getsockname()[1])


def _stop(number: int, frame: object) -> NoReturn:
    raise Stopped(128 + number)
