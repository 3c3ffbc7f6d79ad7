"""What lets a handler on a native thread use gevent's patched locks: a hub of its own, whose loop passes them on.

`gevent.monkey` makes `threading.Lock` and `RLock` locks of greenlets, those of `logging` among them. Between native
threads they lose wake-ups (gevent #2013). A lock belongs to the hub of the thread that took it, and its wake-ups are
callbacks of that hub's loop:

1. A handler's thread takes the lock of a log handler. If the thread has a hub, which a wait of a millisecond makes, the
   lock is now this hub's.
2. A greenlet of the worker's hub, or another handler's thread, finds the lock taken and waits.
3. The handler releases it, and the wake-up is put on its hub's loop; or, before that, a thread without a hub asks this
   loop to take the lock for it.
4. The handler computes, or its batch ends and its thread parks: nobody runs that loop. The lock is free, and who waits
   for it waits for ever.

A second way needs one thread and no hub of its own:

1. The thread takes the lock; a greenlet of the worker's hub waits. The release puts a wake-up on that hub's
   loop.
2. The thread takes the lock again (a handler that logs twice). The loop finds it taken, and leaves the greenlet be.
3. The second release finds that the lock belongs to no hub, so it calls whoever waits right there. It cannot switch to
   a greenlet of another thread, puts it back, and tells nobody.

So, where locks are patched, each thread that runs handlers has a `HandlerHub`. Guarantees:

* A lock that is released on such a thread wakes who waits for it through the loop of the worker's hub, which turns.
* What other threads ask of a lock that it holds, that loop does as well.
* A thread that waits for a lock looks again every `LOOK_AGAIN` seconds, whatever became of its wake-up.
* After each batch the hub runs what is left on its loop.

It assumes that the greenlets of such a thread, if its handler starts any, do without patched locks that other threads
use: once there are some, gevent's own way is kept, and wake-ups come when the batch ends.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import gevent
from gevent._hub_local import get_hub_if_exists
from gevent.hub import Hub, set_hub, spawn_raw
from gevent.hub import Waiter as _Waiter
from gevent.lock import BoundedSemaphore, Semaphore
from greenlet import greenlet

from ._native import threading_is_patched

FIXED = (26, 8)  # the version of gevent that tells another thread's hub of a release
LOOK_AGAIN = 0.05  # seconds; arbitrary: long beside what a lock is held for, short beside what a caller waits
MOMENT = 0.001  # seconds; arbitrary: for a release that has begun to return


class HandlerHub(Hub):  # type: ignore[misc]
    """The hub of the native thread that makes it, which runs handlers for the hub `main`."""

    def __init__(self, main: Any) -> None:
        super().__init__(loop=_loop_class(self.loop_class)(flags=self.backend, default=False))
        self.loop.main = main

    def turn(self) -> None:
        """Run what is on the loop, if anything is. Called on its thread, between batches."""
        if self.loop.asked:
            waiter = _Waiter(self)
            self.loop.run_callback(waiter.switch, None)
            self.loop.asked = False
            waiter.get()


def prepare_thread(main: Any) -> None:
    """Make the calling native thread fit to run handlers for the hub `main`."""
    if get_hub_if_exists() is None and threading_is_patched():
        set_hub(HandlerHub(main))


def why_not_natively() -> str | None:
    """Why a handler that nobody has told to must not run on a native thread; None where it may.

    Before 26.8 a lock that a thread releases for another one's hub calls who waits right there, which fails and may
    raise in either thread.
    """
    if not threading_is_patched():
        return None
    if _version() < FIXED:
        return "gevent before 26.8 loses wake-ups of patched locks between threads: install a newer one"
    if uses_libuv():  # seen: one of some forty batchers that logged from native threads stuck
        return "gevent's libuv loop loses wake-ups of patched locks between threads: use its default loop"
    return None


def uses_libuv() -> bool:
    """Whether gevent is set to its libuv loop."""
    return "libuv" in str(gevent.config.loop)


def end_batch() -> None:
    """The calling native thread has run a batch, and will park."""
    hub = get_hub_if_exists()
    if isinstance(hub, HandlerHub):
        hub.turn()


def waited_here() -> bool:
    """Whether handlers have waited cooperatively on the calling native thread since this was asked last."""
    hub = get_hub_if_exists()
    if not isinstance(hub, HandlerHub):
        return False
    waited, hub.loop.waited = hub.loop.waited, False
    return bool(waited)


# ---------------------------------------------------------------------------------------------------------------------


@cache
def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in gevent.__version__.split(".")[:2] if part.isdigit())


@cache
def _loop_class(base: type) -> type:
    """The loop that a `HandlerHub` has, of the kind that gevent is set to."""

    class HandlerLoop(base):  # type: ignore[misc]
        main: Any = None
        asked = False  # something may be on it
        greenlets = False  # a handler has started some
        waited = False  # a handler has waited for a socket or for the time

        def run_callback(self, function: Any, *args: Any) -> Any:
            if not self.greenlets and _is_wake_up(function):
                _on_main_loop(self.main, _wake, function.__self__, self.main)
                return None  # gevent takes it for "no wake-up is pending", and the main loop will make one
            self.greenlets = self.greenlets or isinstance(getattr(function, "__self__", None), greenlet)
            callback = super().run_callback(function, *args)
            self.asked = True
            return callback

        def run_callback_threadsafe(self, function: Any, *args: Any) -> Any:
            if function is spawn_raw:  # a thread without a hub wants a lock taken for it
                return _on_main_loop(self.main, function, *args)
            callback = super().run_callback_threadsafe(function, *args)
            self.asked = True
            return callback

        def io(self, *args: Any, **named: Any) -> Any:
            self.waited = True
            return super().io(*args, **named)

        def timer(self, *args: Any, **named: Any) -> Any:
            self.waited = True
            return super().timer(*args, **named)

        def async_(self, *args: Any, **named: Any) -> Any:
            return _LookingAgain(self, super().async_(*args, **named))

    return HandlerLoop


class _LookingAgain:
    """An `async_` watcher; one that waits for a lock also calls back every `LOOK_AGAIN` seconds.

    gevent's locks expect to be woken for nothing.
    """

    def __init__(self, loop: Any, watcher: Any) -> None:
        self._loop = loop
        self._watcher = watcher
        self._timer: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watcher, name)

    def start(self, callback: Any, *args: Any) -> None:
        self._watcher.start(callback, *args)
        if args and isinstance(args[0], Semaphore):
            waited = self._loop.waited
            self._timer = self._loop.timer(LOOK_AGAIN, LOOK_AGAIN)
            self._loop.waited = waited  # a lock is none of what `waited` is about
            self._timer.start(callback, *args)

    def stop(self) -> None:
        self._watcher.stop()
        if self._timer is not None:
            self._timer.stop()

    def close(self) -> None:
        self._watcher.close()
        if self._timer is not None:
            self._timer.close()
            self._timer = None


def _is_wake_up(function: Any) -> bool:
    """Whether this is what a patched lock puts on the loop of its hub to wake who waits."""
    return getattr(function, "__name__", "") == "_notify_links" and isinstance(function.__self__, BoundedSemaphore)


def _on_main_loop(main: Any, function: Any, *args: Any) -> Any:
    with suppress(AttributeError, ValueError):  # no loop, or a destroyed one: nobody is left there to wait
        return main.loop.run_callback_threadsafe(function, *args)
    return None


def _wake(lock: Any, main: Any) -> None:
    """In the main hub: wake who waits for `lock`, if it is free.

    If it is taken, its release wakes them. If it is free and still belongs to a handler's hub, a release there has not
    returned yet, and would forget a wake-up that is made now.
    """
    if lock.locked():
        return
    if isinstance(lock.hub, HandlerHub):
        timer = main.loop.timer(MOMENT)
        timer.start(_wake_later, timer, lock, main)
        return
    lock.rawlink(_nothing)  # which makes gevent wake all who wait


def _wake_later(timer: Any, lock: Any, main: Any) -> None:
    timer.close()
    _wake(lock, main)


def _nothing(_: object) -> None:
    pass
