"""The contract, in virtual time: when a batch is closed, what is in it, and who gets which answer."""

from __future__ import annotations

import pytest

from ubatch import DeadlineExceeded, QueueClosed, RequestCancelled, ResultLost, UBatch
from ubatch.testing import Gate, RecordingHandler, VirtualRuntime

from .conftest import Harness

# When a batch is closed.


def test_a_lone_request_waits_exactly_the_timeout(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(timeout=5.0)
    batcher.submit(3)
    runtime.advance(4.999)
    assert calls == []
    runtime.advance(0.001)
    assert calls == [[3]]


def test_the_timeout_runs_from_the_oldest_request(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(timeout=5.0)
    batcher.submit(1)
    runtime.advance(3.0)
    batcher.submit(2)
    runtime.advance(2.0)
    assert calls == [[1, 2]]


def test_a_full_batch_goes_at_once(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(max_size=3)
    for x in range(3):
        batcher.submit(x)
    runtime.settle()
    assert calls == [[0, 1, 2]]


def test_a_batch_never_holds_more_than_max_size(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(max_size=3, timeout=5.0)
    for x in range(8):
        batcher.submit(x)
    runtime.settle()
    assert calls == [[0, 1, 2], [3, 4, 5]]
    runtime.advance(5.0)
    assert calls == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_with_a_timeout_of_zero_a_request_never_waits_for_company(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(timeout=0)
    batcher.submit(1)
    runtime.settle()
    assert calls == [[1]]


def test_a_second_batch_has_a_timeout_of_its_own(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(timeout=5.0)
    batcher.submit(1)
    runtime.advance(5.0)
    batcher.submit(2)
    runtime.advance(4.0)
    assert calls == [[1]]
    runtime.advance(1.0)
    assert calls == [[1], [2]]


# Late binding.


def test_while_the_slot_is_taken_requests_gather(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, calls = harness.batcher(gate=gate, max_size=4, timeout=5.0)
    batcher.submit(0)
    runtime.advance(5.0)
    for x in range(1, 4):
        batcher.submit(x)
    runtime.advance(100.0)
    assert calls == [[0]]
    gate.open(1)
    runtime.settle()
    assert calls == [[0], [1, 2, 3]]


def test_a_request_that_came_late_joins_the_batch_that_waits_for_a_slot(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, calls = harness.batcher(gate=gate, max_size=4, timeout=5.0)
    batcher.submit(0)
    runtime.advance(5.0)
    batcher.submit(1)
    runtime.advance(50.0)
    batcher.submit(2)
    gate.open(1)
    runtime.settle()
    assert calls == [[0], [1, 2]]


def test_a_slot_that_frees_early_does_not_shorten_the_wait(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, calls = harness.batcher(gate=gate, timeout=5.0)
    batcher.submit(0)
    runtime.advance(5.0)
    batcher.submit(1)
    gate.open(1)
    runtime.advance(4.0)
    assert calls == [[0]]
    runtime.advance(1.0)
    assert calls == [[0], [1]]


def test_a_slot_that_frees_with_nothing_pending_leaves_the_batcher_ready(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, calls = harness.batcher(gate=gate, timeout=5.0)
    batcher.submit(0)
    runtime.advance(5.0)
    gate.open()
    runtime.settle()
    batcher.submit(1)
    runtime.advance(5.0)
    assert calls == [[0], [1]]


def test_max_in_flight_batches_run_at_once_and_no_more(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, calls = harness.batcher(gate=gate, max_size=1, max_in_flight=3)
    for x in range(5):
        batcher.submit(x)
    runtime.settle()
    assert sorted(calls) == [[0], [1], [2]]
    assert gate.held == 3
    gate.open(1)
    runtime.settle()
    assert sorted(calls) == [[0], [1], [2], [3]]
    assert gate.held == 3


# Who gets which answer.


def test_each_caller_gets_its_own_answer(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(lambda xs: [x * x for x in xs], max_size=4)
    answers = [runtime.call(batcher.ubatch, x) for x in range(8)]
    runtime.advance(5.0)
    assert [answer.value for answer in answers] == [x * x for x in range(8)]
    assert sorted(x for xs in calls for x in xs) == list(range(8))


def test_items_reach_the_handler_in_the_order_of_the_calls(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(max_size=4)
    requests = [batcher.submit(x) for x in (5, 3, 4, 1)]
    runtime.settle()
    assert calls == [[5, 3, 4, 1]]
    assert [request.result() for request in requests] == [5, 3, 4, 1]


def test_map_makes_all_calls_at_once_and_answers_in_order(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(lambda xs: [-x for x in xs], max_size=4)
    answers = runtime.call(batcher.map, range(6))
    runtime.advance(5.0)
    assert answers.value == [0, -1, -2, -3, -4, -5]
    assert calls == [[0, 1, 2, 3], [4, 5]]


def test_map_takes_several_columns(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(lambda xs, ys: [x - y for x, y in zip(xs, ys, strict=True)], max_size=2)
    answers = runtime.call(batcher.map, [5, 7], [1, 2])
    runtime.settle()
    assert answers.value == [4, 5]
    assert calls == [([5, 7], [1, 2])]


def test_map_of_nothing_is_nothing(harness: Harness) -> None:
    batcher, calls = harness.batcher()
    assert batcher.map([]) == []
    assert calls == []


def test_map_raises_the_first_error_and_cancels_what_is_pending(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    def fail(xs: list[int]) -> list[int]:
        raise LookupError(xs)

    batcher, calls = harness.batcher(fail, max_size=2, timeout=50.0)
    answers = runtime.call(batcher.map, range(5))
    runtime.settle()
    assert isinstance(answers.error, LookupError)
    assert "0 pending" in repr(batcher)
    assert calls[0] == [0, 1]
    assert [4] not in calls


def test_positional_and_keyword_arguments_become_a_list_each(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(lambda a, b, c: list(zip(a, b, c, strict=True)), max_size=2)
    requests = [batcher.submit(1, 2, c=3), batcher.submit(4, 5, c=6)]
    runtime.settle()
    assert calls == [([1, 4], [2, 5], {"c": [3, 6]})]
    assert [request.result() for request in requests] == [(1, 2, 3), (4, 5, 6)]


def test_keyword_names_in_any_order_are_one_call_form(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(lambda a, b: list(zip(a, b, strict=True)), max_size=2)
    requests = [batcher.submit(a=1, b=2), batcher.submit(b=4, a=3)]
    runtime.settle()
    assert calls == [({"a": [1, 3], "b": [2, 4]},)]
    assert [request.result() for request in requests] == [(1, 2), (3, 4)]


def test_calls_of_different_form_never_share_a_handler_call(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(lambda a, b=None: list(a), max_size=3, timeout=5.0)
    batcher.submit(1)
    batcher.submit(2, 20)
    batcher.submit(3)
    batcher.submit(4, b=40)
    batcher.submit(5)
    runtime.settle()
    assert calls == [[1, 3, 5]]
    runtime.advance(5.0)
    assert calls == [[1, 3, 5], ([2], [20]), ([4], {"b": [40]})]


def test_a_form_that_fills_a_batch_does_not_wait_for_an_older_odd_one(
    harness: Harness, runtime: VirtualRuntime
) -> None:
    batcher, calls = harness.batcher(lambda a, b=None: list(a), max_size=2, timeout=5.0)
    batcher.submit(0, 0)
    runtime.advance(1.0)
    batcher.submit(1)
    batcher.submit(2)
    runtime.settle()
    assert calls == [[1, 2]]
    runtime.advance(4.0)
    assert calls == [[1, 2], ([0], [0])]


# Giving up.


def test_a_cancelled_request_never_reaches_the_handler(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(timeout=5.0)
    first, second = batcher.submit(1), batcher.submit(2)
    assert first.cancel()
    assert first.done()
    assert first.cancelled()
    runtime.advance(5.0)
    assert calls == [[2]]
    assert second.result() == 2
    with pytest.raises(RequestCancelled):
        first.result()


def test_the_timeout_of_a_cancelled_request_is_forgotten(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(timeout=5.0)
    first = batcher.submit(1)
    runtime.advance(3.0)
    batcher.submit(2)
    first.cancel()
    runtime.advance(4.0)
    assert calls == []
    runtime.advance(1.0)
    assert calls == [[2]]


def test_a_batch_that_everybody_left_does_not_run(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(timeout=5.0)
    assert batcher.submit(1).cancel()
    runtime.advance(10.0)
    assert calls == []


def test_it_is_too_late_to_cancel_what_is_at_the_handler(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=1)
    request = batcher.submit(1)
    runtime.settle()
    assert not request.cancel()
    gate.open()
    runtime.settle()
    assert request.result() == 1
    assert not request.cancel()
    assert not request.cancelled()


def test_waiting_for_a_result_ends_after_its_timeout_and_the_request_goes_on(
    harness: Harness, runtime: VirtualRuntime
) -> None:
    batcher, _ = harness.batcher(timeout=5.0)
    request = batcher.submit(1)
    wait = runtime.call(request.result, 2.0)
    runtime.advance(1.9)
    assert not wait.done
    runtime.advance(0.1)
    assert isinstance(wait.error, DeadlineExceeded)
    assert isinstance(wait.error, TimeoutError)
    assert str(wait.error) == "no answer within 2.0 seconds: the request is still waiting for a batch"
    runtime.advance(3.0)
    assert request.result(0) == 1


def test_several_may_wait_for_one_request(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(timeout=5.0)
    request = batcher.submit(1)
    waits = [runtime.call(request.result), runtime.call(request.result, 50.0), runtime.call(request.exception)]
    runtime.advance(5.0)
    assert [wait.value for wait in waits] == [1, 1, None]


# Stopping.


def test_stop_answers_what_was_accepted_without_waiting_for_company(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(max_size=4, timeout=5.0)
    requests = [batcher.submit(x) for x in range(6)]
    stopping = runtime.call(batcher.stop)
    runtime.settle()
    assert stopping.done
    assert calls == [[0, 1, 2, 3], [4, 5]]
    assert [request.result() for request in requests] == list(range(6))


def test_stop_waits_for_the_batch_at_the_handler(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=1)
    request = batcher.submit(1)
    runtime.settle()
    stops = [runtime.call(batcher.stop), runtime.call(batcher.stop)]
    runtime.advance(100.0)
    assert not any(stop.done for stop in stops)
    gate.open()
    runtime.settle()
    assert all(stop.done for stop in stops)
    assert request.result() == 1


def test_a_call_after_stop_is_refused(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(max_size=1)
    batcher.submit(1)
    runtime.settle()
    runtime.call(batcher.stop)
    runtime.settle()
    with pytest.raises(QueueClosed, match="stopped: start"):
        batcher.submit(2)


def test_a_call_after_stop_is_refused_even_when_there_was_none_before(harness: Harness) -> None:
    batcher, _ = harness.batcher()
    batcher.stop()
    with pytest.raises(QueueClosed, match="stopped: start"):
        batcher.submit(2)


def test_start_opens_a_stopped_batcher_again(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(max_size=1)
    for x in range(3):
        batcher.submit(x)
        runtime.settle()
        stopping = runtime.call(batcher.stop)
        runtime.settle()
        assert stopping.done
        assert batcher.start() is batcher
    batcher.submit(3)
    runtime.settle()
    assert calls == [[0], [1], [2], [3]]


def test_start_is_refused_while_stop_waits(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=1)
    batcher.submit(1)
    runtime.settle()
    runtime.call(batcher.stop)
    runtime.settle()
    with pytest.raises(QueueClosed, match="still stopping"):
        batcher.start()


def test_a_bounded_stop_fails_what_is_left(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, calls = harness.batcher(gate=gate, max_size=1)
    at_the_handler, pending = batcher.submit(1), batcher.submit(2)
    waits = [runtime.call(at_the_handler.result), runtime.call(pending.result)]
    runtime.settle()
    stopping = runtime.call(batcher.stop, 3.0)
    runtime.advance(2.9)
    assert not stopping.done
    runtime.advance(0.1)
    assert stopping.done
    assert type(waits[0].error) is ResultLost
    assert type(waits[1].error) is QueueClosed
    gate.open()
    runtime.settle()
    assert calls == [[1]]


def test_a_batcher_that_gave_up_on_a_stuck_handler_can_be_opened_again(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, calls = harness.batcher(gate=gate, max_size=1)
    batcher.submit(1)
    runtime.settle()
    runtime.call(batcher.stop, 1.0)
    runtime.advance(1.0)
    batcher.start()
    request = batcher.submit(2)
    runtime.settle()
    assert calls == [[1], [2]]
    gate.open()
    runtime.settle()
    assert request.result() == 2


def test_the_context_manager_opens_and_stops(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(max_size=4)

    def use() -> int:
        with batcher as entered:
            assert entered is batcher
            request = batcher.submit(1)
        return int(request.result())

    using = runtime.call(use)
    runtime.settle()
    assert using.value == 1
    assert calls == [[1]]


# State.


def test_the_repr_tells_the_state(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    bare: UBatch[int, int] = UBatch(max_size=2, timeout=0.5)
    assert repr(bare) == "<UBatch 'no handler' max_size=2 timeout=0.5: no handler>"
    batcher, _ = harness.batcher(gate=gate, max_size=2, timeout=0.5)
    start = "<UBatch 'recording_handler' max_size=2 timeout=0.5: "
    assert repr(batcher) == start + "open, not called yet>"
    requests = [batcher.submit(x) for x in range(3)]
    runtime.settle()
    assert repr(batcher) == f"{start}open, 1 pending, 2 in flight, {runtime.name}>"
    assert repr(requests[0]) == "<Request to 'recording_handler': in flight>"
    assert repr(requests[2]) == "<Request to 'recording_handler': pending>"
    gate.open()
    stopping = runtime.call(batcher.stop)
    runtime.settle()
    assert stopping.done
    assert repr(batcher) == f"{start}stopped, 0 pending, 0 in flight, {runtime.name}>"
    assert repr(requests[0]) == "<Request to 'recording_handler': answered>"


def test_the_name_is_the_one_given_or_the_handlers(harness: Harness) -> None:
    assert UBatch(1, 0).set_handler(RecordingHandler()).name == "recording_handler"
    assert UBatch(1, 0, name="digits").set_handler(RecordingHandler()).name == "digits"
