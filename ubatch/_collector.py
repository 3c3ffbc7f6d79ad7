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

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from sys import maxsize
from typing import Any, NamedTuple
from weakref import ref

from ._errors import (
    NotProcessed,
    QueueClosed,
    QueueFull,
    QueueTimeout,
    ReentrantCall,
    ResultLost,
    ResultTimeout,
    UBatchError,
)
from ._instrument import Instrument, Observers, debug_log
from ._policy import Close, FixedWait, Pending
from ._request import FAILED, IN_FLIGHT, PENDING, Batch, Request, Strategy, handler_name, running_batch
from ._runtime import Runtime, Waiter, current_process
from ._runtime._native import allocate_lock
from ._statistics import Tally

NEVER = maxsize  # more requests than will ever be pending
NOWHERE = (-1, -1)  # no process
Act = Callable[[], Any]  # something to do; it may return what to do next
STALL_TOLD_EVERY = 60.0  # seconds, at most; arbitrary: a handler that is always slow must not fill the log
WEIGHT = 0.2  # of the latest batch in the average of seconds per request; arbitrary, some ten batches are remembered


class Options(NamedTuple):
    """What a batcher was made with, checked."""

    policy: FixedWait
    executor: str
    max_in_flight: int
    max_queue: int
    stall_after: float
    strategy: Strategy
    instruments: tuple[Instrument, ...]


