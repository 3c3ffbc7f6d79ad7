"""Does a handler answer each input as it would alone? For the tests of who writes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from math import isclose, isnan
from random import Random
from typing import Any

from ._core.handler import check_outputs
from ._errors import BadBatchOutputSize
from ._runtime import handler_name

MOST_TOLD = 10  # differences; arbitrary
MOST_ALONE = 64  # examples that are answered alone, the others only together; arbitrary


def check_handler(
    handler: Callable[..., Any], examples: Iterable[Any], *more: Iterable[Any], rtol: float = 1e-4, atol: float = 1e-6
) -> None:
    """Check that the answers of `handler` do not depend on their company, in batches of 1, 2, 3 and all examples.

    Each example is answered alone first. Then the handler is given some of them together, in their order, backwards and
    shuffled, and twice; no answer may be another one than that, up to the relative and absolute tolerances `rtol` and
    `atol` of its numbers. With several iterables each is an argument, as in `UBatch.map`. Four examples or more that
    differ, from each other and in type and size as in real use, find most: a frame that fills missing values with NaN,
    outputs that are sorted, or shared by calls (a buffer that is used again), a `squeeze()` of a batch of one,
    `[output]` instead of `output`, a model whose answers change with padding.

    Raises AssertionError with a line for each difference, at most ten; ValueError where there are fewer than two
    examples.

    >>> check_handler(lambda xs: [x * x for x in xs], [1, 2, 3, 4])
    >>> check_handler(lambda xs: sorted(x * x for x in xs), [3, 1])
    Traceback (most recent call last):
    AssertionError: the answers of '<lambda>' must not depend on their company:
    * its outputs are in an order of their own: for the items 0, 1 it returned those of 1, 0
    """
    calls = list(zip(examples, *more, strict=True))
    if len(calls) < 2:
        raise ValueError(f"there must be at least two examples; got {len(calls)}")
    differences = list(dict.fromkeys(_Check(handler, calls, rtol, atol).differences()))
    if differences:
        told = [f"* {difference}" for difference in differences[:MOST_TOLD]]
        if len(differences) > MOST_TOLD:
            told.append(f"* and {len(differences) - MOST_TOLD} more")
        head = f"the answers of {handler_name(handler)!r} must not depend on their company:"
        raise AssertionError("\n".join([head, *told]))


# ---------------------------------------------------------------------------------------------------------------------


class _Check:
    def __init__(self, handler: Callable[..., Any], calls: Sequence[tuple[Any, ...]], rtol: float, atol: float) -> None:
        self._handler = handler
        self._calls = calls
        self._rtol = rtol
        self._atol = atol
        self._alone: dict[int, Any] = {}

    def differences(self) -> Iterator[str]:
        for item in range(min(len(self._calls), MOST_ALONE)):
            outputs = self._outputs([item])
            if isinstance(outputs, _Failure):
                yield f"{_named([item])} alone: {outputs}"
                return
            self._alone[item] = deepcopy(outputs[0])
        for batch in self._batches():
            yield from self._differences_of(batch)

    def _batches(self) -> Iterator[list[int]]:
        """Of two, three and all of them, in their order, backwards and shuffled."""
        everything = list(range(len(self._calls)))
        for size in (2, 3):
            if size < len(everything):
                for first in range(0, len(everything) - size + 1, size - 1):
                    yield everything[first : first + size]
                yield [everything[0], *everything[-size + 1 :]]
                yield everything[-size:][::-1]
        yield everything
        yield everything[::-1]
        shuffled = everything[:]
        Random(0).shuffle(shuffled)
        yield shuffled

    def _differences_of(self, batch: list[int]) -> Iterator[str]:
        outputs = self._outputs(batch)
        if isinstance(outputs, _Failure):
            yield f"for {_named(batch)}: {outputs}"
            return
        known = [at for at, item in enumerate(batch) if item in self._alone]
        wrong = [at for at in known if not self._same(outputs[at], self._alone[batch[at]])]
        if wrong:
            yield self._told(batch, outputs, wrong)
            return
        kept = deepcopy(outputs)
        other = self._outputs(batch[::-1])
        changed = [at for at in known if not self._same(outputs[at], kept[at])]
        if changed:
            yield f"its outputs for {_named(batch)} were changed by its next call: it uses a buffer again"
        elif not isinstance(other, _Failure):
            again = self._outputs(batch)
            if isinstance(again, _Failure):
                yield f"for {_named(batch)}, a second time: {again}"
            elif not all(self._same(again[at], kept[at]) for at in known):
                yield f"for {_named(batch)} it returned other outputs a second time"

    def _told(self, batch: list[int], outputs: list[Any], wrong: list[int]) -> str:
        whose = [
            next((item for item in batch if item in self._alone and self._same(output, self._alone[item])), None)
            for output in outputs
        ]
        if None not in whose and sorted(whose) == sorted(batch):  # type: ignore[type-var]
            order = ", ".join(map(str, whose))
            return f"its outputs are in an order of their own: for {_named(batch)} it returned those of {order}"
        at = wrong[0]
        alone = f"{_named([batch[at]])} alone is answered {_short(self._alone[batch[at]])}"
        return f"{alone}, and {_short(outputs[at])} among {_named(batch)}"

    def _outputs(self, batch: list[int]) -> list[Any] | _Failure:
        columns = [list(column) for column in zip(*(self._calls[item] for item in batch), strict=True)]
        before = deepcopy(columns)
        try:
            outputs = check_outputs(self._handler(*columns), len(batch), self._handler)
        except Exception as error:
            hint = ""
            if isinstance(error, BadBatchOutputSize) and error.output_size == 1:
                hint = ": does it return [output] instead of output?"
            return _Failure(f"{type(error).__name__}: {error}{hint}")
        if not self._same(columns, before):
            return _Failure("it has changed its inputs")
        return outputs

    def _same(self, one: Any, other: Any) -> bool:
        one, other = _plain(one), _plain(other)
        if isinstance(one, float | int | complex) and isinstance(other, float | int | complex):
            return self._same_number(one, other)
        if isinstance(one, Exception) and isinstance(other, Exception):
            return type(one) is type(other) and self._same(one.args, other.args)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            return one.keys() == other.keys() and all(self._same(one[key], other[key]) for key in one)
        if isinstance(one, list | tuple) and isinstance(other, list | tuple):
            return len(one) == len(other) and all(map(self._same, one, other))
        return bool(one == other) or _is_same_object(one, other)

    def _same_number(self, one: complex, other: complex) -> bool:
        if isinstance(one, complex) or isinstance(other, complex):
            one, other = complex(one), complex(other)
            return self._same_number(one.real, other.real) and self._same_number(one.imag, other.imag)
        if isnan(one) or isnan(other):
            return isnan(one) and isnan(other)
        return isclose(one, other, rel_tol=self._rtol, abs_tol=self._atol)


class _Failure(str):
    """What a call came to that has no outputs."""


def _plain(value: Any) -> Any:
    """Arrays, tensors and series as lists, numbers of numpy as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_same_object(one: Any, other: Any) -> bool:
    """For what knows no equality: the same type with the same fields."""
    if type(one) is not type(other) or "__eq__" in vars(type(one)):
        return False
    fields = getattr(one, "__dict__", None)
    return fields is not None and repr(fields) == repr(other.__dict__)


def _named(batch: Sequence[int]) -> str:
    if len(batch) == 1:
        return f"item {batch[0]}"
    return "the items " + ", ".join(map(str, batch[:8])) + (f", … ({len(batch)} of them)" if len(batch) > 8 else "")


def _short(value: Any) -> str:
    text = repr(_plain(value))
    return text if len(text) <= 60 else f"{text[:57]}…"
