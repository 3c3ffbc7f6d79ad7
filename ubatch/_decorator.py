"""`@ubatch_decorator`: a function that answers lists, and also one call at a time, in batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial, update_wrapper
from pickle import PicklingError
from types import MethodType
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload
from weakref import ReferenceType, ref

from ._batcher import Outputs, UBatch
from ._core.handler import signature_of
from ._core.request import Request
from ._map import Mappable
from ._runtime import handler_name

P = ParamSpec("P")  # of the function itself
Q = ParamSpec("Q")  # of one call
Out = TypeVar("Out")
Returned = TypeVar("Returned")
A = TypeVar("A")


class BatchedFunction(Mappable[Any, Out], Generic[P, Q, Returned, Out]):
    """A decorated function. Called, it is the function itself; its methods go through `batcher`.

    In a class it is a method, and each instance has a batcher of its own, which is gone with the instance. So it is
    refused in a Flask view class that makes an instance for each request. A function of one argument is none, and has
    one batcher; so has a `staticmethod`, and a `classmethod` has one for each class, where this stands above them.

    It pickles by its name, as functions do, and copies as itself.
    """

    __name__: str
    __wrapped__: Callable[P, Returned]

    def __init__(self, function: Callable[P, Returned], make: Callable[[], UBatch[Any, Out]]) -> None:
        self._of_class = isinstance(function, classmethod)
        if isinstance(function, classmethod | staticmethod):
            self._is_static = not self._of_class
            function = function.__func__
        else:
            self._is_static = _takes_no_instance(function)
        self._needs_class = _takes_a_class(function) and not self._of_class and sys.version_info >= CLASSMETHODS_HIDE
        self._function = function
        self._make = make
        self._instances: dict[int, tuple[ReferenceType[Any], UBatch[Any, Out]]] = {}
        self._alone = 0  # instances that are gone, and whose batches had one request each
        self._ever_together = False
        self.batcher: UBatch[Any, Out] = make().set_handler(function)  # type: ignore[arg-type]
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Returned:
        return self._function(*args, **kwargs)

    @property
    def function(self) -> Callable[P, Returned]:
        """The function that was decorated."""
        return self._function

    @property
    def max_size(self) -> int:
        """That of `batcher`. May be set."""
        return self.batcher.max_size

    @max_size.setter
    def max_size(self, value: int) -> None:
        self.batcher.max_size = value

    @property
    def timeout(self) -> float:
        """That of `batcher`. May be set."""
        return self.batcher.timeout

    @timeout.setter
    def timeout(self, value: float) -> None:
        self.batcher.timeout = value

    def ubatch(self, *args: Q.args, **kwargs: Q.kwargs) -> Out:
        """`UBatch.ubatch`: answer one call, in a batch."""
        return self._own_batcher().ubatch(*args, **kwargs)

    def submit(self, *args: Q.args, **kwargs: Q.kwargs) -> Request[Out]:
        """`UBatch.submit`: make a call without waiting."""
        return self._own_batcher().submit(*args, **kwargs)

    def __set_name__(self, owner: type[Any], name: str) -> None:
        if not (self._is_static or self._of_class):
            _refuse_one_per_request(owner, name)

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> BatchedFunction[P, Q, Returned, Out]: ...

    @overload
    def __get__(self, instance: object, owner: type[Any]) -> BatchedMethod[Returned, Out]: ...

    def __get__(self, instance: object | None, owner: type[Any]) -> Any:
        if self._of_class:
            instance = type(instance) if owner is None else owner
        return (
            self if instance is None or self._is_static else BatchedMethod(self, instance, self._batcher_of(instance))
        )

    def __reduce__(self) -> str:
        name = getattr(self, "__qualname__", None)
        if name is None:  # a `functools.partial` object
            raise PicklingError(f"what is decorated must have a name to be pickled by; {self!r} has none")
        return str(name)

    def _answers(
        self, columns: tuple[Iterable[Any], ...], window: int | None, return_exceptions: bool
    ) -> Iterator[Any]:
        return self._own_batcher()._answers(columns, window, return_exceptions)

    def _own_batcher(self) -> UBatch[Any, Out]:
        if self._needs_class:
            raise TypeError(
                f"{self.__name__!r} must be told its class: put @ubatch_decorator above @classmethod, which since "
                "Python 3.13 hides what it stands above"
            )
        return self.batcher

    def __repr__(self) -> str:
        return f"<ubatch_decorator of {handler_name(self._function)!r}: {self.batcher!r}>"

    def _batcher_of(self, instance: object) -> UBatch[Any, Out]:
        # Not in the instance's `__dict__`, where copies and pickles of it would take the batcher along; by identity,
        # because instances need not be hashable.
        entry = self._instances.get(id(instance))
        if entry is None:
            _refuse_one_per_request(type(instance), self.__name__)
            self._warn_of_batches_of_one(type(instance))
            key, instances = id(instance), self._instances
            try:
                reference = ref(instance, partial(self._forget, key))
            except TypeError:
                raise TypeError(
                    "the class of a method under ubatch_decorator must allow weak references; "
                    f"{type(instance).__name__} does not: add '__weakref__' to its __slots__"
                ) from None
            batcher = self._make().set_handler(_WeakMethod(self._function, reference))
            entry = instances.setdefault(key, (reference, batcher))
        return entry[1]

    def _forget(self, key: int, _: object) -> None:
        """The instance is gone. In a finalizer: nothing but to count."""
        entry = self._instances.pop(key, None)
        tallies = [] if entry is None else [collector._state.tally for collector in entry[1]._collectors.values()]
        if any(tally.items > tally.batches for tally in tallies):
            self._ever_together = True
        elif any(tally.batches for tally in tallies):
            self._alone += 1

    def _warn_of_batches_of_one(self, owner: type[Any]) -> None:
        if self._alone < MANY_ALONE or self._ever_together:
            return
        self._ever_together = True  # told once
        import logging  # here, because it is seldom needed

        logging.getLogger("ubatch").warning(
            "%d instances of %s have come and gone, and no batch of their %r ever had a second request: each instance "
            "has a batcher of its own. Keep one instance for all calls, or decorate a function",
            self._alone, owner.__name__, self.__name__,
        )  # fmt: skip


class BatchedMethod(Mappable[Any, Out], Generic[Returned, Out]):
    """A decorated method of one instance, as `instance.method` gives it."""

    __slots__ = ("_method", "batcher")

    def __init__(self, function: BatchedFunction[..., ..., Returned, Out], instance: object, batcher: UBatch[Any, Out]):
        self._method = MethodType(function.__wrapped__, instance)
        self.batcher: UBatch[Any, Out] = batcher

    def __call__(self, *args: Any, **kwargs: Any) -> Returned:
        returned: Returned = self._method(*args, **kwargs)
        return returned

    def ubatch(self, *args: Any, **kwargs: Any) -> Out:
        """`UBatch.ubatch`: answer one call, in a batch."""
        return self.batcher._call(self._method, args, kwargs)

    def submit(self, *args: Any, **kwargs: Any) -> Request[Out]:
        """`UBatch.submit`: make a call without waiting. The request keeps the instance alive."""
        return self.batcher._submit(self._method, args, kwargs)

    def _answers(
        self, columns: tuple[Iterable[Any], ...], window: int | None, return_exceptions: bool
    ) -> Iterator[Any]:
        return self.batcher._answers_of(self._method, columns, window, return_exceptions)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._method.__self__, self._method.__name__)

    def __repr__(self) -> str:
        return f"<ubatch_decorator of {self._method!r}: {self.batcher!r}>"


class _Decorator(Protocol):
    @overload
    def __call__(
        self, function: Callable[[list[A]], list[Out]], /
    ) -> BatchedFunction[[list[A]], [A], list[Out], Out]: ...

    @overload
    def __call__(self, function: Callable[P, list[Out]], /) -> BatchedFunction[P, ..., list[Out], Out]: ...

    @overload
    def __call__(self, function: Callable[P, Outputs[Out]], /) -> BatchedFunction[P, ..., Outputs[Out], Out]: ...

    def __call__(self, function: Callable[..., Any], /) -> Any: ...


def ubatch_decorator(max_size: int, timeout: float, **options: Any) -> _Decorator:
    """Give a function of lists the methods `ubatch`, `submit`, `map` and `imap`; `batcher` is its `UBatch`.

    The options are those of `UBatch`, checked at once. Called directly the function is what it was. It may be a
    function, a `functools.partial` object, or a method: then each instance has its own batcher.

    Raises TypeError or ValueError for an option that cannot be.

    >>> @ubatch_decorator(max_size=8, timeout=0.01)
    ... def squared(xs: list[int]) -> list[int]:
    ...     return [x * x for x in xs]
    >>> squared([1, 2])
    [1, 4]
    >>> squared.ubatch(3)
    9
    >>> squared.batcher.stop()
    True
    """

    def make() -> UBatch[Any, Any]:
        return UBatch(max_size, timeout, **options)

    def decorate(function: Callable[..., Any], /) -> Any:
        return BatchedFunction(function, make)

    make()  # a bad option is this line's mistake, not the function's
    return decorate


# ---------------------------------------------------------------------------------------------------------------------


CLASSMETHODS_HIDE = (3, 13)  # until then `classmethod` asked what it stood above for a method of the class


def _parameters(function: Callable[..., Any]) -> list[Any]:
    from inspect import Parameter  # with `signature_of`: it is imported late

    signature = signature_of(function)
    by_position = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [] if signature is None else list(signature.parameters.values())
    return [one for one in parameters if one.kind in by_position or one.kind is Parameter.VAR_POSITIONAL]


def _takes_no_instance(function: Callable[..., Any]) -> bool:
    """Whether it has one argument, its list: so it is no method, wherever it stands."""
    parameters = _parameters(function)
    return len(parameters) == 1 and parameters[0].kind is not parameters[0].VAR_POSITIONAL


def _takes_a_class(function: Callable[..., Any]) -> bool:
    """Whether it stands in the body of a class, and its first argument is the class."""
    parameters = _parameters(function)
    outside = getattr(function, "__qualname__", "").rpartition(".")[0]
    in_class = bool(outside) and not outside.endswith("<locals>")
    return in_class and len(parameters) > 1 and parameters[0].name == "cls"


MANY_ALONE = 100  # instances; arbitrary


def _refuse_one_per_request(owner: type[Any], name: str) -> None:
    """Raise TypeError for a Flask view (a flask-restx `Resource` is one) whose instance lives for one request."""
    for base in owner.__mro__:
        if (base.__module__, base.__name__) == ("flask.views", "View") and getattr(owner, "init_every_request", True):
            raise TypeError(
                f"{owner.__name__}.{name} must not carry a batcher: Flask makes an instance of this class for each "
                "request, and each instance has a batcher of its own, so every batch would have one request. "
                f"Decorate a function outside of the class, or say init_every_request = False in {owner.__name__}"
            )


class _WeakMethod:
    """The handler of an instance's batcher: bound, but without keeping the instance alive.

    Requests made through `BatchedMethod` carry the real bound method, so this one is called for none of them.
    """

    def __init__(self, function: Callable[..., Any], reference: ReferenceType[Any]) -> None:
        self._function = function
        self._reference = reference
        self.__name__ = handler_name(function)
        self.__signature__ = signature_of(MethodType(function, reference()))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        instance = self._reference()
        if instance is None:
            raise ReferenceError(f"the instance whose method {self.__name__!r} was called is gone")
        return self._function(instance, *args, **kwargs)
