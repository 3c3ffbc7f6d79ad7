"""The collector of one batcher in one process: it groups the calls that are waiting and dispatches the batches.

The path of a request: a caller adds it to the pending ones (`accept`) and rings if that makes a batch due; the
collector, woken by that or by the time, takes a batch (`_next`) and hands it to the executor (`_dispatch`); when the
handler has ended, its batch's requests get their outcomes and their callers wake (`_finish`).

Guarantees:

* Everything is decided under `lock` and acted on outside it. Nothing under it calls user code, waits, wakes or logs.
  It is a native lock, held for a few microseconds, so a hub may take it as well as a thread.
* A signal handler, a finalizer, or a greenlet that one of these switched to, may come in the middle of a section that
  its own thread holds. It changes nothing there and waits for nothing: it reads what there is, and leaves its change to
  the end of the section (`_later`).
* An exception from outside (a signal handler that raises, `PyThreadState_SetAsyncExc`) may hit any line. The truth is
  in one place, the state of each request and the current `Task`; all else is made anew from it (`_recover`).
* A place at the handler first, then a batch: while all places are taken requests gather, and the fullest batch goes
  when a place frees.
* The collector sleeps until there is something to do: it says for how many pending requests to wake it (`_wanted`), and
  only the call that reaches this number rings.
* However the collector ends, each request that it leaves behind ends too, and the next call starts another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from sys import maxsize
from typing import Any
from weakref import ref

from ._errors import (
    NotProcessed,
    QueueClosed,
    QueueFull,
    QueueTimeout,
    ReentrantCall,
    RequestCancelled,
    ResultLost,
    ResultTimeout,
    UBatchError,
)
from ._handler import HandlerCall
from ._instrument import Instrument, Observers, debug_log
from ._policy import Close, FixedWait, Pending
from ._request import FAILED, IN_FLIGHT, NO_TIME, PENDING, Batch, Request, Strategy, running_batch
from ._runtime import Runtime, Waiter, Wakeable, current_process, handler_name
from ._runtime._native import RLock, allocate_lock
from ._statistics import Statistics, Tally

NEVER = maxsize  # more requests than will ever be pending
NOWHERE = (-1, -1)  # no process
Callback = Any  # of `Request.add_done_callback`
Act = Callable[[], Any]  # something to do; it may return what to do next
STALL_TOLD_EVERY = 60.0  # seconds, at most; arbitrary: a handler that is always slow must not fill the log
WEIGHT = 0.2  # of the latest batch in the average of seconds per request; arbitrary, some ten batches are remembered


@dataclass
class Options:
    """What a batcher was made with, checked. It shares them with its collectors; `policy`, `max_queue`, `stall_after`
    and `deadline` may change, each as a whole.
    """

    policy: FixedWait
    executor: str
    max_in_flight: int
    max_queue: int
    deadline: float
    stall_after: float
    handle: HandlerCall
    strategy: Strategy
    instruments: tuple[Instrument, ...]


class Lifecycle:
    """Whether a batcher is stopped: said here, and nowhere else, for the batcher and all of its collectors."""

    __slots__ = ("stopped",)

    def __init__(self, stopped: bool = False) -> None:
        self.stopped = stopped


class Task:
    """One life of the collector's task. What an earlier one still does, once another is current, counts for nothing."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: dict[str, object] = {}

    @property
    def begun(self) -> bool:
        """Whether its greenlet or thread has come up."""
        return bool(self._runs)

    def is_run_by(self, who: object) -> bool:
        """Whether `who` was the first to ask: to spawn one twice is harmless."""
        return self._runs.setdefault("by", who) is who


