"""Whatever ends a collector or strikes a handler's thread: no call hangs, and the next is answered. In real time."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import gevent
import pytest

from ubatch import HandlerAborted, Instrument, NotProcessed, UBatch
from ubatch._runtime import Executor, Where
from ubatch._runtime._native import NativePool, ThreadWaiter, get_ident
from ubatch._runtime._threading import ThreadingRuntime
from ubatch.testing import Gate, VirtualRuntime

from .conftest import Harness

LIMIT = 30.0  # seconds; only ever waited out by a test that fails


def strike(ident: int, error: type[BaseException]) -> None:
    """Set an exception on a native thread, as libraries for time limits do. It is raised when the thread next runs."""
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(error)) == 1


def thread_of(function: str, owner: object) -> int:
    """The native thread that is in this method of this object."""
    for ident, frame in sys._current_frames().items():
        inner: FrameType | None = frame
        while inner is not None:
            if inner.f_code.co_name == function and inner.f_locals.get("self") is owner:
                return ident
            inner = inner.f_back
    raise AssertionError(f"a thread must be in {function!r} of {owner!r}; none is")


@pytest.fixture(params=["gevent", "threading"])
def batcher(request: pytest.FixtureRequest) -> Iterator[UBatch[Any, Any]]:
    """One that answers each call with its handler's thread. A call that is an exception class strikes that thread."""

    def handler(xs: list[Any]) -> list[int]:
        if isinstance(xs[0], type):
            strike(get_ident(), xs[0])
        return [get_ident() for _ in xs]

    with UBatch[Any, Any](1, 0.0, runtime=request.param, executor="native").set_handler(handler) as batcher:
        yield batcher


def ask(batcher: UBatch[Any, Any], x: Any = 0) -> Any:
    return batcher.submit(x).result(LIMIT)


ENDS = [SystemExit, KeyboardInterrupt, gevent.GreenletExit, ValueError]


@pytest.mark.parametrize("error", ENDS)
def test_an_idle_thread_of_the_handler_that_is_struck_answers_the_next_call(
    batcher: UBatch[Any, Any], error: type[BaseException]
) -> None:
    thread = ask(batcher)
    for _ in range(3):
        strike(thread, error)
        assert ask(batcher) == thread


@pytest.mark.parametrize("error", ENDS)
def test_a_thread_that_is_struck_in_the_handler_answers_the_next_call(
    batcher: UBatch[Any, Any], error: type[BaseException]
) -> None:
    thread = ask(batcher)
    with pytest.raises(ValueError if error is ValueError else HandlerAborted):
        ask(batcher, error)
    assert ask(batcher) == thread


def meet(pool: NativePool) -> set[int]:
    """Run two jobs that wait for each other, and return their threads."""
    idents: set[int] = set()
    begun = [ThreadWaiter(), ThreadWaiter()]
    ended = [ThreadWaiter(), ThreadWaiter()]

    def job(number: int) -> None:
        idents.add(get_ident())
        begun[number].set()
        begun[1 - number].wait(LIMIT)
        ended[number].set()

    for number in range(2):
        pool.submit(partial(job, number))
    assert all(waiter.wait(LIMIT) for waiter in ended)
    return idents


def test_threads_that_are_struck_are_as_many_as_before() -> None:
    pool = NativePool(2, "struck")
    threads = meet(pool)
    assert len(threads) == 2
    for _ in range(3):
        for thread in threads:
            strike(thread, SystemExit)
        assert meet(pool) == threads
    pool.close()


def test_a_collector_thread_that_is_struck_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had pending, the call that woke it included, was never seen by the handler, and is told so."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # pytest's, which reports it in some later test
    with UBatch[int, int](1, 0.0, runtime="threading").set_handler(list) as batcher:
        assert ask(batcher) == 0
        ident = thread_of("_collect", batcher._collector)
        known = [thread for thread in threading.enumerate() if thread.ident == ident]
        strike(ident, SystemExit)
        with pytest.raises(NotProcessed, match="was killed: try again"):
            ask(batcher)
        assert ask(batcher, 2) == 2
    for thread in known:
        thread.join(LIMIT)


def collector_of(batcher: UBatch[Any, Any]) -> gevent.Greenlet:
    (greenlet,) = [
        greenlet
        for greenlet in gc.get_objects()
        if issubclass(type(greenlet), gevent.Greenlet)  # `isinstance` would follow a proxy whose object is gone
        and greenlet.name == f"ubatch-collector:{batcher.name}"
    ]
    return greenlet


