"""Early dispatch: a batch is closed as soon as nobody else can be on the way, and a burst is still one batch."""

from __future__ import annotations

import threading
import time
from typing import Any

import gevent
import gevent.socket
import pytest

from ubatch import UBatch
from ubatch.testing import Gate, VirtualRuntime

from .conftest import ON_LIBUV, Harness

EAGER: dict[str, Any] = {"eager": True, "max_size": 64, "timeout": 5.0}


def test_a_lone_call_does_not_wait(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(**EAGER)
    call = runtime.call(batcher.ubatch, 3)
    runtime.settle()
    assert (call.value, calls, runtime.clock()) == (3, [[3]], 0.0)
    assert batcher.statistics().reasons == {"idle": 1}


def test_a_burst_is_one_batch(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(**EAGER)
    call = runtime.call(batcher.map, range(64))
    runtime.settle()
    assert (call.value, calls) == (list(range(64)), [list(range(64))])
    assert batcher.statistics().reasons == {"full": 1}


def test_a_burst_of_less_than_a_batch_is_one_batch(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(**EAGER)
    runtime.call(batcher.map, range(40))
    runtime.settle()
    assert calls == [list(range(40))]
    assert batcher.statistics().reasons == {"idle": 1}


def test_callers_that_come_back_at_once_are_one_batch_again(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(**EAGER)

    def thrice(x: int) -> None:
        for i in range(3):
            batcher.ubatch(x + 100 * i)

    def together() -> None:  # so that home is not idle between their starts
        for x in range(8):
            runtime.call(thrice, x)

    runtime.call(together)
    runtime.settle()
    assert [sorted(batch) for batch in calls] == [[x + 100 * i for x in range(8)] for i in range(3)]


def test_while_the_handler_is_busy_requests_gather(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, calls = harness.batcher(gate=gate, **EAGER)
    for x in range(5):
        runtime.call(batcher.ubatch, x)
        runtime.settle()
    assert calls == [[0]]
    gate.open(1)
    runtime.settle()
    assert calls == [[0], [1, 2, 3, 4]]


def test_a_form_at_a_time_the_oldest_first(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, calls = harness.batcher(lambda xs, ys=None: xs, gate=gate, **EAGER)
    runtime.call(batcher.ubatch, 0)
    runtime.settle()
    for args in [(1,), (2, 2), (3,)]:
        runtime.call(batcher.ubatch, *args)
        runtime.settle()
    gate.open()
    runtime.settle()
    assert calls == [[0], [1, 3], ([2], [2])]


def test_a_stop_answers_what_is_pending(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, _ = harness.batcher(gate=gate, **EAGER)
    callers = [runtime.call(batcher.ubatch, x) for x in range(2)]
    runtime.settle()
    stopping = runtime.call(batcher.stop)
    gate.open()
    runtime.settle()
    assert stopping.done
    assert sorted(caller.value for caller in callers) == [0, 1]


@pytest.mark.parametrize("wrong", [1, "yes", None])
def test_eager_must_be_true_or_false(wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"eager must be True or False; got {wrong!r}"):
        UBatch[int, int](8, 0.01, eager=wrong)


# In real time.


@pytest.mark.parametrize("executor", ["native", "greenlet"])
@pytest.mark.parametrize("runtime_name", ["gevent", "threading"])
def test_a_lone_call_does_not_wait_in_real_time_either(runtime_name: str, executor: str) -> None:
    options: dict[str, Any] = {"runtime": runtime_name, "executor": executor}
    with UBatch[int, int](8, 3600.0, eager=True, **options).set_handler(list) as batcher:
        assert [batcher.ubatch(x) for x in range(3)] == [0, 1, 2]
        assert batcher.statistics().reasons == {"idle": 3}


@pytest.mark.parametrize("executor", ["native", "greenlet"])
def test_greenlets_that_start_together_are_one_batch(executor: str) -> None:
    with UBatch[int, int](64, 3600.0, eager=True, executor=executor, runtime="gevent").set_handler(list) as batcher:
        callers = [gevent.spawn(batcher.ubatch, x) for x in range(40)]
        assert [caller.get(timeout=30) for caller in callers] == list(range(40))
        assert batcher.statistics().batches == 1


def test_what_has_arrived_at_a_socket_is_read_first() -> None:
    here, there = zip(*(gevent.socket.socketpair() for _ in range(20)), strict=True)
    with UBatch[bytes, bytes](64, 3600.0, eager=True, executor="greenlet", runtime="gevent").set_handler(
        list
    ) as batcher:
        batcher.ubatch(b"-")
        callers = [gevent.spawn(lambda socket=socket: batcher.ubatch(socket.recv(1))) for socket in here]
        gevent.idle()  # so that all of them wait for their byte
        for socket in there:
            socket.sendall(b"x")
        assert [caller.get(timeout=30) for caller in callers] == [b"x"] * 20
        assert batcher.statistics().batches == 2
    for socket in (*here, *there):
        socket.close()


@pytest.mark.skipif(ON_LIBUV, reason="libuv calls idle watchers in each round")
def test_a_hub_that_is_never_idle_delays_a_call_by_the_timeout_and_no_more() -> None:
    busy = gevent.get_hub().loop.timer(1e-9, 1e-9)  # due in each round of the loop
    with UBatch[int, int](8, 0.05, eager=True, executor="greenlet", runtime="gevent").set_handler(list) as batcher:
        busy.start(lambda: None)
        try:
            start = time.monotonic()
            assert gevent.spawn(batcher.ubatch, 7).get(timeout=30) == 7
            waited = time.monotonic() - start
        finally:
            busy.stop()
            busy.close()
        assert batcher.statistics().reasons == {"timeout": 1}
        assert waited >= 0.05


def test_threads_that_start_together_are_answered_each() -> None:
    answers: list[int] = []
    with UBatch[int, int](64, 0.5, eager=True, runtime="threading").set_handler(list) as batcher:
        threads = [threading.Thread(target=lambda x=x: answers.append(batcher.ubatch(x))) for x in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(answers) == list(range(40))
