"""`UBatch`: what a program holds on to. It checks what it is given, and finds the collector of the current process.

Guarantees:

* Constructing one stores data and starts nothing: no thread, greenlet, lock, queue or hub. So a module may make it,
  before a fork, before `gevent.monkey.patch_all()`, anywhere.
* A mistake in options or arguments raises at once in the caller that made it, and never joins a batch.
* The first call in each process makes the runtime of that process. What a fork left behind is never touched again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import suppress
from inspect import Signature, signature
from math import inf
from numbers import Integral, Real
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, overload
from weakref import finalize

from . import _runtime
from ._collector import Collector
from ._errors import HandlerAlreadySet, HandlerNotSet, QueueClosed
from ._policy import FixedWait
from ._request import Out, Request, handler_name
from ._runtime import RUNTIMES, Runtime, choose, current_process

In = TypeVar("In")
_Out_co = TypeVar("_Out_co", covariant=True)
_Self = TypeVar("_Self", bound="UBatch[Any, Any]")

EXECUTORS = ("native", "greenlet")


class Outputs(Protocol[_Out_co]):
    """What a handler returns: anything with a length and an order, such as a list, a tuple or a numpy array."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[_Out_co]: ...


class UBatch(Generic[In, Out]):
    """Groups the calls that are waiting, runs the handler once for all of them, and gives each caller its own answer.

    `max_size` is the most requests in one handler call. `timeout` is how many seconds, at most, the oldest request
    waits for company while there is a place at the handler; while there is none, requests gather.

    `executor` says where the handler runs: "native", on a native thread of the batcher's own, for handlers that
    release the GIL; "greenlet", on the hub, for handlers that do cooperative input and output (with plain threads both
    mean a native thread). `max_in_flight` is how many batches may be at the handler at once. `runtime` is "gevent",
    "threading" or "auto": whichever world the first call in the process comes from. `name` appears in errors and as
    the name of greenlets and threads (default: the handler's name).

    Raises TypeError or ValueError for an option that cannot be.

    >>> squares = UBatch[int, int](max_size=8, timeout=0.01).set_handler(lambda xs: [x * x for x in xs])
    >>> squares.ubatch(3)
    9
    >>> squares.map([1, 2, 3])
    [1, 4, 9]
    >>> squares.stop()
    """

    def __init__(
        self,
        max_size: int,
        timeout: float,
        *,
        executor: str = "native",
        max_in_flight: int = 1,
        runtime: str | Runtime = "auto",
        name: str | None = None,
    ) -> None:
        self._policy = FixedWait(_count("max_size", max_size), _seconds("timeout", timeout))
        self._executor = _one_of("executor", executor, EXECUTORS)
        self._max_in_flight = _count("max_in_flight", max_in_flight)
        self._runtime = runtime if isinstance(runtime, Runtime) else _one_of("runtime", runtime, RUNTIMES)
        if not (name is None or (isinstance(name, str) and name)):
            raise TypeError(f"name must be a str that is not empty, or None; got {name!r}")
        self._name = name
        self._handler: Callable[..., Any] | None = None
        self._signature: Signature | None = None
        self._shapes: set[Hashable] = set()  # the shapes of calls that fit the signature
        self._stopped = False
        self._collector: Collector | None = None  # of the process that called last
        self._collectors: dict[tuple[int, int], Collector] = {}

    def set_handler(self: _Self, handler: Callable[..., Outputs[Out]]) -> _Self:
        """Set the function that answers a batch, `handler([x1 … xn]) -> [y1 … yn]`, and return this batcher.

        With several arguments it gets a list for each. It returns as many outputs as there were inputs; one that is an
        `Exception` instance is raised for its caller alone. It runs in an empty `contextvars` context.

        Raises HandlerAlreadySet the second time, TypeError where `handler` cannot be called.
        """
        if self._handler is not None:
            raise HandlerAlreadySet(f"the handler is {handler_name(self._handler)!r} already: make another UBatch")
        if not callable(handler):
            raise TypeError(f"handler must be callable; got {handler!r}")
        self._handler = handler
        with suppress(ValueError):  # many functions made in C tell no signature
            self._signature = signature(handler)
        return self

    @overload
    def ubatch(self, item: In, /, *more: Any, **named: Any) -> Out: ...

    @overload
    def ubatch(self, **named: Any) -> Out: ...

    def ubatch(self, *args: Any, **kwargs: Any) -> Out:
        """Answer one call: wait for the batch that this call joins, and return this call's output.

        Parks this greenlet or thread and no other. Every argument goes to the handler as a list, one entry per call.

        Raises what the handler raised (a fresh instance, the original as its ``__cause__``), TypeError where the
        arguments do not fit the handler, or a `UBatchError`.
        """
        return self._call(self._handler, args, kwargs)

    @overload
    def submit(self, item: In, /, *more: Any, **named: Any) -> Request[Out]: ...

    @overload
    def submit(self, **named: Any) -> Request[Out]: ...

    def submit(self, *args: Any, **kwargs: Any) -> Request[Out]:
        """Make a call without waiting: the request that is returned has `result(timeout)`, `done()` and `cancel()`.

        Raises TypeError where the arguments do not fit the handler, or a `UBatchError` where nothing can be accepted.
        """
        return self._submit(self._handler, args, kwargs)

    def map(self, items: Iterable[In], /, *more: Iterable[Any]) -> list[Out]:
        """Make a call for each item, all at once, and return the answers in order.

        With several iterables, as the built-in `map`: one argument from each, until the shortest ends.

        Raises the first error in the order of the items; what no batch has taken by then is cancelled.
        """
        return self._map(self._handler, items, *more)

    def start(self: _Self) -> _Self:
        """Open the batcher again after `stop`, and return it. Not needed before the first call, and starts nothing.

        Raises QueueClosed while `stop` still waits.
        """
        if self._stopped and (collector := self._collectors.get(current_process())) is not None:
            collector.reopen()
        self._stopped = False
        return self

    def stop(self, timeout: float | None = None) -> None:
        """Accept no more calls (they get `QueueClosed`), answer the accepted ones, then end threads and greenlets.

        After `timeout` seconds fail what is left: `QueueClosed` for a request that no batch has taken, `ResultLost` for
        one at the handler. Without a timeout it waits as long as the handler takes.

        Raises ReentrantCall in the batcher's own handler, unless there is a timeout.
        """
        limit = None if timeout is None else _seconds("timeout", timeout)
        self._stopped = True
        collector = self._collectors.get(current_process())
        if collector is not None:
            collector.drain(limit)

    def __enter__(self: _Self) -> _Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def name(self) -> str:
        """The name given, or the handler's."""
        return self._name or ("no handler" if self._handler is None else handler_name(self._handler))

    def __repr__(self) -> str:
        policy = self._policy
        return f"<UBatch {self.name!r} max_size={policy.max_size} timeout={policy.timeout}: {self._state()}>"

    # -----------------------------------------------------------------------------------------------------------------

    def _call(self, handler: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Out:
        request = self._request(handler, args, kwargs)
        waiter = request.expect()
        request.collector.accept(request)
        return request.answer(waiter)

    def _submit(
        self, handler: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Request[Out]:
        request = self._request(handler, args, kwargs)
        request.collector.accept(request)
        return request

    def _request(
        self, handler: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Request[Out]:
        shape: Hashable = (len(args), frozenset(kwargs)) if kwargs else len(args)
        if shape not in self._shapes:
            self._check(args, kwargs, shape)
        collector = self._collector
        if collector is None or collector.forks != _runtime.forks or _runtime.FORKS_UNSEEN:
            collector = self._open()
        return Request(collector, handler, args, kwargs, shape, collector.clock())  # type: ignore[arg-type]

    def _map(self, handler: Callable[..., Any] | None, *columns: Iterable[Any]) -> list[Out]:
        requests: list[Request[Out]] = []
        try:
            for args in zip(*columns, strict=False):
                requests.append(self._submit(handler, args, {}))
            return [request.result() for request in requests]
        except BaseException:
            for request in requests:
                request.cancel()
            raise

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Hashable) -> None:
        """Refuse a call of a shape that the handler does not take; remember one that it does."""
        if self._handler is None:
            raise HandlerNotSet("a handler must be set before the first call: set_handler(handler)")
        name = handler_name(self._handler)
        if not args and not kwargs:
            raise TypeError(f"a call to {name!r} must have at least one argument; got none")
        if self._signature is not None:
            try:
                self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"the arguments must fit the handler {name}{self._signature}: {error}") from None
        if len(self._shapes) < MOST_SHAPES:
            self._shapes.add(shape)

    def _open(self) -> Collector:
        """The collector of this process. Of several threads that come first, one sets it, without a lock."""
        if self._stopped:
            raise QueueClosed(f"the batcher {self.name!r} is stopped: start() opens it again")
        process = current_process()
        collector = self._collectors.get(process)
        if collector is None or collector.process != process:
            self._collectors.pop(process, None)
            made = Collector(self.name, self._policy, choose(self._runtime), self._executor, self._max_in_flight)
            collector = self._collectors.setdefault(process, made)
            if collector is made:
                finalize(self, made.forsake).atexit = False
        self._collector = collector
        return collector

    def _state(self) -> str:
        if self._handler is None:
            return "no handler"
        collector = self._collectors.get(current_process())
        state = "stopped" if self._stopped else "open"
        if collector is None:
            return f"{state}, not called yet"
        pending, in_flight = collector.counts()
        return f"{state}, {pending} pending, {in_flight} in flight, {collector.runtime.name}"


MOST_SHAPES = 256  # remembered; a handler that takes **named could be called with names without end


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int of at least 1; got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be an int of at least 1; got {value!r}")
    return int(value)


def _seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number of seconds, at least 0; got {value!r}")
    if not 0 <= value < inf:
        raise ValueError(f"{name} must be a number of seconds, at least 0; got {value!r}")
    return float(value)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
    return value
