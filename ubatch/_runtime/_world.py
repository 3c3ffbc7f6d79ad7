"""Which world is this call in? gevent is asked about, and never imported, here.

A *green* context may park its greenlet and let the hub run others. That is so in a greenlet under a hub, patched or
not (gevent.pywsgi and uWSGI patch nothing by default, yet their requests are greenlets), and in the main thread of a
patched process. Whether `gevent` is in `sys.modules`, or `threading` is patched, decides neither way by itself.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from traceback import StackSummary, extract_stack
from types import FrameType, ModuleType
from typing import Any

from ._base import Waiter
from ._native import RLock, ThreadWaiter, get_ident, threading_is_patched

_importing = RLock()


def is_green() -> bool:
    """Whether the caller may park as a greenlet."""
    if "gevent" not in sys.modules:
        return False
    get_hub_if_exists, getcurrent = _gevent()
    if get_hub_if_exists() is not None and getcurrent().parent is not None:
        return True
    return is_main_thread() and threading_is_patched()


def stack_of_caller() -> Callable[[], StackSummary]:
    """What tells, later and from anywhere, where the greenlet or thread that asks now has got to."""
    if is_green():
        from greenlet import getcurrent

        greenlet = getcurrent()
        return lambda: _stack_of(greenlet.gr_frame)
    ident = get_ident()
    return lambda: _stack_of(sys._current_frames().get(ident))


def may_run_collector() -> bool:
    """Whether a collector may live on the caller's hub: the main thread's lasts as long as the process.

    Another thread's may end at any time, a pool's thread with the call itself, and the collector with it. Its callers
    are served from elsewhere.
    """
    return is_green() and is_main_thread()


def main_thread() -> int:
    """The main thread's native ident. gevent takes the thread that first imports it for the main one."""
    return _main_thread


def is_main_thread() -> bool:
    return bool(get_ident() == _main_thread)


def foreign_waiter() -> Waiter:
    """A waiter for a caller that is not on the collector's loop, to be set from any thread."""
    if is_green():
        waiter: Waiter = green_half().OtherHubWaiter()
        return waiter
    return ThreadWaiter()


@cache
def green_half() -> ModuleType:
    """The module `_gevent`, imported by one caller at a time.

    An import statement alone has a trap. `gevent.monkey` patches the locks of modules too, so a greenlet waits for
    another thread's import as it waits for anything; and where it is alone in its thread, its hub has nothing to wake
    it by, and raises LoopExit. A native lock just waits.
    """
    with _importing:
        from . import _gevent as half

        return half


# ---------------------------------------------------------------------------------------------------------------------


@cache  # each call asks, and an import statement takes a microsecond even where there is nothing left to import
def _gevent() -> tuple[Callable[[], Any], Callable[[], Any]]:
    from gevent._hub_local import get_hub_if_exists
    from greenlet import getcurrent

    return get_hub_if_exists, getcurrent


def _find_main_thread() -> int:
    """At import. Once `threading` is patched it tells the idents of greenlets; and who patches, does it in main."""
    if threading_is_patched():
        from gevent.hub import MAIN_THREAD_IDENT

        return int(MAIN_THREAD_IDENT)
    return threading.main_thread().ident or 0


_main_thread = _find_main_thread()


def _main_after_fork() -> None:
    """In a child: the thread that forked is the only one, and main from now on."""
    global _main_thread
    _main_thread = get_ident()


os.register_at_fork(after_in_child=_main_after_fork)


def _stack_of(frame: FrameType | None) -> StackSummary:
    return StackSummary() if frame is None else extract_stack(frame)
