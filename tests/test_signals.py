"""What wakes a collector, in both worlds and real time: `ubatch._runtime.Signal`."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent
import pytest

from ubatch._runtime import Signal, choose
from ubatch._runtime._native import allocate_lock, start_thread

from .conftest import ON_LIBUV

LONG = 30.0  # seconds; nothing here takes a fraction of it unless a wake-up is lost


@pytest.fixture(params=["gevent", "threading"])
def signal(request: pytest.FixtureRequest) -> Signal:
    return choose(str(request.param)).signal()


def settle() -> None:
    """Let the hub do what it has been asked to."""
    gevent.idle()


def lasted(wait: Callable[[], object]) -> float:
    began = time.monotonic()
    wait()
    return time.monotonic() - began


def test_a_set_that_nobody_waited_for_is_kept(signal: Signal) -> None:
    signal.set()
    settle()
    assert lasted(lambda: signal.wait(LONG)) < LONG / 2


def test_sets_that_nobody_waited_for_count_as_one(signal: Signal) -> None:
    for _ in range(3):
        signal.set()
    settle()
    signal.wait(None)
    assert signal.wait_idle(LONG)


def test_a_wait_ends_with_its_time(signal: Signal) -> None:
    assert lasted(lambda: signal.wait(0.01)) < LONG / 2
    assert signal.wait_idle(LONG)


def test_a_set_ends_a_wait_for_quiet(signal: Signal) -> None:
    signal.set()
    assert not signal.wait_idle(LONG)
    assert signal.wait_idle(LONG)


def test_a_native_thread_wakes_a_task_that_sleeps(signal: Signal) -> None:
    never = allocate_lock()
    never.acquire()

    def strike() -> None:
        never.acquire(True, 0.01)  # until the task sleeps, most of the time
        signal.set()

    for _ in range(5):
        start_thread(strike, "striker")
        assert lasted(lambda: signal.wait(LONG)) < LONG / 2


@pytest.mark.skipif(ON_LIBUV, reason="libuv has no prepare watchers, by which this test looks into the loop")
def test_after_a_wait_for_quiet_the_loop_sleeps() -> None:
    signal = choose("gevent").signal()
    assert signal.wait_idle(LONG)
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