class Collector:
    """Made at the first call in a process; starts its task, and its executor's threads, as requests come."""

    def __init__(self, name: str, options: Options, runtime: Runtime) -> None:
        self.name = name
        self.runtime = runtime
        self.clock = runtime.clock
        self.waiter = runtime.waiter
        self.process = current_process()
        self.forks = self.process[0]  # the part of it that a call compares, because it costs no system call
        self.lock = allocate_lock()
        self.observers = Observers((*options.instruments, *debug_log()))
        self._options = options
        self._max_queue = options.max_queue
        self._executor = runtime.executor(options.executor, options.max_in_flight, f"ubatch-handler:{name}")
        self._signal = runtime.signal()
        # The rest is guarded by the lock.
        self._pending = Pending()
        self._in_flight: list[Batch] = []
        self._wanted = NEVER
        self._place_wanted = False  # the collector sleeps until a batch ends
        self._free_at = -inf  # since when there has been a place at the handler
        self._quiet = False  # home had nothing else to do just now, and no call came
        self._running = False  # there is a collector task
        self._closing = False
        self._drained: list[Waiter] = []
        self._ended: list[Batch] = []  # to be shown to who observes
        self._stall_told_at = -inf
        self._tally = Tally(options.policy.max_size)
        self._seconds_each: float | None = None  # that the handler takes for a request, on average of late
        runtime.on_lost(partial(_lose, ref(self)))

    def accept(self, request: Request[Any]) -> None:
        """Put a request among the pending ones. Raises QueueClosed after `drain`, QueueFull where there are enough."""
        observers = self.observers
        for observe in observers.call_made:
            observe(request)
        self.lock.acquire()  # `with` takes twice as long
        try:
            if self._closing or self._pending.count >= self._max_queue:
                raise self._refusal()
            count = self._pending.add(request)
            start = not self._running
            ring = count >= self._wanted
            if start:
                self._running = True
            elif ring:
                self._wanted = NEVER
        finally:
            self.lock.release()
        if start:
            self._start()
        elif ring:
            self._signal.set()
        for observe in observers.call_accepted:
            observe(request)

    def withdraw(self, request: Request[Any], error: UBatchError) -> bool:
        """End a request with `error` if no batch has taken it; False if it is too late for that."""
        if not self.is_current():  # nor may its lock be taken: a thread that the fork left behind may hold it
            return False
        with self.lock:
            if request._state != PENDING:
                return False
            self._pending.remove(request)
            self._tally.ends["abandoned"] += 1
            waiters = request.end(FAILED, error)
        self.runtime.wake(waiters)
        return True

    def expire(self, request: Request[Any]) -> None:
        """End a request whose deadline has passed, wherever it is, unless it has ended."""
        if not self.is_current():
            raise ResultLost("the call was made in another process, before a fork: only that one can answer it")
        waiters: list[Waiter] = []
        with self.lock:
            if request._state == PENDING:
                waiters = self._end_late([request])
            elif request._state == IN_FLIGHT:
                error = ResultTimeout(
                    f"the deadline passed while the handler {self.name!r} ran: the request may have had its effect"
                    + self._stall_note()
                )
                self._tally.ends["expired"] += 1
                waiters += request.end(FAILED, error)
        self.runtime.wake(waiters)

    def drain(self, timeout: float | None) -> tuple[int, int]:
        """Accept nothing more, answer what was accepted, and end; after `timeout` seconds fail what is left.

        Returns how many requests there were, and how many of them failed for want of time.
        """
        if timeout is None and running_batch() in self._in_flight:
            raise ReentrantCall("a handler must not wait for its own batcher to stop: give stop() a timeout")
        waiter = self.runtime.waiter()
        with self.lock:
            self._closing = True
            left = self._left()
            ended = not self._running and not self._in_flight
            if not ended:
                self._drained.append(waiter)
        if ended:
            return left, 0
        self._signal.set()
        if timeout is None:
            waiter.get()
            return left, 0
        waiter.wait(timeout)
        failed = self._fail_all(f"the batcher {self.name!r} was stopped")
        self._signal.set()
        return left, failed

    def forsake(self) -> None:
        """The batcher is gone: end when the last request is answered. A finalizer calls this, so it takes no lock."""
        self._closing = True
        with suppress(Exception):  # home may have gone before
            self._signal.set()

    def lose(self) -> None:
        """Home is gone, and the collector with it: end every request, and let the next call find another home."""
        if not self.is_current():  # a fork ended home's thread in the child, while it may have held the lock
            return
        self.process = NOWHERE
        self.forks = NOWHERE[0]
        with self.lock:
            self._running = False  # its greenlet will not say so
            self._closing = True  # for a call that found this collector just before
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

    def counts(self) -> tuple[int, int, bool]:
        """How many requests are pending, how many are in flight, and whether a handler is stalled."""
        with self.lock:
            batches = self._in_flight
            return self._pending.count, sum(len(b.requests) for b in batches), any(b.stalled for b in batches)

    def statistics(self) -> dict[str, Any]:
        """The fields of a `Statistics` that are known here."""
        with self.lock:
            batches = self._in_flight
            return {
                "pending": self._pending.count,
                "in_flight": sum(len(batch.requests) for batch in batches),
                "stalled": any(batch.stalled for batch in batches),
                **self._tally.fields(),
            }

    def batches_ahead_of(self, request: Request[Any]) -> list[Batch]:
        """The batches of which at least one must end before `request` can; none where there is a place for it."""
        with self.lock:
            if request._state == PENDING:
                return list(self._in_flight) if len(self._in_flight) >= self._options.max_in_flight else []
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
            act = self._next()
            while act is not None:
                act = act() or self._next()
        finally:
            self._end_collecting()

    def _next(self) -> Act | None:
        """Decide what to do now; None is to end. What is returned may itself return what to do next."""
        if not self.is_current():  # a fork copied this greenlet; what it knows belongs to the parent
            return None
        with self.lock:
            now = self.clock()
            self._wanted, self._place_wanted = NEVER, False
            return self._show_ended() or self._begin_stall(now) or self._close_or_sleep(now)

    def _sleep(self, until: float) -> None:
        self._signal.wait(None if until == inf else max(0.0, until - self.clock()))

    def _sleep_till_quiet(self, until: float, count: int) -> None:
        """Sleep until then at most; less where home has nothing else to do. There are `count` pending requests now."""
        idle = self._signal.wait_idle(max(0.0, until - self.clock()))
        self._quiet = idle and self._pending.count == count

    def _dispatch(self, batch: Batch, then: Act | None) -> Act | None:
        try:
            for observe in self.observers.batch_started:
                observe(batch)
        except BaseException:  # killed in an instrument that waits
            batch.error = self._killed_error()
            self._finish(batch)
            raise
        try:
            run = batch.run if self._options.stall_after == inf else batch.run_watched
            self._executor.start(run, partial(self._finish, batch))
        except Exception as error:  # no thread to be had
            batch.error = error
            self._finish(batch)
        return then

    def _finish(self, batch: Batch) -> None:
        """Called once the handler has ended, by the executor."""
        if not self.is_current():  # a fork copied the handler's greenlet; the answers are the parent's to give
            return
        with self.lock:
            if batch in self._in_flight:
                self._learn(batch)
                if len(self._in_flight) == self._options.max_in_flight:
                    self._free_at = self.clock()
                self._in_flight.remove(batch)
            waiters, answered, failed = batch.settle()
            self._tally.ends["answered"] += answered
            self._tally.ends["raised"] += failed
            ring = self._place_wanted and (self._pending.count > 0 or self._closing)
            if self._place_wanted and not ring:
                self._wanted = 1  # the collector sleeps on, now for want of requests
            self._place_wanted = False
            waiters += self._drain_ended()
            if self.observers.batch_ended:
                self._ended.append(batch)
                ring = ring or self._running
            unseen = [] if self._running else self._take_ended()
        self.runtime.wake(waiters)
        if ring:
            self._signal.set()
        if unseen:
            self._show_apart(unseen)

    def _end_collecting(self) -> None:
        """The collector's task has ended: as it should, or killed. The next call starts another."""
        if not self.is_current():
            return
        with self.lock:
            self._running = False
            self._wanted, self._place_wanted = NEVER, False
            waiters = self._fail_pending(self._killed_error())
            waiters += self._drain_ended()
            closing = self._closing
            unseen = self._take_ended()
        self.runtime.wake(waiters)
        if unseen:
            self._show_apart(unseen)
        if closing:
            self._executor.close()

    def _fail_all(self, because: str) -> int:
        """End every request, wherever it is, and return how many; a handler may still run, for nobody."""
        with self.lock:
            failed = self._left()
            waiters = self._fail_pending(QueueClosed(f"{because} before a batch took the request: try again elsewhere"))
            for batch in self._in_flight:
                batch.error = ResultLost(f"{because} while the handler ran: the request may have had its effect")
                settled = batch.settle()
                waiters += settled.waiters
                self._tally.ends["closed"] += settled.failed
                self._tally.ends["answered"] += settled.answered
            self._in_flight.clear()
            waiters += self._drain_ended()
        self.runtime.wake(waiters)
        return failed

    def _show(self, batches: list[Batch]) -> None:
        for batch in batches:
            for observe in self.observers.batch_ended:
                observe(batch)

    def _show_apart(self, batches: list[Batch]) -> None:
        """Where there is no collector any more."""
        with suppress(Exception):  # home may have gone too, or there is no thread to be had
            self.runtime.spawn(partial(self._show, batches), f"ubatch-collector:{self.name}")

    def _report_stall(self, batches: list[Batch], seconds: float) -> None:
        import logging  # here, because the core has nothing else to log

        for batch in batches:
            stack = "".join(batch.stack().format()) if batch.stack is not None else ""
            logging.getLogger("ubatch").error(
                "the handler %r has not come back for %.1f seconds, with a batch of %d; it is at:\n%s",
                handler_name(batch.handler), seconds, len(batch.requests), stack or "(no frame: it runs right now)",
            )  # fmt: skip

    # Under the lock.

    def _close_or_sleep(self, now: float) -> Act | None:
        ended = self._closing and not self._pending.count
        if ended and not self._in_flight:
            return None
        if ended or len(self._in_flight) >= self._options.max_in_flight:
            self._place_wanted = True
            return self._sleep_until(inf)
        quiet, self._quiet = self._quiet, False
        step = self._options.policy.decide(self._pending, now, self._closing, quiet, self._free_at)
        if isinstance(step, Close):
            return self._close(step, now)
        self._wanted = step.wanted
        if step.or_quiet:
            return partial(self._sleep_till_quiet, step.until, self._pending.count)
        return self._sleep_until(step.until)

    def _close(self, step: Close, now: float) -> Act:
        """Make the batch; but first, in a step of its own, let go who would be in it for nothing."""
        if late := [r for r in self._pending.head(step.shape, step.size) if r.deadline_at <= now]:
            return partial(self.runtime.wake, self._end_late(late))
        batch = Batch(self._pending.take(step.shape, step.size), step.reason, now, self._options.strategy)
        self._tally.batch_closed(step.reason, [request.accepted_at for request in batch.requests], now)
        self._in_flight.append(batch)
        # With nothing left the next step can only be to sleep, so it is decided at once.
        return partial(self._dispatch, batch, None if self._pending.count else self._close_or_sleep(now))

    def _sleep_until(self, until: float) -> Act:
        """Sleep, but not past the time at which a batch stalls."""
        if self._options.stall_after != inf:
            until = min((until, *(self._stalls_at(batch) for batch in self._in_flight)))
        return partial(self._sleep, until)

    def _stalls_at(self, batch: Batch) -> float:
        """When a batch will have run for too long; never a second time."""
        return inf if batch.stalled else batch.started_at + self._options.stall_after

    def _begin_stall(self, now: float) -> Act | None:
        if self._options.stall_after == inf:
            return None
        batches = [batch for batch in self._in_flight if self._stalls_at(batch) <= now]
        for batch in batches:
            batch.stalled = True
        if not batches or now - self._stall_told_at < STALL_TOLD_EVERY:
            return None
        self._stall_told_at = now
        return partial(self._report_stall, batches, now - batches[0].started_at)

    def _stall_note(self) -> str:
        seconds = max((self.clock() - batch.started_at for batch in self._in_flight if batch.stalled), default=0.0)
        return f"; it has not come back for {seconds:.1f} seconds" if seconds else ""

    def _show_ended(self) -> Act | None:
        return partial(self._show, self._take_ended()) if self._ended else None

    def _take_ended(self) -> list[Batch]:
        batches, self._ended = self._ended, []
        return batches

    def _learn(self, batch: Batch) -> None:
        """How long the handler took for this batch."""
        batch.timing.ended_at = now = self.clock()
        seconds, size = now - batch.started_at, len(batch.requests)
        self._tally.batch_ended(size, seconds)
        known, seconds_each = self._seconds_each, seconds / size
        self._seconds_each = seconds_each if known is None else known + WEIGHT * (seconds_each - known)

    def _killed_error(self) -> NotProcessed:
        return NotProcessed(f"the collector of {self.name!r} was killed: try again")

    def _refusal(self) -> UBatchError:
        if self._closing:
            self._tally.ends["closed"] += 1
            return self.closed_error()
        self._tally.ends["rejected"] += 1
        return self._full_error()

    def _full_error(self) -> QueueFull:
        """Before any batch has ended there is no rate to tell from; then it says a second."""
        count, each = self._pending.count, self._seconds_each
        retry_after = 1.0 if each is None else count * each / self._options.max_in_flight
        return QueueFull(
            f"at most max_queue={self._options.max_queue} requests may be pending in {self.name!r}; "
            f"try again in {retry_after:.3f} seconds" + self._stall_note(),
            retry_after,
        )

    def _end_late(self, requests: list[Request[Any]]) -> list[Waiter]:
        """End pending requests whose deadline has passed."""
        error = QueueTimeout(
            f"the deadline passed while the request was pending in {self.name!r}: the handler never saw it"
            + self._stall_note()
        )
        waiters: list[Waiter] = []
        self._tally.ends["expired"] += len(requests)
        for request in requests:
            self._pending.remove(request)
            waiters += request.end(FAILED, error)
        return waiters

    def _fail_pending(self, error: UBatchError) -> list[Waiter]:
        requests = self._pending.take_all()
        self._tally.ends["closed"] += len(requests)
        return [waiter for request in requests for waiter in request.end(FAILED, error)]

    def _left(self) -> int:
        """How many requests have not ended."""
        return self._pending.count + sum(not request.done() for batch in self._in_flight for request in batch.requests)

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
