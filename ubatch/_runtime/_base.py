"""The seam between worlds: what the batcher needs of the one it runs in.

A runtime belongs to one process. Its tasks run on one loop, that of a hub (gevent), or are threads. All waiting and
all starting of tasks goes through it, which is what lets `ubatch.testing.VirtualRuntime` hold time still.

Each method says who may call it. "Anywhere" means any greenlet or thread of the process, except from inside a
section that holds a lock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol


class Wakeable(Protocol):
    """What waits for something, or is to be called then."""

    def set(self) -> None:
        """Let it go on. Called through `Runtime.wake`."""


class Waiter(Wakeable, Protocol):
    """Parks the caller that made it, once, until somebody sets it. Setting it first is fine, and so is setting twice.

    It is `gevent.event.AsyncResult`'s own interface, so that the commonest waiter needs no wrapper.
    """

    def get(self) -> object:
        """Wait for `set`, without a bound."""

    def wait(self, timeout: float) -> object:
        """Wait for `set`, at most `timeout` seconds; how it ended is for the caller to find out."""


class Wakeup(Protocol):
    """Wakes one task, over and over. Those that nobody has waited for yet count as one."""

    def wake(self) -> None:
        """Anywhere, a finalizer included."""

    def wait(self, timeout: float | None) -> None:
        """Return after a `wake`, or after `timeout` seconds (None: no bound). May return early, never late."""

    def wait_idle(self, timeout: float) -> bool:
        """Return True once the loop has nothing else to do right now; False after a `wake`, or `timeout` seconds."""


class Executor(Protocol):
    """Runs handlers, away from the collector."""

    def start(self, job: Callable[[], None], done: Callable[[], None], handler: Callable[..., Any]) -> None:
        """Begin `job`, which calls `handler`, and return; call `done` once it has ended. Called by the collector.

        Where an exception from outside comes out of `done`, it is called again: it does not mind.
        """

    def raised(self, error: Exception) -> None:
        """The handler has raised this, right here: in its greenlet or thread."""

    def where(self) -> Where:
        """Where the next handler runs. Anywhere."""

    def close(self) -> None:
        """Let idle threads end. Anywhere. A later `start` opens the executor again."""


class Where(NamedTuple):
    """Where handlers run: on the "hub", on a "native" thread of the batcher's own (gevent), or on a "thread"; and, as
    far as it is measured, for how many seconds at a time one of the latest batches there kept the hub, at most.
    """

    runs_on: str
    hub_away: float = 0.0


class Runtime(ABC):
    """One world in one process. Making one starts nothing."""

    name: str

    @abstractmethod
    def clock(self) -> float:
        """Monotonic seconds. Anywhere."""

    @abstractmethod
    def spawn(self, target: Callable[[], None], name: str, begun: Callable[[], bool] = lambda: True) -> None:
        """Run `target` as a task. Anywhere.

        Where an exception from outside hits the task before its first line, and `begun()` is False after that, it may
        be run again.
        """

    def spawn_in_finalizer(self, target: Callable[[], None]) -> None:
        """The same, where this thread may hold any lock."""
        self.spawn(target, "")

    @abstractmethod
    def wakeup(self) -> Wakeup:
        """What wakes a task of this runtime. Anywhere."""

    @abstractmethod
    def waiter(self) -> Waiter:
        """A waiter for the greenlet or thread that asks, whichever world that is in. Anywhere."""

    @abstractmethod
    def wake(self, waiters: Sequence[Wakeable]) -> None:
        """Set all of these. Anywhere."""

    @abstractmethod
    def executor(self, kind: str, slots: int, name: str) -> Executor:
        """An executor of a `kind` ("auto", "native" or "greenlet") that runs up to `slots` jobs at once. Anywhere."""

    def on_loop_exit(self, callback: Callable[[], None]) -> None:
        """Call back when the loop ends while the process goes on: the loop of a thread that ends. Anywhere."""
        return None
