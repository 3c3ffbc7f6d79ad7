"""Virtual time and a recording handler: for this library's tests, and for yours.

A program that batches is hard to test by the clock: sleep too little and the test fails on a busy machine, sleep long
and the suite is slow. `VirtualRuntime` wraps a real runtime, with its real greenlets or threads, and makes time
something that the test moves:

>>> runtime = VirtualRuntime("threading")
>>> handler = RecordingHandler(lambda xs: [x * x for x in xs])
>>> squares = UBatch(max_size=4, timeout=5.0, runtime=runtime).set_handler(handler)
>>> request = squares.submit(3)
>>> runtime.advance(4.9)
>>> request.done(), handler.calls
(False, [])
>>> runtime.advance(0.1)
>>> request.result(), handler.calls
(9, [[3]])

How it knows that nothing more will happen: it counts the tasks that can go on by themselves. Starting one adds one,
its end takes one away, and so does parking. Whoever wakes a task adds it back *before* the task wakes, so the count is
zero only when every task is parked for good: "zero" is never a passing lie, and nothing polls.

The test itself is not a task. It calls `settle`, `advance` and what does not wait (`UBatch.submit`); calls that wait
go through `call`, which makes a task for them. If it waits all the same it settles, and RuntimeError tells it so
where that does not end its wait.

An eager batch is closed only when the test settles, or moves time, in every world: its calls until then are together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

from greenlet import getcurrent

from ._batcher import UBatch
from ._check_handler import check_handler
from ._core.batch import running_batch
from ._runtime import Executor, Runtime, Waiter, Wakeable, Wakeup, Where, choose
from ._runtime._native import allocate_lock
from ._validation import seconds as checked_seconds

__all__ = ["Call", "Gate", "RecordingHandler", "UBatch", "VirtualRuntime", "check_handler"]

NANO = 1e9
GRACE = 1.0  # real seconds; only waited out by a test that fails
WATCHDOG = 10.0  # real seconds; long enough for a busy machine, and only ever waited out by a test that fails


class VirtualRuntime(Runtime):
    """A real runtime ("gevent" or "threading") in which time stands still until `advance` is called.

    Pass it as the option `runtime` of `UBatch`. It belongs to the thread that makes it; several batchers may share it.
    """

    def __init__(self, inner: str) -> None:
        self.inner: Runtime = choose(inner)
        self.name: str = self.inner.name
        self._test = getcurrent()  # of its thread alone, so it tells threads apart as well
        self._now = 0  # nanoseconds
        self._clock = 0.0  # the same, or the rounding of a float more
        self._lock = allocate_lock()
        self._running = 0
        self._settling: list[Waiter] = []
        self._spots: set[_Spot] = set()  # parked, with a time limit
        self._idling: set[_Spot] = set()  # parked until no task can go on

    def settle(self) -> None:
        """Wait until no task can go on by itself. Raises RuntimeError when that takes more than ten real seconds.

        Only now does an eager batcher find that nobody else is on the way: what the test has submitted since it last
        settled is together in its batches.
        """
        waiter = self.inner.waiter()
        with self._lock:
            if self._running == 0 and not self._idling:
                return
            self._settling.append(waiter)
            idling = self._at_rest()[0] if self._running == 0 else set()
        for spot in idling:
            spot.unpark()
        waiter.wait(WATCHDOG)
        if waiter in self._settling:
            raise RuntimeError(f"{self._running} tasks must come to rest or end; they ran on for {WATCHDOG} seconds")

    def advance(self, seconds: float) -> None:
        """Let virtual time pass, and let happen what is due, each thing at its time. Ten times 0.1 is 1.0."""
        target = self._now + _nanoseconds(checked_seconds("seconds", seconds))
        while True:
            self.settle()
            with self._lock:
                due_at = min((spot.deadline for spot in self._spots), default=math.inf)
                if due_at > target:
                    self._set_now(target)
                    return
                self._set_now(max(self._now, int(due_at)))
                due = [spot for spot in self._spots if spot.deadline <= self._now]
            for spot in due:
                spot.unpark()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call:
        """Call something that waits, in a task of its own, as a request of a web server does."""
        call = Call(self, partial(function, *args, **kwargs))
        self.spawn(call.run, "ubatch-test-call")
        return call

    def gate(self) -> Gate:
        """A closed gate: a handler that calls `gate.pass_through()` is held until the test lets it go."""
        return Gate(self)

    # The runtime's part.

    def clock(self) -> float:
        """Virtual seconds, from 0.0."""
        return self._clock

    def spawn(self, target: Callable[[], None], name: str, begun: Callable[[], bool] = lambda: True) -> None:
        def task() -> None:
            _in_task.set(True)
            try:
                target()
            finally:
                self.leave()

        self.enter()
        try:
            self.inner.spawn(task, name)
        except BaseException:
            self.leave()
            raise

    def wakeup(self) -> Wakeup:
        return _VirtualWakeup(self)

    def waiter(self) -> Waiter:
        counted = _in_task.get() or running_batch() is not None
        return _Spot(self, self.inner.waiter(), counted, of_test=not counted and getcurrent() is self._test)

    def wake(self, waiters: Sequence[Wakeable]) -> None:
        for waiter in waiters:
            waiter.set()

    def executor(self, kind: str, slots: int, name: str) -> Executor:
        return _VirtualExecutor(self, self.inner.executor(kind, slots, name))

    # The count.

    def enter(self) -> None:
        """One more task can go on."""
        with self._lock:
            self._running += 1

    def leave(self) -> None:
        """One task less can go on; at none, tell the tasks that wait for that; without such, whoever settles."""
        with self._lock:
            self._running -= 1
            idling, waiters = self._at_rest() if self._running == 0 else (set(), [])
        for spot in idling:
            spot.unpark()
        self.inner.wake(waiters)

    # Under the lock.

    def _at_rest(self) -> tuple[set[_Spot], list[Waiter]]:
        """No task can go on, and whom to tell: nobody, until the test settles, for it may be about to call."""
        idling: set[_Spot] = set()
        waiters: list[Waiter] = []
        if self._settling and self._idling:
            idling, self._idling = self._idling, set()
        else:
            waiters, self._settling = self._settling, []
        return idling, waiters

    def _set_now(self, now: int) -> None:
        self._now = now
        self._clock = max(self._clock, now / NANO)


class Call:
    """A call in a task of its own: `done`, then either its `value` or its `error`."""

    def __init__(self, runtime: VirtualRuntime, function: Callable[[], Any]) -> None:
        self._runtime = runtime
        self._function = function
        self._greenlet: Any = None
        self.done: bool = False
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        _in_task.set(True)
        if self._runtime.name == "gevent":
            from gevent import getcurrent

            self._greenlet = getcurrent()
        try:
            self.value = self._function()
        except BaseException as error:
            self.error = error
        self.done = True

    def kill(self, exception: BaseException | None = None) -> None:
        """Throw `GreenletExit`, or another exception, into the call's greenlet; with threads there is no such thing."""
        from gevent import GreenletExit

        self._runtime.enter()
        self._greenlet.rawlink(lambda _: self._runtime.leave())
        self._greenlet.kill(exception or GreenletExit(), block=False)


