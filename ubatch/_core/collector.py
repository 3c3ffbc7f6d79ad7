"""The collector of one batcher in one process: the lock around `state`, and everything that happens outside it.

The path of a request, each step under a heading below: a caller has it admitted (`accept`), and wakes the collector if
that makes a batch due; the collector's task asks what to do and does it (`_collect`), and hands each batch to the
executor (`_dispatch`); when the handler has come back the batch is settled, and its callers wake (`_finish`).

Guarantees:

* Everything is decided under the lock and acted on outside it. Nothing under it calls user code, waits, wakes or logs.
  It is held for a few microseconds.
* Who comes in the midst of a section of its own thread waits for nothing, and its change is made at the section's end
  (`reentrancy`).
* An exception from outside (a signal handler that raises, `PyThreadState_SetAsyncExc`) may hit any line, and the next
  call is answered all the same.
* The collector sleeps until there is something to do, and only the call that makes a batch due wakes it.
* However the collector ends, each request that it leaves behind ends too, and the next call starts another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any
from weakref import ref

from .._errors import (
    RequestCancelled,
    UBatchError,
    deadline_passed,
    handler_stops_itself,
    interrupted_at_work,
    killed,
    made_in_another_process,
    still_stopping,
)
from .._instrument import Observers, debug_log
from .._runtime import Runtime, Wakeable, current_process
from .._runtime._native import allocate_lock
from .._statistics import Statistics
from .batch import Batch, running_batch
from .options import UNLIMITED, Options
from .reentrancy import Reentrancy
from .request import DoneCallback, Request, end_requests
from .stall import report
from .state import (
    Action,
    Dispatch,
    Lifecycle,
    Refuse,
    RenewSlots,
    ReportStall,
    ReportUnasked,
    Sleep,
    SleepUntilIdle,
    StartTask,
    State,
    Task,
    TellInstruments,
    WaitForRoom,
    Wake,
    WakeCollector,
)

NOWHERE = (-1, -1)  # no process
VERDICTS = (Refuse, WaitForRoom)  # on a call: for its caller, and nothing to do


class Collector:
    """Made at the first call in a process; starts its task, and its executor's threads, as requests come."""

    def __init__(self, name: str, options: Options, runtime: Runtime, lifecycle: Lifecycle) -> None:
        self.name = name
        self.runtime = runtime
        self.clock = runtime.clock
        self.waiter = runtime.waiter
        self.process = current_process()
        # A call compares this with the number of forks so far, and with nothing that costs a system call:
        # 1. A worker forks. The child's copy of the batcher still refers to this collector, whose task and threads
        #    are the parent's alone; its lock may be taken by a thread that the child does not have.
        # 2. The child's first call finds another number, touches none of it, and makes a collector of its own.
        self.forks = self.process[0]
        self.observers = Observers((*options.instruments, *debug_log()))
        self.handle = options.handle
        self._options = options
        self._guard = Reentrancy()
        self.lock = self._guard.lock
        self._deferred = self._guard.deferred
        self._state = State(name, options, lifecycle)
        self._room_waiters = self._state.room_waiters
        self._executor = runtime.executor(options.executor, options.max_in_flight, f"ubatch-handler:{name}")
        self.handler_raised = self._executor.raised
        self._wakeup = runtime.wakeup()
        self._batcher: Callable[[], object] | None = None  # tells whether it is gone
        self._unasked: deque[Exception] = deque()  # errors of requests that were dropped before anybody asked
        self._ended = self.observers.deferred  # batches that instruments have not been told of
        self._to_call: deque[DoneCallback] = deque()
        self._calling = allocate_lock()  # taken by the task that calls them
        runtime.on_loop_exit(partial(_loop_exited, ref(self)))

    def belongs_to(self, batcher: Callable[[], object]) -> None:
        """A reference to the batcher, which tells whether it is gone."""
        self._batcher = batcher

    # What everybody may know of a batcher: `BatcherView`.

    @property
    def max_size(self) -> int:
        return self._options.policy.max_size

    @property
    def timeout(self) -> float:
        return self._options.policy.timeout

    @property
    def eager(self) -> bool:
        return self._options.policy.eager

    @property
    def max_in_flight(self) -> int:
        return self._options.max_in_flight

    @property
    def max_queue(self) -> int | None:
        return None if self._options.max_queue == UNLIMITED else self._options.max_queue

    @property
    def deadline(self) -> float | None:
        return None if self._options.deadline == inf else self._options.deadline

    @property
    def gone(self) -> bool:
        if self.process == NOWHERE:
            return True
        return self._batcher is not None and self._batcher() is None and self._is_at_rest()

    @property
    def of_this_process(self) -> bool:
        return self.process in (NOWHERE, current_process())

    def statistics(self) -> Statistics:
        with self.lock:
            fields = self._state.fields()
        where = self._executor.where()
        self.catch_up()
        return Statistics(runtime=self.runtime.name, runs_on=where.runs_on, hub_away=where.hub_away, **fields)

    def counts(self) -> tuple[int, int, bool]:
        """How many requests are pending, how many are in flight, and whether a handler is stalled."""
        with self.lock:
            counts = self._state.counts()
        self.catch_up()
        return counts

    # A caller has its request admitted.

    def accept(self, request: Request[Any], patient: bool = False) -> None:
        """Put a request among the pending ones. Raises QueueClosed after `drain`, QueueFull where there are enough.

        Who is `patient` waits for room instead; raises QueueTimeout where the deadline passes meanwhile.
        """
        observers = self.observers
        for observe in observers.call_made:
            observe(request)
        if self.lock._is_owned():
            self._accept_later(request)
        else:
            while not self._admit(request, patient):
                self._wait_for_room(request)
        for observe in observers.call_accepted:
            observe(request)

    def _admit(self, request: Request[Any], patient: bool = False) -> bool:
        """Accept it or raise; False where the queue is full, and the caller patient."""
        action: Action | None = None
        try:
            with self.lock:  # nothing can come between its acquire and the section, as it could with a `try`
                try:
                    action = self._state.admit(request, patient)
                except BaseException:
                    self._state.mend()
                    raise
            while action is not None and not isinstance(action, VERDICTS):
                action = self._carry_out(action)
        except BaseException:
            self._recover(request, RequestCancelled("the call was interrupted before it was accepted"))
            raise
        finally:
            self.catch_up()
        if action is None:
            return True
        if isinstance(action, Refuse):
            raise action.error
        return False

    def _wait_for_room(self, request: Request[Any]) -> None:
        """Wait for a place in the queue, or the end of the batcher. Raises QueueTimeout where the deadline passes.

        May come back early: who waits stays known until it leaves, so it is told again.
        """
        waiter = self.runtime.waiter()
        try:
            with self.lock:
                if self._state.has_room():
                    return
                self._room_waiters[waiter] = None
            self.catch_up()
            in_time = request.wait_once(waiter)
        finally:
            self._room_waiters.pop(waiter, None)  # one step, and no lock
        if not in_time:
            with self.lock:
                error = self._state.expire_outside(request, self.clock())
            self.catch_up()
            raise error

    def _accept_later(self, request: Request[Any]) -> None:
        """Inside a section of this very thread: at its end."""
        if request._waiters:
            self.refuse_to_wait()

        def accept() -> None:
            try:
                self._admit(request)
            except Exception as error:  # nobody is left to raise it to
                with self.lock:
                    ended = end_requests((request,), (error,))
                self.runtime.wake(ended.waiters)

        self._guard.defer(accept)

    def refuse_to_wait(self) -> None:
        """Raise where the caller has interrupted a section of its own thread."""
        if self.lock._is_owned():
            raise interrupted_at_work(self.name)

    # A caller leaves, or its time is over.

    def withdraw(self, request: Request[Any], error: UBatchError) -> bool:
        """End a request with `error` if no batch has taken it; False if it is too late for that."""
        if not self.is_current():  # nor may its lock be taken: a thread that the fork left behind may hold it
            return False
        if self.lock._is_owned():
            self._guard.defer(partial(self.withdraw, request, error))
            return False
        waiters: list[Wakeable] | None = None
        try:
            with self.lock:
                try:
                    waiters = self._state.withdraw(request, error)
                except BaseException:
                    self._state.mend()
                    raise
            if waiters is not None:
                self.runtime.wake(waiters)
        except BaseException:
            self._recover(request, error)
            raise
        finally:
            self.catch_up()
        return waiters is not None

    def expire(self, request: Request[Any]) -> None:
        """End a request whose deadline has passed, wherever it is, unless it has ended.

        Three may want to end it at once: the caller for its deadline, the executor for the handler that has come back
        (`_finish`), a third one by `cancel`. Each does it in a section of the lock, and the first one has it:

        1. The handler comes back. The caller's time is over, and it asks for the lock.
        2. `_finish` has the lock, and gives the answer. The caller finds a request that has ended, and returns it.

        Or the caller is first: it raises `ResultTimeout`, and `_finish` passes over the request.
        """
        if not self.is_current():
            raise made_in_another_process()
        if self.lock._is_owned():
            self._guard.defer(partial(self.expire, request))
            return
        try:
            with self.lock:
                try:
                    waiters = self._state.expire(request, self.clock())
                except BaseException:
                    self._state.mend()
                    raise
            self.runtime.wake(waiters)
        except BaseException:
            self._recover(request, deadline_passed(self.name))
            raise
        finally:
            self.catch_up()

    def add_waiter(self, request: Request[Any], waiter: Wakeable) -> bool:
        """Whether there is anything left to wait for."""
        with self.lock:
            waits = not request.done()
            if waits:
                request._waiters += (waiter,)
        self.catch_up()
        return waits

    def remove_waiter(self, request: Request[Any], waiter: Wakeable) -> None:
        with self.lock:
            request._waiters = tuple(other for other in request._waiters if other is not waiter)
        self.catch_up()

    def batches_ahead_of(self, request: Request[Any]) -> list[Batch]:
        """The batches of which at least one must end before `request` can; none where there is a slot for it."""
        with self.lock:
            batches = self._state.batches_ahead_of(request)
        self.catch_up()
        return batches

    def call_back(self, callback: DoneCallback) -> None:
        """Call it in a task that calls them all, one after the other."""
        self._to_call.append(callback)
        if not self._calling.acquire(False):
            return
        try:
            self.runtime.spawn(self._call_back_all, f"ubatch-callbacks:{self.name}")
        except Exception:  # the loop has ended, or there is no thread to be had: then here
            self._call_back_all()

    def nobody_asked(self, error: Exception) -> None:
        """A request was dropped with this error. A finalizer calls this, so it takes no lock, and does not log."""
        if not self.is_current():
            return
        self._unasked.append(error)
        with suppress(Exception):  # the loop may have ended before
            if self._state.task is None:
                self.runtime.spawn_in_finalizer(self._report_unasked)
            else:
                self._wakeup.wake()

    # The batcher is stopped, or gone, or its options change.

    def drain(self, timeout: float | None) -> bool:
        """The batcher was stopped: answer what was accepted, and end; after `timeout` seconds fail what is left.

        Returns whether all were answered; False also where that is not known yet. Against a call that comes meanwhile:

        1. `stop` says so in the lifecycle, and then asks for the lock.
        2. A call that has the lock before that finds it said, and is refused; one that was admitted before 1. is among
           those that this waits for.
        """
        if timeout is None and running_batch() in self._state.in_flight:
            raise handler_stops_itself()
        because = f"the batcher {self.name!r} was stopped"
        if self.lock._is_owned():  # this thread cannot wait for itself: what can be done is done, and it is told
            self._guard.defer(partial(self._fail_all, because) if timeout == 0 else self._wakeup.wake)
            return not self._state.left()
        waiter = self.runtime.waiter()
        drain_waiters = self._state.drain_waiters
        try:
            with self.lock:
                ended = self._state.is_drained()
                if not ended:
                    drain_waiters[waiter] = None
            self.catch_up()
            if ended:  # or started again by another thread, just now
                return True
            self._wakeup.wake()
            if timeout is None:
                while not self._state.is_drained():  # whatever else may switch to this greenlet
                    waiter.get()
                return True
            if timeout > 0:  # else it may be a hub's callback that asks, and must not wait
                waiter.wait(timeout)
            return not self._fail_all(because)
        finally:
            drain_waiters.pop(waiter, None)  # one step, and no lock: nothing can come in between and keep it there
            self.catch_up()

    def reopen(self) -> None:
        """Start the lifecycle again. Raises QueueClosed while a drain goes on."""
        with self.lock:
            if self._state.drain_waiters:
                raise still_stopping(self.name)
            self._state.lifecycle.stopped = False
        self._wakeup.wake()  # it may sleep as one does that has only to end
        self.catch_up()

    def drain_without_waiting(self) -> None:
        """The batcher is gone: end when the last request is answered. A finalizer calls this, so it takes no lock."""
        self._state.lifecycle.stopped = True
        with suppress(Exception):  # the loop may have ended before
            self._wakeup.wake()

    def loop_exited(self) -> None:
        """The loop has ended, and the task with it: end every request, and let the next call find another loop."""
        if not self.is_current():  # a fork ended the loop's thread in the child, while it may have held the lock
            return
        self.process = NOWHERE
        self.forks = NOWHERE[0]
        self._state.lifecycle = Lifecycle(stopped=True)  # its own, for a call that found this collector just before
        with self.lock:
            self._state.task = None  # its greenlet will not say so
        self._fail_all(f"the thread that collected for the batcher {self.name!r} has ended")
        self._executor.close()
        self._report_unasked()

    def reconsider(self) -> None:
        """The options have changed: decide anew. Anywhere, inside a section too."""
        with suppress(Exception):  # the loop may have ended
            self._wakeup.wake()
        self.catch_up()

    def is_current(self) -> bool:
        """Whether this is the process that the collector was made in."""
        return self.process == current_process()

    # -----------------------------------------------------------------------------------------------------------------

    # The collector's task: it asks what to do, and does it.

    def _start(self, task: Task) -> None:
        try:
            self.runtime.spawn(partial(self._collect, task), f"ubatch-collector:{self.name}", task.has_begun)
        except Exception:  # no thread to be had: the caller that needed one is told, and nobody waits
            self._end_task(task)
            raise

    def _collect(self, task: Task) -> None:
        """The one body of the collector, in every world."""
        me = object()
        try:
            action = self._next(task) if task.is_run_by(me) else None
            while action is not None:
                action = self._carry_out(action) or self._next(task)
        finally:
            if task.is_run_by(me):
                try:
                    self._end_task(task)
                except BaseException:  # from outside: what it did before, it does not do again
                    self._end_task(task)
                    raise

    def _next(self, task: Task) -> Action | None:
        """Ask what to do now; None is to end.

        Nothing is missed between the decision to sleep and the sleep:

        1. The state says that nothing is due, and at how many requests to wake the collector. The lock is released.
        2. A call makes a batch due, and wakes the collector, which does not sleep yet.
        3. The wakeup remembers that. The collector goes to sleep, and is awake at once.
        """
        if not self.is_current():  # a fork copied this greenlet; what it knows belongs to the parent
            return None
        if self.lock._is_owned():  # another greenlet of this thread holds it, and was switched away
            self._guard.defer(self._wakeup.wake)
            return Sleep(inf)
        action: Action | None = None
        with self.lock:
            try:
                if self._state.task is task:
                    told = not (self._ended or self._unasked)
                    action = self._state.decide(self.clock()) if told else self._to_tell()
            except BaseException:
                self._state.mend()
                raise
        self.catch_up()
        return action

    def _carry_out(self, action: Action) -> Action | None:
        """Do it, outside the lock. Returns what to do next, where that is known already."""
        match action:
            case Dispatch():
                self._dispatch(action.batch)
                return action.then
            case Sleep():
                self._wakeup.wait(None if action.until == inf else max(0.0, action.until - self.clock()))
            case SleepUntilIdle():
                if self._wakeup.wait_idle(max(0.0, action.until - self.clock())):
                    self._state.saw_idle_loop(action.pending)
            case WakeCollector():
                self._wakeup.wake()
            case Wake():
                self.runtime.wake(action.waiters)
                return action.then
            case StartTask():
                self._start(action.task)
            case RenewSlots():
                self._executor.close()
            case ReportStall():
                report(action.batches, action.now)
            case TellInstruments():
                self.observers.tell_batch_ended()
            case ReportUnasked():
                self._report_unasked()
        return None

    def _to_tell(self) -> Action:
        """What instruments and the log are to be told before anything else."""
        return TellInstruments(len(self._ended)) if self._ended else ReportUnasked(len(self._unasked))

    def _dispatch(self, batch: Batch) -> None:
        """Hand the batch to the executor."""
        try:
            for observe in self.observers.batch_started:
                observe(batch)
            run = batch.run if self._options.stall_after == inf else batch.run_watched
            self._executor.start(run, partial(self._finish, batch), batch.handler)
        except BaseException as error:
            if batch.begin():  # nobody else will: no thread to be had; or killed in an instrument that waits
                batch.error = error if isinstance(error, Exception) else killed(self.name)
                self._finish(batch)
            if not isinstance(error, Exception):
                raise

    # The handler has come back: each request of the batch gets its outcome.

    def _finish(self, batch: Batch) -> None:
        """Called once the handler has ended, by the executor; again, if something interrupts it."""
        if not self.is_current():  # a fork copied the handler's greenlet; the answers are the parent's to give
            return
        if self.lock._is_owned():
            self._guard.defer(partial(self._finish, batch))
            return
        try:
            self._finish_now(batch)
        finally:
            self.catch_up()

    def _finish_now(self, batch: Batch) -> None:
        with self.lock:
            waiters, wake = self._state.finish(batch, self.clock())
            if self.observers.batch_ended and self.observers.defer_batch_ended(batch):
                wake = True
            collected = self._state.task is not None
        self.runtime.wake(waiters)
        if not collected:
            self._tell_instruments_apart()
        elif wake:
            self._wakeup.wake()

    # The collector ends, or is made to.

    def _end_task(self, task: Task) -> None:
        """The task ends: as it should, or killed, or it never came up. The next call starts another."""
        if not self.is_current():
            return
        with self.lock:
            waiters = self._state.end_task(task)
        self.catch_up()
        if waiters is None:  # another has taken its place
            return
        if self._state.lifecycle.stopped:
            self._executor.close()
        self.runtime.wake(waiters)
        self._tell_instruments_apart()
        for observe in self.observers.batcher_closed:
            observe(self)
        # Last: what comes later finds no task, and makes one of its own.
        self._report_unasked()

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
            failed, waiters = self._state.fail_all(because, doomed)
        self.runtime.wake(waiters)
        with suppress(Exception):  # the loop may have ended
            self._wakeup.wake()
        self.catch_up()
        return failed

    # At the end of each section, and after an exception from outside.

    def catch_up(self) -> None:
        """Do what could not be done inside the section, and tell who waits for room, where there is some.

        Nothing is noted for the second: what an exception from outside keeps from being told now is told at the end of
        the next section.
        """
        if self.lock._is_owned():
            return
        if self._deferred:
            self._guard.run_deferred()
        if self._room_waiters and self._state.has_room():
            self.runtime.wake(tuple(self._room_waiters))

    def _recover(self, request: Request[Any], error: UBatchError) -> None:
        """An exception from outside hit this thread, at whatever line: put right what it may have left half done.

        To wake the collector, or a caller, once too often is harmless.
        """
        with self.lock:
            start = self._state.recover(request, error)
        if request.done():
            self.runtime.wake(request._waiters)
        if start is not None:
            self._start(start)
        with suppress(Exception):  # the loop may have ended
            self._wakeup.wake()

    # What instruments, callbacks and the log are told.

    def _tell_instruments_apart(self) -> None:
        """In a task of its own, where there is no collector any more."""
        if self._ended:
            with suppress(Exception):  # the loop may have ended too, or there is no thread to be had
                self.runtime.spawn(self.observers.tell_batch_ended, f"ubatch-collector:{self.name}")

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

    def _report_unasked(self) -> None:
        """Log the errors that nobody asked for, each once, with how many calls had it."""
        errors: dict[int, list[Exception]] = {}
        while self._unasked:
            error = self._unasked.popleft()
            errors.setdefault(id(error), []).append(error)
        for same in errors.values():
            import logging  # here, because it is seldom needed

            logging.getLogger("ubatch").error(
                "calls of %r failed, and nobody asked for their results: %d with this error",
                self.name, len(same), exc_info=same[0],
            )  # fmt: skip

    def _is_at_rest(self) -> bool:
        """Whether there is no request, and nobody to collect one."""
        with self.lock:
            rests = self._state.task is None and not self._state.left()
        self.catch_up()
        return rests


def _loop_exited(reference: ref[Collector]) -> None:
    collector = reference()
    if collector is not None:
        collector.loop_exited()
