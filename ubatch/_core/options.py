"""What a batcher was made with, checked, and how it may change.

A mistake raises at once, in the line that made it: TypeError for a value of the wrong kind, ValueError for one that
cannot be, also beside the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from sys import maxsize

from .._instrument import Instrument
from .._validation import count, flag, function, one_of, seconds
from .batch import Strategy, plainly
from .handler import HandlerCall
from .isolation import Isolation
from .policy import Eager, FixedWait

EXECUTORS = ("auto", "native", "greenlet")
UNLIMITED = maxsize  # requests that may be pending


@dataclass
class Options:
    """A batcher shares them with its collectors. What may change later changes as a whole, by one assignment."""

    policy: FixedWait
    executor: str
    max_in_flight: int
    max_queue: int
    deadline: float
    stall_after: float
    handle: HandlerCall
    strategy: Strategy
    instruments: tuple[Instrument, ...]

    @classmethod
    def checked(
        cls,
        max_size: int,
        timeout: float,
        eager: bool,
        executor: str,
        max_in_flight: int,
        max_queue: int | None,
        deadline: float | None,
        stall_after: float | None,
        isolate_errors: bool,
        should_isolate: Callable[[Exception], bool] | None,
        instruments: Iterable[Instrument],
    ) -> Options:
        """The options of `UBatch`. Raises TypeError or ValueError."""
        kind = Eager if flag("eager", eager) else FixedWait
        policy = kind(count("max_size", max_size), seconds("timeout", timeout))
        return cls(
            policy=policy,
            executor=one_of("executor", executor, EXECUTORS),
            max_in_flight=count("max_in_flight", max_in_flight),
            max_queue=_max_queue(max_queue, policy),
            deadline=_deadline(deadline, policy),
            stall_after=_stall_after(stall_after),
            handle=HandlerCall(),
            strategy=_strategy(isolate_errors, should_isolate),
            instruments=_instruments(instruments),
        )

    def set_max_size(self, value: int) -> None:
        size = count("max_size", value)
        if size > self.max_queue:
            raise ValueError(f"max_size must be an int of at most max_queue={self.max_queue}; got {value!r}")
        self.policy = type(self.policy)(size, self.policy.timeout)

    def set_timeout(self, value: float) -> None:
        policy = type(self.policy)(self.policy.max_size, seconds("timeout", value))
        _deadline(_or_none(self.deadline), policy)
        self.policy = policy

    def set_max_queue(self, value: int | None) -> None:
        self.max_queue = _max_queue(value, self.policy)

    def set_deadline(self, value: float | None) -> None:
        self.deadline = _deadline(value, self.policy)

    def set_stall_after(self, value: float | None) -> None:
        self.stall_after = _stall_after(value)


# ---------------------------------------------------------------------------------------------------------------------


def _or_none(value: float) -> float | None:
    return None if value == inf else value


def _max_queue(value: int | None, policy: FixedWait) -> int:
    return UNLIMITED if value is None else count("max_queue", value, least=policy.max_size)


def _stall_after(value: float | None) -> float:
    return inf if value is None else seconds("stall_after", value)


def _deadline(deadline: float | None, policy: FixedWait) -> float:
    """One that no lone call could meet would fail them all, so it is refused."""
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


def _always(_: Exception) -> bool:
    return True


def _instruments(instruments: Iterable[Instrument]) -> tuple[Instrument, ...]:
    found = tuple(instruments)
    for instrument in found:
        if not isinstance(instrument, Instrument):
            raise TypeError(f"instruments must be Instruments; got {instrument!r}")
    return found
