"""A gunicorn with an application of a test's own: its workers one by one, its log, its end.

It gets a listening socket, so a request that comes early waits in the backlog, and nobody polls.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType

LIMIT = 40.0  # seconds; long enough for a busy machine, and only ever waited out by a test that fails
WHOLE_LINES = {"PYTHONUNBUFFERED": ""}  # else each part of a `print` is a write, and lines of two workers mix
CONF = """
control_socket_disable = True

def post_worker_init(worker):
    print("ready", worker.pid, flush=True)
"""


class Gunicorn:
    """`with Gunicorn(folder, application, …) as server`; `application` is the source of a module with an `app`."""

    def __init__(self, folder: Path, application: str, *options: str, conf: str = "", **environment: str) -> None:
        (folder / "application.py").write_text(textwrap.dedent(application))
        (folder / "gunicorn.conf.py").write_text(CONF + textwrap.dedent(conf))
        with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
            self.port: int = listener.getsockname()[1]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}", *options, "application:app"],
                cwd=folder,
                env={**os.environ, "PYTHONWARNINGS": "default", **WHOLE_LINES, **environment},
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Gunicorn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(LIMIT)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._reader.join(LIMIT)
            if kind is not None:
                print(*self.lines[-100:], sep="\n")  # for pytest, which shows it

    def ask(self, path: str, **headers: str) -> str:
        """GET, on a connection of its own; the answer, which must be a 200."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        connection.request("GET", path, headers={"Connection": "close", **headers})
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        assert answer.status == 200, (answer.status, body)
        return body

    def wait_for(self, pattern: str, times: int = 1) -> list[re.Match[str]]:
        """Wait for so many matching lines in the log."""

        def found() -> list[re.Match[str]]:
            return [match for line in list(self.lines) if (match := re.search(pattern, line))]

        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(found()) >= times, LIMIT)
        assert len(found()) >= times, f"the log must show {pattern!r} {times} times; it does {len(found())} times"
        return found()

    def workers(self, count: int) -> list[int]:
        """The process ids of the first so many workers that are ready."""
        return [int(match[1]) for match in self.wait_for(r"^ready (\d+)$", count)][:count]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.lines.append(line.decode(errors="replace").rstrip())
                self._changed.notify_all()
        self._process.stdout.close()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Alone:
    """`with Alone(others)`: these workers are stopped, so that every request goes to the one that is left."""

    def __init__(self, *others: int) -> None:
        self._others = others

    def __enter__(self) -> None:
        for pid in self._others:
            os.kill(pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        for pid in self._others:
            os.kill(pid, signal.SIGCONT)
