"""`submit` without asking for the result: what fails is logged once; and `add_done_callback`."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import Harness
from ubatch import DeadlineExceeded, QueueClosed, QueueFull, RequestCancelled, UBatch, deadline
from ubatch._core.request import Submitted
from ubatch.testing import Gate, VirtualRuntime


def insert(rows: list[Any]) -> list[Any]:
    if any(row == "bad" for row in rows):
        raise ConnectionError("the database is down")
    return rows


def told(caplog: pytest.LogCaptureFixture) -> int:
    """How many calls the log says have failed, and nobody asked."""
    count = 0
    for record in caplog.records:
        if "nobody asked" in record.getMessage():
            assert record.levelno == logging.ERROR
            assert record.name == "ubatch"
            assert record.exc_info is not None
            count += record.args[1]  # type: ignore[index, operator]
    return count


def test_errors_that_nobody_saw_are_logged_once_each(
    harness: Harness, runtime: VirtualRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    batcher, _ = harness.batcher(insert, max_size=8)
    for _ in range(20):
        batcher.submit("bad")
    runtime.advance(5.0)
    harness.close()
    assert told(caplog) == 20
    assert batcher.statistics().raised == 20
    assert "the database is down" in caplog.text


def test_what_was_asked_for_answered_or_cancelled_is_not_logged(
    harness: Harness, runtime: VirtualRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    batcher, _ = harness.batcher(insert, max_size=8)
    first, second, _third = batcher.submit("bad"), batcher.submit("bad"), batcher.submit("bad").cancel()
    runtime.advance(5.0)
    with pytest.raises(ConnectionError):
        first.result()
    assert isinstance(second.exception(), ConnectionError)
    del first, second
    batcher.submit("good")
    runtime.advance(5.0)
    call = runtime.call(batcher.ubatch, "bad")
    runtime.advance(5.0)
    assert isinstance(call.error, ConnectionError)
    many = runtime.call(batcher.map, ["good", "bad", "good"])
    runtime.advance(5.0)
    assert isinstance(many.error, ConnectionError)
    harness.close()
    assert told(caplog) == 0


def test_a_refused_call_is_not_logged_its_caller_knows(
    harness: Harness, runtime: VirtualRuntime, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    batcher, _ = harness.batcher(insert, gate=gate, max_size=1, max_queue=1)
    for _ in range(2):
        batcher.submit("good")
        runtime.settle()
    with pytest.raises(QueueFull):
        batcher.submit("good")
    harness.close()
    with pytest.raises(QueueClosed):
        batcher.submit("good")
    assert told(caplog) == 0


def test_what_is_dropped_long_after_the_stop_is_logged_too(
    harness: Harness, runtime: VirtualRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    batcher, _ = harness.batcher(insert, max_size=8)
    requests = [batcher.submit("bad") for _ in range(3)]
    runtime.advance(5.0)
    harness.close()
    assert told(caplog) == 0
    requests.clear()
    runtime.settle()
    assert told(caplog) == 3


def test_a_deadline_that_passes_unseen_is_logged(
    harness: Harness, runtime: VirtualRuntime, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    batcher, _ = harness.batcher(insert, gate=gate, max_size=1)
    batcher.submit("good")
    runtime.settle()
    with deadline(1.0):
        batcher.submit("good")
    runtime.advance(2.0)
    gate.open()
    runtime.settle()
    assert told(caplog) == 1
    assert "QueueTimeout" in caplog.text


SCRIPT = """
import logging, sys
if sys.argv[1] == "gevent":
    from gevent import monkey
    monkey.patch_all()
from ubatch import UBatch

logging.basicConfig(level=logging.INFO, stream=sys.stdout)

def insert(rows):
    raise ConnectionError("the database is down")

batcher = UBatch(max_size=8, timeout=0.01).set_handler(insert)
kept = []
for row in range(20):
    request = batcher.submit(row)
    if row == 19:
        kept.append(request)
