"""On default options a handler may use what a program made on the hub: sessions, pools, processes, SQLite, locks, logs.

Each script is a process of its own: patched, as a gunicorn gevent worker is, or not.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.conftest import ON_LIBUV
from ubatch._runtime._gevent_locks import FIXED, _version

LIMIT = 50  # seconds; only ever waited out by a test that fails
STAYS = _version() < FIXED or ON_LIBUV  # in a patched process, a handler on the hub
WHY = "with an older gevent a handler stays on the hub of a patched process"
BOTH = pytest.mark.parametrize("patched", [True, False], ids=["patched", "plain"])
PREAMBLE = """
import faulthandler, logging, os, sys, time
faulthandler.dump_traceback_later(40, exit=True)
from ubatch import UBatch

def computes(seconds=0.008):
    ends = time.perf_counter() + seconds  # with the interpreter's lock taken and given, as Python code does
    while time.perf_counter() < ends:
        pass

def ask_all(batcher, calls, threads=16):
    "The answers of so many calls from concurrent views, or what they raised."
    import threading
    answers = [None] * calls
    def view(first):
        for x in range(first, calls, threads):
            try:
                answers[x] = batcher.ubatch(x)
            except Exception as error:
                answers[x] = repr(error)
    views = [threading.Thread(target=view, args=(n,), daemon=True) for n in range(threads)]
    for each in views: each.start()
    for each in views: each.join()
    return answers

def check(batcher, calls=200):
    answers = ask_all(batcher, calls)
    wrong = [answer for x, answer in enumerate(answers) if answer != x]
    print(len(wrong), "wrong", *wrong[:1], "|", batcher.statistics().runs_on)
"""


def run(script: str, patched: bool) -> tuple[str, str]:
    """What the script prints, and the errors; it must end."""
    source = ("from gevent import monkey; monkey.patch_all()\n" if patched else "") + PREAMBLE + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-W", "ignore:libuv only supports", "-c", source],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def runs(script: str, patched: bool, expected: str) -> None:
    """The script must print this, and where it runs: on the hub, or on a thread where there is no hub."""
    out, errors = run(script, patched)
    assert (out, errors) == (expected.format(hub="hub" if patched else "thread") + "\n", "")


SERVER = """
import socket, threading
listener = socket.create_server(("127.0.0.1", 0), backlog=128)
port = listener.getsockname()[1]

def serve(connection):
    file = connection.makefile("rb")
    while (line := file.readline()):
        while file.readline().strip():
            pass
        body = line.split()[1][1:]
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))

def listen():
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

threading.Thread(target=listen, daemon=True).start()
"""


@BOTH
def test_a_session_that_views_use_too(patched: bool) -> None:
    pytest.importorskip("requests")
    runs(
        SERVER
        + """
import requests
session = requests.Session()

def get(x):
    return int(session.get(f"http://127.0.0.1:{port}/{x}", timeout=20).text)

def handler(xs):
    return [get(x) for x in xs]

def view(first):
    for x in range(first, 200, 8):
        assert get(x) == x

batcher = UBatch(8, 0.001).set_handler(handler)
views = [threading.Thread(target=view, args=(n,)) for n in range(8)]
for each in views: each.start()
check(batcher, 100)
for each in views: each.join()
        """,
        patched,
        "0 wrong | {hub}",
    )


@BOTH
def test_a_connection_of_the_standard_library_that_is_kept(patched: bool) -> None:
    runs(
        SERVER
        + """
from http.client import HTTPConnection
kept = HTTPConnection("127.0.0.1", port, timeout=20)

def handler(xs):
    answers = []
    for x in xs:
        kept.request("GET", f"/{x}")
        answers.append(int(kept.getresponse().read()))
    return answers

