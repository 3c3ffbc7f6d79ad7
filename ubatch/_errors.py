"""The error tree, split by what the caller may do next, and the copies that callers receive.

Guarantees:

* ``except NotProcessed`` catches exactly the requests that no handler has seen: a retry is safe.
* An exception reaches each caller as an instance of its own. One shared instance would grow a traceback per
  caller and carry one request's context into another.
* Every error of this module survives `pickle`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from copy import copy
from traceback import clear_frames
from types import FrameType, MemberDescriptorType
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

    def __init__(self, input_size: int, output_size: int, handler: str = "", got: str = "") -> None:
        super().__init__(input_size, output_size, handler, got)
        self.input_size = input_size
        self.output_size = output_size

    def __str__(self) -> str:
        _, _, handler, got = self.args
        return (
            (f"the handler {handler!r} " if handler else "the handler ")
            + "must return one output per input: "
            + f"{_count(self.input_size, 'input')}, but got {_count(self.output_size, 'output')}"
            + (f", of {got}" if got else "")
            + (": a squeeze() of a batch of one?" if self.input_size == 1 and "shape" in got else "")
        )


class HandlerAborted(UBatchError):
    """The handler ended with something that must not be raised in a caller as it is; it is the ``__cause__`` instead.

    What is no `Exception`, such as `SystemExit` or `gevent.Timeout`, would end the caller's greenlet, its thread or the
    whole process. A `NotProcessed` of another batcher would say that this handler never ran. It may have had its
    effect.
    """


class HandlerNotSet(UBatchError):
    """A call came before ``set_handler``: a mistake in the program."""


class HandlerAlreadySet(UBatchError):
    """``set_handler`` was called twice: a mistake in the program."""


class ReentrantCall(UBatchError):
    """A handler waits for its own batcher in a way that can never end: a mistake in the program."""


# What a batcher raises by itself, in its words.


def batcher_is_stopped(name: str) -> QueueClosed:
    return QueueClosed(f"the batcher {name!r} is stopped: start() opens it again")


def still_stopping(name: str) -> QueueClosed:
    return QueueClosed(f"the batcher {name!r} is still stopping: call start() when stop() has returned")


def stopped_before(because: str) -> QueueClosed:
    return QueueClosed(f"{because} before a batch took the request: try again elsewhere")


def lost(because: str) -> ResultLost:
    return ResultLost(f"{because} while the handler ran: the request may have had its effect")


def killed(name: str) -> NotProcessed:
    return NotProcessed(f"the collector of {name!r} was killed: try again")


def queue_is_full(name: str, max_queue: int, retry_after: float, note: str) -> QueueFull:
    return QueueFull(
        f"at most max_queue={max_queue} requests may be pending in {name!r}; "
        f"try again in {retry_after:.3f} seconds{note}",
        retry_after,
    )


def deadline_passed(name: str, seen: bool = False, note: str = "") -> QueueTimeout | ResultTimeout:
    """While the request was pending; or, where the handler has `seen` it, while that ran."""
    if seen:
        return ResultTimeout(
            f"the deadline passed while the handler {name!r} ran: the request may have had its effect{note}"
        )
    return QueueTimeout(
        f"the deadline passed while the request was pending in {name!r}: the handler never saw it{note}"
    )


def no_answer_yet(timeout: float | None, seen: bool) -> DeadlineExceeded:
    """The wait of one who asked is over, and the request goes on."""
    where = "at the handler" if seen else "waiting for a batch"
    return DeadlineExceeded(f"no answer within {timeout} seconds: the request is still {where}")


def made_in_another_process() -> ResultLost:
    return ResultLost("the call was made in another process, before a fork: only that one can answer it")


def handler_waits_for_itself(handler: str) -> ReentrantCall:
    return ReentrantCall(
        f"the handler {handler} waits for its own batcher, which has no slot left to answer: "
        "call the function directly, or give the batcher a higher max_in_flight"
    )


def handler_stops_itself() -> ReentrantCall:
    return ReentrantCall("a handler must not wait for its own batcher to stop: give stop() a timeout")


def interrupted_at_work(name: str) -> ReentrantCall:
    return ReentrantCall(
        f"a signal handler or finalizer that interrupted the batcher {name!r} at work must not wait for "
        "it: submit() there, and ask for the result elsewhere"
    )


def interrupted_a_first_call(what: str) -> ReentrantCall:
    return ReentrantCall(
        f"a signal handler or finalizer that interrupted a first call, or a change of options, must not {what}: "
        "try later"
    )


# What a caller receives of an error.


def for_caller(error: Exception) -> Exception:
    """A fresh copy of `error` to raise in one caller of several; the handler's own becomes the ``__cause__``.

    A class that cannot be copied in any way is raised as it is, in each of them.
    """
    made = copied(error)
    if made is not error:
        cause = error.__cause__ if isinstance(error, UBatchError) else error
        object.__setattr__(made, "__cause__", cause)
    return made


def copied(error: Exception) -> Exception:
    """A new instance of the same type and state; the same one where there is no way to make it.

    First without running any `__init__`; then as `copy.copy` does, which runs what the class says (`__copy__`,
    `__reduce__`): pydantic's and lxml's are made in C.
    """
    try:
        return _copy(error)
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError):  # a class that refuses to be made so
        pass  # whatever else it is, an alarm may have raised it, and must not be lost
    try:
        again = copy(error)
    except Exception:
        return error
    return again if type(again) is type(error) else error


def through_a_handler(error: Exception, handler: str) -> Exception:
    """What a handler raised, as its callers may see it: one that says `NotProcessed` speaks of another batcher."""
    if not isinstance(error, NotProcessed):
        return error
    kind: type[UBatchError] = HandlerAborted
    if isinstance(error, DeadlineExceeded):
        kind = ResultTimeout
    elif isinstance(error, BatcherClosed):
        kind = ResultLost
    told = kind(f"the handler {handler!r} ran, and may have had its effect, when it raised {error!r}")
    told.__cause__ = error
    return told


def forget_frames(error: BaseException) -> None:
    """Let go of what the frames of a traceback hold, inputs and tensors and the exception itself; the lines stay."""
    for link in _chain(error):
        clear_frames(link.__traceback__)


def without_our_frames(error: BaseException) -> bool:
    """Let the traceback begin in the handler. Returns whether it came through us; if not, the handler has caught it."""
    traceback = error.__traceback__
    ours = False
    while traceback is not None and _is_ours(traceback.tb_frame):
        traceback, ours = traceback.tb_next, True
    if ours:
        error.__traceback__ = traceback
    return ours


def clear_our_frames(error: BaseException) -> None:
    """Let those of our frames that have ended go of what they hold: the batch, which holds the error. A circle.

    They stay, behind the handler's: a frame keeps the one that called it.
    """
    for link in _chain(error):
        frame = None if link.__traceback__ is None else link.__traceback__.tb_frame.f_back
        with suppress(RuntimeError):  # from here on they still run; these let go themselves
            while frame is not None:
                if _is_ours(frame):
                    frame.clear()
                frame = frame.f_back


# ---------------------------------------------------------------------------------------------------------------------


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _is_ours(frame: FrameType) -> bool:
    package = frame.f_globals.get("__package__") or ""
    return package == __package__ or package.startswith(f"{__package__}.")


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
    made: Exception = builtin.__new__(cls, *args)
    builtin.__init__(made, *args)
    object.__setattr__(made, "args", error.args)  # past a `__setattr__` of the user's
    for c in cls.__mro__:  # `__slots__`, and the fields that built-in classes keep in C, such as ImportError.name
        for descriptor in vars(c).values():
            if isinstance(descriptor, MemberDescriptorType):
                _copy_field(descriptor, error, made)
    made.__dict__.update(error.__dict__)
    if "__notes__" in made.__dict__:
        made.__dict__["__notes__"] = list(made.__dict__["__notes__"])
    return made


def _copy_field(field: MemberDescriptorType, source: object, target: object) -> None:
    with suppress(AttributeError, TypeError):  # a slot never set, or a field read-only (then `args` carried it)
        value = field.__get__(source)
        if value is not None or field.__objclass__.__flags__ & _HEAP_TYPE:  # C keeps "not set" apart from None
            field.__set__(target, value)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
