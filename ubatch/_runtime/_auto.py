"""Where a handler runs by default: on the hub, unless it computes.

On the hub a handler meets what a program made there, its sessions, connections and locks, and costs no way to a thread
and back. A native thread keeps the hub turning while a handler computes. Which of them a handler needs shows when it
runs: one that comes back by its first switch to the hub, its job done, has waited for nothing.

Guarantees:

* A handler begins on the hub.
* One that took longer than `SHORT` and never switched runs natively from the next batch on, and on the hub again after
  `REMEMBERED` batches that were short, or once it has waited cooperatively.
* One that was short for `REMEMBERED` batches is forgiven one that is long: a busy machine makes some look so.
* One that waits stays on the hub. `patience` counts it, up by `WAITED` for a batch that waited, down by one for one
  that was long and did not: a contended lock now and then keeps nothing on the hub for long, and a long answer now and
  then sends nothing away from it.
* One that is seen to hold what belongs to the hub's thread, or whose error natively says so, stays on the hub for good.
  A batch is never run twice.
* Where a handler that stays keeps the hub away for `AWAY` and more, time and again, that is logged, once.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from ._base import Executor, Where
from ._bound import add_note, find_bound, is_bound_error
from ._names import handler_name

SHORT = 0.005  # seconds; CPython's switch interval, for which a native thread may keep the hub away just as well
REMEMBERED = 16  # batches; arbitrary: a handler that is long now and then keeps the hub away for one in so many
WAITED = 2  # arbitrary: one that waits in a third of its batches, or more, is cooperative
MOST_PATIENCE = 8
AWAY = 0.05  # seconds; arbitrary: ten times what the hub may be away without anybody asking
OFTEN = 3  # batches; the first one may have been cold
NOTE = (
    "uBatch: the handler ran on a native thread, and uses what belongs to the thread of gevent's hub. "
    'UBatch(…, executor="greenlet") keeps it on the hub'
)
NOTE_OF_AUTO = f'{NOTE}; with executor="auto" it stays there from now on. This batch may have had its effect in part'


class Hub(Protocol):
    """The executor that runs handlers on the hub."""

    def start_watched(self, job: Callable[[], None], done: Callable[[], None], left: Callable[[], None]) -> None:
        """As `Executor.start`; `left` is called when `job` has first let go of the hub, unless it has ended."""

    def is_here(self) -> bool:
        """Whether the caller is on the hub's thread."""

    def away(self) -> float:
        """For how many seconds at a time the job that calls has kept the hub, at most."""

    def spawn(self, target: Callable[[], None]) -> None:
        """Run something in a greenlet of its own."""

    def close(self) -> None: ...


