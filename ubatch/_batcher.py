"""`UBatch`: what a program holds on to. It checks what it is given, and finds the collector of the current process.

Guarantees:

* Constructing one stores data and starts nothing: no thread, greenlet, lock, queue or hub. So a module may make it,
  before a fork, before `gevent.monkey.patch_all()`, anywhere.
* A mistake in options or arguments raises at once in the caller that made it, and never joins a batch.
* The first call in each process makes the runtime of that process. What a fork left behind is never touched again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar, overload
from weakref import finalize, ref

from . import _runtime
from ._core.collector import Collector
from ._core.handler import Respelling, form_of, refuse_what_cannot_answer, respelling, signature_of
from ._core.options import UNLIMITED, Options
from ._core.request import Out, Request, Submitted
from ._core.state import Lifecycle, State
from ._deadline import time_left
from ._errors import HandlerAlreadySet, HandlerNotSet, batcher_is_stopped
from ._instrument import Instrument
from ._map import Mappable, answers
from ._registry import registering, remember
from ._runtime import RUNTIMES, Runtime, choose, current_process, handler_name
from ._statistics import Statistics
from ._validation import count, flag, function, one_of, seconds

if TYPE_CHECKING:
    from inspect import Signature

In = TypeVar("In")
_Out_co = TypeVar("_Out_co", covariant=True)
_Self = TypeVar("_Self", bound="UBatch[Any, Any]")
_A = TypeVar("_A")
_B = TypeVar("_B")


class Outputs(Protocol[_Out_co]):
    """What a handler returns: anything with a length and an order, such as a list, a tuple or a numpy array."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[_Out_co]: ...


