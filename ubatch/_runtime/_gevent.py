"""gevent: the collector is a greenlet of one hub, and handlers run off it.

Guarantees:

* A caller in a greenlet of the same hub costs a `gevent.hub.Waiter`, what gevent's own events park on, and nothing
  else: all callers of a batch are woken by a few callbacks, where an `AsyncResult` each would cost a callback each.
* Callers elsewhere (a native thread, a greenlet of another thread's hub) are served too. No gevent object is ever
  touched from a thread that is not its own: what crosses threads is `loop.run_callback_threadsafe`, an `async_`
  watcher's `send`, and native locks.
* While a handler is on a native thread, a started watcher keeps the loop alive, so that a script whose main greenlet
  waits for an answer gets it, and no `LoopExit`.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from math import inf
from operator import methodcaller
from time import monotonic
from typing import Any
from weakref import ref

from gevent import Greenlet, get_hub
from gevent._hub_local import get_hub_if_exists
from gevent.hub import Waiter as _Waiter
from gevent.monkey import is_module_patched
from greenlet import getcurrent, greenlet

from ._auto import NOTE, AutoExecutor
from ._base import Executor, Runtime, Waiter, Wakeup, Where
from ._bound import add_note, is_bound_error
from ._gevent_locks import end_batch, prepare_thread, uses_libuv, waited_here, why_not_natively
from ._native import NativePool, RLock, _original
from ._world import foreign_waiter, main_thread


class Why(Enum):
    """What a parked greenlet is switched to for."""

    WOKEN = auto()
    OVER = auto()  # its time is
    IDLE = auto()  # the loop is


CHUNK = 8  # callers that one callback of the loop wakes; after some callbacks it looks at its sockets

_references: Callable[[object], float] = getattr(sys, "getrefcount", lambda _: inf)  # not every interpreter counts


def _count_one() -> float:
    """What `_references` tells of something that nothing else refers to; from Python 3.14 on it is less."""
    alone = object()
    return _references(alone)


ONLY_HERE = _count_one()


class GeventRuntime(Runtime):
    """Its tasks run on the hub of the thread that makes it, which must be green or about to be."""

    name = "gevent"
    clock = staticmethod(monotonic)

    def __init__(self) -> None:
        self._hub = get_hub()

    def spawn(self, target: Callable[[], None], name: str, begun: Callable[[], bool] = lambda: True) -> None:
        # From a callback of the loop, because a greenlet keeps the spawn-tree locals of the one that made it: the
        # collector would hold on to the first request's for ever.
        box = [target]
        for _ in TWICE:
            self._hub.loop.run_callback_threadsafe(_spawn, box, target, name, begun)

    def wakeup(self) -> Wakeup:
        return _Wakeup(self._hub)

    def waiter(self) -> Waiter:
        if get_hub_if_exists() is self._hub:  # by hub, not by thread: the system uses a dead thread's ident again
            return SameHubWaiter(self._hub)
        return foreign_waiter()

    def wake(self, waiters: Sequence[Any]) -> None:
        # Callers elsewhere are woken from here: this loop may end before it runs another callback.
        here = [waiter for waiter in waiters if type(waiter) is SameHubWaiter]
        if len(here) < len(waiters):
            for waiter in waiters:
                if type(waiter) is not SameHubWaiter:
                    waiter.set()
        if not here:
            return
        with suppress(AttributeError, ValueError):  # no loop, or a destroyed one: nobody is left here to wait
            loop = self._hub.loop
            run = loop.run_callback if get_hub_if_exists() is self._hub else loop.run_callback_threadsafe
            for first in range(0, len(here), CHUNK):
                run(_consume, map(_wake_up, here[first : first + CHUNK]))

    def executor(self, kind: str, slots: int, name: str) -> Executor:
        on_hub = _GreenletExecutor(self._hub, name)
        if kind == "greenlet":
            return on_hub
        native = _NativeExecutor(self._hub, NativePool(slots, name))
        return native if kind == "native" else AutoExecutor(on_hub, native, self.clock, waited_here, why_not_natively())

    def on_loop_exit(self, callback: Callable[[], None]) -> None:
        if self._hub.thread_ident != main_thread() and get_hub_if_exists() is self._hub:
            _at_thread_exit.hold(callback)


class SameHubWaiter(_Waiter):  # type: ignore[misc]
    """Parks a greenlet of the collector's hub (`Waiter`). Its `get` and `switch` are gevent's: whatever else switches
    to the greenlet ends `get` as well.
    """

    __slots__ = ()

    def wait(self, timeout: float) -> object:
        return _get(self, timeout)


def _get(waiter: _Waiter, timeout: float | None) -> Why:
    """Wait until the waiter is switched to, or for `timeout` seconds, and return what for.

    That is a `Why`. Whatever else switches to this greenlet, some event that has kept its `switch` from an earlier
    wait, ends nothing.
    """
    if timeout is None:
        while not isinstance(why := waiter.get(), Why):
            pass
        return why
    loop = waiter.hub.loop
    with loop.timer(max(timeout, loop.approx_timer_resolution)) as timer:  # libuv warns of less
        timer.start(waiter.switch, Why.OVER, update=True)  # the loop's own idea of now may be old
        return _get(waiter, None)


class OtherHubWaiter:
    """Parks a greenlet of the hub that makes it, to be set from another thread (`Waiter`).

    The watcher both wakes the loop and keeps it alive, and there is one only while somebody waits: a call that is
    refused leaves nothing on the loop. The wait makes it before it looks for the note that `set` leaves; `set` leaves
    the note before it looks for the watcher. To a watcher that is closed nothing may be sent (libuv's crashes), hence
    the lock.
    """

    __slots__ = ("_lock", "_set", "_watcher")

    def __init__(self) -> None:
        self._lock = RLock()
        self._set = False
        self._watcher: Any = None

    def get(self) -> object:
        return self._wait(None)

    def wait(self, timeout: float) -> object:
        return self._wait(timeout)

    def set(self) -> None:
        with self._lock:
            self._set = True
            if self._watcher is not None:
                with suppress(ValueError):  # "operation on destroyed loop": its thread has ended
                    self._watcher.send()

    def _wait(self, timeout: float | None) -> object:
        parked = _Waiter(get_hub())
        with parked.hub.loop.async_() as watcher:
            watcher.start(parked.switch, Why.WOKEN)
            self._watcher = watcher
            try:
                return None if self._set else _get(parked, timeout)
            finally:
                with self._lock:
                    self._watcher = None
                watcher.stop()


# ---------------------------------------------------------------------------------------------------------------------


# A signal handler that raises may hit the first line of what the loop calls: the hub reports that, and goes on, and
# what should have been done there is lost. So callbacks of the loop
#
# * have no line of Python, where that can be (`_wake_up`, a waiter's `switch`);
# * else what they are to do stands in a container until it is done, and the loop is asked to call them twice. The
#   second one finds nothing, unless the first one was hit.
TWICE = range(2)
_wake_up = methodcaller("switch", Why.WOKEN)
_consume: Callable[..., Any] = partial(deque, maxlen=0)


def _spawn(box: list[Any], target: Callable[[], None], name: str, begun: Callable[[], bool] = lambda: True) -> None:
    if box or not begun():
        greenlet = Greenlet(_begin, box, target)
        greenlet.name = name
        greenlet.switch()  # not `start`: killed before it runs, the target would never run its `finally`


def _begin(box: list[Any], target: Callable[[], None]) -> None:
    try:
        box.clear()
    finally:
        target()


class _Wakeup:
    """Parks its task itself: through a queue each wake-up would cost a second callback of the loop.

    Between a task that goes to sleep and a thread that wakes it:

    1. The task notes where it parks, and then looks whether it was woken.
    2. The thread notes that the task is woken, and then looks where it parks.

    Whatever the order of these four steps, the one who looks last sees the other's note.
    """

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._is_woken = False
        self._parked: _Waiter | None = None

    def wake(self) -> None:
        self._is_woken = True
        parked = self._parked
        if parked is not None:
            loop = self._hub.loop
            run = loop.run_callback if get_hub_if_exists() is self._hub else loop.run_callback_threadsafe
            run(parked.switch, Why.WOKEN)

    def wait(self, timeout: float | None) -> None:
        self._park(timeout, None)

    def wait_idle(self, timeout: float) -> bool:
        # The loop calls an idle watcher when there is nothing else to call: every callback has run, and what had
        # arrived at a socket has been read.
        with self._hub.loop.idle() as idle:
            return self._park(timeout, idle) is Why.IDLE

    def _park(self, timeout: float | None, idle: Any) -> Why:
        self._parked = parked = _Waiter(self._hub)
        try:
            if idle is not None:
                idle.start(parked.switch, Why.IDLE)
            return Why.WOKEN if self._is_woken else _get(parked, timeout)
        finally:
            self._parked, self._is_woken = None, False


class _GreenletExecutor:
    """A greenlet for each batch. What a handler leaves behind in its own (a running `gevent.Timeout`, say) must not hit
    the collector or another batch; so one is used again only if nobody else can reach it.

    Used again, because a new greenlet takes 10 us from Python 3.11 on, a third of a lone call: the interpreter asks the
    system for the memory of its frames, and gives it back (`mmap`, `munmap`).
    """

    def __init__(self, hub: Any, name: str) -> None:
        self._hub = hub
        self._name = name
        self._idle: list[_Worker] = []  # as many as batches were ever in flight at once
        self._waiting: deque[tuple[list[Load], Callable[[], None] | None]] = deque()  # jobs; empty: it has begun

    def start(self, job: Callable[[], None], done: Callable[[], None], handler: Callable[..., Any]) -> None:
        self._start([(job, done)], None)

    def start_watched(self, job: Callable[[], None], done: Callable[[], None], left: Callable[[], None]) -> None:
        """As `start`; `left` is called in the hub when `job` lets go of it for the first time and has not ended."""
        self._start([(job, done)], left)

    def raised(self, error: Exception) -> None:
        pass

    def where(self) -> Where:
        return Where("hub")

    def is_here(self) -> bool:
        return get_hub_if_exists() is self._hub

    def away(self) -> float:
        """For how many seconds at a time the job that calls has kept the hub, at most."""
        worker = getcurrent()
        return max(worker.longest, monotonic() - worker.came_at)  # type: ignore[no-any-return]

    def spawn(self, target: Callable[[], None]) -> None:
        box = [target]
        for _ in TWICE:
            self._hub.loop.run_callback(_spawn, box, target, self._name)

    def close(self) -> None:
        self._idle.clear()

    def _start(self, load: list[Load], left: Callable[[], None] | None) -> None:
        self._waiting.append((load, left))
        run = self._hub.loop.run_callback
        run(self._run_waiting)
        run(self._run_waiting)

    def _run_waiting(self) -> None:
        waiting = self._waiting
        while waiting:
            load, left = waiting[0]
            try:
                if load:
                    self._run(load, left)
            finally:
                if load:  # an exception from outside hit this, or the worker, before it took the job
                    self._hub.loop.run_callback(self._run_waiting)
                else:
                    waiting.popleft()

    def _run(self, load: list[Load], left: Callable[[], None] | None) -> None:
        worker = self._idle.pop() if self._idle else None
        if not worker or _references(worker) > ONLY_HERE:  # false where it has ended
            worker = _Worker(_serve, self._hub)
            worker.name = self._name
            _switch(worker)
        worker.longest, worker.came_at = 0.0, monotonic()
        _switch(worker, self._idle, load)  # at once: killed before it has the job, it would never call `done`
        if left is not None and not (self._idle and self._idle[-1] is worker):
            worker.longest = monotonic() - worker.came_at
            left()


Load = tuple[Callable[[], None], Callable[[], None]]  # a job, and what to do when it is done


class _Worker(greenlet):  # type: ignore[misc]
    """The greenlet of a handler. It knows for how long it has kept the hub: whoever lets it go on calls `switch`."""

    __slots__ = ("came_at", "longest", "name")
    came_at: float
    longest: float

    def switch(self, *args: Any, **kwargs: Any) -> Any:
        self.came_at = monotonic()
        try:
            return _switch(self, *args, **kwargs)
        finally:
            self.longest = max(self.longest, monotonic() - self.came_at)


_switch = greenlet.switch


def _serve() -> None:
    # It has no arguments, because a greenlet keeps those that it began with.
    while True:
        try:
            idle, load = getcurrent().parent.switch()
            job, done = load[0]
        except BaseException:  # what the handler left behind, or nobody needs this greenlet any more
            return
        try:
            load.clear()
            job()
        finally:
            try:
                done()
            except BaseException:
                done()
                raise
        idle.append(getcurrent())
        # No name here may refer to a batch, with its callers' arguments, nor to this greenlet: it would live for ever.
        del idle, load, job, done


class _NativeExecutor:
    """Native threads of its own: `hub.threadpool` also resolves names, which would wait behind the handlers."""

    def __init__(self, hub: Any, pool: NativePool) -> None:
        self._hub = hub
        self._pool = pool

    def start(self, job: Callable[[], None], done: Callable[[], None], handler: Callable[..., Any]) -> None:
        loop = self._hub.loop
        watcher = loop.async_()
        ended = partial(self._ended, [(watcher, done)])
        watcher.start(_consume, map(loop.run_callback, (ended, ended)))
        # After an exception from outside the job may run all the same, and then needs the watcher.
        self._pool.submit(partial(_run_natively, job, done, watcher, self._hub), watcher.close)

    def raised(self, error: Exception) -> None:
        if is_bound_error(error):
            add_note(error, NOTE)

    def where(self) -> Where:
        return Where("native")

    def close(self) -> None:
        self._pool.close()

    def _ended(self, box: list[tuple[Any, Callable[[], None]]]) -> None:
        """In the hub: the job has ended. It stands in the box until that has been done."""
        if not box:
            return
        watcher, done = box[0]
        try:
            watcher.stop()
            watcher.close()  # one that is only dropped crashes the process on libuv
            done()
            box.clear()
        finally:
            if box:  # an exception from outside
                self._hub.loop.run_callback(self._ended, box)


def _run_natively(job: Callable[[], None], done: Callable[[], None], watcher: Any, hub: Any) -> None:
    prepare_thread(hub)
    try:
        job()
    except KeyboardInterrupt:  # its callers have it; Ctrl-C itself only ever reaches the main thread
        pass
    finally:
        try:
            watcher.send()
        except ValueError:  # "operation on destroyed loop": nobody of that hub is left, but others may be
            done()
        del job, done  # the handler's frame keeps this one, and what it refers to
    end_batch()


class _ThreadExit:
    """Calls back when the calling thread ends. The values of a thread-local are released then."""

    def __init__(self) -> None:
        self._local = _original("_thread", "_local")()
        self._refs: dict[int, Any] = {}  # by id: references to one thing are equal as long as it lives

    def hold(self, callback: Callable[[], None]) -> None:
        def ended(reference: Any) -> None:
            self._refs.pop(id(reference), None)
            callback()

        held = getattr(self._local, "held", None)
        if held is None:
            held = self._local.held = _Held()
        reference = ref(held, ended)
        self._refs[id(reference)] = reference


class _Held:
    """What a thread-local holds on to."""


_at_thread_exit = _ThreadExit()


def _after_fork() -> None:
    """In a child, keep the copy of the hub's loop from taking the parent's wake-ups.

    gevent does this where it knows of the fork, that is where `os` is patched. Elsewhere:

    1. A greenlet forks. In the child the copy of the loop goes on in the middle of a round, in which it has already
       looked for a fork.
    2. It polls, for this once, what the parent polls: the same kernel object.
    3. In the parent a handler ends, and the child gets the wake-up. The parent's callers wait for ever.

    Not on libuv where gevent knows: there it may crash a child that is forked only to become another program.
    """
    hub = get_hub_if_exists()
    if hub is None or hub.loop is None:
        return
    if is_module_patched("os") and uses_libuv():
        return
    hub.loop.reinit()


os.register_at_fork(after_in_child=_after_fork)
