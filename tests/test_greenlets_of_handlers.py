"""The greenlets of handlers on the hub: used again where nobody else can reach them, and gone with the batcher."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
import pytest
from gevent.event import Event

from ubatch import (
    UBatch,
)
from ubatch._runtime._gevent import GeventRuntime

from .conftest import greenlets_named


class Worked:
    """Batches run one after the other by the executor "greenlet", each from a callback of the loop."""

    def __init__(self) -> None:
        self.executor = GeventRuntime().executor("greenlet", 1, "worker")
        self.ended = 0
        self.greenlets: list[int] = []  # that the jobs ran in, by identity

    def run(self, job: Callable[[], object]) -> None:
        def kept() -> None:
            self.greenlets.append(id(gevent.getcurrent()))
            job()

        self.executor.start(kept, self.end, list)
        gevent.idle()

    def end(self) -> None:
        self.ended += 1


def test_a_handler_greenlet_that_nobody_knows_is_used_again() -> None:
    worked = Worked()
    for job in (lambda: None, gevent.idle, lambda: None, lambda: None):
        worked.run(job)
        gevent.idle()
    assert (worked.ended, len(greenlets_named("worker"))) == (4, 1)
    assert len(set(worked.greenlets)) == 1


def test_what_a_handler_leaves_behind_hits_no_other_batch() -> None:
    worked = Worked()
    left: list[Callable[..., Any]] = []
    go_on = Event()
    hit: list[BaseException] = []

    def waits() -> None:
        try:
            go_on.wait()
        except BaseException as error:
            hit.append(error)
            raise

    worked.run(lambda: left.append(gevent.getcurrent().throw))  # as a running `gevent.Timeout` has it
    worked.run(waits)
    gevent.get_hub().loop.run_callback(left[0], gevent.Timeout(1))
    gevent.idle()
    go_on.set()
    gevent.idle()
    assert (worked.ended, hit) == (2, [])


@pytest.mark.parametrize("strike", [gevent.Timeout(1), gevent.GreenletExit()], ids=repr)
def test_a_strike_between_two_batches_ends_the_greenlet_and_nothing_else(
    strike: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    worked = Worked()
    worked.run(lambda: None)
    gevent.kill(greenlets_named("worker")[0], strike)
    gevent.idle()
    assert greenlets_named("worker") == []
    worked.run(lambda: None)
    assert worked.ended == 2
    assert capfd.readouterr() == ("", "")


def test_a_handler_greenlet_that_was_killed_ends_with_its_batch() -> None:
    worked = Worked()
    killed: list[Any] = []

    def waits() -> None:
        with suppress(gevent.GreenletExit):
            killed.append(gevent.getcurrent())
            Event().wait()

    worked.run(waits)
    gevent.kill(killed[0])
    gevent.idle()
    worked.run(lambda: None)
    assert (worked.ended, len(set(worked.greenlets))) == (2, 2)


def test_no_handler_greenlet_is_left_when_the_batcher_stops() -> None:
    with UBatch[int, int](1, 0, executor="greenlet", runtime="gevent", name="over").set_handler(list) as batcher:
        batcher.ubatch(1)
        assert len(greenlets_named("ubatch-handler:over")) == 1
    assert greenlets_named("ubatch-handler:over") == []


def test_an_executor_that_nobody_needs_takes_its_greenlets_along() -> None:
    worked = Worked()
    worked.run(lambda: None)
    del worked
    gc.collect()
    assert greenlets_named("worker") == []
