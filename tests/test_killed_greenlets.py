"""Callers, collectors and batchers that are killed or go away leave nobody waiting. In virtual time."""

from __future__ import annotations

import gc

import gevent
import pytest

from ubatch import (
    HandlerAborted,
    NotProcessed,
    QueueClosed,
    UBatch,
)
from ubatch.testing import Gate, VirtualRuntime

from .conftest import Harness, greenlets_named

gevent_only = pytest.mark.parametrize(
    "world", [("gevent", "auto"), ("gevent", "native"), ("gevent", "greenlet")], ids="-".join, indirect=True
)


@gevent_only
def test_a_killed_caller_leaves_the_queue(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(timeout=5.0)
    callers = [runtime.call(batcher.ubatch, x) for x in range(3)]
    runtime.settle()
    callers[1].kill()
    runtime.settle()
    assert isinstance(callers[1].error, gevent.GreenletExit)
    runtime.advance(5.0)
    assert calls == [[0, 2]]
    assert [callers[0].value, callers[2].value] == [0, 2]


@gevent_only
def test_a_caller_in_a_gevent_timeout_leaves_the_queue(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(timeout=5.0)
    caller = runtime.call(batcher.ubatch, 0)
    runtime.settle()
    caller.kill(gevent.Timeout(1))
    runtime.settle()
    assert isinstance(caller.error, gevent.Timeout)
    runtime.advance(5.0)
    assert calls == []


@gevent_only
def test_a_caller_that_is_killed_while_its_batch_runs_harms_nobody(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, calls = harness.batcher(gate=gate, max_size=2)
    callers = [runtime.call(batcher.ubatch, x) for x in range(2)]
    runtime.settle()
    callers[0].kill()
    runtime.settle()
    gate.open()
    runtime.settle()
    assert callers[1].value == 1
    assert calls == [[0, 1]]


@gevent_only
def test_a_killed_collector_fails_the_pending_and_the_next_call_starts_another(
    harness: Harness, runtime: VirtualRuntime
) -> None:
    batcher, calls = harness.batcher(timeout=5.0, name="killed")
    request = batcher.submit(1)
    runtime.settle()
    (collector,) = greenlets_named("ubatch-collector:killed")
    collector.kill()
    runtime.settle()
    assert type(request.exception()) is NotProcessed
    again = batcher.submit(2)
    runtime.advance(5.0)
    assert again.result() == 2
    assert calls == [[2]]


@gevent_only
def test_a_batch_survives_its_collector(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=1, name="survivor")
    request = batcher.submit(1)
    runtime.settle()
    (collector,) = greenlets_named("ubatch-collector:survivor")
    collector.kill()
    stopping = runtime.call(batcher.stop)
    runtime.settle()
    assert not stopping.done
    gate.open()
    runtime.settle()
    assert request.result() == 1
    assert stopping.done


@pytest.mark.parametrize("world", [("gevent", "greenlet")], ids="-".join, indirect=True)
def test_a_killed_handler_greenlet_fails_its_batch_and_frees_the_slot(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=1, name="victim")
    request = batcher.submit(1)
    runtime.settle()
    (handler,) = greenlets_named("ubatch-handler:victim")
    gevent.kill(handler)
    runtime.settle()
    assert isinstance(request.exception(), HandlerAborted)
    gate.open()
    again = batcher.submit(2)
    runtime.settle()
    assert again.result() == 2


def test_a_batcher_that_nobody_holds_answers_what_it_accepted(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher: UBatch[int, int] = UBatch(4, 5.0, runtime=runtime, executor=harness.executor).set_handler(list)
    request = batcher.submit(1)
    del batcher
    gc.collect()
    runtime.settle()
    assert request.result() == 1


def test_stop_fails_only_the_calls_of_its_own_batcher(harness: Harness, runtime: VirtualRuntime) -> None:
    one, _ = harness.batcher(timeout=5.0)
    two, _ = harness.batcher(timeout=5.0)
    request = two.submit(2)
    runtime.call(one.stop)
    runtime.settle()
    with pytest.raises(QueueClosed):
        one.submit(1)
    runtime.advance(5.0)
    assert request.result() == 2
