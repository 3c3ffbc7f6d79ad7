"""`UBatch`: what a program holds on to. It checks what it is given, and finds the collector of the current process.

Guarantees:

* Constructing one stores data and starts nothing: no thread, greenlet, lock, queue or hub. So a module may make it,
  before a fork, before `gevent.monkey.patch_all()`, anywhere.
* A mistake in options or arguments raises at once in the caller that made it, and never joins a batch.
* The first call in each process makes the runtime of that process. What a fork left behind is never touched again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar, overload
from weakref import WeakValueDictionary, finalize, ref

from . import _runtime
from ._collector import NEVER, Collector, Figures, Lifecycle, Options
from ._deadline import time_left
from ._errors import HandlerAlreadySet, HandlerNotSet, QueueClosed, ReentrantCall
from ._handler import HandlerCall, Respelling, form_of, refuse_what_cannot_answer, respelling, signature_of
from ._instrument import Instrument
from ._isolation import Isolation
from ._map import Mappable, answers
from ._options import count, flag, function, one_of, seconds
from ._policy import Eager, FixedWait
from ._request import Out, Request, Strategy, Submitted, plainly
from ._runtime import RUNTIMES, Runtime, choose, current_process, handler_name
from ._runtime._native import RLock
from ._statistics import Statistics, Tally

if TYPE_CHECKING:
    from inspect import Signature

In = TypeVar("In")
_Out_co = TypeVar("_Out_co", covariant=True)
_Self = TypeVar("_Self", bound="UBatch[Any, Any]")
_A = TypeVar("_A")
_B = TypeVar("_B")

EXECUTORS = ("auto", "native", "greenlet")


class Outputs(Protocol[_Out_co]):
    """What a handler returns: anything with a length and an order, such as a list, a tuple or a numpy array."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[_Out_co]: ...


