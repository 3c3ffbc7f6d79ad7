"""The choice of a runtime, and which process this is."""

from __future__ import annotations

import os
import sys

from ._base import Executor, Runtime, Waiter, Wakeable, Wakeup, Where
from ._names import handler_name, unwrapped
from ._threading import ThreadingRuntime
from ._world import green_half, may_run_collector, stack_of_caller

__all__ = [
    "Executor",
    "Runtime",
    "Waiter",
    "Wakeable",
    "Wakeup",
    "Where",
    "choose",
    "current_process",
    "handler_name",
    "stack_of_caller",
    "unwrapped",
]

RUNTIMES = ("auto", "gevent", "threading")

forks = 0  # in this process's line of descent
FORKS_UNSEEN = "uwsgi" in sys.modules  # the server's own module: it forks without the hook below


def current_process() -> tuple[int, int]:
    """Which process this is: the forks that led to it, and its id.

    Both parts are needed to tell it from its parent and from its children: uWSGI forks without running Python's hooks,
    and a system may give a process id again.
    """
    return forks, os.getpid()


def choose(option: str | Runtime) -> Runtime:
    """The runtime for a batcher that gets its first call here and now."""
    if isinstance(option, Runtime):
        return option
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        raise RuntimeError(
            "a process that batches must not be patched by eventlet, where a thread that waits for another stops both: "
            "run the server with `gunicorn -k gevent` or `-k gthread`"
        )
    if option == "gevent" or (option == "auto" and may_run_collector()):
        of_this_hub: Runtime = green_half().GeventRuntime()
        return of_this_hub
    return ThreadingRuntime()


def _count_fork() -> None:
    global forks
    forks += 1


os.register_at_fork(after_in_child=_count_fork)
if "gevent" in sys.modules:  # while nobody waits for it; a process that imports gevent later meets it at a first call
    green_half()
