"""gevent: the collector is a greenlet of one hub (home), and handlers run off it.

Guarantees:

* A caller in a greenlet of home costs a `gevent.hub.Waiter`, what gevent's own events park on, and nothing else: all
  callers of a batch are woken by a few callbacks of the loop, where an `AsyncResult` each would cost a callback each.
* Callers elsewhere (a native thread, a greenlet of another thread's hub) are served too. No gevent object is ever
  touched from a thread that is not its own: what crosses threads is `loop.run_callback_threadsafe`, an `async_`
  watcher's `send`, and native locks.
* While a handler is on a native thread, a started watcher keeps the loop alive, so that a script whose main greenlet
  waits for an answer gets it, and no `LoopExit`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from time import monotonic
from typing import Any
from weakref import ref

from gevent import Greenlet, get_hub
from gevent._hub_local import get_hub_if_exists
from gevent.event import AsyncResult
from gevent.hub import MAIN_THREAD_IDENT
from gevent.hub import Waiter as _Waiter
from greenlet import getcurrent, greenlet

from ._auto import NOTE, AutoExecutor
from ._base import Executor, Runtime, Signal, Waiter, Where
from ._bound import add_note, is_bound_error
from ._gevent_locks import end_batch, end_thread, prepare_thread, waited_here, why_not_natively
from ._native import NativePool, _original
from ._world import foreign_waiter

CHUNK = 8  # callers that one callback of the loop wakes; after some callbacks it looks at its sockets

ONLY_HERE = 2  # references, one of them the argument of the function that counts
_references: Callable[[object], float] = getattr(sys, "getrefcount", lambda _: inf)  # not every interpreter counts


class GeventRuntime(Runtime):
    """Its home is the hub of the thread that makes it, which must be green or about to be."""

    name = "gevent"
    clock = staticmethod(monotonic)

    def __init__(self) -> None:
        self._hub = get_hub()

    def spawn(self, target: Callable[[], None], name: str) -> None:
        # From a callback of the loop, because a greenlet keeps the spawn-tree locals of the one that made it: the
        # collector would hold on to the first request's for ever.
        self._hub.loop.run_callback_threadsafe(_spawn, target, name)

    def signal(self) -> Signal:
        return _Signal(self._hub)

    def waiter(self) -> Waiter:
        if get_hub_if_exists() is self._hub:  # by hub, not by thread: the system uses a dead thread's ident again
            return HomeWaiter(self._hub)
        return foreign_waiter()

    def wake(self, waiters: Sequence[Any]) -> None:
        # Callers elsewhere are woken from here: home's loop may end before it runs another callback.
        at_home = [waiter for waiter in waiters if type(waiter) is HomeWaiter]
        if len(at_home) < len(waiters):
            for waiter in waiters:
                if type(waiter) is not HomeWaiter:
                    waiter.set()
        if not at_home:
            return
        with suppress(AttributeError, ValueError):  # no loop, or a destroyed one: nobody at home is left to wait
            loop = self._hub.loop
            run = loop.run_callback if get_hub_if_exists() is self._hub else loop.run_callback_threadsafe
            for first in range(0, len(at_home), CHUNK):
                run(_switch_all, at_home[first : first + CHUNK])

    def executor(self, kind: str, places: int, name: str) -> Executor:
        on_hub = _GreenletExecutor(self._hub, name)
        if kind == "greenlet":
            return on_hub
        native = _NativeExecutor(self._hub, NativePool(places, name, end_thread))
        return native if kind == "native" else AutoExecutor(on_hub, native, self.clock, waited_here, why_not_natively())

    def on_lost(self, callback: Callable[[], None]) -> None:
        if self._hub.thread_ident != MAIN_THREAD_IDENT and get_hub_if_exists() is self._hub:
            _at_thread_exit.hold(callback)


class HomeWaiter(_Waiter):  # type: ignore[misc]
    """Parks a greenlet of home (`Waiter`). Its `get` and `switch` are gevent's."""

    __slots__ = ()

    def wait(self, timeout: float) -> object:
        with self.hub.loop.timer(timeout) as timer:
            timer.start(self.switch, None, update=True)  # the loop's own idea of now may be old
            return self.get()


class HubWaiter:
    """Parks a greenlet of the hub that makes it, to be set from another thread (`Waiter`).

    The watcher both wakes the loop and keeps it alive, and is started only while somebody waits: a call that is refused
    leaves nothing on the loop. A `send` before `start` would be lost, so `set` leaves a note before it sends, and the
    wait starts the watcher before it looks for the note.
    """

    __slots__ = ("_result", "_set", "_watcher")

    def __init__(self) -> None:
        self._result = AsyncResult()
        self._set = False
        self._watcher = get_hub().loop.async_()

    def get(self) -> object:
        return self._wait(None)

    def wait(self, timeout: float) -> object:
        return self._wait(timeout)

    def set(self) -> None:
        self._set = True
        with suppress(ValueError):  # "operation on destroyed loop": its thread has ended
            self._watcher.send()

    def _wait(self, timeout: float | None) -> object:
        self._watcher.start(self._result.set)
        try:
            return None if self._set else self._result.wait(timeout)
        finally:
            self._watcher.stop()


# ---------------------------------------------------------------------------------------------------------------------


def _spawn(target: Callable[[], None], name: str) -> None:
    greenlet = Greenlet(target)
    greenlet.name = name
    greenlet.switch()  # not `start`: killed before it runs, it would not so much as say that it has ended