check(UBatch(8, 0.001).set_handler(handler), 100)
        """,
        patched,
        "0 wrong | {hub}",
    )


def test_a_sqlite_connection_of_the_module() -> None:
    runs(
        """
        import sqlite3
        database = sqlite3.connect(":memory:")
        database.execute("create table seen (x)")
        def handler(xs):
            database.executemany("insert into seen values (?)", [(x,) for x in xs])
            computes()
            return [x for (x,) in database.execute("select x from seen order by rowid desc limit ?", (len(xs),))][::-1]
        check(UBatch(8, 0.001).set_handler(handler))
        """,
        True,
        "0 wrong | hub",
    )


def test_a_sqlite_connection_of_an_instance_whose_method_computes() -> None:
    runs(
        """
        import sqlite3
        class Store:
            def __init__(self):
                self.database = sqlite3.connect(":memory:")
            def handle(self, xs):
                computes()
                return self.look_up(xs)
            def look_up(self, xs):
                return [self.database.execute("select ?", (x,)).fetchone()[0] for x in xs]
        check(UBatch(8, 0.001).set_handler(Store().handle))
        """,
        True,
        "0 wrong | hub",
    )


@BOTH
def test_a_process(patched: bool) -> None:
    runs(
        """
        import subprocess
        def handler(xs):
            script = f"print(*{xs!r})"
            done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True)
            return [int(x) for x in done.stdout.split()]
        check(UBatch(16, 0.005).set_handler(handler), 48)
        """,
        patched,
        "0 wrong | {hub}",
    )


@BOTH
def test_a_pool_of_the_module(patched: bool) -> None:
    runs(
        """
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor(4)
        def one(x):
            time.sleep(0.0001)
            return x
        def handler(xs):
            return list(pool.map(one, xs))
        check(UBatch(8, 0.001).set_handler(handler))
        """,
        patched,
        "0 wrong | {hub}",
    )


def test_a_pool_of_the_module_that_a_handler_needs_once_in_a_while() -> None:
    runs(
        """
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor(4)
        batches = 0
        def handler(xs):
            global batches
            batches += 1
            computes()
            return list(pool.map(int, xs)) if batches % 5 == 0 else xs
        check(UBatch(8, 0.001).set_handler(handler))
        """,
        True,
        "0 wrong | hub",
    )


@BOTH
def test_a_lock_that_views_take_too(patched: bool) -> None:
    runs(
        """
        import threading
        lock = threading.RLock()
        counted = 0
        def count():
            global counted
            with lock:
                before = counted
                time.sleep(0.0002)
                counted = before + 1
        def handler(xs):
            count()
            return xs
        def view():
            for _ in range(50):
                count()
        batcher = UBatch(8, 0.001).set_handler(handler)
        views = [threading.Thread(target=view) for _ in range(4)]
        for each in views: each.start()
        check(batcher)
        for each in views: each.join()
        assert counted == 200 + batcher.statistics().batches
        """,
        patched,
        "0 wrong | {hub}",
    )


@BOTH
def test_numpy_and_a_log_line_leave_the_hub_alone(patched: bool) -> None:
    if patched and STAYS:
        pytest.skip(WHY)
    np = pytest.importorskip("numpy")
    assert np
    runs(
        """
        import io
        import numpy as np
        logging.basicConfig(stream=io.StringIO(), level=logging.INFO)
        log = logging.getLogger("app")
        matrix = np.random.default_rng(0).random((500, 500))
        def handler(xs):
            log.info("a batch of %d", len(xs))
            for _ in range(4):
                matrix @ matrix
            computes(0.006)  # whatever the processor
            log.info("done")
            return xs
        batcher = UBatch(8, 0.001).set_handler(handler)
        check(batcher)
        assert logging.getLogger().handlers[0].stream.getvalue().count("done") == batcher.statistics().batches
        """,
        patched,
        "0 wrong | " + ("native" if patched else "thread"),
    )


def test_the_gradient_mode_of_torch_that_the_program_has_set() -> None:
    pytest.importorskip("torch")
    runs(
        """
        import torch
        torch.set_grad_enabled(False)
        weights = torch.ones(1, requires_grad=True)
        def handler(xs):
            computes()
            return [int(y) for y in (weights * torch.tensor(xs)).numpy()]  # numpy() refuses what has a gradient
        check(UBatch(8, 0.001).set_handler(handler))
        """,
        True,
        "0 wrong | native",
    )


# What cannot be seen beforehand.


@pytest.mark.skipif(STAYS, reason=WHY)
def test_what_is_found_too_late_fails_one_batch_with_a_note_and_no_second_one() -> None:
    out, _ = run(
        """
        import sqlite3
        def connect():
            return sqlite3.connect(":memory:").execute  # a method of C: it shows nothing of its connection
        execute, ran = connect(), []
        def handler(xs):
            ran.append(xs)
            computes()
            return [execute("select ?", (x,)).fetchone()[0] for x in xs]
        batcher = UBatch(1, 0).set_handler(handler)
        for x in range(6):
            try:
                assert batcher.ubatch(x) == x
            except sqlite3.ProgrammingError as error:
                print(x, *error.__notes__)
        print(ran, batcher.statistics().runs_on)
        """,
        patched=True,
    )
    note, ran = out.splitlines()
    assert note.startswith(
        "1 uBatch: the handler ran on a native thread, and uses what belongs to the thread of gevent's"
    )
    assert 'executor="greenlet"' in note
    assert ran == "[[0], [1], [2], [3], [4], [5]] hub"


def test_natively_such_an_error_gets_the_note_each_time() -> None:
    out, _ = run(
        """
        import subprocess
        def handler(xs):
            subprocess.run(["true"], check=True)
            return xs
        batcher = UBatch(1, 0, executor="native").set_handler(handler)
        for x in range(2):
            try:
                batcher.ubatch(x)
            except TypeError as error:
                print(error, *error.__notes__)
        """,
        patched=True,
    )
    assert out.count("child watchers are only available on the default loop uBatch: the handler ran on a native") == 2


@pytest.mark.skipif(STAYS, reason=WHY)
def test_a_handler_that_computes_and_waits_is_told_of_once() -> None:
    out, errors = run(
        """
        def handler(xs):
            time.sleep(0.001)
            computes(0.06)
            return xs
        batcher = UBatch(1, 0).set_handler(handler)
        for x in range(6):
            batcher.ubatch(x)
        print(batcher.statistics().runs_on, batcher.statistics().hub_away > 0.05)
        """,
        patched=True,
    )
    assert out == "hub True\n"
    assert errors.count("the handler 'handler' keeps the hub away for") == 1
    assert "because it waits there as well" in errors
