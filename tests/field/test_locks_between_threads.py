"""A patched lock that a handler on a native thread has released wakes whoever waits for it (gevent #2013)."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from benchmarks.gevent_lock import OURS, run

from .test_default_executor import STAYS, WHY

LIMIT = 50  # seconds; only ever waited out by a test that fails


@pytest.mark.parametrize("waiter", ["a greenlet", "a thread"])
@pytest.mark.parametrize("times", ["once", "twice"])
@pytest.mark.parametrize("holder", ["no hub", "a hub"])
def test_on_a_thread_of_handlers_a_release_wakes_who_waits(holder: str, times: str, waiter: str) -> None:
    assert run(OURS, holder, times, waiter) == "goes on"


LOGGING = """
from gevent import monkey; monkey.patch_all()
import faulthandler, io, logging, logging.handlers, queue, sys, threading, time
faulthandler.dump_traceback_later(40, exit=True)
import gevent
from ubatch import Instrument, UBatch

executor, batchers, calls = sys.argv[1], int(sys.argv[2]), 6000
lines = queue.Queue()
root = logging.getLogger()
root.setLevel(logging.INFO)
root.handlers = [logging.StreamHandler(io.StringIO()), logging.handlers.QueueHandler(lines)]
log = logging.getLogger("app")

class Logging(Instrument):
    def batch_ended(self, batch):
        log.info("batch")

def handler(xs):
    log.info("begin")
    if LONG:
        ends = time.perf_counter() + 0.006
        while time.perf_counter() < ends:
            pass
    time.sleep(0) if executor == "native" else None  # a hub of the thread's own, where it has none
    log.info("end")
    return xs

def view(number):
    for x in range(calls // 64):
        log.info("request")
        assert made[number % batchers].ubatch(x) == x

made = [UBatch(16, 0.002, eager=True, executor=executor, name=str(n), instruments=[Logging()]).set_handler(handler)
        for n in range(batchers)]
gevent.joinall([gevent.spawn(view, n) for n in range(64)], raise_error=True)
done = sum(batcher.statistics().answered for batcher in made)
batches = sum(batcher.statistics().batches for batcher in made)
for batcher in made:
    batcher.stop()
print(done, lines.qsize() == done + 3 * batches, made[0].statistics().runs_on)
"""


@pytest.mark.parametrize("batchers", [2, 4])
@pytest.mark.parametrize(
    ("executor", "long", "where"),
    [("auto", False, "hub"), ("auto", True, "native"), ("native", False, "native"), ("native", True, "native")],
)
def test_batchers_whose_handlers_views_and_instruments_log(
    executor: str, long: bool, where: str, batchers: int
) -> None:
    if where == "native" and STAYS:  # as docs/servers.md says
        pytest.skip(WHY)
    script = LOGGING.replace("if LONG:", f"if {long}:")
    done = subprocess.run(
        [sys.executable, "-c", script, executor, str(batchers)],
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{6000 // 64 * 64} True {where}\n", "")


def test_under_a_real_server_none_is_stuck(capsys: pytest.CaptureFixture[str]) -> None:
    for needed in ("gunicorn", "numpy"):
        pytest.importorskip(needed)
    from benchmarks import logging_soak

    assert logging_soak.main(["--calls", "8000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("4,000 calls, 0 wrong, 0 unanswered" in line for line in lines)


def test_a_thread_of_handlers_leaves_no_file_open() -> None:
    script = """
    from gevent import monkey; monkey.patch_all()
    import gevent, os
    from ubatch import UBatch
    def files():
        return len(os.listdir("/proc/self/fd"))
    with_one_thread = None
    for n in range(20):
        with UBatch(1, 0, executor="native").set_handler(list) as batcher:
            batcher.ubatch(n)
            with_one_thread = with_one_thread or files()
    for _ in range(100_000):  # the last ones are still ending
        gevent.idle()
        if files() <= with_one_thread:
            break
    print(files() <= with_one_thread)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