class Gate:
    """Holds the handlers that pass through it, until it is opened."""

    def __init__(self, runtime: VirtualRuntime) -> None:
        self._runtime = runtime
        self._lock = allocate_lock()
        self._open: float = 0  # how many may pass
        self._held: list[_Spot] = []

    @property
    def held(self) -> int:
        """How many handlers stand before the gate."""
        return len(self._held)

    def pass_through(self) -> None:
        """Called in a handler: go on when the gate lets it."""
        spot = _Spot(self._runtime, self._runtime.inner.waiter(), counted=True)
        with self._lock:
            if self._open > 0:
                self._open -= 1
                return
            self._held.append(spot)
        spot.get()

    def open(self, passes: float = math.inf) -> None:
        """Let so many handlers pass, those that stand here first; without an argument, all from now on."""
        with self._lock:
            count = int(min(passes, len(self._held)))
            released, self._held = self._held[:count], self._held[count:]
            self._open += passes - count
        for spot in released:
            spot.set()


class RecordingHandler:
    """A handler that keeps what it was given, in `calls`, in order: the list of inputs of each batch.

    A call with several columns is kept as their tuple, and keyword columns as a dict at its end. `function` computes
    the outputs (default: each input itself); `gate` holds the handler before it does.
    """

    def __init__(self, function: Callable[..., Any] | None = None, gate: Gate | None = None) -> None:
        self.calls: list[Any] = []
        self._function = function or list
        self._gate = gate
        self.__name__ = "recording_handler"

    def __call__(self, *columns: list[Any], **named: list[Any]) -> Any:
        """Record, pass the gate, answer."""
        if named:
            self.calls.append((*columns, named))
        else:
            self.calls.append(columns[0] if len(columns) == 1 else columns)
        if self._gate is not None:
            self._gate.pass_through()
        return self._function(*columns, **named)


