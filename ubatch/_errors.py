"""The error tree, split by what the caller may do next, and the copies that callers receive.

Guarantees:

* ``except NotProcessed`` catches exactly the requests that no handler has seen: a retry is safe.
* An exception reaches each caller as an instance of its own. One shared instance would grow a traceback per
  caller and carry one request's context into another.
* Every error of this module survives `pickle`.
"""

from __future__ import annotations

from contextlib import suppress
from types import MemberDescriptorType
from typing import Any


class UBatchError(Exception):
    """The base of every error that this library raises by itself.

    `http_status` is the status that a web application should answer with.
    """

    http_status = 500


class NotProcessed(UBatchError):
    """The handler never saw the request: trying again is safe."""

    http_status = 503


class QueueFull(NotProcessed):
    """`max_queue` requests are pending: this one was refused at once.

    `retry_after` is how many seconds the batcher takes, at its present rate, for what is pending.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class RequestCancelled(NotProcessed):
    """The request was cancelled before a batch took it."""


class DeadlineExceeded(UBatchError, TimeoutError):
    """The caller's time ran out.

    Raised as it is by ``request.result(timeout)``, which ends the wait and not the request.
    """

    http_status = 504


class QueueTimeout(NotProcessed, DeadlineExceeded):
    """The deadline passed while the request was pending: the handler never saw it."""

    http_status = 504


class ResultTimeout(DeadlineExceeded):
    """The deadline passed while the handler ran: the request may have had its effect."""


class BatcherClosed(UBatchError):
    """The batcher was stopped, or the process that would have answered is not this one.

    Its two kinds tell what may be done next: `QueueClosed` (never seen by the handler, try again elsewhere) and
    `ResultLost` (the handler had begun).
    """

    http_status = 503


class QueueClosed(NotProcessed, BatcherClosed):
    """The batcher was stopped before the handler saw the request: trying again is safe."""


class ResultLost(BatcherClosed):
    """The batcher was stopped while the handler ran: the request may have had its effect."""


class BadBatchOutput(UBatchError):
    """The handler returned something that has no length and order, so that no output belongs to a caller."""


class BadBatchOutputSize(BadBatchOutput):
    """The handler returned another number of outputs than it was given inputs.

    >>> str(BadBatchOutputSize(3, 2))
    'the handler must return one output per input: 3 inputs, but got 2 outputs'
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__(input_size, output_size)
        self.input_size = input_size
        self.output_size = output_size

    def __str__(self) -> str:
        return (
            "the handler must return one output per input: "
            f"{_count(self.input_size, 'input')}, but got {_count(self.output_size, 'output')}"
        )


class HandlerAborted(UBatchError):
    """The handler ended with something that is no `Exception`, such as `SystemExit` or `gevent.Timeout`.

    Raised in a caller, the original would end its greenlet, its thread or the whole process; it is the
    ``__cause__`` instead. The handler may have had its effect.
    """


class HandlerNotSet(UBatchError):
    """A call came before ``set_handler``: a mistake in the program."""


class HandlerAlreadySet(UBatchError):
    """``set_handler`` was called twice: a mistake in the program."""


class ReentrantCall(UBatchError):
    """A handler waits for its own batcher in a way that can never end: a mistake in the program."""


def for_caller(error: Exception) -> Exception:
    """A fresh copy of `error` to raise in one caller; the handler's own exception becomes the ``__cause__``."""
    try:
        copy = _copy(error)
    except Exception:  # a class that refuses to be made again
        copy = HandlerAborted(f"the handler raised an exception that cannot be copied: {error!r}")
    cause = error.__cause__ if isinstance(error, UBatchError) else error
    object.__setattr__(copy, "__cause__", cause)
    return copy


# ---------------------------------------------------------------------------------------------------------------------

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: set for every class made by a `class` statement, not for the built-in ones


def _copy(error: Exception) -> Exception:
    """A new instance of the same type and state, made without running any `__init__` that is not built in.

    A class of the user's may want other arguments than `args` holds, and its `__init__` may have effects.
    """
    cls = type(error)
    builtin: Any = next(c for c in cls.__mro__ if not c.__flags__ & _HEAP_TYPE)
    args = builtin.__reduce__(error)[1]  # an OSError's file names are in no `args`
    if hasattr(builtin, "derive"):  # an exception group, whose `args` are what its class was called with
        args = (error.message, error.exceptions)  # type: ignore[attr-defined]
    copy: Exception = builtin.__new__(cls, *args)
    builtin.__init__(copy, *args)
    object.__setattr__(copy, "args", error.args)  # past a `__setattr__` of the user's
    for c in cls.__mro__:  # `__slots__`, and the fields that built-in classes keep in C, such as ImportError.name
        for descriptor in vars(c).values():
            if isinstance(descriptor, MemberDescriptorType):
                _copy_field(descriptor, error, copy)
    copy.__dict__.update(error.__dict__)
    if "__notes__" in copy.__dict__:
        copy.__dict__["__notes__"] = list(copy.__dict__["__notes__"])
    return copy


def _copy_field(field: MemberDescriptorType, source: object, target: object) -> None:
    with suppress(AttributeError, TypeError):  # a slot never set, or a field read-only (then `args` carried it)
        value = field.__get__(source)
        if value is not None or field.__objclass__.__flags__ & _HEAP_TYPE:  # C keeps "not set" apart from None
            field.__set__(target, value)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
