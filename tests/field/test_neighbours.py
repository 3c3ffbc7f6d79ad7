"""Other loops and other users of the same greenlets: libuv, eventlet, stray switches, a gevent of another thread."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import gevent
import pytest
from gevent.event import Event

from ubatch import UBatch, deadline
from ubatch._runtime._native import ThreadWaiter


def run(code: str, *arguments: str, **environment: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, **environment},
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


DROPPED = """
import gc, socket
from gevent import monkey
monkey.patch_all()
import gevent
from ubatch import UBatch

def double(xs):
    gevent.sleep(0)
    return [2 * x for x in xs]

for executor in ("auto", "greenlet", "native"):
    for eager in (False, True):
        for n in range(20):  # each is dropped, with its watchers
            batcher = UBatch(8, 0.002, eager=eager, executor=executor).set_handler(double)
            assert gevent.pool.Pool(8).map(batcher.ubatch, range(8)) == [2 * x for x in range(8)]
            if n % 2:
                batcher.stop()
            del batcher
            gc.collect()
            gevent.sleep(0)
print(type(gevent.get_hub().loop).__module__)
"""


@pytest.mark.skipif(find_spec("cffi") is None, reason="gevent's libuv needs cffi")
def test_on_libuv_batchers_are_dropped_without_a_crash() -> None:
    assert run("import gevent.pool\n" + DROPPED, GEVENT_LOOP="libuv-cffi").split() == ["gevent.libuv.loop"]


EVENTLET = """
import sys
if sys.argv[1] == "import first":
    from ubatch import UBatch
import eventlet
eventlet.monkey_patch()
from ubatch import UBatch

predict = UBatch(max_size=4, timeout=0.01, runtime=sys.argv[2]).set_handler(lambda xs: [x * x for x in xs])
try:
    print(list(eventlet.GreenPool(8).imap(predict.ubatch, range(8))))
except RuntimeError as error:
    print(error)
predict.stop()
"""


@pytest.mark.skipif(find_spec("eventlet") is None, reason="eventlet is not installed")
@pytest.mark.parametrize("runtime", ["auto", "gevent", "threading"])
@pytest.mark.parametrize("order", ["import first", "patch first"])
def test_under_eventlet_the_first_call_is_refused(order: str, runtime: str) -> None:
    assert "must not be patched by eventlet" in run(EVENTLET, order, runtime)


ELSEWHERE = """
import sys, threading
if sys.argv[1] == "main":
    import gevent
from ubatch import UBatch

batcher = UBatch(8, 0.002).set_handler(lambda xs: xs)

def green():
    import gevent
    print(gevent.spawn(batcher.ubatch, 1).get())

def plain():
    print(batcher.ubatch(2))

for act in (green, plain, green, batcher.stop):
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
"""


@pytest.mark.parametrize("where", ["main", "a thread that has ended"])
def test_wherever_gevent_was_imported_first_calls_are_answered_after_that_thread_has_ended(where: str) -> None:
    assert run(ELSEWHERE, where).split() == ["1", "2", "1"]


def asks(batcher: UBatch[int, int]) -> int:
    return batcher.ubatch(1)


def asks_within_a_deadline(batcher: UBatch[int, int]) -> int:
    with deadline(60.0):
        return batcher.ubatch(1)


def asks_for_a_result(batcher: UBatch[int, int]) -> int:
    return batcher.submit(1).result(60.0)


def asks_for_a_result_without_a_bound(batcher: UBatch[int, int]) -> int:
    return batcher.submit(1).result()


def maps(batcher: UBatch[int, int]) -> int:
    return batcher.map([1])[0]


def stops(batcher: UBatch[int, int]) -> int:
    request = batcher.submit(1)
    batcher.stop()
    assert request.done()
    return request.result()


@pytest.mark.parametrize(
    "act", [asks, asks_within_a_deadline, asks_for_a_result, asks_for_a_result_without_a_bound, maps, stops]
)
@pytest.mark.parametrize("executor", ["auto", "native", "greenlet"])
def test_a_stray_switch_ends_no_wait(act: Callable[[Any], int], executor: str) -> None:
    gate = ThreadWaiter() if executor == "native" else Event()

    def handler(xs: list[int]) -> list[int]:
        gate.wait(50)
        return [x + 1 for x in xs]

    batcher = UBatch[int, int](4, 0.0, runtime="gevent", executor=executor).set_handler(handler)
    caller = gevent.spawn(act, batcher)
    while not batcher.statistics().in_flight:
        gevent.sleep(0)
    for _ in range(3):
        gevent.get_hub().loop.run_callback(caller.switch)  # as an event does that has kept it
        gevent.sleep(0)
        gevent.sleep(0)
    assert not caller.dead
    gate.set()
    assert caller.get(timeout=50) == 2
    batcher.stop()


@pytest.mark.parametrize("broken_by", ["gevent.Timeout", "result(0)"])
@pytest.mark.parametrize("runtime", ["threading", "gevent"])
def test_waits_that_are_broken_off_leave_nothing_on_the_request(runtime: str, broken_by: str) -> None:
    batcher = UBatch[int, int](4, 60.0, runtime=runtime).set_handler(list)
    request = batcher.submit(1)
    for _ in range(1000):
        if broken_by == "result(0)" or runtime == "threading":
            with pytest.raises(TimeoutError):
                request.result(0)
        else:
            with gevent.Timeout(0, False):
                request.result()
    assert request._waiters == ()
    assert request.cancel()
    batcher.stop()