class UBatch(Mappable[In, Out]):
    """Groups the calls that are waiting, runs the handler once for all of them, and gives each caller its own answer.

    `max_size` is the most requests in one handler call, `timeout` seconds. A request waits for its batch

    * not at all, if it fills a batch of `max_size` and a slot at the handler is free;
    * with `eager`, until no other call can be on the way: under gevent, when the hub has nothing else to do, so
      whatever had arrived at the process has made its call; with plain threads, when for some 0.1 ms no call came;
    * else until the oldest request of its batch has waited for `timeout` seconds, with `eager` for as long since a slot
      was free;
    * and, whatever the above, while all `max_in_flight` slots are taken: then requests gather, and the fullest batch
      goes when a slot frees.

    `executor` says where the handler runs under gevent: "auto", on the hub, or natively from its second batch on where
    it takes more than 5 ms and waits for nothing; "native", on a native thread of the batcher's own, always;
    "greenlet", on the hub, always (with plain threads all three mean a native thread). `max_in_flight` is how many
    batches may be at the handler at once. `runtime` is "gevent", "threading" or "auto": whichever world the first call
    in the process comes from. `name` appears in errors and as the name of greenlets and threads (default: the handler's
    name).

    `max_queue` is how many requests may be pending, at least `max_size`; one more gets `QueueFull` at once. `deadline`
    is how many seconds a call may take (see also `ubatch.deadline`); then it raises `QueueTimeout` or `ResultTimeout`.
    `stall_after` is how many seconds a batch may be at the handler before that is logged, once, with the handler's
    stack, and shows in the state. With `isolate_errors` a handler that raises is run again with halves of the batch,
    until the failing items stand alone; it must be safe to run again. `should_isolate(exception)` says for which
    exceptions. `instruments` observe what happens: see `Instrument`.

    `max_size`, `timeout`, `max_queue`, `deadline` and `stall_after` may be set later as well: from the next call or
    batch on. A copy, or what was pickled, is a batcher with the same handler and options that has not been called.

    Raises TypeError or ValueError for an option that cannot be.

    >>> squares = UBatch[int, int](max_size=8, timeout=0.01).set_handler(lambda xs: [x * x for x in xs])
    >>> squares.ubatch(3)
    9
    >>> squares.map([1, 2, 3])
    [1, 4, 9]
    >>> squares.stop()
    True
    """

    def __init__(
        self,
        max_size: int,
        timeout: float,
        *,
        eager: bool = False,
        executor: str = "auto",
        max_in_flight: int = 1,
        max_queue: int | None = None,
        deadline: float | None = None,
        stall_after: float | None = None,
        isolate_errors: bool = False,
        should_isolate: Callable[[Exception], bool] | None = None,
        instruments: Iterable[Instrument] = (),
        runtime: str | Runtime = "auto",
        name: str | None = None,
    ) -> None:
        self._options = Options.checked(
            max_size,
            timeout,
            eager,
            executor,
            max_in_flight,
            max_queue,
            deadline,
            stall_after,
            isolate_errors,
            should_isolate,
            instruments,
        )
        self._runtime = runtime if isinstance(runtime, Runtime) else one_of("runtime", runtime, RUNTIMES)
        if not (name is None or (isinstance(name, str) and name)):
            raise TypeError(f"name must be a str that is not empty, or None; got {name!r}")
        self._name = name
        self._handler: Callable[..., Any] | None = None
        self._signature: Signature | None = None
        self._forms: dict[Hashable, Respelling | None] = {}  # of calls that fit the signature
        self._lifecycle = Lifecycle()
        self._collector: Collector | None = None  # of the process that called last
        self._collectors: dict[tuple[int, int], Collector] = {}

    @overload
    def set_handler(self: UBatch[NoReturn, NoReturn], handler: Callable[[list[_A]], Outputs[_B]]) -> UBatch[_A, _B]: ...

    @overload
    def set_handler(self: _Self, handler: Callable[..., Outputs[Out]]) -> _Self: ...

    def set_handler(self, handler: Callable[..., Any]) -> Any:
        """Set the function that answers a batch, `handler([x1 … xn]) -> [y1 … yn]`, and return this batcher.

        With several arguments it gets a list for each. It returns as many outputs as there were inputs; one that is an
        `Exception` instance is raised for its caller alone. It runs in an empty `contextvars` context.

        Raises HandlerAlreadySet the second time, TypeError where `handler` cannot be called.
        """
        if self._handler is not None:
            raise HandlerAlreadySet(f"the handler is {handler_name(self._handler)!r} already: make another UBatch")
        signature = signature_of(function("handler", handler))
        refuse_what_cannot_answer(handler, signature)
        self._handler, self._signature = handler, signature
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
        """Make a call without waiting: the request that is returned has `result(timeout)`, `done()`, `cancel()` and
        `add_done_callback(function)`. If it fails and nobody asks, an ERROR is logged.

        Raises TypeError where the arguments do not fit the handler, or a `UBatchError` where nothing can be accepted.
        """
        return self._submit(self._handler, args, kwargs)

    def start(self: _Self) -> _Self:
        """Open the batcher again after `stop`, and return it. Not needed before the first call, and starts nothing.

        Raises HandlerNotSet before `set_handler`, QueueClosed while `stop` still waits.
        """
        if self._handler is None:
            raise self._no_handler()
        with registering("start one"):  # a collector that comes now starts with what is said here
            collector = self._collector_here()
            if collector is None:
                self._lifecycle.stopped = False
        if collector is not None:
            collector.reopen()
        return self

    def stop(self, timeout: float | None = None) -> bool:
        """Accept no more calls (they get `QueueClosed`), answer the accepted ones, then end threads and greenlets.

        After `timeout` seconds fail what is left: `QueueClosed` for a request that no batch has taken, `ResultLost` for
        one at the handler. Without a timeout it waits as long as the handler takes. Returns True where all were
        answered in time, False where it gave up.

        Raises ReentrantCall in the batcher's own handler, unless there is a timeout.
        """
        within = None if timeout is None else seconds("timeout", timeout)
        self._lifecycle.stopped = True  # before it looks for a collector: a first call looks at it after it made one
        collector = self._collector_here()
        return collector is None or collector.drain(within)

    def __enter__(self: _Self) -> _Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def statistics(self) -> Statistics:
        """A snapshot of what this batcher has done in this process, and of its state now.

        >>> batcher = UBatch[int, int](2, 60.0).set_handler(list)
        >>> _ = batcher.map(range(4))
        >>> statistics = batcher.statistics()
        >>> statistics.answered, statistics.batches, statistics.reasons, statistics.sizes.mean
        (4, 2, {'full': 2}, 2.0)
        >>> batcher.stop()
        True
        """
        collector = self._collectors.get(current_process())
        if collector is not None:
            return collector.statistics()
        nothing_yet = State(self.name, self._options, self._lifecycle).fields()
        return Statistics(runtime="none yet", runs_on="none yet", hub_away=0.0, **nothing_yet)

    @property
    def max_size(self) -> int:
        """The most requests in one handler call. May be set: for the next batch on, and at most `max_queue`."""
        return self._options.policy.max_size

    @max_size.setter
    def max_size(self, value: int) -> None:
        with self._changing() as options:
            options.set_max_size(value)

    @property
    def timeout(self) -> float:
        """Seconds that the oldest request waits for company, at most. May be set: for what is pending, too."""
        return self._options.policy.timeout

    @timeout.setter
    def timeout(self, value: float) -> None:
        with self._changing() as options:
            options.set_timeout(value)

    @property
    def max_queue(self) -> int | None:
        """How many requests may be pending; None is no limit. May be set: for the next call on."""
        return None if self._options.max_queue == UNLIMITED else self._options.max_queue

    @max_queue.setter
    def max_queue(self, value: int | None) -> None:
        with self._changing() as options:
            options.set_max_queue(value)

    @property
    def deadline(self) -> float | None:
        """Seconds that a call may take; None is no limit. May be set: for the next call on."""
        return None if self._options.deadline == inf else self._options.deadline

    @deadline.setter
    def deadline(self, value: float | None) -> None:
        with self._changing() as options:
            options.set_deadline(value)

    @property
    def stall_after(self) -> float | None:
        """Seconds at the handler after which a batch is reported; None is never. May be set: for what runs, too."""
        return None if self._options.stall_after == inf else self._options.stall_after

    @stall_after.setter
    def stall_after(self, value: float | None) -> None:
        with self._changing() as options:
            options.set_stall_after(value)

    @property
    def stopped(self) -> bool:
        """Whether calls are refused: after `stop`, and while it waits."""
        return self._lifecycle.stopped

    @property
    def stalled(self) -> bool:
        """Whether a handler has run for longer than `stall_after` and has not come back."""
        collector = self._collectors.get(current_process())
        return collector is not None and collector.counts()[2]

    @property
    def name(self) -> str:
        """The name given, or the handler's."""
        return self._name or ("no handler" if self._handler is None else handler_name(self._handler))

    def __getstate__(self) -> dict[str, Any]:
        """What a copy shares: all but what came of calls, in this process."""
        return self.__dict__ | {
            "_options": replace(self._options),
            "_signature": None,
            "_forms": {},
            "_lifecycle": Lifecycle(),
            "_collector": None,
            "_collectors": {},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._handler is not None:
            self._signature = signature_of(self._handler)

    def __deepcopy__(self: _Self, memo: dict[int, Any]) -> _Self:
        """A copy whose handler is bound to the copy of its object; instruments and runtime are shared."""
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        state = self.__getstate__()
        shared = {"_options", "_runtime", "_lifecycle"}
        copied.__setstate__({key: state[key] if key in shared else deepcopy(state[key], memo) for key in state})
        return copied

    def __repr__(self) -> str:
        return f"<UBatch {self.name!r} max_size={self.max_size} timeout={self.timeout}: {self._state()}>"

    # -----------------------------------------------------------------------------------------------------------------

    def _call(self, handler: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Out:
        # The whole path: a request to the collector of this process; it is admitted; its caller parks for the answer.
        collector, request = self._request(Request, handler, args, kwargs)
        waiter = request.expect()
        collector.accept(request)
        return request.answer(waiter)

    def _submit(
        self, handler: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Request[Out]:
        collector, request = self._request(Submitted, handler, args, kwargs)
        collector.accept(request)
        return request

    def _request(
        self,
        kind: type[Request[Out]],
        handler: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Collector, Request[Out]]:
        form = form_of(args, kwargs)
        respell = self._forms[form] if form in self._forms else self._learn(args, kwargs, form)
        if respell is not None:
            args, kwargs, form = respell(args, kwargs)
        collector = self._collector
        if collector is None or collector.forks != _runtime.forks or _runtime.FORKS_UNSEEN:
            collector = self._open()
        now = collector.clock()
        deadline_at = now + time_left(self._options.deadline)
        return collector, kind(collector, handler, args, kwargs, form, now, deadline_at)  # type: ignore[arg-type]

    def _answers(
        self, columns: tuple[Iterable[Any], ...], window: int | None, return_exceptions: bool
    ) -> Iterator[Any]:
        return self._answers_of(self._handler, columns, window, return_exceptions)

    def _answers_of(
        self,
        handler: Callable[..., Any] | None,
        columns: tuple[Iterable[Any], ...],
        window: int | None,
        return_exceptions: bool,
    ) -> Iterator[Any]:
        def submit(args: tuple[Any, ...]) -> Request[Out]:
            collector, request = self._request(Request, handler, args, {})
            collector.accept(request, patient=True)
            return request

        batches = self._options.max_in_flight + 1
        return answers(
            submit,
            zip(*columns, strict=False),
            batches * self.max_size if window is None else count("window", window),
            flag("return_exceptions", return_exceptions),
        )

    def _learn(self, args: tuple[Any, ...], kwargs: dict[str, Any], form: Hashable) -> Respelling | None:
        """How to spell a call of a form that is new; refuse one that the handler does not take."""
        if self._handler is None:
            raise self._no_handler()
        name = handler_name(self._handler)
        if not args and not kwargs:
            raise TypeError(f"a call to {name!r} must have at least one argument; got none")
        try:
            respell = respelling(self._signature, args, kwargs)
        except TypeError as error:
            raise TypeError(f"the arguments must fit the handler {name}{self._signature}: {error}") from None
        if len(self._forms) < MOST_FORMS:
            self._forms[form] = respell
        return respell

    @contextmanager
    def _changing(self) -> Iterator[Options]:
        """Change options: one change at a time, seen by the collector of this process at once."""
        with registering("change options"):
            yield self._options
            collector = self._collector_here()
        if collector is not None:
            collector.reconsider()

    def _collector_here(self) -> Collector | None:
        """The collector of this process, if there is one, and its loop has not ended."""
        process = current_process()
        collector = self._collectors.get(process)
        return collector if collector is not None and collector.process == process else None

    def _no_handler(self) -> HandlerNotSet:
        return HandlerNotSet("a handler must be set before the first call: set_handler(handler)")

    def _open(self) -> Collector:
        """The collector of this process. Of several threads that come first, one sets it.

        Whether the batcher is stopped the collector asks when it accepts, so a `stop` that comes in between is heeded.
        """
        if self.stopped:
            raise batcher_is_stopped(self.name)
        collector = self._collector_here()
        if collector is None:
            made = Collector(self.name, self._options, choose(self._runtime), self._lifecycle)
            made.belongs_to(ref(self))
            end = finalize(self, made.drain_without_waiting)
            end.atexit = False
            collector = self._register(made)
            if collector is made:
                remember(self)
                for observe in collector.observers.batcher_opened:
                    observe(collector)
            else:
                end.detach()
        self._collector = collector
        return collector

    def _register(self, made: Collector) -> Collector:
        """Make it the collector of this process, unless there is one by now. Returns the one that there is."""
        with registering("make another"):
            collector = self._collector_here()
            if collector is None:
                self._collectors[made.process] = collector = made
            return collector

    def _state(self) -> str:
        if self._handler is None:
            return "no handler"
        collector = self._collectors.get(current_process())
        state = "stopped" if self.stopped else "open"
        if collector is None:
            return f"{state}, not called yet"
        pending, in_flight, stalled = collector.counts()
        counts = f"{pending} pending, {in_flight} in flight"
        return f"{state}, {counts}, {collector.runtime.name}" + (", stalled" if stalled else "")


MOST_FORMS = 256  # remembered; a handler that takes **named could be called with names without end
