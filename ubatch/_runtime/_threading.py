"""Plain threads: the collector is a thread, and so is every place at the handler. Nothing polls."""

from __future__ import annotations

import threading
from _queue import Empty, SimpleQueue
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic

from ._base import Executor, Runtime, Signal, Waiter
from ._native import NativePool, start_thread
from ._world import foreign_waiter

# Seconds; the system makes some 0.1 ms of it. A thread that parks lets all run that are ready to. A bare yield of the
# interpreter's lock (a timeout of 0) lets one of them run, or none.
MOMENT = 0.00002


class ThreadingRuntime(Runtime):
    """The standard library's counterpart of the gevent runtime. Greenlets may call it too, and park as greenlets do."""

    name = "threading"
    clock = staticmethod(monotonic)

    def spawn(self, target: Callable[[], None], name: str) -> None:
        start_thread(target, name)

    def signal(self) -> Signal:
        return _Signal()

    def waiter(self) -> Waiter:
        return foreign_waiter()

    def wake(self, waiters: Sequence[Waiter]) -> None:
        for waiter in waiters:
            waiter.set()

    def executor(self, kind: str, places: int, name: str) -> Executor:
        return _ThreadExecutor(NativePool(places, name))


# ---------------------------------------------------------------------------------------------------------------------


class _Signal:
    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()  # its `put` is reentrant: a finalizer may call it

    def set(self) -> None:
        self._queue.put(None)

    def wait(self, timeout: float | None) -> None:
        self._was_set(timeout if timeout is None else min(timeout, threading.TIMEOUT_MAX))

    def wait_idle(self, timeout: float) -> bool:
        return not self._was_set(min(timeout, MOMENT))

    def _was_set(self, timeout: float | None) -> bool:
        try:
            self._queue.get(timeout=timeout)
        except Empty:
            return False
        with suppress(Empty):
            while True:  # several sets count as one
                self._queue.get_nowait()
        return True


class _ThreadExecutor:
    def __init__(self, pool: NativePool) -> None:
        self._pool = pool

    def start(self, job: Callable[[], None], done: Callable[[], None]) -> None:
        def run() -> None:
            try:
                with suppress(KeyboardInterrupt):  # its callers have it; Ctrl-C itself reaches the main thread alone
                    job()
            finally:
                done()

        self._pool.submit(run)

    def close(self) -> None:
        self._pool.close()
