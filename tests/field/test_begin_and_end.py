"""`stop`, `start`, the first call and the end of a home, at the worst moments of each other."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from ubatch import QueueClosed, UBatch, _batcher
from ubatch._core.collector import Collector
from ubatch._runtime import _gevent, _native
from ubatch._runtime._world import foreign_waiter

LIMIT = 20.0  # seconds, after which somebody is thought to wait for ever
WORLDS = ["threading", "gevent"]


def same(xs: list[Any]) -> list[Any]:
    return list(xs)


def in_thread(act: Callable[[], Any]) -> None:
    """In a native thread, in a patched process too; it has ended, or is about to."""
    done, waiter = [], foreign_waiter()

    def run() -> None:
        try:
            act()
        finally:
            done.append(True)
            waiter.set()

    _native.start_thread(run, "a thread of a test")
    while not done:
        waiter.wait(LIMIT)


def test_a_job_is_run_whenever_the_pool_is_closed_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = _native.NativePool(2, "pool")
    busy, go_on = _native.ThreadWaiter(), _native.ThreadWaiter()
    pool.submit(lambda: (busy.set(), go_on.get()))  # type: ignore[func-returns-value]
    busy.get()  # so the next job needs a thread
    start_thread = _native.start_thread

    def slowly(target: Callable[[], None], name: str) -> None:
        start_thread(target, name)
        go_on.set()
        pool.close()

    ran = _native.ThreadWaiter()
    monkeypatch.setattr(_native, "start_thread", slowly)
    pool.submit(ran.set)
    assert ran.wait(LIMIT)


@pytest.mark.parametrize("runtime", WORLDS)
def test_stopped_and_started_again_with_two_places_no_call_is_lost(runtime: str) -> None:
    batcher = UBatch[int, int](1, 0.0, max_in_flight=2, executor="native", runtime=runtime).set_handler(same)
    for n in range(200):
        requests = [batcher.submit(n), batcher.submit(n + 1)]
        assert [request.result(LIMIT) for request in requests] == [n, n + 1]
        batcher.stop()
        batcher.start()
    batcher.stop()


def test_first_calls_of_several_threads_find_one_collector() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(150):
            batcher = UBatch[int, int](4, 0.0, runtime="threading").set_handler(same)
            together = threading.Barrier(6)
            requests: list[Any] = []

            def call(batcher: Any = batcher, together: Any = together, requests: Any = requests) -> None:
                together.wait(LIMIT)
                requests.append(batcher.submit(1))

            threads = [threading.Thread(target=call) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(LIMIT)
            assert len({request._collector for request in requests}) == 1
            assert requests[0]._collector is batcher._collector
            batcher.stop()
            assert batcher.statistics().answered == 6
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("runtime", WORLDS)
def test_a_stop_during_the_first_call_is_heeded(monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    batcher = UBatch[int, int](4, 0.0, runtime=runtime).set_handler(same)
    choose = _batcher.choose

    def slowly(option: Any) -> Any:
        in_thread(batcher.stop)
        return choose(option)

    monkeypatch.setattr(_batcher, "choose", slowly)
    with pytest.raises(QueueClosed):
        batcher.ubatch(1)
    monkeypatch.undo()
    assert batcher.stopped
    with pytest.raises(QueueClosed):
        batcher.ubatch(2)
    assert batcher.start().ubatch(3) == 3
    batcher.stop()


@pytest.mark.parametrize("runtime", WORLDS)
def test_a_start_inside_a_stop_leaves_the_batcher_open_and_answering(
    monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    batcher = UBatch[int, int](4, 0.0, runtime=runtime).set_handler(same)
    batcher.ubatch(1)
    drain = Collector.drain

    def slowly(self: Collector, timeout: float | None) -> tuple[int, int]:
        in_thread(batcher.start)
        return drain(self, timeout)

    monkeypatch.setattr(Collector, "drain", slowly)
    batcher.stop()
    monkeypatch.undo()
    assert not batcher.stopped
    assert batcher.ubatch(2) == 2
    batcher.stop()
    assert batcher.stopped


@pytest.mark.parametrize(
    ("runtime", "executor"), [("threading", "native"), ("gevent", "native"), ("gevent", "greenlet")]
)
def test_after_a_stop_that_gave_up_start_opens_it_at_once(runtime: str, executor: str) -> None:
    for _ in range(20):
        go_on = _native.ThreadWaiter() if executor == "native" else gevent.event.Event()  # type: ignore[attr-defined]

        def handler(xs: list[str], go_on: Any = go_on) -> list[str]:
            if xs == ["stuck"]:
                go_on.wait(LIMIT)
            return xs

        batcher = UBatch[str, str](1, 0.0, runtime=runtime, executor=executor).set_handler(handler)
        stuck = batcher.submit("stuck")
        with pytest.raises(TimeoutError):
            stuck.result(0.001)
        batcher.stop(0.001)
        batcher.start()
        assert batcher.submit("next").result(LIMIT) == "next"
        go_on.set()
        batcher.stop(LIMIT)


def test_all_batchers_of_a_home_that_ends_are_told() -> None:
    batchers = [UBatch[int, int](8, 60.0, runtime="gevent").set_handler(same) for _ in range(3)]
    requests: list[Any] = []
    kept = len(_gevent._at_thread_exit._refs)

    def home() -> None:
        requests.extend(batcher.submit(1) for batcher in batchers)
        gevent.sleep(0)

    in_thread(home)
    for request in requests:
        assert isinstance(request.exception(LIMIT), QueueClosed)
    assert len(_gevent._at_thread_exit._refs) == kept
    for batcher in batchers:
        answered: list[int] = []
        in_thread(lambda answered=answered, batcher=batcher: answered.append(batcher.map(range(8))))
        assert answered == [list(range(8))]
        batcher.stop(LIMIT)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc")
@pytest.mark.parametrize("executor", ["auto", "native"])
def test_a_home_that_ends_takes_its_threads_and_files_along(executor: str) -> None:
    batcher = UBatch[int, int](4, 0.0, runtime="gevent", executor=executor).set_handler(same)

    def home() -> None:
        assert batcher.ubatch(1) == 1
        gevent.get_hub().destroy(destroy_loop=True)

    def left() -> int:
        return len(os.listdir("/proc/self/fd"))

    for _ in range(3):
        in_thread(home)
    before = left()
    names = [thread.name for thread in threading.enumerate()]
    for _ in range(50):
        in_thread(home)
    assert left() <= before + 25  # a leak of one for each home is 50; the last ones may not have ended yet
    assert len(threading.enumerate()) <= len(names) + 1
    batcher.stop(LIMIT)


def test_a_first_call_takes_no_lock_of_logging() -> None:
    """Which an exception from outside could leave taken."""
    import logging

    batcher = UBatch[int, int](1, 0.0, runtime="threading").set_handler(list)
    taken, go_on, answered = (_native.ThreadWaiter() for _ in range(3))

    def hold() -> None:
        with logging._lock:  # type: ignore[attr-defined]
            taken.set()
            go_on.wait(30.0)

    def call() -> None:
        batcher.ubatch(1)
        answered.set()

    _native.start_raw_thread(hold)
    taken.wait(30.0)
    _native.start_raw_thread(call)
    assert answered.wait(30.0)
    go_on.set()
    batcher.stop()
