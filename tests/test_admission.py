"""Full queues, deadlines and stuck handlers, in virtual time."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from ubatch import DeadlineExceeded, NotProcessed, QueueFull, QueueTimeout, ResultTimeout, deadline
from ubatch.testing import Gate, VirtualRuntime

from .conftest import Harness

# A full queue.


def test_one_request_more_than_max_queue_is_refused_at_once(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, calls = harness.batcher(gate=gate, max_size=2, max_queue=3)
    for x in range(5):
        batcher.submit(x)
        runtime.settle()
    with pytest.raises(QueueFull) as caught:
        batcher.submit(5)
    assert str(caught.value) == (
        "at most max_queue=3 requests may be pending in 'recording_handler'; try again in 1.000 seconds"
    )
    assert caught.value.http_status == 503
    gate.open()
    runtime.advance(5.0)
    assert calls == [[0, 1], [2, 3], [4]]


def test_a_place_in_the_queue_is_free_when_a_batch_takes_its_requests(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=2, max_queue=2)
    for x in range(4):
        batcher.submit(x)
        runtime.settle()
    gate.open(1)
    runtime.settle()
    assert batcher.submit(4).done() is False


def test_a_place_in_the_queue_is_free_when_a_caller_leaves(harness: Harness) -> None:
    batcher, _ = harness.batcher(max_size=2, max_queue=2, timeout=50.0, gate=None)
    first = batcher.submit(0)
    assert first.cancel()
    batcher.submit(1)
    batcher.submit(2)


def test_retry_after_is_what_the_pending_take_at_the_present_rate(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=2, max_queue=4)
    requests = [batcher.submit(x) for x in range(2)]
    runtime.advance(3.0)
    gate.open(1)
    runtime.settle()
    assert all(request.done() for request in requests)
    for x in range(6):
        batcher.submit(x)
        runtime.settle()
    with pytest.raises(QueueFull) as caught:
        batcher.submit(6)
    assert caught.value.retry_after == pytest.approx(4 * 3.0 / 2)


# Deadlines.


def test_a_deadline_that_passes_while_pending_is_a_queue_timeout(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, calls = harness.batcher(gate=gate, max_size=1, deadline=2.0)
    batcher.submit(0)  # so the place is taken
    call = runtime.call(batcher.ubatch, 1)
    runtime.advance(1.9)
    assert not call.done
    runtime.advance(0.1)
    assert type(call.error) is QueueTimeout
    assert isinstance(call.error, NotProcessed)
    assert str(call.error) == (
        "the deadline passed while the request was pending in 'recording_handler': the handler never saw it"
    )
    gate.open()
    runtime.advance(10.0)
    assert calls == [[0]]


def test_a_deadline_that_passes_at_the_handler_is_a_result_timeout(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, calls = harness.batcher(gate=gate, max_size=1, deadline=2.0)
    call = runtime.call(batcher.ubatch, 1)
    runtime.advance(2.0)
    assert type(call.error) is ResultTimeout
    assert isinstance(call.error, DeadlineExceeded)
    assert not isinstance(call.error, NotProcessed)
    assert str(call.error) == (
        "the deadline passed while the handler 'recording_handler' ran: the request may have had its effect"
    )
    gate.open()
    runtime.settle()
    assert calls == [[1]]


def test_an_answer_within_the_deadline_is_an_answer(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(timeout=1.0, deadline=2.0)
    call = runtime.call(batcher.ubatch, 1)
    runtime.advance(1.0)
    assert call.value == 1
    runtime.advance(10.0)
    assert call.error is None


def test_the_deadline_of_a_block_is_in_force_for_its_own_calls_alone(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(timeout=5.0)

    def hurried() -> Any:
        with deadline(2.0):
            return batcher.ubatch(1)

    calls_made = [runtime.call(hurried), runtime.call(batcher.ubatch, 2)]
    runtime.advance(2.0)
    assert isinstance(calls_made[0].error, QueueTimeout)
    assert not calls_made[1].done
    runtime.advance(3.0)
    assert calls == [[2]]


@pytest.mark.parametrize(("outer", "inner", "own"), [(2.0, 9.0, 9.0), (9.0, 2.0, 9.0), (9.0, 9.0, 2.0)])
def test_of_several_deadlines_the_earliest_wins(
    harness: Harness, runtime: VirtualRuntime, gate: Gate, outer: float, inner: float, own: float
) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=1, deadline=own)
    batcher.submit(0)  # so the place is taken
    runtime.settle()

    def nested() -> Any:
        with deadline(outer), deadline(inner):
            return batcher.ubatch(1)

    call = runtime.call(nested)
    runtime.advance(1.9)
    assert not call.done
    runtime.advance(0.1)
    assert isinstance(call.error, QueueTimeout)


def test_after_the_block_no_deadline_is_in_force(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(timeout=5.0)

    def after() -> Any:
        with deadline(1.0):
            pass
        return batcher.ubatch(1)

    call = runtime.call(after)
    runtime.advance(5.0)
    assert call.value == 1


def test_the_handler_never_sees_a_request_whose_deadline_has_passed(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    """Also where nobody waits for it, and where it expired while the place was taken."""
    batcher, calls = harness.batcher(gate=gate, max_size=2, timeout=5.0, deadline=8.0)
    batcher.submit(0)
    runtime.advance(5.0)
    late = batcher.submit(1)
    runtime.advance(4.0)
    fresh = batcher.submit(2)
    runtime.advance(4.0)
    gate.open()
    runtime.advance(5.0)
    assert calls == [[0], [2]]
    assert isinstance(late.exception(), QueueTimeout)
    assert fresh.result() == 2


def test_a_deadline_of_zero_ends_a_call_that_has_to_wait(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(timeout=5.0)

    def at_once() -> Any:
        with deadline(0):
            return batcher.ubatch(1)

    call = runtime.call(at_once)
    runtime.settle()
    assert isinstance(call.error, QueueTimeout)
    runtime.advance(5.0)
    assert calls == []


def test_waiting_for_a_result_ends_at_the_deadline_of_the_request(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=1, deadline=2.0)
    batcher.submit(0)  # so the place is taken
    runtime.settle()
    request = batcher.submit(1)
    waits = [runtime.call(request.result), runtime.call(request.result, 10.0), runtime.call(request.result, 1.0)]
    runtime.advance(1.0)
    assert type(waits[2].error) is DeadlineExceeded
    runtime.advance(1.0)
    assert [type(wait.error) for wait in waits[:2]] == [QueueTimeout, QueueTimeout]


# Stuck handlers.


def test_a_stall_is_logged_once_with_the_handlers_stack(
    harness: Harness, runtime: VirtualRuntime, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=2, stall_after=3.0)
    batcher.submit(0)
    batcher.submit(1)
    with caplog.at_level(logging.DEBUG, "ubatch"):
        runtime.advance(2.9)
        assert caplog.messages == []
        assert not batcher.stalled
        runtime.advance(50.0)
    (record,) = caplog.records
    first, *stack = record.getMessage().splitlines()
    assert record.levelname == "ERROR"
    assert first == ("the handler 'recording_handler' has not come back for 3.0 seconds, with a batch of 2; it is at:")
    assert any("pass_through" in line for line in stack)
    assert batcher.stalled
    assert repr(batcher).endswith(f"open, 0 pending, 2 in flight, {runtime.name}, stalled>")


def test_a_stall_is_over_when_the_handler_comes_back(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=1, stall_after=3.0)
    request = batcher.submit(0)
    runtime.advance(3.0)
    assert batcher.stalled
    gate.open()
    runtime.settle()
    assert not batcher.stalled
    assert request.result() == 0


def test_deadlines_end_waits_on_a_stalled_batcher_and_say_so(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=1, max_queue=1, stall_after=3.0, deadline=10.0)
    at_the_handler = runtime.call(batcher.ubatch, 0)
    runtime.settle()
    pending = runtime.call(batcher.ubatch, 1)
    runtime.advance(4.0)
    with pytest.raises(QueueFull, match=r"; it has not come back for 4\.0 seconds$"):
        batcher.submit(2)
    runtime.advance(6.0)
    assert isinstance(at_the_handler.error, ResultTimeout)
    assert isinstance(pending.error, QueueTimeout)
    for call in (at_the_handler, pending):
        assert str(call.error).endswith("; it has not come back for 10.0 seconds")


def test_a_handler_that_comes_back_in_time_is_no_stall(
    harness: Harness, runtime: VirtualRuntime, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=1, stall_after=3.0, max_in_flight=2)
    for x in range(3):
        batcher.submit(x)
        runtime.advance(2.0)
        gate.open(1)
        runtime.settle()
    runtime.advance(10.0)
    assert caplog.messages == []
