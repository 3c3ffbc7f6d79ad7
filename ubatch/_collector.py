"""The collector of one batcher in one process: it groups the calls that are waiting and dispatches the batches.

The path of a request: a caller adds it to the pending ones (`accept`) and rings if that makes a batch due; the
collector, woken by that or by the time, takes a batch (`_next`) and hands it to the executor (`_dispatch`); when the
handler has ended, its batch's requests get their outcomes and their callers wake (`_finish`).

Guarantees:

* Everything is decided under `lock` and acted on outside it. Nothing under it calls user code, waits, wakes or logs.
  It is a native lock, held for a few microseconds, so a hub may take it as well as a thread.
* A place at the handler first, then a batch: while all places are taken requests gather, and the fullest batch goes
  when a place frees.
* The collector sleeps until there is something to do: it says for how many pending requests to wake it (`_wanted`), and
  only the call that reaches this number rings.
* However the collector ends, each request that it leaves behind ends too, and the next call starts another.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from sys import maxsize
from typing import Any
from weakref import ref

from ._errors import NotProcessed, QueueClosed, ReentrantCall, ResultLost, UBatchError
from ._policy import FixedWait, Pending, Wait
from ._request import FAILED, PENDING, Batch, Request, running_batch
from ._runtime import Runtime, Waiter, current_process
from ._runtime._native import allocate_lock

NEVER = maxsize  # more requests than will ever be pending
UNTIL_WOKEN = Wait(until=None, wanted=NEVER)
NOWHERE = (-1, -1)  # no process


class Collector:
    """Made at the first call in a process; starts its task, and its executor's threads, as requests come."""

    def __init__(self, name: str, policy: FixedWait, runtime: Runtime, executor: str, max_in_flight: int) -> None:
        self.name = name
        self.runtime = runtime
        self.clock = runtime.clock
        self.process = current_process()
        self.forks = self.process[0]  # the part of it that a call compares, because it costs no system call
        self.lock = allocate_lock()
        self._policy = policy
        self._executor = runtime.executor(executor, max_in_flight, f"ubatch-handler:{name}")
        self._max_in_flight = max_in_flight
        self._signal = runtime.signal()
        # The rest is guarded by the lock.
        self._pending = Pending()
        self._in_flight: list[Batch] = []
        self._wanted = NEVER
        self._place_wanted = False  # the collector sleeps until a batch ends
        self._running = False  # there is a collector task
        self._closing = False
        self._drained: list[Waiter] = []
        runtime.on_lost(partial(_lose, ref(self)))

    def accept(self, request: Request[Any]) -> None:
        """Put a request among the pending ones. Raises QueueClosed after `drain`."""
        with self.lock:
            if self._closing:
                raise self.closed_error()
            self._pending.add(request)
            start = not self._running
            ring = self._pending.count >= self._wanted
            if start:
                self._running = True
            elif ring:
                self._wanted = NEVER
        if start:
            self._start()
        elif ring:
            self._signal.set()

    def withdraw(self, request: Request[Any], error: UBatchError) -> bool:
        """End a request with `error` if no batch has taken it; False if it is too late for that."""
        if not self.is_current():  # nor may its lock be taken: a thread that the fork left behind may hold it
            return False
        with self.lock:
            if request._state != PENDING:
                return False
            self._pending.remove(request)
            waiters = request.end(FAILED, error)
        self.runtime.wake(waiters)
        return True

    def drain(self, timeout: float | None) -> None:
        """Accept nothing more, answer what was accepted, and end; after `timeout` seconds fail what is left."""
        if timeout is None and running_batch() in self._in_flight:
            raise ReentrantCall("a handler must not wait for its own batcher to stop: give stop() a timeout")
        waiter = self.runtime.waiter()
        with self.lock:
            self._closing = True
            ended = not self._running and not self._in_flight
            if not ended:
                self._drained.append(waiter)
        if ended:
            return
        self._signal.set()
        if timeout is None:
            waiter.get()
        else:
            waiter.wait(timeout)
            self._fail_all(f"the batcher {self.name!r} was stopped")

    def forsake(self) -> None:
        """The batcher is gone: end when the last request is answered. A finalizer calls this, so it takes no lock."""
        self._closing = True
        with suppress(Exception):  # home may have gone before
            self._signal.set()

    def lose(self) -> None:
        """Home is gone, and the collector with it: end every request, and let the next call find another home."""
        self.process = NOWHERE
        self.forks = NOWHERE[0]
        self._fail_all(f"the thread that collected for the batcher {self.name!r} has ended")

    def reopen(self) -> None:
        """Accept again. Raises BatcherClosed while a drain goes on."""
        with self.lock:
            if self._closing and self._running:
                raise QueueClosed(f"the batcher {self.name!r} is still stopping: call start() when stop() has returned")
            self._closing = False

    def is_current(self) -> bool:
        """Whether this is the process that the collector was made in."""
        return self.process == current_process()

    def counts(self) -> tuple[int, int]:
        """How many requests are pending, and how many are in flight."""
        with self.lock:
            return self._pending.count, sum(len(batch.requests) for batch in self._in_flight)

    def batches_ahead_of(self, request: Request[Any]) -> list[Batch]:
        """The batches of which at least one must end before `request` can; none where there is a place for it."""
        with self.lock:
            if request._state == PENDING:
                return list(self._in_flight) if len(self._in_flight) >= self._max_in_flight else []
            return [batch for batch in self._in_flight if request in batch.requests]

    def closed_error(self) -> QueueClosed:
        return QueueClosed(f"the batcher {self.name!r} is stopped: start() opens it again")

    # -----------------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            self.runtime.spawn(self._collect, f"ubatch-collector:{self.name}")
        except BaseException:  # no thread to be had: the caller that needed one is told, and nobody waits
            self._end_collecting()
            raise

    def _collect(self) -> None:
        """The one body of the collector, in every world."""
        try:
            while (step := self._next()) is not None:
                if isinstance(step, Batch):
                    self._dispatch(step)
                elif step.until is None:
                    self._signal.wait(None)
                else:
                    self._signal.wait(max(0.0, step.until - self.clock()))
        finally:
            self._end_collecting()

    def _next(self) -> Batch | Wait | None:
        """What to do now: dispatch a batch, sleep, or end (None)."""
        if not self.is_current():  # a fork copied this greenlet; what it knows belongs to the parent
            return None
        with self.lock:
            self._wanted, self._place_wanted = NEVER, False
            ended = self._closing and not self._pending.count
            if ended and not self._in_flight:
                return None
            if ended or len(self._in_flight) >= self._max_in_flight:
                self._place_wanted = True
                return UNTIL_WOKEN
            step = self._policy.decide(self._pending, self.clock(), self._closing)
            if isinstance(step, Wait):
                self._wanted = step.wanted
                return step
            batch = Batch(self._pending.take(step.shape, step.size), step.reason)
            self._in_flight.append(batch)
            return batch

    def _dispatch(self, batch: Batch) -> None:
        try:
            self._executor.start(batch.run, partial(self._finish, batch))
        except Exception as error:  # no thread to be had
            batch.error = error
            self._finish(batch)

    def _finish(self, batch: Batch) -> None:
        """Called once the handler has ended, by the executor."""
        with self.lock:
            if batch in self._in_flight:
                self._in_flight.remove(batch)
            waiters = batch.settle()
            ring = self._place_wanted and (self._pending.count > 0 or self._closing)
            if self._place_wanted and not ring:
                self._wanted = 1  # the collector sleeps on, now for want of requests
            self._place_wanted = False
            waiters += self._drain_ended()
        self.runtime.wake(waiters)
        if ring:
            self._signal.set()

    def _end_collecting(self) -> None:
        """The collector's task has ended: as it should, or killed. The next call starts another."""
        if not self.is_current():
            return
        with self.lock:
            self._running = False
            self._wanted, self._place_wanted = NEVER, False
            waiters = self._fail_pending(NotProcessed(f"the collector of {self.name!r} was killed: try again"))
            waiters += self._drain_ended()
            closing = self._closing
        self.runtime.wake(waiters)
        if closing:
            self._executor.close()

    def _fail_all(self, because: str) -> None:
        """End every request, wherever it is; a handler may still run, for nobody."""
        with self.lock:
            waiters = self._fail_pending(QueueClosed(f"{because} before a batch took the request: try again elsewhere"))
            for batch in self._in_flight:
                batch.error = ResultLost(f"{because} while the handler ran: the request may have had its effect")
                waiters += batch.settle()
            self._in_flight.clear()
        self.runtime.wake(waiters)
        self._signal.set()

    # Under the lock.

    def _fail_pending(self, error: UBatchError) -> list[Waiter]:
        return [waiter for request in self._pending.take_all() for waiter in request.end(FAILED, error)]

    def _drain_ended(self) -> list[Waiter]:
        """Whom to tell that the drain is over, if it is."""
        if self._running or self._in_flight or not self._closing:
            return []
        waiters, self._drained = self._drained, []
        return waiters


def _lose(reference: ref[Collector]) -> None:
    collector = reference()
    if collector is not None:
        collector.lose()