class Collector:
    """Made at the first call in a process; starts its task, and its executor's threads, as requests come."""

    def __init__(self, name: str, options: Options, runtime: Runtime, lifecycle: Lifecycle) -> None:
        self.name = name
        self.runtime = runtime
        self.clock = runtime.clock
        self.waiter = runtime.waiter
        self.process = current_process()
        self.forks = self.process[0]  # the part of it that a call compares, because it costs no system call
        self.lock = RLock()
        self.lifecycle = lifecycle
        self.observers = Observers((*options.instruments, *debug_log()))
        self._options = options
        self._executor = runtime.executor(options.executor, options.max_in_flight, f"ubatch-handler:{name}")
        self.handle = options.handle
        self.handler_raised = self._executor.raised
        self._signal = runtime.signal()
        self._later: deque[Act] = deque()  # what this or another thread could not do inside its own section
        self._catching_up = RLock()
        self._unseen: deque[Exception] = deque()  # errors of requests that were dropped before anybody asked
        self._to_call: deque[Callback] = deque()
        self._calling = allocate_lock()  # taken by the task that calls them
        # The rest is guarded by the lock.
        self._pending = Pending()
        self._in_flight: list[Batch] = []
        self._wanted = NEVER
        self._late_at = inf  # when the deadline of a pending request may pass
        self._place_wanted = False  # the collector sleeps until a batch ends
        self._free_at = -inf  # since when there has been a place at the handler
        self._quiet = False  # home had nothing else to do just now, and no call came
        self._task: Task | None = None  # the current one
        self._drained: dict[Waiter, None] = {}  # who waits for the end of a drain, in order
        self._room_wanted: dict[Waiter, None] = {}  # who waits for a place in the queue, in order
        self._overtaken = False  # a handler may hold on to its thread, and nobody waits for it
        self._ended: list[Batch] = []  # to be shown to who observes
        self._stall_told_at = -inf
        self._tally = Tally()
        self._seconds_each: float | None = None  # that the handler takes for a request, on average of late
        runtime.on_lost(partial(_lose, ref(self)))

    def accept(self, request: Request[Any], patient: bool = False) -> None:
        """Put a request among the pending ones. Raises QueueClosed after `drain`, QueueFull where there are enough.

        Who is `patient` waits for a place instead; raises QueueTimeout where the deadline passes meanwhile.
        """
        observers = self.observers
        for observe in observers.call_made:
            observe(request)
        if self.lock._is_owned():
            self._accept_later(request)
        else:
            while not self._accept_now(request, patient):
                self._wait_for_room(request)
        for observe in observers.call_accepted:
            observe(request)

    def withdraw(self, request: Request[Any], error: UBatchError) -> bool:
        """End a request with `error` if no batch has taken it; False if it is too late for that."""
        if not self.is_current():  # nor may its lock be taken: a thread that the fork left behind may hold it
            return False
        if self.lock._is_owned():
            self._later.append(partial(self.withdraw, request, error))
            return False
        try:
            with self.lock:
                try:
                    if request._state != PENDING:
                        return False
                    waiters = self._end_pending(request, error, "abandoned")
                except BaseException:
                    self._mend()
                    raise
            self.runtime.wake(waiters)
        except BaseException:
            self._recover(request, error)
            raise
        finally:
            self.catch_up()
        return True

    def expire(self, request: Request[Any]) -> None:
        """End a request whose deadline has passed, wherever it is, unless it has ended."""
        if not self.is_current():
            raise ResultLost("the call was made in another process, before a fork: only that one can answer it")
        if self.lock._is_owned():
            self._later.append(partial(self.expire, request))
            return
        try:
            waiters: list[Wakeable] = []
            with self.lock:
                try:
                    if request._state == PENDING:
                        waiters = self._end_late([request])
                    elif request._state == IN_FLIGHT:
                        waiters = list(request.end(FAILED, self._late_result_error()))
                        self._tally.ends["expired"] += 1
                except BaseException:
                    self._mend()
                    raise
            self.runtime.wake(waiters)
        except BaseException:
            self._recover(request, self._late_error())
            raise
        finally:
            self.catch_up()

    def drain(self, timeout: float | None) -> tuple[int, int]:
        """The batcher was stopped: answer what was accepted, and end; after `timeout` seconds fail what is left.

        Returns how many requests there were, and how many of them failed, or must be expected to, for want of time.
        """
        if timeout is None and running_batch() in self._in_flight:
            raise ReentrantCall("a handler must not wait for its own batcher to stop: give stop() a timeout")
        because = f"the batcher {self.name!r} was stopped"
        if self.lock._is_owned():  # this thread cannot wait for itself: what can be done is done, and it is told
            left = self._left()
            self._later.append(partial(self._fail_all, because) if timeout == 0 else self._signal.set)
            return left, left
        waiter = self.runtime.waiter()
        try:
            with self.lock:
                left = self._left()
                ended = self._is_drained()
                if not ended:
                    self._drained[waiter] = None
            self.catch_up()
            if ended:  # or started again by another thread, just now
                return left, 0
            self._signal.set()
            if timeout is None:
                while not self._is_drained():  # whatever else may switch to this greenlet
                    waiter.get()
                return left, 0
            if timeout > 0:  # else it may be a hub's callback that asks, and must not wait
                waiter.wait(timeout)
            return left, self._fail_all(because)
        finally:
            self._drained.pop(waiter, None)  # one step, and no lock: nothing can come in between and keep it there
            self.catch_up()

    def forsake(self) -> None:
        """The batcher is gone: end when the last request is answered. A finalizer calls this, so it takes no lock."""
        self.lifecycle.stopped = True
        with suppress(Exception):  # home may have gone before
            self._signal.set()

    def lose(self) -> None:
        """Home is gone, and the collector with it: end every request, and let the next call find another home."""
        if not self.is_current():  # a fork ended home's thread in the child, while it may have held the lock
            return
        self.process = NOWHERE
        self.forks = NOWHERE[0]
        self.lifecycle = Lifecycle(stopped=True)  # its own, for a call that found this collector just before
        with self.lock:
            self._task = None  # its greenlet will not say so
        self._fail_all(f"the thread that collected for the batcher {self.name!r} has ended")
        self._executor.close()
        self._report_unseen()

    def reopen(self) -> None:
        """Start the lifecycle again. Raises QueueClosed while a drain goes on."""
        with self.lock:
            if self._drained:
                raise QueueClosed(f"the batcher {self.name!r} is still stopping: call start() when stop() has returned")
            self.lifecycle.stopped = False
        self._signal.set()  # it may sleep as one does that has only to end
        self.catch_up()

    def nobody_asked(self, error: Exception) -> None:
        """A request was dropped with this error. A finalizer calls this, so it takes no lock, and does not log."""
        if not self.is_current():
            return
        self._unseen.append(error)
        with suppress(Exception):  # home may have gone before
            if self._task is None:
                self.runtime.spawn_in_finalizer(self._report_unseen)
            else:
                self._signal.set()

    def call_back(self, callback: Callback) -> None:
        """Call it in a task that calls them all, one after the other."""
        self._to_call.append(callback)
        if not self._calling.acquire(False):
            return
        try:
            self.runtime.spawn(self._call_back_all, f"ubatch-callbacks:{self.name}")
        except Exception:  # home has gone, or there is no thread to be had: then here
            self._call_back_all()

    def reconsider(self) -> None:
        """The options have changed: decide anew. Anywhere, inside a section too."""
        with suppress(Exception):  # home may have gone
            self._signal.set()
        self.catch_up()

    def is_current(self) -> bool:
        """Whether this is the process that the collector was made in."""
        return self.process == current_process()

    def counts(self) -> tuple[int, int, bool]:
        """How many requests are pending, how many are in flight, and whether a handler is stalled."""
        with self.lock:
            batches = self._in_flight
            counts = self._pending.count, self._count_in_flight(), any(batch.stalled for batch in batches)
        self.catch_up()
        return counts

    def statistics(self) -> dict[str, Any]:
        """The fields of a `Statistics` that are known here."""
        with self.lock:
            batches = self._in_flight
            fields = {
                "pending": self._pending.count,
                "in_flight": self._count_in_flight(),
                "stalled": any(batch.stalled for batch in batches),
                **self._tally.fields(),
            }
        fields |= self._executor.where()._asdict()
        self.catch_up()
        return fields

    def batches_ahead_of(self, request: Request[Any]) -> list[Batch]:
        """The batches of which at least one must end before `request` can; none where there is a place for it."""
        with self.lock:
            if request._state == PENDING:
                batches = list(self._in_flight) if len(self._in_flight) >= self._options.max_in_flight else []
            else:
                batches = [batch for batch in self._in_flight if request in batch.requests]
        self.catch_up()
        return batches

    def is_at_rest(self) -> bool:
        """Whether there is no request, and nobody to collect one."""
        with self.lock:
            rests = self._task is None and not self._left()
        self.catch_up()
        return rests

    def closed_error(self) -> QueueClosed:
        return QueueClosed(f"the batcher {self.name!r} is stopped: start() opens it again")

    # -----------------------------------------------------------------------------------------------------------------

    def _accept_now(self, request: Request[Any], patient: bool = False) -> bool:
        """Accept it or raise; False where the queue is full, and the caller patient."""
        decided = True
        refusal: UBatchError | None = None
        late: list[Wakeable] = []
        then: Act | None = None
        try:
            with self.lock:  # nothing can come between its acquire and the section, as it could with a `try`
                try:
                    if self._pending.count >= self._options.max_queue and request.accepted_at >= self._late_at:
                        late = self._let_go_who_is_late(request.accepted_at)
                    if self.lifecycle.stopped or self._pending.count >= self._options.max_queue:
                        decided = self.lifecycle.stopped or not patient
                        refusal = self._refusal() if decided else None
                    else:
                        count = self._pending.add(request)
                        self._late_at = min(self._late_at, request.deadline_at)
                        if self._task is None:
                            self._task = task = Task()
                            then = partial(self._start, task)
                        elif count >= self._wanted:
                            self._wanted = NEVER
                            then = self._signal.set
                except BaseException:
                    self._mend()
                    raise
            if late:
                self.runtime.wake(late)
            if then is not None:
                then()
        except BaseException:
            self._recover(request, RequestCancelled("the call was interrupted before it was accepted"))
            raise
        finally:
            self.catch_up()
        if refusal is not None:
            raise refusal
        return decided

    def _wait_for_room(self, request: Request[Any]) -> None:
        """Wait for a place in the queue, or the end of the batcher. Raises QueueTimeout where the deadline passes.

        May come back early: who waits stays known until it leaves, so it is told again.
        """
        waiter = self.runtime.waiter()
        try:
            with self.lock:
                if self._has_room():
                    return
                self._room_wanted[waiter] = None
            self.catch_up()
            request.wait_once(waiter)
        finally:
            self._room_wanted.pop(waiter, None)  # one step, and no lock
        if request.deadline_at - self.clock() <= NO_TIME:
            error = self._late_error()
            with self.lock:
                request.end(FAILED, error)
                self._tally.ends["expired"] += 1
            self.catch_up()
            raise error

    def _accept_later(self, request: Request[Any]) -> None:
        """Called inside a section of this very thread: by a signal handler, a finalizer, or a greenlet that one of them
        switched to.
        """
        self.refuse_to_wait(bool(request._waiters))

        def accept() -> None:
            try:
                self._accept_now(request)
            except Exception as error:  # nobody is left to raise it to
                with self.lock:
                    waiters = request.end(FAILED, error)
                self.runtime.wake(waiters)

        self._later.append(accept)

    def refuse_to_wait(self, waits: bool = True) -> None:
        """Raise where the caller has interrupted a section of its own thread, and waits."""
        if waits and self.lock._is_owned():
            raise ReentrantCall(
                f"a signal handler or finalizer that interrupted the batcher {self.name!r} at work must not wait for "
                "it: submit() there, and ask for the result elsewhere"
            )

    def catch_up(self) -> None:
        """At the end of a section: do what could not be done inside it, in its order, so by one thread at a time.

        And tell who waits for a place in the queue, where there is one. Nothing is noted for that: what an exception
        from outside keeps from being told now is told at the end of the next section.
        """
        if self.lock._is_owned():
            return
        while self._later and not self._catching_up._is_owned():
            with self._catching_up:  # as in `_accept_now`: nothing can come between
                while self._later:
                    self._later.popleft()()
        if self._room_wanted and self._has_room():
            self.runtime.wake(tuple(self._room_wanted))

    def _recover(self, request: Request[Any], error: UBatchError) -> None:
        """An exception from outside hit this thread, at whatever line: put right what it may have left half done.

        The request that it was about ends with `error`, unless it has been taken or has ended. The others are pending,
        there is a task if they need one, and it looks at them; to wake it, or a caller, once too often is harmless.

        A task that has not begun may never do so:

        1. A caller finds no task, makes one, and is interrupted in `Runtime.spawn`, before the thread was started, or
           after that.
        2. It makes another. If the first comes up after all, it is not the current one, and ends.
        """
        start: Task | None = None
        with self.lock:
            if request._state == PENDING:
                request.end(FAILED, error)
                self._tally.ends["abandoned"] += 1
            self._mend()
            if self._task is not None and not self._task.begun:
                self._task = None
            if self._task is None and self._pending.count:
                start = self._task = Task()
        if request.done():
            self.runtime.wake(request._waiters)
        if start is not None:
            self._start(start)
        with suppress(Exception):  # home may have gone
            self._signal.set()

    def _start(self, task: Task) -> None:
        try:
            self.runtime.spawn(partial(self._collect, task), f"ubatch-collector:{self.name}")
        except Exception:  # no thread to be had: the caller that needed one is told, and nobody waits
            self._end_collecting(task)
            raise

    def _collect(self, task: Task) -> None:
        """The one body of the collector, in every world."""
        me = object()
        try:
            act = self._next(task) if task.is_run_by(me) else None
            while act is not None:
                act = act() or self._next(task)
        finally:
            if task.is_run_by(me):
                try:
                    self._end_collecting(task)
                except BaseException:  # from outside: what it did before, it does not do again
                    self._end_collecting(task)
                    raise

    def _next(self, task: Task) -> Act | None:
        """Decide what to do now; None is to end. What is returned may itself return what to do next."""
        if not self.is_current():  # a fork copied this greenlet; what it knows belongs to the parent
            return None
        if self.lock._is_owned():  # another greenlet of this thread holds it, and was switched away
            self._later.append(self._signal.set)
            return partial(self._sleep, inf)
        act: Act | None = None
        with self.lock:
            try:
                if self._task is task:
                    now = self.clock()
                    self._wanted, self._place_wanted = NEVER, False
                    act = (
                        self._renew()
                        or self._show_ended()
                        or self._tell_unseen()
                        or self._begin_stall(now)
                        or self._close_or_sleep(now)
                    )
            except BaseException:
                self._mend()
                raise
        self.catch_up()
        return act

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
            run = batch.run if self._options.stall_after == inf else batch.run_watched
            self._executor.start(run, partial(self._finish, batch), batch.handler)
        except BaseException as error:
            if batch.begin():  # nobody else will: no thread to be had; or killed in an instrument that waits
                batch.error = error if isinstance(error, Exception) else self._killed_error()
                self._finish(batch)
            if not isinstance(error, Exception):
                raise
        return then

    def _finish(self, batch: Batch) -> None:
        """Called once the handler has ended, by the executor; again, if something interrupts it."""
        if not self.is_current():  # a fork copied the handler's greenlet; the answers are the parent's to give
            return
        if self.lock._is_owned():
            self._later.append(partial(self._finish, batch))
            return
        try:
            self._finish_now(batch)
        finally:
            self.catch_up()

    def _finish_now(self, batch: Batch) -> None:
        with self.lock:
            again = batch not in self._in_flight  # it may not have come to its end, where it rings
            if not again:
                self._learn(batch)
                if len(self._in_flight) == self._options.max_in_flight:
                    self._free_at = self.clock()
                self._in_flight.remove(batch)
            waiters, answered, failed = batch.settle()
            self._tally.ends["answered"] += answered
            self._tally.ends["raised"] += failed
            ring = again or (self._place_wanted and (self._pending.count > 0 or self.lifecycle.stopped))
            if self._place_wanted and not ring:
                self._wanted = 1  # the collector sleeps on, now for want of requests
            self._place_wanted = False
            waiters += self._drain_ended()
            if self.observers.batch_ended and not batch.shown:
                batch.shown = True
                self._ended.append(batch)
                ring = ring or self._task is not None
            unshown = [] if self._task is not None else self._take_ended()
        self.runtime.wake(waiters)
        if ring:
            self._signal.set()
        if unshown:
            self._show_apart(unshown)

    def _end_collecting(self, task: Task) -> None:
        """The collector's task ends: as it should, or killed, or it never came up. The next call starts another."""
        if not self.is_current():
            return
        with self.lock:
            if self._task is not None and self._task is not task:  # another has taken its place
                return
            self._task = None
            self._wanted, self._place_wanted = NEVER, False
            waiters = self._fail_pending(self._killed_error())
            for batch in [batch for batch in self._in_flight if batch.begin()]:  # killed on the way to the handler
                batch.error = self._killed_error()
                self._in_flight.remove(batch)
                settled = batch.settle()
                waiters += settled.waiters
                self._tally.ends["closed"] += settled.failed
            waiters += self._drain_ended()
            unshown = self._take_ended()
        self.catch_up()
        if self.lifecycle.stopped:
            self._executor.close()
        self.runtime.wake(waiters)
        if unshown:
            self._show_apart(unshown)
        for observe in self.observers.batcher_closed:
            observe(Figures(self))
        # Last: what comes later finds no task, and makes one of its own.
        self._report_unseen()

    def _fail_all(self, because: str) -> int:
        """End every request, wherever it is, and return how many; a handler may still run, for nobody."""
        doomed: list[Request[Any]] = []
        try:
            return self._fail_all_now(because, doomed)
        except BaseException:  # from outside: what it did before, it does not do again
            self._fail_all_now(because, doomed)
            raise

    def _fail_all_now(self, because: str, doomed: list[Request[Any]]) -> int:
        with self.lock:
            failed = self._left()
            doomed += self._pending.all()
            doomed += (request for batch in self._in_flight for request in batch.requests)
            self._fail_pending(QueueClosed(f"{because} before a batch took the request: try again elsewhere"))
            for batch in self._in_flight:
                batch.error = ResultLost(f"{because} while the handler ran: the request may have had its effect")
                settled = batch.settle()
                self._tally.ends["closed"] += settled.failed
                self._tally.ends["answered"] += settled.answered
                self._overtaken = True
            self._in_flight.clear()
            waiters = [waiter for request in doomed for waiter in request._waiters]
            waiters += self._drain_ended()
        self.runtime.wake(waiters)
        with suppress(Exception):  # home may have gone
            self._signal.set()
        self.catch_up()
        return failed

    def _show(self, batches: list[Batch]) -> None:
        for batch in batches:
            for observe in self.observers.batch_ended:
                observe(batch)

    def _show_apart(self, batches: list[Batch]) -> None:
        """Where there is no collector any more."""
        with suppress(Exception):  # home may have gone too, or there is no thread to be had
            self.runtime.spawn(partial(self._show, batches), f"ubatch-collector:{self.name}")

    def _call_back_all(self) -> None:
        """Called with `_calling` taken.

        1. This finds nothing more to call.
        2. Another thread appends one, and finds the lock taken.
        3. This releases it: so it must look again.
        """
        while self._to_call:
            try:
                while self._to_call:
                    self._to_call.popleft().call()
            finally:
                self._calling.release()
            if not self._to_call or not self._calling.acquire(False):
                return
        self._calling.release()

    def _report_unseen(self) -> None:
        """Log the errors that nobody asked for, each once, with how many calls had it."""
        errors: dict[int, list[Exception]] = {}
        while self._unseen:
            error = self._unseen.popleft()
            errors.setdefault(id(error), []).append(error)
        for same in errors.values():
            import logging  # here, because it is seldom needed

            logging.getLogger("ubatch").error(
                "calls of %r failed, and nobody asked for their results: %d with this error",
                self.name, len(same), exc_info=same[0],
            )  # fmt: skip

    def _report_stall(self, batches: list[Batch], seconds: float) -> None:
        import logging  # here, because the core has nothing else to log

        for batch in batches:
            stack = "".join(batch.stack().format()) if batch.stack is not None else ""
            logging.getLogger("ubatch").error(
                "the handler %r has not come back for %.1f seconds, with a batch of %d; it is at:\n%s",
                handler_name(batch.handler), seconds, len(batch.requests), stack or "(no frame: it runs right now)",
            )  # fmt: skip

    # Under the lock.

    def _mend(self) -> None:
        """After an exception from outside in a section, before another thread can see what it left half done."""
        self._pending.rebuild(lambda request: request._state == PENDING)

    def _renew(self) -> Act | None:
        """A handler that was given up may never come back: let the executor make new places for those to come."""
        overtaken, self._overtaken = self._overtaken, False
        return self._executor.close if overtaken else None

    def _close_or_sleep(self, now: float) -> Act | None:
        stopped = self.lifecycle.stopped
        ended = stopped and not self._pending.count
        if ended and not self._in_flight:
            self._task = None  # in the section that decides it: the next call, after a start(), makes another
            return None
        if ended or len(self._in_flight) >= self._options.max_in_flight:
            self._place_wanted = True
            return self._sleep_until(inf)
        quiet, self._quiet = self._quiet, False
        step = self._options.policy.decide(self._pending, now, stopped, quiet, self._free_at)
        if isinstance(step, Close):
            return self._close(step, now)
        self._wanted = step.wanted
        if step.or_quiet:
            return partial(self._sleep_till_quiet, step.until, self._pending.count)
        return self._sleep_until(step.until)

    def _close(self, step: Close, now: float) -> Act:
        """Make the batch; but first, in a step of its own, let go who would be in it for nothing."""
        requests = self._pending.head(step.shape, step.size)
        if late := [request for request in requests if request.deadline_at <= now]:
            return partial(self.runtime.wake, self._end_late(late))
        # Known to be in flight, then marked so, then off the queue: at no line would a request be in none of them.
        batch = Batch(requests, step.reason, now, self._options.strategy)
        self._in_flight.append(batch)
        batch.take()
        self._pending.drop(step.shape, len(requests))
        self._tally.batch_closed(step.reason, [request.accepted_at for request in requests], now, step.size)
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

    def _tell_unseen(self) -> Act | None:
        return self._report_unseen if self._unseen else None

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

    def _has_room(self) -> bool:
        """Whether a call would be accepted, or refused for another reason than that the queue is full."""
        return self.lifecycle.stopped or self._pending.count < self._options.max_queue

    def _refusal(self) -> UBatchError:
        if self.lifecycle.stopped:
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

    def _end_late(self, requests: list[Request[Any]]) -> list[Wakeable]:
        """End pending requests whose deadline has passed."""
        error = self._late_error()
        return [waiter for request in requests for waiter in self._end_pending(request, error, "expired")]

    def _let_go_who_is_late(self, now: float) -> list[Wakeable]:
        """End the pending requests whose deadline has passed and nobody waits for: they keep others out."""
        pending = self._pending.all()
        self._late_at = min((request.deadline_at for request in pending if request.deadline_at > now), default=inf)
        return self._end_late([request for request in pending if request.deadline_at <= now])

    def _late_error(self) -> QueueTimeout:
        return QueueTimeout(
            f"the deadline passed while the request was pending in {self.name!r}: the handler never saw it"
            + self._stall_note()
        )

    def _late_result_error(self) -> ResultTimeout:
        return ResultTimeout(
            f"the deadline passed while the handler {self.name!r} ran: the request may have had its effect"
            + self._stall_note()
        )

    def _end_pending(self, request: Request[Any], error: UBatchError, how: str) -> tuple[Wakeable, ...]:
        waiters = request.end(FAILED, error)  # first: `_recover` puts the rest right
        self._pending.remove(request)
        self._wanted -= 1  # one less is there, of those that it was counted from
        self._tally.ends[how] += 1
        return waiters

    def _fail_pending(self, error: UBatchError) -> list[Wakeable]:
        requests = self._pending.all()
        self._tally.ends["closed"] += len(requests)
        waiters = [waiter for request in requests for waiter in request.end(FAILED, error)]
        self._pending = Pending()
        return waiters

    def _left(self) -> int:
        """How many requests have not ended."""
        return self._pending.count + self._count_in_flight()

    def _count_in_flight(self) -> int:
        """Without those whose callers have given up."""
        return sum(not request.done() for batch in self._in_flight for request in batch.requests)

    def _drain_ended(self) -> list[Wakeable]:
        """Whom to tell that the drain is over, if it is."""
        return list(self._drained) if self._is_drained() else []

    def _is_drained(self) -> bool:
        """Whether a drain is over, or was called off by `reopen`."""
        return not self.lifecycle.stopped or (self._task is None and not self._in_flight)


