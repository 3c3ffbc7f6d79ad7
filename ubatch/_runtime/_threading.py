"""Plain threads: the collector is a thread, and so is every slot at the handler. Nothing polls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

from ._base import Executor, Runtime, Waiter, Wakeable, Wakeup, Where
from ._native import NativePool, allocate_lock, start_raw_thread, start_thread
from ._world import foreign_waiter

# Seconds; the system makes some 0.1 ms of it. A thread that parks lets all run that are ready to. A bare yield of the
# interpreter's lock (a timeout of 0) lets one of them run, or none.
MOMENT = 0.00002


class ThreadingRuntime(Runtime):
    """The standard library's counterpart of the gevent runtime. Greenlets may call it too, and park as greenlets do."""

    name = "threading"
    clock = staticmethod(monotonic)

    def spawn(self, target: Callable[[], None], name: str, begun: Callable[[], bool] = lambda: True) -> None:
        start_thread(target, name)

    def spawn_in_finalizer(self, target: Callable[[], None]) -> None:
        start_raw_thread(target)  # `threading.Thread` takes a lock

    def wakeup(self) -> Wakeup:
        return _Wakeup()

    def waiter(self) -> Waiter:
        return foreign_waiter()

    def wake(self, waiters: Sequence[Wakeable]) -> None:
        for waiter in waiters:
            waiter.set()

    def executor(self, kind: str, slots: int, name: str) -> Executor:
        return _ThreadExecutor(NativePool(slots, name))


# ---------------------------------------------------------------------------------------------------------------------


class _Wakeup:
    """A lock that is taken to wait, and released to wake. Several releases count as one, and any thread may release it.

    Not a `SimpleQueue`: its timed `get` can wait for ever (CPython 3.11 and 3.12 at least).

    1. Its first look at the queue fails to take the queue's lock at once, and takes it a moment later.
    2. The queue is empty, and by now the time is over: what is left is negative.
    3. It waits again, with what is left. Negative means without a bound.

    It takes a busy machine and a wait that is short: on four threads, seconds.
    """

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def wake(self) -> None:
        with suppress(RuntimeError):  # woken before
            self._lock.release()

    def wait(self, timeout: float | None) -> None:
        self._was_woken(timeout)

    def wait_idle(self, timeout: float) -> bool:
        return not self._was_woken(min(timeout, MOMENT))

    def _was_woken(self, timeout: float | None) -> bool:
        return bool(self._lock.acquire(True, -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)))


def _run(job: Callable[[], None], done: Callable[[], None]) -> None:
    try:
        with suppress(KeyboardInterrupt):  # its callers have it; Ctrl-C itself reaches the main thread alone
            job()
    finally:
        try:
            done()
        except BaseException:
            done()
            raise
        finally:
            del job, done  # the handler's frame keeps this one, and what it refers to


class _ThreadExecutor:
    def __init__(self, pool: NativePool) -> None:
        self._pool = pool

    def start(self, job: Callable[[], None], done: Callable[[], None], handler: Callable[..., Any]) -> None:
        self._pool.submit(partial(_run, job, done))

    def raised(self, error: Exception) -> None:
        pass

    def where(self) -> Where:
        return Where("thread")

    def close(self) -> None:
        self._pool.close()
