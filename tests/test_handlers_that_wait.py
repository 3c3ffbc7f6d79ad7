"""A handler that waits for its own batcher is answered, or refused: it never hangs. In virtual time."""

from __future__ import annotations

from typing import Any

from ubatch import (
    ReentrantCall,
)
from ubatch.testing import Gate, VirtualRuntime

from .conftest import Harness


def test_a_handler_that_waits_for_its_own_batcher_is_refused(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(lambda xs: [batcher.ubatch(x + 1) for x in xs], max_size=1)
    request = batcher.submit(1)
    runtime.settle()
    error = request.exception()
    assert type(error) is ReentrantCall
    assert "'recording_handler' waits for its own batcher" in str(error)
    assert calls == [[1]]
    assert "0 pending" in repr(batcher)


def test_a_handler_that_finds_a_free_slot_is_answered(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(
        lambda xs: [x if x == 0 else batcher.ubatch(x - 1) for x in xs], max_size=1, max_in_flight=3
    )
    shallow, deep = batcher.submit(2), None
    runtime.settle()
    assert shallow.result() == 0
    deep = batcher.submit(3)
    runtime.settle()
    assert isinstance(deep.exception(), ReentrantCall)


def test_two_handlers_that_wait_for_each_other_are_found(harness: Harness, runtime: VirtualRuntime) -> None:
    ping, _ = harness.batcher(lambda xs: [pong.ubatch(x) for x in xs], max_size=1)
    pong, _ = harness.batcher(lambda xs: [ping.ubatch(x) for x in xs], max_size=1)
    request = ping.submit(1)
    runtime.settle()
    assert isinstance(request.exception(), ReentrantCall)


def test_slots_that_wait_for_each_other_are_found(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    def handler(xs: list[int]) -> list[int]:
        if xs[0] < 10:
            gate.pass_through()
            return [batcher.ubatch(xs[0] + 10)]
        return xs

    batcher, _ = harness.batcher(handler, max_size=1, max_in_flight=2)
    requests = [batcher.submit(1), batcher.submit(2)]
    runtime.settle()
    gate.open()
    runtime.settle()
    outcomes = sorted(type(request.exception()).__name__ for request in requests)
    assert outcomes in (["NoneType", "ReentrantCall"], ["ReentrantCall", "ReentrantCall"])


def test_a_handler_may_wait_for_another_batcher(harness: Harness, runtime: VirtualRuntime) -> None:
    inner, _ = harness.batcher(lambda xs: [x + 1 for x in xs], max_size=1)
    outer, _ = harness.batcher(lambda xs: [inner.ubatch(x) for x in xs], max_size=1)
    request = outer.submit(1)
    runtime.settle()
    assert request.result() == 2


def test_a_handler_may_submit_to_its_own_batcher_without_waiting(harness: Harness, runtime: VirtualRuntime) -> None:
    later: list[Any] = []

    def handler(xs: list[int]) -> list[int]:
        later.extend(batcher.submit(x + 10) for x in xs if x < 10)
        return xs

    batcher, calls = harness.batcher(handler, max_size=1)
    batcher.submit(1)
    runtime.settle()
    assert later[0].result() == 11
    assert calls == [[1], [11]]


def test_a_handler_that_waits_for_its_own_stop_is_refused(harness: Harness, runtime: VirtualRuntime) -> None:
    def handler(xs: list[int]) -> list[int]:
        batcher.stop()
        return xs

    batcher, _ = harness.batcher(handler, max_size=1)
    request = batcher.submit(1)
    runtime.settle()
    assert isinstance(request.exception(), ReentrantCall)