class UBatch(Mappable[In, Out]):
    """Groups the calls that are waiting, runs the handler once for all of them, and gives each caller its own answer.

    `max_size` is the most requests in one handler call. `timeout` is how many seconds, at most, the oldest request
    waits for company while there is a place at the handler; while there is none, requests gather.

    With `eager` a batch is closed earlier than that, as soon as nobody else can be on the way: under gevent, when the
    hub has nothing else to do, so whatever had arrived at the process has made its call; with plain threads, when for
    a moment (some 0.1 ms) no call came.

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
        kind = Eager if flag("eager", eager) else FixedWait
        policy = kind(count("max_size", max_size), seconds("timeout", timeout))
        self._options = Options(
            policy=policy,
            executor=one_of("executor", executor, EXECUTORS),
            max_in_flight=count("max_in_flight", max_in_flight),
            max_queue=NEVER if max_queue is None else count("max_queue", max_queue, least=max_size),
            deadline=_deadline(deadline, policy),
            stall_after=inf if stall_after is None else seconds("stall_after", stall_after),
            handle=HandlerCall(),
            strategy=_strategy(isolate_errors, should_isolate),
            instruments=_instruments(instruments),
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
        with _registering:  # a collector that comes now starts with what is said here
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
        _, failed = self._drain(None if timeout is None else seconds("timeout", timeout))
        return not failed

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
            return Figures(collector).statistics()
        return Statistics(
            name=self.name,
            runtime="none yet",
            max_size=self.max_size,
            timeout=self.timeout,
            eager=self._options.policy.eager,
            max_in_flight=self._options.max_in_flight,
            runs_on="none yet",
            hub_away=0.0,
            pending=0,
            in_flight=0,
            stalled=False,
            stopped=self.stopped,
            **Tally().fields(),
        )

    @property
    def max_size(self) -> int:
        """The most requests in one handler call. May be set: for the next batch on, and at most `max_queue`."""
        return self._options.policy.max_size

    @max_size.setter
    def max_size(self, value: int) -> None:
        with self._changing() as options:
            size = count("max_size", value)
            if size > options.max_queue:
                raise ValueError(f"max_size must be an int of at most max_queue={options.max_queue}; got {value!r}")
            options.policy = type(options.policy)(size, options.policy.timeout)

    @property
    def timeout(self) -> float:
        """Seconds that the oldest request waits for company, at most. May be set: for what is pending, too."""
        return self._options.policy.timeout

    @timeout.setter
    def timeout(self, value: float) -> None:
        with self._changing() as options:
            policy = type(options.policy)(options.policy.max_size, seconds("timeout", value))
            _deadline(self.deadline, policy)
            options.policy = policy

    @property
    def max_queue(self) -> int | None:
        """How many requests may be pending; None is no limit. May be set: for the next call on."""
        return None if self._options.max_queue == NEVER else self._options.max_queue

    @max_queue.setter
    def max_queue(self, value: int | None) -> None:
        with self._changing() as options:
            least = options.policy.max_size
            options.max_queue = NEVER if value is None else count("max_queue", value, least=least)

    @property
    def deadline(self) -> float | None:
        """Seconds that a call may take; None is no limit. May be set: for the next call on."""
        return None if self._options.deadline == inf else self._options.deadline

    @deadline.setter
    def deadline(self, value: float | None) -> None:
        with self._changing() as options:
            options.deadline = _deadline(value, options.policy)

    @property
    def stall_after(self) -> float | None:
        """Seconds at the handler after which a batch is reported; None is never. May be set: for what runs, too."""
        return None if self._options.stall_after == inf else self._options.stall_after

    @stall_after.setter
    def stall_after(self, value: float | None) -> None:
        with self._changing() as options:
            options.stall_after = inf if value is None else seconds("stall_after", value)

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
        request = self._request(Request, handler, args, kwargs)
        waiter = request.expect()
        request.collector.accept(request)
        return request.answer(waiter)

    def _submit(
        self, handler: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Request[Out]:
        request = self._request(Submitted, handler, args, kwargs)
        request.collector.accept(request)
        return request

    def _request(
        self,
        kind: type[Request[Out]],
        handler: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Request[Out]:
        shape = form_of(args, kwargs)
        respell = self._forms[shape] if shape in self._forms else self._learn(args, kwargs, shape)
        if respell is not None:
            args, kwargs, shape = respell(args, kwargs)
        collector = self._collector
        if collector is None or collector.forks != _runtime.forks or _runtime.FORKS_UNSEEN:
            collector = self._open()
        now = collector.clock()
        return kind(
            collector,
            handler,  # type: ignore[arg-type]
            args,
            kwargs,
            shape,
            now,
            now + time_left(self._options.deadline),
        )

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
            request = self._request(Request, handler, args, {})
            request.collector.accept(request, patient=True)
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
        if _registering._is_owned():
            raise ReentrantCall(
                "a signal handler or finalizer that interrupted a change of options, or a first call, must not change "
                "options: try later"
            )
        with _registering:
            yield self._options
            collector = self._collector_here()
        if collector is not None:
            collector.reconsider()

    def _drain(self, timeout: float | None) -> tuple[int, int]:
        self._lifecycle.stopped = True  # before it looks for a collector: a first call looks at it after it made one
        collector = self._collector_here()
        return (0, 0) if collector is None else collector.drain(timeout)

    def _collector_here(self) -> Collector | None:
        """The collector of this process, if there is one, and its home has not been lost."""
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
            raise QueueClosed(f"the batcher {self.name!r} is stopped: start() opens it again")
        collector = self._collector_here()
        if collector is None:
            made = Collector(self.name, self._options, choose(self._runtime), self._lifecycle)
            last_words = finalize(self, made.forsake)
            last_words.atexit = False
            collector = self._register(made)
            if collector is made:
                _called[id(self)] = self
                for observe in collector.observers.batcher_opened:
                    observe(Figures(collector, ref(self)))
            else:
                last_words.detach()
        self._collector = collector
        return collector

    def _register(self, made: Collector) -> Collector:
        """Make it the collector of this process, unless there is one by now. Returns the one that there is."""
        if _registering._is_owned():
            raise ReentrantCall(
                "a signal handler or finalizer that interrupted the first call of a batcher must not make another: "
                "try later"
            )
        with _registering:
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


_called: WeakValueDictionary[int, UBatch[Any, Any]] = WeakValueDictionary()  # by id, in the order of first calls


def called_here() -> list[UBatch[Any, Any]]:
    """The batchers that have been called in this process, those called first at the front."""
    batchers = [reference() for reference in _called.valuerefs()]
    return [batcher for batcher in batchers if batcher is not None and current_process() in batcher._collectors]


_registering = RLock()  # held while a collector is looked for, and put there


def _renew_after_fork() -> None:
    """In a child: the thread that held it may be the parent's alone."""
    global _registering
    _registering = RLock()


os.register_at_fork(after_in_child=_renew_after_fork)


MOST_FORMS = 256  # remembered; a handler that takes **named could be called with names without end


def _deadline(deadline: float | None, policy: FixedWait) -> float:
    """The option, checked: one that no lone call could meet would fail them all."""
    if deadline is None:
        return inf
    if not seconds("deadline", deadline):
        raise ValueError("deadline must be more than 0 seconds, else every call fails; None is no deadline")
    if deadline <= policy.timeout and policy.max_size > 1 and not policy.eager:
        raise ValueError(
            f"deadline must be longer than timeout={policy.timeout}, for which a lone call waits for company, or the "
            f"batcher eager; got {deadline}"
        )
    return deadline


def _strategy(isolate_errors: bool, should_isolate: Callable[[Exception], bool] | None) -> Strategy:
    isolates = flag("isolate_errors", isolate_errors)
    if should_isolate is None:
        return Isolation(_always) if isolates else plainly
    if not isolates:
        raise ValueError("should_isolate must come with isolate_errors=True")
    return Isolation(function("should_isolate", should_isolate))


def _instruments(instruments: Iterable[Instrument]) -> tuple[Instrument, ...]:
    found = tuple(instruments)
    for instrument in found:
        if not isinstance(instrument, Instrument):
            raise TypeError(f"instruments must be Instruments; got {instrument!r}")
    return found


def _always(_: Exception) -> bool:
    return True
