"""What a handler takes and what it gives: how calls are spelled, the one call for many, and the check of its outputs.

Guarantees:

* Every spelling of the same arguments (`ubatch(1, 2)`, `ubatch(1, ys=2)`) is one form, and one form shares a batch.
  What a call leaves out is left out of the batch: the function's own default holds for all of it.
* Outputs are told apart by position, and only where that is certain: what may as well be whole columns is refused.
* No exception is handed out as a value.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, NamedTuple

from .._errors import BadBatchOutput, BadBatchOutputSize, HandlerAborted
from .._runtime import handler_name, unwrapped

if TYPE_CHECKING:
    from inspect import Signature

ANNOTATIONS_ARE_LAZY = (3, 14)  # from there on, to evaluate them may raise what the module never would


def signature_of(function: Callable[..., Any]) -> Signature | None:
    """Its signature, with annotations left as they are; None where it tells none, as many made in C."""
    from inspect import signature  # here, because it takes longer to import than all of this package

    options: dict[str, Any] = {}
    if sys.version_info >= ANNOTATIONS_ARE_LAZY:
        from annotationlib import Format  # type: ignore[import-not-found, unused-ignore]

        options["annotation_format"] = Format.STRING
    try:
        return signature(function, **options)
    except ValueError:
        return None


def refuse_what_cannot_answer(handler: Callable[..., Any], signature: Signature | None) -> None:
    """Raise TypeError for a handler whose first batch would fail in any case."""
    from inspect import isasyncgenfunction, iscoroutinefunction

    inner = unwrapped(handler)
    for function in (inner, getattr(type(inner), "__call__", None)):  # noqa: B004 (the function is wanted)
        if iscoroutinefunction(function) or isasyncgenfunction(function):
            raise TypeError(
                f"handler must be a function that returns its outputs; {handler_name(handler)!r} is async: "
                "give a function that runs it, such as lambda xs: asyncio.run(f(xs))"
            )
    if signature is not None and not signature.parameters:
        raise TypeError(f"handler must take the list of inputs; {handler_name(handler)!r} takes no argument")


class Respelling(NamedTuple):
    """How to spell a call as all of its kind are: which arguments by position, which by name, and the form of that."""

    positions: tuple[int | str, ...]
    names: tuple[str, ...]
    form: Hashable

    def __call__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], Hashable]:
        by_position = tuple(args[at] if isinstance(at, int) else kwargs[at] for at in self.positions)
        return by_position, {name: kwargs[name] for name in self.names}, self.form


def form_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    """How a call is spelled: what tells it from others of the same handler, whatever the arguments are."""
    return (len(args), frozenset(kwargs)) if kwargs else len(args)


def respelling(signature: Signature | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Respelling | None:
    """None where a call like this is spelled well. Raises TypeError where it does not fit the signature."""
    if signature is None:
        return None
    bound = signature.bind(*range(len(args)), **{name: name for name in kwargs})
    positions, names = bound.args, tuple(bound.kwargs)
    if len(positions) == len(args):
        return None
    return Respelling(positions, names, form_of(positions, bound.kwargs))


class HandlerCall:
    """Calls the handler of one batcher for some requests, and checks what it returns."""

    __slots__ = ("_gives_rows",)

    def __init__(self) -> None:
        self._gives_rows = False  # a batch of another size than its outputs' has shown it

    def __call__(self, requests: Sequence[Any]) -> list[Any]:
        """The outputs by position, in a list that is nobody else's. Raises what the handler does, or BadBatchOutput."""
        first = requests[0]
        raised = first._collector.handler_raised
        try:
            outputs = self._checked(_call(requests), len(requests), first.handler)
        except Exception as error:
            raised(error)
            raise
        for position, output in enumerate(outputs):
            if isinstance(output, BaseException | type):
                if isinstance(output, Exception):
                    raised(output)
                else:
                    outputs[position] = _instead_of(output, first.handler)
        return outputs

    def _checked(self, outputs: Any, size: int, handler: Callable[..., Any]) -> list[Any]:
        if type(outputs) is not list:
            _refuse_what_has_no_order(outputs, handler)
            if isinstance(outputs, tuple):
                self._refuse_columns(outputs, size, handler)
        try:
            items = list(outputs)
        except TypeError as error:
            raise BadBatchOutput(f"{_must(handler)}; got {_described(outputs)}, which is not iterable") from error
        if len(items) != size:
            raise BadBatchOutputSize(size, len(items), handler_name(handler), _described(outputs))
        if type(outputs) is list and items and not self._gives_rows and _is_column(items[0]):
            self._tell_rows_from_columns(items, size, handler)
        return items

    def _refuse_columns(self, outputs: tuple[Any, ...], size: int, handler: Callable[..., Any]) -> None:
        named = hasattr(outputs, "_fields") or hasattr(outputs, "n_sequence_fields")
        if named or (outputs and not self._gives_rows and all(_is_column(output, size) for output in outputs)):
            raise BadBatchOutput(
                f"{_must(handler)}; got {_described(outputs)} for a batch of {size}: these are columns, one for each "
                "output of the model. Return list(zip(*outputs)), and each caller gets a tuple"
            )

    def _tell_rows_from_columns(self, items: list[Any], size: int, handler: Callable[..., Any]) -> None:
        if not all(_is_column(item, size) for item in items):
            self._gives_rows = True
        elif size > 1 and all(hasattr(item, "shape") for item in items):
            raise BadBatchOutput(
                f"{_must(handler)}; got a list of {size} arrays, each as long as the batch, which may as well be "
                f"{size} outputs of the model for all of it. Return list(zip(*outputs)) if they are; if not, the array "
                "of rows as it is, and no list of its rows"
            )


