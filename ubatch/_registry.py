"""Which batchers have been called in this process, and the lock under which one gets its collector there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ._errors import interrupted_a_first_call
from ._runtime import current_process
from ._runtime._native import RLock

if TYPE_CHECKING:
    from ._batcher import UBatch


def called_batchers() -> list[UBatch[Any, Any]]:
    """The batchers that have been called in this process and still are, in the order of their first calls.

    What a health check or a page about a worker needs.

    >>> from ubatch import UBatch, called_batchers
    >>> squares = UBatch[int, int](8, 0.01, name="squares").set_handler(lambda xs: [x * x for x in xs])
    >>> squares in called_batchers()
    False
    >>> squares.ubatch(3)
    9
    >>> squares in called_batchers()
    True
    >>> squares.stop()
    True
    """
    batchers = [reference() for reference in _called.valuerefs()]
    return [batcher for batcher in batchers if batcher is not None and current_process() in batcher._collectors]


def remember(batcher: UBatch[Any, Any]) -> None:
    """It has been called."""
    _called[id(batcher)] = batcher


@contextmanager
def registering(what: str) -> Iterator[None]:
    """A section in which a collector is looked for and put in its place, or options change: one at a time.

    Raises ReentrantCall where the caller has interrupted such a section of its own thread, and so would break it.
    """
    if _lock._is_owned():
        raise interrupted_a_first_call(what)
    with _lock:
        yield


# ---------------------------------------------------------------------------------------------------------------------


_called: WeakValueDictionary[int, UBatch[Any, Any]] = WeakValueDictionary()  # by id, in the order of first calls
_lock = RLock()


def _renew_after_fork() -> None:
    """In a child: the thread that held it may be the parent's alone."""
    global _lock
    _lock = RLock()


os.register_at_fork(after_in_child=_renew_after_fork)
