"""What the collector's lock guards, by tables: no runtime, no lock, no clock. Time is a number that the test says."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from ubatch import NotProcessed, QueueClosed, QueueFull, QueueTimeout, ResultLost, ResultTimeout
from ubatch._core.options import Options
from ubatch._core.request import Request
from ubatch._core.state import (
    Action,
    Dispatch,
    Lifecycle,
    Refuse,
    RenewSlots,
    ReportStall,
    Sleep,
    SleepUntilIdle,
    StartTask,
    State,
    Task,
    WaitForRoom,
    Wake,
    WakeCollector,
)

DEFAULTS: dict[str, Any] = {
    "eager": False,
    "executor": "auto",
    "max_in_flight": 1,
    "max_queue": None,
    "deadline": None,
    "stall_after": None,
    "isolate_errors": False,
    "should_isolate": None,
    "instruments": (),
}


class Bench:
    """A state with a task, and requests by number. `did` are the actions of each step, in short."""

    def __init__(self, max_size: int = 3, timeout: float = 5.0, **options: Any) -> None:
        self.state = State("b", Options.checked(max_size, timeout, **{**DEFAULTS, **options}), Lifecycle())
        self.requests: list[Request[Any]] = []

    def call(self, at: float, deadline_at: float = inf, form: Any = 1, patient: bool = False) -> Action | None:
        request: Request[Any] = Request(None, list, (len(self.requests),), {}, form, at, deadline_at)  # type: ignore[arg-type]
        self.requests.append(request)
        return self.state.admit(request, patient)

    def calls(self, *times: float) -> list[Action | None]:
        return [self.call(at) for at in times]

    def decide(self, now: float) -> Action | None:
        return self.state.decide(now)

    def dispatch(self, now: float) -> Dispatch:
        action = self.decide(now)
        assert isinstance(action, Dispatch)
        return action

    def numbers(self, action: Dispatch) -> list[int]:
        return [request.args[0] for request in action.batch.requests]

    def error(self, number: int) -> Any:
        return self.requests[number]._outcome


def answer(dispatch: Dispatch) -> None:
    dispatch.batch._outputs = [request.args[0] for request in dispatch.batch.requests]


def test_the_first_call_starts_the_task_and_the_next_ones_wake_it_only_where_a_batch_is_due() -> None:
    bench = Bench(max_size=3)
    first = bench.call(100.0)
    assert isinstance(first, StartTask)
    assert bench.decide(100.0) == Sleep(105.0)
    assert bench.calls(101.0, 102.0) == [None, WakeCollector(3)]
    assert bench.call(102.0) is None  # it is awake
    assert bench.numbers(bench.dispatch(102.0)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "calls", "now", "action"),
    [
        ({}, [], 100.0, Sleep(inf)),
        ({}, [100.0], 104.9, Sleep(105.0)),
        ({"eager": True}, [100.0], 100.0, SleepUntilIdle(105.0, 1)),
        ({"eager": True}, [100.0, 101.0], 101.0, SleepUntilIdle(105.0, 2)),
    ],
)
def test_without_a_batch_that_is_due_the_collector_sleeps(
    options: dict[str, Any], calls: list[float], now: float, action: Action
) -> None:
    bench = Bench(**options)
    bench.calls(*calls)
    assert bench.decide(now) == action


def test_an_eager_batch_is_closed_when_the_loop_was_idle_and_meanwhile_no_call_came() -> None:
    bench = Bench(eager=True)
    bench.call(100.0)
    assert bench.decide(100.0) == SleepUntilIdle(105.0, 1)
    bench.call(100.1)
    bench.state.saw_idle_loop(1)  # there are two by now
    assert bench.decide(100.1) == SleepUntilIdle(105.0, 2)
    bench.state.saw_idle_loop(2)
    assert bench.dispatch(100.1).batch.reason == "idle"


def test_while_every_slot_is_taken_requests_gather_and_no_call_wakes_the_collector() -> None:
    bench = Bench(max_size=2, timeout=0.0)
    bench.call(100.0)
    first = bench.dispatch(100.0)
    assert first.then == Sleep(inf)  # decided in the same section
    assert bench.calls(101.0, 102.0, 103.0) == [None, None, None]
    answer(first)
    assert bench.state.finish(first.batch, 104.0) == ([], True)
    assert bench.numbers(bench.dispatch(104.0)) == [1, 2]
    assert bench.requests[0]._state == 2


def test_an_eager_request_waits_for_company_only_since_a_slot_is_free() -> None:
    bench = Bench(timeout=5.0, eager=True)
    bench.call(100.0)
    bench.state.saw_idle_loop(1)
    first = bench.dispatch(100.0)
    bench.call(101.0)
    answer(first)
    assert bench.state.finish(first.batch, 200.0) == ([], True)
    assert bench.decide(200.0) == SleepUntilIdle(205.0, 1)


def test_a_batch_that_ends_wakes_nobody_where_nothing_is_pending_and_the_next_call_does() -> None:
    bench = Bench(timeout=0.0)
    bench.call(100.0)
    first = bench.dispatch(100.0)
    answer(first)
    assert bench.state.finish(first.batch, 101.0) == ([], False)
    assert bench.call(102.0) == WakeCollector(1)


def test_finishing_once_more_wakes_everybody_once_more_and_counts_nothing_twice() -> None:
    bench = Bench(timeout=0.0)
    bench.call(100.0)
    waiter: Any = object()
    bench.requests[0]._waiters = (waiter,)
    first = bench.dispatch(100.0)
    answer(first)
    assert bench.state.finish(first.batch, 101.0) == ([waiter], False)
    assert bench.state.finish(first.batch, 102.0) == ([waiter], True)
    fields = bench.state.fields()
    assert (fields["answered"], fields["batches"], fields["handler_seconds"].sum) == (1, 1, 1.0)


def test_a_full_queue_refuses_or_lets_the_patient_wait() -> None:
    bench = Bench(max_size=2, max_queue=2)
    bench.calls(100.0, 100.0)
    refused = bench.call(100.0)
    assert isinstance(refused, Refuse)
    assert isinstance(refused.error, QueueFull)
    assert bench.call(100.0, patient=True) == WaitForRoom(2)
    assert not bench.state.has_room()


def test_late_requests_make_room_for_a_call_at_the_limit() -> None:
    bench = Bench(max_size=2, max_queue=2)
    bench.call(100.0, deadline_at=101.0)
    bench.call(100.0, deadline_at=103.0)
    action = bench.call(102.0)
    assert isinstance(action, Wake)
    assert action.then is None
    assert isinstance(bench.error(0), QueueTimeout)
    assert bench.state.pending.all() == bench.requests[1:]


def test_who_is_late_is_not_in_the_batch() -> None:
    bench = Bench(max_size=3)
    bench.call(100.0, deadline_at=101.0)
    bench.calls(100.0, 100.0)
    assert isinstance(bench.decide(102.0), Wake)
    assert bench.decide(102.0) == Sleep(105.0)
    assert bench.numbers(bench.dispatch(105.0)) == [1, 2]


@pytest.mark.parametrize(("closed", "error"), [(False, QueueTimeout), (True, ResultTimeout)])
def test_a_deadline_ends_a_request_wherever_it_is(closed: bool, error: type[Exception]) -> None:
    bench = Bench(timeout=0.0)
    bench.call(100.0, deadline_at=101.0)
    if closed:
        bench.dispatch(100.0)
    bench.state.expire(bench.requests[0], 101.0)
    bench.state.expire(bench.requests[0], 101.0)
    assert type(bench.error(0)) is error
    assert bench.state.fields()["expired"] == 1


def test_what_a_batch_has_taken_is_not_withdrawn() -> None:
    bench = Bench(max_size=2)
    bench.calls(100.0, 100.0, 101.0)
    bench.dispatch(101.0)
    error = NotProcessed("cancelled")
    assert bench.state.withdraw(bench.requests[0], error) is None
    assert bench.state.withdraw(bench.requests[2], error) == []
    assert bench.state.withdraw(bench.requests[2], error) is None
    assert bench.state.fields()["abandoned"] == 1


def test_after_a_cancel_the_batch_is_full_with_as_many_calls_as_it_lacks() -> None:
    bench = Bench(max_size=3)
    bench.call(100.0, form="odd")
    bench.calls(100.0)
    assert bench.decide(100.0) == Sleep(105.0)  # to be woken at four: three of one form
    bench.state.withdraw(bench.requests[0], NotProcessed("cancelled"))
    assert bench.calls(101.0, 101.0) == [None, WakeCollector(3)]


def test_a_drain_closes_what_there_is_and_ends_the_task_after_the_last_batch() -> None:
    bench = Bench(max_size=2)
    bench.calls(100.0)
    bench.decide(100.0)
    bench.state.lifecycle.stopped = True
    waiter: Any = object()
    bench.state.drain_waiters[waiter] = None
    refused = bench.call(100.5)
    assert isinstance(refused, Refuse)
    assert isinstance(refused.error, QueueClosed)
    last = bench.dispatch(101.0)
    assert (last.batch.reason, last.then) == ("drain", Sleep(inf))
    answer(last)
    assert bench.state.finish(last.batch, 102.0) == ([], True)
    assert not bench.state.is_drained()
    assert bench.decide(102.0) is None
    assert bench.state.drain_ended() == [waiter]


def test_a_stop_that_gives_up_ends_each_request_and_renews_the_slots() -> None:
    bench = Bench(max_size=1)
    bench.calls(100.0, 100.0)
    bench.dispatch(100.0)
    bench.state.lifecycle.stopped = True
    assert bench.state.fail_all("it was stopped", []) == (2, [])
    assert [type(bench.error(n)) for n in (0, 1)] == [ResultLost, QueueClosed]
    assert bench.decide(101.0) == RenewSlots(1)
    assert bench.decide(101.0) is None


def test_a_task_that_is_killed_ends_what_it_leaves_behind_and_the_next_call_makes_another() -> None:
    bench = Bench(max_size=1)
    started = bench.call(100.0)
    assert isinstance(started, StartTask)
    bench.call(100.0)
    bench.dispatch(100.0)  # and never handed over
    assert bench.state.end_task(Task()) is None  # not the current one
    assert bench.state.end_task(started.task) == []
    assert [type(bench.error(n)) for n in (0, 1)] == [NotProcessed, NotProcessed]
    assert isinstance(bench.call(101.0), StartTask)


def test_a_batch_stalls_once_and_is_reported_once_a_minute() -> None:
    bench = Bench(max_size=1, stall_after=10.0, max_in_flight=2)
    bench.calls(100.0, 101.0)
    bench.dispatch(101.0)
    assert bench.dispatch(101.0).then == Sleep(111.0)
    action = bench.decide(111.0)
    assert isinstance(action, ReportStall)
    assert len(action.batches) == 2
    assert bench.decide(111.0) == Sleep(inf)
    assert bench.state.counts() == (0, 2, True)


def test_recovering_starts_a_task_where_one_was_noted_and_has_not_begun() -> None:
    bench = Bench()
    started = bench.call(100.0)
    assert isinstance(started, StartTask)
    bench.call(100.0)
    another = bench.state.recover(bench.requests[0], NotProcessed("interrupted"))
    assert another is not None
    assert another is not started.task
    assert bench.state.pending.all() == [bench.requests[1]]
    assert another.is_run_by(me := object())
    assert another.is_run_by(me)
    assert bench.state.recover(bench.requests[0], NotProcessed("again")) is None  # it has begun
