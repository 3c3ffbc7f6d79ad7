"""How each server is started, and a server process under test: its log, its port, its end.

Every server listens on port 0, so the port is free by itself, and logs which one it got. Everything that a server's
processes write comes through one pipe, so the end of the pipe proves that none of them is left.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

APP = Path(__file__).parent / "app"
LIMIT = 40.0  # seconds; long enough for a busy machine, and only ever waited out by a test that fails
WAYS = ("module", "factory", "lazy", "used", "started", "decorated", "method", "cooperative")


@dataclass(frozen=True)
class Setup:
    """One server: its command, and what may be expected of it."""

    name: str
    command: tuple[str, ...]
    port: str = r"127\.0\.0\.1:(\d+)"  # in its log
    conf: tuple[str, ...] = ()  # lines of a gunicorn configuration file
    needs: str = ""  # a module or a program, where it is not gevent
    batches: bool = True  # it takes more than one request at a time
    green: bool = False  # requests are greenlets
    keep_alive: bool = True
    threads_before_fork: bool = True  # it survives them
    ends_by: signal.Signals = signal.SIGTERM

    def but(self, *options: str, conf: Iterable[str] = ()) -> Setup:
        """The same with more options, or with more lines in its configuration file."""
        return replace(self, command=self.command + options, conf=(*self.conf, *conf))

    @property
    def id(self) -> str:
        """What the test's name shows."""
        return self.name.replace(" ", "")

    @property
    def missing(self) -> str:
        """Why it cannot be started here; empty where it can."""
        if self.needs == "uwsgi":
            return "" if uwsgi() else "uWSGI is not installed beside this Python: pip install uwsgi"
        missing = [name for name in self.needs.split() if find_spec(name) is None]
        return f"not installed: {', '.join(missing)}" if missing else ""


def gunicorn(*options: str, name: str = "", conf: Iterable[str] = (), **expected: bool) -> Setup:
    return Setup(
        name or " ".join(["gunicorn", *options]),
        (sys.executable, "-m", "gunicorn", *options, "--bind", "127.0.0.1:0", "application:app"),
        port=r"Listening at: http://127\.0\.0\.1:(\d+)",
        conf=("control_socket_disable = True", "keepalive = 20", *conf),
        needs="gunicorn packaging",
        **expected,
    )


def gevent_worker(*options: str, name: str = "", conf: Iterable[str] = ()) -> Setup:
    return gunicorn("-k", "gevent", *options, name=name, conf=conf, green=True)


def thread_worker(*options: str, threads: int = 16, name: str = "", conf: Iterable[str] = ()) -> Setup:
    return gunicorn("-k", "gthread", "--threads", str(threads), *options, name=name, conf=conf)


def uwsgi() -> str | None:
    """The program that belongs to this Python."""
    return shutil.which("uwsgi", path=str(Path(sys.executable).parent))


def uwsgi_server(*options: str, green: bool = False) -> Setup:
    command = [uwsgi() or "uwsgi", *options, "--module", "application:app", "--http-socket", "127.0.0.1:0", "--master"]
    command += ["--hook-master-start", "unix_signal:15 gracefully_kill_them_all", "--need-app", "--disable-logging"]
    if sys.prefix != sys.base_prefix:
        command += ["--virtualenv", sys.prefix]
    return Setup(
        " ".join(["uwsgi", *options]),
        tuple(command),
        port=r"bound to TCP address 127\.0\.0\.1:(\d+)",
        needs="uwsgi",
        green=green,
        keep_alive=False,
        # With Python 3.13 workers of uWSGI 2.0.31 crash now and then where any thread was started before their fork:
        # 3 of 60 starts of an application without uBatch. A batcher that is used at import starts threads.
        threads_before_fork=sys.version_info < (3, 13),
    )


def pywsgi(patched: bool) -> Setup:
    script = """
import signal
import gevent
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer
from application import app
server = WSGIServer(("127.0.0.1", 0), app, log=None, spawn=Pool())
server.start()
print("listening at 127.0.0.1:%d" % server.server_port, flush=True)
gevent.signal_handler(signal.SIGTERM, server.stop, 30)
server.serve_forever(stop_timeout=30)
"""
    if patched:
        script = "from gevent import monkey; monkey.patch_all()" + script
    name = "gevent.pywsgi, patched" if patched else "gevent.pywsgi, unpatched"
    return Setup(name, (sys.executable, "-c", script), green=True)