@pytest.mark.parametrize("executor", ["auto", "native", "greenlet"])
@pytest.mark.parametrize("end", [gevent.GreenletExit(), gevent.Timeout(1)], ids=repr)
def test_a_collector_greenlet_that_is_killed_is_replaced(executor: str, end: BaseException) -> None:
    name = f"killed by {type(end).__name__} with {executor}"
    with UBatch[int, int](1, 0.0, runtime="gevent", executor=executor, name=name).set_handler(list) as batcher:
        assert ask(batcher) == 0
        collector_of(batcher).kill(end)
        assert ask(batcher, 2) == 2


@pytest.mark.parametrize(
    "world", [("gevent", "auto"), ("gevent", "native"), ("gevent", "greenlet")], ids="-".join, indirect=True
)
def test_a_collector_that_is_killed_on_the_way_to_the_handler_takes_no_place_along(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    """In an instrument, which is the only place on that way where it can be."""

    class Holding(Instrument):
        def batch_started(self, batch: Any) -> None:
            gate.pass_through()

    batcher, calls = harness.batcher(max_size=1, name="on the way", instruments=[Holding()])
    lost = batcher.submit(1)
    runtime.settle()
    collector_of(batcher).kill(block=False)
    runtime.settle()
    assert type(lost.exception()) is NotProcessed
    gate.open()
    again = batcher.submit(2)
    runtime.settle()
    assert again.result() == 2
    assert calls == [[2]]


@pytest.mark.parametrize(
    "world", [("gevent", "auto"), ("gevent", "native"), ("gevent", "greenlet")], ids="-".join, indirect=True
)
def test_what_a_killed_collector_had_still_to_show_is_shown(
    harness: Harness, runtime: VirtualRuntime, gate: Gate
) -> None:
    shown: list[int] = []
    second = runtime.gate()

    class Holding(Instrument):
        def batch_ended(self, batch: Any) -> None:
            gate.pass_through()
            shown.append(batch.requests[0].args[0])

    def handler(xs: list[int]) -> list[int]:
        if xs == [2]:
            second.pass_through()
        return xs

    batcher, _ = harness.batcher(handler, max_size=1, max_in_flight=2, name="showing", instruments=[Holding()])
    batcher.submit(1), batcher.submit(2)
    runtime.settle()
    second.open()
    runtime.settle()
    collector_of(batcher).kill(block=False)  # while it shows the first
    runtime.settle()
    gate.open()
    runtime.settle()
    assert shown == [2]


def test_a_collector_greenlet_that_is_killed_at_once_is_replaced() -> None:
    with UBatch[int, int](1, 0.0, runtime="gevent", name="killed at once").set_handler(list) as batcher:
        request = batcher.submit(1)
        gevent.get_hub().loop.run_callback_threadsafe(lambda: collector_of(batcher).kill(block=False))
        assert isinstance(request.exception(LIMIT), NotProcessed | None)
        assert ask(batcher, 2) == 2


class Poor(ThreadingRuntime):
    """A system that gives no thread for the first time that one is wanted: for the collector, or for the handler."""

    def __init__(self, collector: bool) -> None:
        self._wanting = [self, None] if collector else [None, self]

    def spawn(self, target: Callable[[], None], name: str, begun: Callable[[], bool] = lambda: True) -> None:
        self._refuse(0)
        super().spawn(target, name)

    def executor(self, kind: str, slots: int, name: str) -> Executor:
        executor, refuse = super().executor(kind, slots, name), self._refuse

        class PoorExecutor:
            def start(self, job: Callable[[], None], done: Callable[[], None], handler: Callable[..., Any]) -> None:
                refuse(1)
                executor.start(job, done, handler)

            def raised(self, error: Exception) -> None:
                executor.raised(error)

            def where(self) -> Where:
                return executor.where()

            def close(self) -> None:
                executor.close()

        return PoorExecutor()

    def _refuse(self, which: int) -> None:
        wanting, self._wanting[which] = self._wanting[which], None
        if wanting is not None:
            raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("collector", [True, False], ids=["collector", "handler"])
def test_where_the_system_gives_no_thread_the_call_is_told_and_the_next_is_answered(collector: bool) -> None:
    with UBatch[int, int](1, 0.0, runtime=Poor(collector)).set_handler(list) as batcher:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            ask(batcher)
        assert ask(batcher, 2) == 2
