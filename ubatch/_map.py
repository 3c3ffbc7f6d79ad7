"""Many calls of one caller: at most a window of them is on the way at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Literal, TypeVar, overload

from ._core.request import FAILED, Out, Request
from ._errors import DeadlineExceeded, NotProcessed, ResultLost, ResultTimeout, UBatchError

In = TypeVar("In")
Call = tuple[Any, ...]  # its arguments


class Mappable(Generic[In, Out]):
    """The methods `map` and `imap` of what makes calls."""

    __slots__ = ()

    @overload
    def map(self, items: Iterable[In], /, *more: Iterable[Any], window: int | None = None) -> list[Out]: ...

    @overload
    def map(
        self, items: Iterable[In], /, *more: Iterable[Any], window: int | None = None, return_exceptions: Literal[True]
    ) -> list[Out | Exception]: ...

    @overload
    def map(
        self, items: Iterable[In], /, *more: Iterable[Any], window: int | None = None, return_exceptions: bool
    ) -> list[Any]: ...

    def map(
        self,
        items: Iterable[In],
        /,
        *more: Iterable[Any],
        window: int | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Make a call for each item, and return the answers in order.

        With several iterables, as the built-in `map`: one argument from each, until the shortest ends. At most `window`
        of its items are pending or at the handler, so that others get their turn: by default one batch more than can be
        at the handler. Where the queue is full it waits for room. The batcher's deadline counts for each item, from
        its call; that of `ubatch.deadline` for all of them.

        Raises the first error in the order of the items; what no batch has taken by then is cancelled. It is a
        `NotProcessed` only if no item was processed: else the same from the middle of it is a `ResultTimeout` or a
        `ResultLost`. With `return_exceptions` the exceptions stand among the answers.

        >>> from ubatch import ubatch_decorator
        >>> @ubatch_decorator(max_size=8, timeout=0.01)
        ... def roots(xs: list[float]) -> list[float | Exception]:
        ...     return [x**0.5 if x >= 0 else ValueError(x) for x in xs]
        >>> roots.map([1, 4, -9], return_exceptions=True)
        [1.0, 2.0, ValueError(-9)]
        >>> roots.batcher.stop()
        True
        """
        return list(self._answers((items, *more), window, return_exceptions))

    @overload
    def imap(self, items: Iterable[In], /, *more: Iterable[Any], window: int | None = None) -> Iterator[Out]: ...

    @overload
    def imap(
        self, items: Iterable[In], /, *more: Iterable[Any], window: int | None = None, return_exceptions: Literal[True]
    ) -> Iterator[Out | Exception]: ...

    @overload
    def imap(
        self, items: Iterable[In], /, *more: Iterable[Any], window: int | None = None, return_exceptions: bool
    ) -> Iterator[Any]: ...

    def imap(
        self,
        items: Iterable[In],
        /,
        *more: Iterable[Any],
        window: int | None = None,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        """`map`, lazily: an iterator that takes items as it gives answers, and never holds more than `window` of both.

        What no batch has taken when it is closed, or forgotten, is cancelled; it is closed where it is iterated.

        >>> from itertools import count, islice
        >>> from ubatch import UBatch
        >>> squares = UBatch[int, int](max_size=8, timeout=0.01).set_handler(lambda xs: [x * x for x in xs])
        >>> list(islice(squares.imap(count()), 5))
        [0, 1, 4, 9, 16]
        >>> squares.stop()
        True
        """
        return self._answers((items, *more), window, return_exceptions)

    def _answers(
        self, columns: tuple[Iterable[Any], ...], window: int | None, return_exceptions: bool
    ) -> Iterator[Any]:
        raise NotImplementedError


def answers(
    submit: Callable[[Call], Request[Any]], calls: Iterable[Call], window: int, return_exceptions: bool
) -> Iterator[Any]:
    """The answers to `calls`, in their order. Those that are on the way when it ends early are cancelled."""
    ahead: deque[Request[Any] | NotProcessed] = deque()
    reached = False  # whether a handler has seen one of the calls
    try:
        for call in calls:
            if len(ahead) >= window:
                yield _outcome(ahead[0], return_exceptions)
                reached = _is_reached(ahead.popleft()) or reached
            ahead.append(_submitted(submit, call, return_exceptions))
        while ahead:
            yield _outcome(ahead[0], return_exceptions)
            reached = _is_reached(ahead.popleft()) or reached
    except NotProcessed as error:
        _cancel(ahead)
        if reached or any(_is_reached(one) for one in ahead):
            raise _half_done(error) from error
        raise
    finally:
        _cancel(ahead)


def _submitted(
    submit: Callable[[Call], Request[Any]], call: Call, return_exceptions: bool
) -> Request[Any] | NotProcessed:
    try:
        return submit(call)
    except NotProcessed as error:
        if not return_exceptions:
            raise
        return error


def _outcome(one: Request[Any] | NotProcessed, return_exceptions: bool) -> Any:
    if isinstance(one, NotProcessed):
        return one
    try:
        return one.result()
    except Exception as error:
        if not return_exceptions or one._state < FAILED:  # then it came from outside, and is not this call's
            raise
        return error


def _is_reached(one: Request[Any] | NotProcessed) -> bool:
    return not isinstance(one, NotProcessed) and one.timing is not None and not isinstance(one._outcome, NotProcessed)


def _cancel(ahead: Iterable[Request[Any] | NotProcessed]) -> None:
    for one in ahead:
        if not isinstance(one, NotProcessed):
            one.cancel()


def _half_done(error: NotProcessed) -> UBatchError:
    kind = ResultTimeout if isinstance(error, DeadlineExceeded) else ResultLost
    return kind(f"{error}; but other items of this map were processed, so to try all of it again is not safe")