batcher.stop()
kept.clear()
batcher.start()
batcher.submit(20)
batcher.stop()
"""


@pytest.mark.parametrize("world", ["threading", "gevent"])
def test_in_a_program_of_its_own(world: str) -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT, world], capture_output=True, text=True, timeout=50, check=True)
    lines = [line for line in ran.stdout.splitlines() if "nobody asked" in line]
    assert all(line.startswith("ERROR:ubatch:") for line in lines)
    assert sum(int(line.rpartition(": ")[2].split()[0]) for line in lines) >= 20
    assert "ConnectionError: the database is down" in ran.stdout
    assert not ran.stderr


def test_a_callback_is_called_once_with_the_request_when_it_has_ended(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    batcher, _ = harness.batcher(insert, gate=gate, max_size=2)
    seen: list[Any] = []
    requests = [batcher.submit(row) for row in ("a", "b", "bad", "bad")]
    for request in requests:
        request.add_done_callback(lambda request: seen.append((request, request.done())))
    runtime.settle()
    assert not seen
    gate.open()
    runtime.advance(5.0)
    assert seen == [(request, True) for request in requests]
    assert requests[0].result() == "a"
    assert isinstance(requests[3].exception(), ConnectionError)
    requests[0].add_done_callback(seen.append)
    assert seen[4:] == requests[:1]


def test_however_the_request_ends_it_is_called(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, _ = harness.batcher(insert, gate=gate, max_size=1, max_queue=9)
    ended: list[type[Any]] = []

    def note(request: Any) -> None:
        ended.append(type(request.exception()))

    batcher.submit("good").add_done_callback(note)
    runtime.settle()
    cancelled = batcher.submit("good")
    cancelled.add_done_callback(note)
    cancelled.cancel()
    runtime.settle()
    assert ended == [RequestCancelled]
    with deadline(1.0):
        late = batcher.submit("good")
    late.add_done_callback(note)
    asking = runtime.call(late.result)
    runtime.advance(1.0)
    assert isinstance(asking.error, DeadlineExceeded)
    assert len(ended) == 2
    batcher.submit("good").add_done_callback(note)
    stopping = runtime.call(batcher.stop, 0)
    runtime.settle()
    assert stopping.done
    assert len(ended) == 4


def test_a_callback_may_call_the_same_batcher_and_wait(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(insert, max_size=2)
    answers: list[Any] = []

    def again(request: Any) -> None:
        if request.result() < 5:
            answers.append(batcher.ubatch(request.result() + 1))

    batcher.submit(1).add_done_callback(again)
    runtime.advance(20.0)
    assert answers == [2]
    batcher.submit(2).add_done_callback(again)
    batcher.submit(3).add_done_callback(again)
    runtime.advance(20.0)
    assert answers == [2, 3, 4]


def test_what_a_callback_raises_is_logged_and_the_others_are_called(
    harness: Harness, runtime: VirtualRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    batcher, _ = harness.batcher(insert, max_size=2)
    seen: list[Any] = []

    def wrong(_: Any) -> None:
        raise ZeroDivisionError

    request = batcher.submit("a")
    request.add_done_callback(wrong)
    request.add_done_callback(seen.append)
    runtime.advance(5.0)
    assert seen == [request]
    assert "ZeroDivisionError" in caplog.text
    assert "a done callback must not raise" in caplog.text
    request.add_done_callback(wrong)
    assert caplog.text.count("ZeroDivisionError\n") >= 2


@pytest.mark.parametrize("runtime", ["threading", "gevent"])
def test_in_real_time_none_of_many_is_forgotten(runtime: str) -> None:
    batcher = UBatch[int, int](8, 0.001, runtime=runtime).set_handler(insert)
    seen: list[int] = []
    requests = [batcher.submit(n) for n in range(2000)]
    for request in requests:
        request.add_done_callback(lambda request: seen.append(request.result()))
    last = batcher.submit(-1)
    last.add_done_callback(lambda _: seen.append(-1))
    while len(seen) < 2001:
        batcher.ubatch(0)
    batcher.stop()
    assert sorted(seen) == [-1, *range(2000)]


def test_a_request_whose_making_was_interrupted_goes_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    Submitted.__new__(Submitted)  # as an alarm leaves it that hits `__init__`
    assert raised == []