def waitress(threads: int) -> Setup:
    return Setup(
        f"waitress --threads {threads}",
        (sys.executable, "-m", "waitress", "--listen", "127.0.0.1:0", "--threads", str(threads), "application:app"),
        port=r"Serving on http://127\.0\.0\.1:(\d+)",
        needs="waitress",
        ends_by=signal.SIGINT,  # which it answers requests on; SIGTERM ends it at once
    )


FLASK = Setup(
    "flask run --reload",
    (sys.executable, "-m", "flask", "--app", "application", "run", "--port", "0", "--reload"),
    port=r"Running on http://127\.0\.0\.1:(\d+)",
    ends_by=signal.SIGINT,  # Ctrl-C: the reloader's parent process passes on no other signal
)
# Lines of gunicorn's configuration file.
PATCHED_BEFORE = ("from gevent import monkey", "monkey.patch_all()")
HOOK = ("from ubatch.integrations.gunicorn import worker_exit",)


def gunicorns() -> list[Setup]:
    setups = []
    for workers in ("1", "2"):
        for preload in ((), ("--preload",)):
            setups += [
                gevent_worker("-w", workers, *preload),
                thread_worker("-w", workers, *preload),
                gunicorn("-k", "sync", "-w", workers, *preload, batches=False),
            ]
        patched = f"gunicorn -k gevent -w {workers} --preload, patched in the conf file"
        setups.append(gevent_worker("-w", workers, "--preload", name=patched, conf=PATCHED_BEFORE))
    return setups


SETUPS = [
    *gunicorns(),
    pywsgi(patched=True),
    pywsgi(patched=False),
    *(
        uwsgi_server("--gevent", "100", *patching, "-p", workers, green=True)
        for patching in (("--gevent-monkey-patch",), ("--gevent-early-monkey-patch",), ())
        for workers in ("1", "2")
    ),
    uwsgi_server("--threads", "16", "-p", "1"),
    uwsgi_server("--threads", "16", "-p", "2"),
    waitress(threads=16),
    FLASK,
]


class Server:
    """A server process, and all that it starts: a process group, and one log."""

    def __init__(self, setup: Setup, folder: Path, **environment: str) -> None:
        self.setup = setup
        command = list(setup.command)
        if setup.conf:
            conf = folder / "gunicorn.conf.py"
            conf.write_text("\n".join(setup.conf) + "\n")
            command[3:3] = ["-c", str(conf)]
        self.process = subprocess.Popen(
            command,
            cwd=APP,
            env=_environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.ended = False  # all of them, not only the first process
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        alive.append(self)

    @property
    def port(self) -> int:
        return int(self.wait_for(self.setup.port)[1])

    def wait_for(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait for a line of the log, or for so many of them, and return the last match."""
        found = partial(self.matches, pattern)
        with self._changed:
            self._changed.wait_for(lambda: self.ended or len(found()) >= times, LIMIT)
        assert len(found()) >= times, f"the log must show {pattern!r} {times} times; it does {len(found())} times"
        return found()[times - 1]

    def matches(self, pattern: str) -> list[re.Match[str]]:
        return [match for line in list(self.lines) if (match := re.search(pattern, line))]

    def signal(self, number: signal.Signals) -> None:
        """Signal the first process, as an operator does; Ctrl-C goes to the group, as a terminal sends it."""
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def wait_until_ended(self) -> int:
        """Wait until none of its processes is left, and return the exit status of the first."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended, LIMIT)
        assert self.ended, "processes of the server must have ended; some still run"
        return self.process.wait(LIMIT)

    def stop(self) -> int:
        """End it as an operator does."""
        self.signal(self.setup.ends_by)
        return self.wait_until_ended()

    def kill(self) -> None:
        """Leave nothing behind, whatever the test did."""
        alive.remove(self)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.decode(errors="replace").rstrip())
                self._changed.notify_all()
        with self._changed:
            self.ended = True
            self._changed.notify_all()


alive: list[Server] = []  # for the log of those that fail


def _environment() -> dict[str, str]:
    ours = ("GUNICORN_", "UWSGI_", "FLASK_", "WERKZEUG_", "GEVENT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"PYTHONUNBUFFERED": "1"}