class Figures:
    """What a batcher has counted in one process, and its state. It keeps the batcher from nothing, and outlives it."""

    def __init__(self, collector: Collector, batcher: ref[Any] | None = None) -> None:
        self._collector = collector
        self._batcher = batcher

    @property
    def name(self) -> str:
        """The batcher's."""
        return self._collector.name

    @property
    def ended(self) -> bool:
        """Whether nothing will be added any more: the batcher is gone, or its home, and so are its requests."""
        collector = self._collector
        if collector.process == NOWHERE:
            return True
        return self._batcher is not None and self._batcher() is None and collector.is_at_rest()

    @property
    def of_this_process(self) -> bool:
        """False in a child that a fork has given a copy of its parent's."""
        return self._collector.process in (NOWHERE, current_process())

    def statistics(self) -> Statistics:
        """The same as `UBatch.statistics`."""
        collector, options = self._collector, self._collector._options
        return Statistics(
            name=collector.name,
            runtime=collector.runtime.name,
            max_size=options.policy.max_size,
            timeout=options.policy.timeout,
            eager=options.policy.eager,
            max_in_flight=options.max_in_flight,
            stopped=collector.lifecycle.stopped,
            **collector.statistics(),
        )


def _lose(reference: ref[Collector]) -> None:
    collector = reference()
    if collector is not None:
        collector.lose()
