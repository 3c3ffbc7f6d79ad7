"""An exception from outside, a signal handler, a finalizer: at whatever line of the batcher it comes, the next call is
answered.

Each test runs one operation over and over, and comes in at its first line, then at its second, until there are no more.
"""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from itertools import count
from types import CodeType, FrameType
from typing import Any

import pytest

import ubatch
from tests.conftest import ON_LIBUV
from ubatch import (
    BatcherClosed,
    DeadlineExceeded,
    NotProcessed,
    ReentrantCall,
    UBatch,
    UBatchError,
    deadline,
)
from ubatch._runtime._native import threading_is_patched

pytestmark = [
    pytest.mark.skipif(sys.version_info[:2] == (3, 13), reason="CPython 3.13 does not trace each opcode"),
    pytest.mark.skipif(threading_is_patched(), reason="both runtimes are struck in a process that is not patched"),
    pytest.mark.skipif(ON_LIBUV, reason="gevent's watchers for libuv are dropped, and crash, where one is hit"),
]
PACKAGE = ubatch.__path__[0]
LIMIT = 5.0


class Interrupted(BaseException):
    """What a signal handler raises, or another thread sets."""


def places_to_strike(code: CodeType) -> set[int]:
    """The offsets at which the interpreter looks for signals: after a call, at a function's start, where a loop turns.

    Elsewhere nothing from outside can come in. So `with lock:` is safe where `lock.acquire()` before a `try` is not.
    """
    offsets = set()
    before = ""
    for instruction in dis.get_instructions(code):
        if before.startswith(("CALL", "RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE")):
            offsets.add(instruction.offset)
        if instruction.opname not in ("CACHE", "EXTENDED_ARG"):
            before = instruction.opname
    return offsets


class Visitor:
    """Traces the package's code in this thread and calls `act` once, at the n-th place to strike."""

    def __init__(self, n: int, act: Callable[[], object]) -> None:
        self.n = self.left = n
        self.act = act
        self.came = False
        self._places: dict[CodeType, set[int]] = {}
        self._before: Any = None

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # CPython 3.12 traces none unless one frame asked before `settrace`
        sys.settrace(self.trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or code.co_filename.endswith("testing.py"):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode" and not self.came:
            if code not in self._places:
                self._places[code] = places_to_strike(code)
            if frame.f_lasti in self._places[code]:
                self.left -= 1
                if self.left < 0:
                    self.came = True
                    self.act()
        return self.trace


def visits(act: Callable[[], object]) -> Iterator[Visitor]:
    """One for each place: what its body calls, it comes to at a later place each time, until there are no more."""
    for n in count():
        visitor = Visitor(n, act)
        yield visitor
        if not visitor.came:
            return


def interrupt() -> None:
    raise Interrupted


def answered(batcher: UBatch[int, int]) -> None:
    """The next call is."""
    request = batcher.submit(41)
    assert request.result(LIMIT) == 42


def plus_one(xs: list[int]) -> list[int]:
    return [x + 1 for x in xs]


@pytest.fixture(params=["threading auto", "gevent auto", "gevent native"])
def batcher(request: pytest.FixtureRequest) -> Iterator[UBatch[int, int]]:
    runtime, executor = request.param.split()
    batcher = UBatch[int, int](4, 0.0, max_queue=4, runtime=runtime, executor=executor).set_handler(plus_one)
    yield batcher
    batcher.stop(LIMIT)


def call(batcher: UBatch[int, int]) -> None:
    batcher.submit(1)


def waiting_call(batcher: UBatch[int, int]) -> None:
    batcher.ubatch(1)


def cancelled_call(batcher: UBatch[int, int]) -> None:
    batcher.submit(1).cancel()


def late_call(batcher: UBatch[int, int]) -> None:
    def call() -> None:
        with deadline(1e-9), suppress(TimeoutError):
            batcher.ubatch(1)

    copy_context().run(call)  # which ends with it: the first line of `deadline.__exit__` may be hit as well


def restart(batcher: UBatch[int, int]) -> None:
    batcher.stop(0)
    batcher.start()


def reading(batcher: UBatch[int, int]) -> None:
    batcher.statistics()
    repr(batcher)


def many_calls(batcher: UBatch[int, int]) -> None:
    """More than find a place in the queue."""
    batcher.map(range(5), window=5)


def called_back(batcher: UBatch[int, int]) -> None:
    request = batcher.submit(1)
    request.add_done_callback(lambda _: None)
    request.result(LIMIT)


def changing(batcher: UBatch[int, int]) -> None:
    batcher.timeout = 0.0
    batcher.max_queue = 4


OPERATIONS = [called_back, changing, call, waiting_call, cancelled_call, late_call, restart, reading]


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a generator that was struck
@pytest.mark.parametrize("operation", [*OPERATIONS, many_calls], ids=lambda operation: operation.__name__)
def test_after_an_exception_from_outside_the_next_call_is_answered(
    batcher: UBatch[int, int], operation: Callable[[UBatch[int, int]], None]
) -> None:
    answered(batcher)
    for visitor in visits(interrupt):
        with suppress(Interrupted, UBatchError), visitor:  # it may hit the collector
            operation(batcher)
        batcher.start()
        answered(batcher)
    assert visitor.n > 10


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a generator that was struck
@pytest.mark.parametrize("kind", ["threading auto", "gevent auto", "gevent native"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_after_an_exception_from_outside_in_the_first_call_the_next_one_is_answered(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, executor = kind.split()
    # `Thread.start` that was interrupted leaves a thread that does not find itself in `threading`'s lists.
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    for visitor in visits(interrupt):
        batcher = UBatch[int, int](4, 0.0, runtime=runtime, executor=executor).set_handler(plus_one)
        with suppress(Interrupted, UBatchError), visitor:  # it may hit the collector
            batcher.submit(1).result(LIMIT)
        answered(batcher)
        batcher.stop(LIMIT)
    assert visitor.n > 30


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a generator that was struck
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_a_signal_handler_may_submit_read_and_cancel_at_any_line(
    batcher: UBatch[int, int], operation: Callable[[UBatch[int, int]], None]
) -> None:
    answered(batcher)
    refused = 0
    requests: list[Any] = []

    def handler() -> None:
        nonlocal refused
        batcher.statistics()
        repr(batcher)
        assert batcher.stalled is False
        with suppress(NotProcessed):  # while it is stopped
            requests.append(batcher.submit(6))
            requests.append(batcher.submit(7))
            requests[-1].cancel()
        try:
            requests[0].result(0)
        except ReentrantCall:
            refused += 1
        except (TimeoutError, IndexError, NotProcessed):
            pass

    for visitor in visits(handler):
        requests.clear()
        with visitor:
            operation(batcher)
        batcher.start()
        answered(batcher)
        if requests:
            with suppress(BatcherClosed, DeadlineExceeded):  # it came inside `restart`, or `late_call`
                assert requests[0].result(LIMIT) == 7
    assert visitor.n > 10
    assert refused > 0 or operation is changing  # some of these lines hold the lock


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a generator that was struck
@pytest.mark.parametrize("timeout", [0, 5.0, None])
def test_a_signal_handler_may_stop_at_any_line(batcher: UBatch[int, int], timeout: float | None) -> None:
    answered(batcher)
    for visitor in visits(lambda: batcher.stop(timeout)):
        with suppress(NotProcessed), visitor:
            call(batcher)
        assert batcher.stopped is visitor.came
        if visitor.came:
            with pytest.raises(NotProcessed):
                answered(batcher)
        batcher.stop(LIMIT)
        batcher.start()
        answered(batcher)
    assert visitor.n > 10