# ---------------------------------------------------------------------------------------------------------------------

_in_task: ContextVar[bool] = ContextVar("ubatch_testing_in_task", default=False)


class _Spot:
    """Where one task parks, once (`Waiter`). It really waits on an inner waiter, which only `unpark` sets."""

    def __init__(self, runtime: VirtualRuntime, inner: Waiter, counted: bool, of_test: bool = False) -> None:
        self._runtime = runtime
        self._inner = inner
        self._counted = counted
        self._of_test = of_test
        self._parked = False
        self._set = False
        self.deadline = math.inf  # in the runtime's nanoseconds

    def get(self) -> None:
        self._park(math.inf)

    def wait(self, timeout: float) -> None:
        self._park(timeout)

    def set(self) -> None:
        self.unpark()

    def unpark(self) -> None:
        """Count the task as running again, then let it run."""
        runtime = self._runtime
        with runtime._lock:
            was_parked, self._parked = self._parked, False
            self._set = True
            runtime._spots.discard(self)
            if was_parked and self._counted:
                runtime._running += 1
        if was_parked:
            runtime.inner.wake([self._inner])

    def _park(self, timeout: float) -> None:
        runtime = self._runtime
        if self._of_test and timeout > 0:
            self._settle()
            return
        with runtime._lock:
            if self._set or timeout <= 0:
                return
            if timeout < math.inf:
                if (nanoseconds := _nanoseconds(timeout)) == 0:  # what a sum of floats falls short of a time
                    runtime._clock += timeout
                    return
                self.deadline = runtime._now + nanoseconds
                runtime._spots.add(self)
            self._parked = True
        if self._counted:
            runtime.leave()
        try:
            self._inner.get()
        except BaseException:  # woken by a kill or an interrupt instead
            with runtime._lock:
                was_parked, self._parked = self._parked, False
                runtime._spots.discard(self)
                if was_parked and self._counted:
                    runtime._running += 1
            raise

    def _settle(self) -> None:
        """The test itself waits: for what needs no time, and for nothing else."""
        runtime = self._runtime
        runtime.settle()
        with runtime._lock:
            if self._set:
                return
            self._parked = True
        self._inner.wait(GRACE)  # for what is not counted: a greenlet that the test has killed
        with runtime._lock:
            self._parked = False
        if not self._set:
            raise RuntimeError(
                "the test itself must not wait while time stands still: make the call in a task of its own, "
                "call(batcher.ubatch, ...), then settle() or advance()"
            )


def _nanoseconds(seconds: float) -> int:
    return round(seconds * NANO)


class _VirtualWakeup:
    def __init__(self, runtime: VirtualRuntime) -> None:
        self._runtime = runtime
        self._lock = allocate_lock()
        self._woken = False
        self._spot: _Spot | None = None

    def wake(self) -> None:
        with self._lock:
            spot, self._spot = self._spot, None
            self._woken = spot is None
        if spot is not None:
            spot.set()

    def wait(self, timeout: float | None) -> None:
        spot = _Spot(self._runtime, self._runtime.inner.waiter(), counted=True)
        with self._lock:
            if self._woken:
                self._woken = False
                return
            self._spot = spot
        spot.wait(math.inf if timeout is None else timeout)
        with self._lock:
            if self._spot is spot:
                self._spot = None

    def wait_idle(self, timeout: float) -> bool:
        runtime = self._runtime
        spot = _Spot(runtime, runtime.inner.waiter(), counted=True)
        with self._lock:
            if self._woken:
                self._woken = False
                return False
            self._spot = spot
        with runtime._lock:
            runtime._idling.add(spot)
        spot.wait(timeout)
        with self._lock:
            if self._spot is spot:
                self._spot = None
        with runtime._lock:
            woken_by_another = spot in runtime._idling
            runtime._idling.discard(spot)
        return not woken_by_another


class _VirtualExecutor:
    """A job counts as one task from its start until `done` has returned."""

    def __init__(self, runtime: VirtualRuntime, inner: Executor) -> None:
        self._runtime = runtime
        self._inner = inner

    def start(self, job: Callable[[], None], done: Callable[[], None], handler: Callable[..., Any]) -> None:
        def done_and_gone() -> None:
            done()
            self._runtime.leave()

        self._runtime.enter()
        try:
            self._inner.start(job, done_and_gone, handler)
        except BaseException:
            self._runtime.leave()
            raise

    def raised(self, error: Exception) -> None:
        self._inner.raised(error)

    def where(self) -> Where:
        return self._inner.where()

    def close(self) -> None:
        self._inner.close()