class AutoExecutor:
    """On the hub, or natively where that is better: `Executor`."""

    def __init__(
        self,
        on_hub: Hub,
        native: Executor,
        clock: Callable[[], float],
        waited_here: Callable[[], bool],
        because: str | None = None,
    ) -> None:
        """`because` is why no handler may leave the hub here, if that is so."""
        self._on_hub = on_hub
        self._native = native
        self._clock = clock
        self._waited_here = waited_here
        self._natively = False
        self._left = 0  # batches until it may run on the hub again
        self._patience = 0
        self._looked = False  # whether the handler holds what belongs to the hub's thread
        self._because = because  # why it stays on the hub for good
        self._away: deque[float] = deque(maxlen=REMEMBERED)  # for how long the hub was, for a batch
        self._often_away = 0

    def start(self, job: Callable[[], None], done: Callable[[], None], handler: Callable[..., Any]) -> None:
        if self._natively:
            native = _Natively(self, job, done)
            self._native.start(native.run, native.end, handler)
        else:
            here = _OnHub(self, job, handler)
            self._on_hub.start_watched(here.run, done, here.leave)

    def raised(self, error: Exception) -> None:
        if not self._on_hub.is_here() and is_bound_error(error):
            add_note(error, NOTE_OF_AUTO)
            self._because = f"natively it raised {type(error).__name__}"
            self._natively = False

    def where(self) -> Where:
        return Where("native" if self._natively else "hub", max(tuple(self._away), default=0.0))

    def close(self) -> None:
        self._on_hub.close()
        self._native.close()

    # -----------------------------------------------------------------------------------------------------------------

    def _learn_on_hub(self, waited: bool, handler: Callable[..., Any]) -> None:
        """A batch on the hub has waited there, or it was long. Called in its greenlet."""
        away = self._on_hub.away()
        if waited:
            self._patience = min(MOST_PATIENCE, self._patience + WAITED)
        elif self._patience:
            self._patience -= 1
        elif self._was_always_short():
            pass
        elif self._may_leave(handler):
            self._natively = True
            self._left = REMEMBERED
        self._away.append(away)
        if away > AWAY and not self._natively:
            self._count_away(away, handler)

    def _learn_natively(self, seconds: float, waited: bool) -> None:
        if waited:
            self._patience = WAITED
            self._left = 0
        else:
            self._left = REMEMBERED if seconds > SHORT else self._left - 1
        if self._left <= 0:
            self._natively = False

    def _was_always_short(self) -> bool:
        return len(self._away) == REMEMBERED and max(self._away) <= SHORT

    def _may_leave(self, handler: Callable[..., Any]) -> bool:
        if not self._looked and self._because is None:
            self._looked = True
            found = find_bound(handler)
            if found is not None:
                self._because = f"it holds {found}"
        return self._because is None

    def _count_away(self, seconds: float, handler: Callable[..., Any]) -> None:
        self._often_away += 1
        if self._often_away == OFTEN:
            self._on_hub.spawn(
                partial(_tell_away, handler_name(handler), seconds, self._because or "it waits there as well")
            )


class _OnHub:
    """One batch on the hub."""

    __slots__ = ("_auto", "_handler", "_job", "_waited")

    def __init__(self, auto: AutoExecutor, job: Callable[[], None], handler: Callable[..., Any]) -> None:
        self._auto = auto
        self._job: Callable[[], None] | None = job
        self._handler = handler
        self._waited = False

    def run(self) -> None:
        auto, job = self._auto, self._job
        began = auto._clock()
        try:
            job()  # type: ignore[misc]
        finally:
            self._job = None
            del job  # the handler's frame keeps this one, and what it refers to
            seconds = auto._clock() - began
            if seconds > SHORT or self._waited:
                auto._learn_on_hub(self._waited, self._handler)
            else:
                auto._away.append(seconds)

    def leave(self) -> None:
        self._waited = self._job is not None


class _Natively:
    """One batch on a native thread. What a thread of its own would change in its answers is carried over."""

    __slots__ = ("_auto", "_done", "_gradients", "_job", "_seconds", "_waited")

    def __init__(self, auto: AutoExecutor, job: Callable[[], None], done: Callable[[], None]) -> None:
        self._auto = auto
        self._job = job
        self._done = done
        self._gradients = _torch("is_grad_enabled")()
        self._seconds = 0.0
        self._waited = False

    def run(self) -> None:
        _torch("set_grad_enabled")(self._gradients)
        began = self._auto._clock()
        try:
            self._job()
        finally:
            self._job = _nothing  # the handler's frame keeps this one, and what it refers to
            self._seconds = self._auto._clock() - began
            self._waited = self._auto._waited_here()

    def end(self) -> None:
        try:
            self._auto._learn_natively(self._seconds, self._waited)
        finally:
            self._done()
            self._done = _nothing


def _torch(name: str) -> Callable[..., Any]:
    """A function of torch, which keeps this mode by thread; where it is not imported, one that does nothing."""
    return getattr(sys.modules.get("torch"), name, None) or _nothing


def _nothing(*_: object) -> None:
    return None


def _tell_away(name: str, seconds: float, because: str) -> None:
    import logging

    logging.getLogger("ubatch").warning(
        "the handler %r keeps the hub away for %.0f ms at a time, and no other request of this worker is served "
        "meanwhile. It stays on the hub because %s. Let it compute apart from that, in a batcher of its own, which "
        "then runs natively; or choose executor='native' and give it things of its own",
        name, seconds * 1000, because,
    )  # fmt: skip