def _switch_all(waiters: list[HomeWaiter]) -> None:
    for waiter in waiters:
        waiter.switch(None)


class _Signal:
    """Parks its task itself: through a queue each wake-up would cost a second callback of the loop."""

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._is_set = False
        self._parked: _Waiter | None = None
        self._idle: Any = None

    def set(self) -> None:
        loop = self._hub.loop
        run = loop.run_callback if get_hub_if_exists() is self._hub else loop.run_callback_threadsafe
        run(self._ring)

    def wait(self, timeout: float | None) -> None:
        self._park(timeout)

    def wait_idle(self, timeout: float) -> bool:
        # The loop calls an idle watcher when there is nothing else to call: every callback has run, and what had
        # arrived at a socket has been read.
        idle = self._idle = self._idle or self._hub.loop.idle()
        idle.start(self._wake, idle)
        try:
            return self._park(timeout) is idle
        finally:
            idle.stop()

    # In the hub.

    def _ring(self) -> None:
        self._is_set = True
        self._wake(None)

    def _wake(self, token: object) -> None:
        if self._parked is not None:
            self._parked.switch(token)

    # In the task.

    def _park(self, timeout: float | None) -> object:
        """Return what wakes it; None after `timeout` seconds, and at once where it was set before."""
        if timeout is None:
            return self._parked_until_woken()
        with self._hub.loop.timer(timeout) as timer:
            timer.start(self._wake, None, update=True)  # the loop's own idea of now may be old
            return self._parked_until_woken()

    def _parked_until_woken(self) -> object:
        self._parked = None if self._is_set else _Waiter(self._hub)
        try:
            return None if self._parked is None else self._parked.get()
        finally:
            self._parked = None
            self._is_set = False


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

    def start(self, job: Callable[[], None], done: Callable[[], None], handler: Callable[..., Any]) -> None:
        self._hub.loop.run_callback(self._run, job, done, None)

    def start_watched(self, job: Callable[[], None], done: Callable[[], None], left: Callable[[], None]) -> None:
        """As `start`; `left` is called in the hub when `job` lets go of it for the first time and has not ended."""
        self._hub.loop.run_callback(self._run, job, done, left)

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
        self._hub.loop.run_callback(_spawn, target, self._name)

    def close(self) -> None:
        self._idle.clear()

    def _run(self, job: Callable[[], None], done: Callable[[], None], left: Callable[[], None] | None) -> None:
        worker = self._idle.pop() if self._idle else None
        if not worker or _references(worker) > ONLY_HERE:  # false where it has ended
            worker = _Worker(_serve, self._hub)
            worker.name = self._name
            _switch(worker)
        worker.longest, worker.came_at = 0.0, monotonic()
        _switch(worker, self._idle, job, done)  # at once: killed before, it would not so much as say so
        if left is not None and not (self._idle and self._idle[-1] is worker):
            worker.longest = monotonic() - worker.came_at
            left()


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
            idle, job, done = getcurrent().parent.switch()
        except BaseException:  # what the handler left behind, or nobody needs this greenlet any more
            return
        try:
            job()
        finally:
            done()
        idle.append(getcurrent())
        # No name here may refer to a batch, with its callers' arguments, nor to this greenlet: it would live for ever.
        del idle, job, done


class _NativeExecutor:
    """Native threads of its own: `hub.threadpool` also resolves names, which would wait behind the handlers."""

    def __init__(self, hub: Any, pool: NativePool) -> None:
        self._hub = hub
        self._pool = pool
        self._watchers: list[Any] = []  # idle ones; as many are made as batches were ever in flight at once

    def start(self, job: Callable[[], None], done: Callable[[], None], handler: Callable[..., Any]) -> None:
        watcher = self._watchers.pop() if self._watchers else self._hub.loop.async_()
        watcher.start(self._ended, watcher, done)
        try:
            self._pool.submit(partial(_run_natively, job, done, watcher, self._hub))
        except BaseException:
            watcher.stop()
            raise

    def raised(self, error: Exception) -> None:
        if is_bound_error(error):
            add_note(error, NOTE)

    def where(self) -> Where:
        return Where("native")

    def close(self) -> None:
        self._pool.close()

    def _ended(self, watcher: Any, done: Callable[[], None]) -> None:
        watcher.stop()
        self._watchers.append(watcher)
        done()


def _run_natively(job: Callable[[], None], done: Callable[[], None], watcher: Any, home: Any) -> None:
    prepare_thread(home)
    try:
        job()
    except KeyboardInterrupt:  # its callers have it; Ctrl-C itself only ever reaches the main thread
        pass
    finally:
        try:
            watcher.send()
        except ValueError:  # "operation on destroyed loop": nobody at home is left, but callers in other threads may be
            done()
    end_batch()


class _ThreadExit:
    """Calls back when the calling thread ends. The values of a thread-local are released then."""

    def __init__(self) -> None:
        self._local = _original("_thread", "_local")()
        self._refs: set[Any] = set()

    def hold(self, callback: Callable[[], None]) -> None:
        def ended(reference: Any) -> None:
            self._refs.discard(reference)
            callback()

        held = getattr(self._local, "held", None)
        if held is None:
            held = self._local.held = _Held()
        self._refs.add(ref(held, ended))


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
    """
    hub = get_hub_if_exists()
    if hub is not None and hub.loop is not None:
        hub.loop.reinit()


os.register_at_fork(after_in_child=_after_fork)
