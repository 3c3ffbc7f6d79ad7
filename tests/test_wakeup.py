"""What wakes a collector, in both worlds and real time: `ubatch._runtime.Wakeup`."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent
import pytest

from ubatch._runtime import Wakeup, choose
from ubatch._runtime._native import allocate_lock, start_thread

from .conftest import ON_LIBUV

LONG = 30.0  # seconds; nothing here takes a fraction of it unless a wake-up is lost


@pytest.fixture(params=["gevent", "threading"])
def wakeup(request: pytest.FixtureRequest) -> Wakeup:
    return choose(str(request.param)).wakeup()


def settle() -> None:
    """Let the hub do what it has been asked to."""
    gevent.idle()


def lasted(wait: Callable[[], object]) -> float:
    began = time.monotonic()
    wait()
    return time.monotonic() - began


def test_a_wake_that_nobody_waited_for_is_kept(wakeup: Wakeup) -> None:
    wakeup.wake()
    settle()
    assert lasted(lambda: wakeup.wait(LONG)) < LONG / 2


def test_wakes_that_nobody_waited_for_count_as_one(wakeup: Wakeup) -> None:
    for _ in range(3):
        wakeup.wake()
    settle()
    wakeup.wait(None)
    assert wakeup.wait_idle(LONG)


def test_a_wait_ends_with_its_time(wakeup: Wakeup) -> None:
    assert lasted(lambda: wakeup.wait(0.01)) < LONG / 2
    assert wakeup.wait_idle(LONG)


def test_a_wake_ends_a_wait_for_idle(wakeup: Wakeup) -> None:
    wakeup.wake()
    assert not wakeup.wait_idle(LONG)
    assert wakeup.wait_idle(LONG)


def test_a_native_thread_wakes_a_task_that_sleeps(wakeup: Wakeup) -> None:
    never = allocate_lock()
    never.acquire()

    def strike() -> None:
        never.acquire(True, 0.01)  # until the task sleeps, most of the time
        wakeup.wake()

    for _ in range(5):
        start_thread(strike, "striker")
        assert lasted(lambda: wakeup.wait(LONG)) < LONG / 2


@pytest.mark.skipif(ON_LIBUV, reason="libuv has no prepare watchers, by which this test looks into the loop")
def test_after_a_wait_for_idle_the_loop_sleeps() -> None:
    wakeup = choose("gevent").wakeup()
    assert wakeup.wait_idle(LONG)
    loop = gevent.get_hub().loop
    rounds = 0

    def count() -> None:
        nonlocal rounds
        rounds += 1

    with loop.prepare() as prepare, loop.timer(0.1) as timer:
        prepare.start(count)
        gevent.get_hub().wait(timer)
        prepare.stop()
    assert rounds < 100  # and not tens of thousands