def check_outputs(outputs: Any, size: int, handler: Callable[..., Any]) -> list[Any]:
    """What `HandlerCall` makes of these outputs for so many inputs, where it has seen no others. Raises the same."""
    return HandlerCall()._checked(outputs, size, handler)


# ---------------------------------------------------------------------------------------------------------------------


def _call(requests: Sequence[Any]) -> Any:
    """Call the handler for these, each argument a list."""
    first = requests[0]
    if not first.kwargs and len(first.args) == 1:
        return first.handler([request.args[0] for request in requests])
    columns = [list(column) for column in zip(*(request.args for request in requests), strict=True)]
    named = {name: [request.kwargs[name] for request in requests] for name in first.kwargs}
    return first.handler(*columns, **named)


def _must(handler: Callable[..., Any]) -> str:
    return f"the handler {handler_name(handler)!r} must return a list, tuple, array or Series with one output per input"


def _refuse_what_has_no_order(outputs: Any, handler: Callable[..., Any]) -> None:
    """What has no length, is one text, or gives keys or columns where it is iterated."""
    if isinstance(outputs, str | bytes | bytearray | Mapping | Set) or hasattr(outputs, "columns"):
        raise BadBatchOutput(f"{_must(handler)}; got {_described(outputs)}")
    try:
        len(outputs)
    except TypeError:
        hint = ": a squeeze() of a batch of one?" if getattr(outputs, "shape", None) == () else ""
        raise BadBatchOutput(f"{_must(handler)}; got {_described(outputs)}{hint}") from None


def _is_column(output: Any, size: int | None = None) -> bool:
    """Whether it is a list or an array, of so many."""
    if not (isinstance(output, list) or hasattr(output, "shape")):
        return False
    try:
        return size is None or len(output) == size
    except TypeError:  # an array of no dimension
        return False


def _described(outputs: Any) -> str:
    """Its type, and its shape or length."""
    name = type(outputs).__name__
    shape = getattr(outputs, "shape", None)
    if isinstance(shape, tuple):
        return f"{name} of shape {shape}"
    if isinstance(outputs, tuple):
        return f"{name} of {len(outputs)} ({', '.join(_described(output) for output in outputs[:4])})"
    if isinstance(outputs, list):
        return f"{name} of {len(outputs)}"
    return name


def _instead_of(output: Any, handler: Callable[..., Any]) -> Any:
    """What the caller gets where an output is an exception class, or what would end its thread."""
    if not isinstance(output, type):
        error = HandlerAborted(f"the handler {handler_name(handler)!r} returned {output!r}, which is no Exception")
        error.__cause__ = output
        return error
    if not issubclass(output, BaseException):
        return output
    return BadBatchOutput(
        f"the handler {handler_name(handler)!r} must return an exception, made with its message; got the class "
        f"{output.__name__}"
    )
