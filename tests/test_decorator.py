"""`@ubatch_decorator` on functions, partials and methods."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
from functools import partial
from typing import Any
from weakref import ref

import pytest

from ubatch import ubatch_decorator
from ubatch.testing import VirtualRuntime


def test_called_directly_it_is_the_function_itself() -> None:
    @ubatch_decorator(max_size=4, timeout=5.0)
    def squared(xs: list[int], *, power: int = 2) -> list[int]:
        """Square."""
        return [x**power for x in xs]

    assert squared([1, 2, 3]) == [1, 4, 9]
    assert squared([2], power=3) == [8]


def test_it_keeps_name_docstring_module_and_signature() -> None:
    def squared(xs: list[int], mode: str = "fast") -> list[int]:
        """Square."""
        return [x * x for x in xs]

    decorated = ubatch_decorator(max_size=4, timeout=5.0)(squared)
    assert (decorated.__name__, decorated.__doc__, decorated.__module__) == ("squared", "Square.", __name__)
    assert inspect.signature(decorated) == inspect.signature(squared)
    assert decorated.__wrapped__ is squared


def test_a_function_has_one_batcher(runtime: VirtualRuntime) -> None:
    @ubatch_decorator(max_size=2, timeout=5.0, runtime=runtime)
    def squared(xs: list[int]) -> list[int]:
        return [x * x for x in xs]

    answers = [runtime.call(squared.ubatch, 1), runtime.call(squared.map, [2])]
    runtime.settle()
    assert [answer.value for answer in answers] == [1, [4]]
    assert squared.submit(3).done() is False
    assert "1 pending" in repr(squared.batcher)
    assert repr(squared) == f"<ubatch_decorator of 'squared': {squared.batcher!r}>"
    runtime.call(squared.batcher.stop)
    runtime.settle()


def test_a_partial_is_decorated_as_a_function_is(runtime: VirtualRuntime) -> None:
    def scaled(factor: int, xs: list[int]) -> list[int]:
        return [factor * x for x in xs]

    tripled = ubatch_decorator(max_size=2, timeout=5.0, runtime=runtime)(partial(scaled, 3))
    requests = [tripled.submit(1), tripled.submit(2)]
    runtime.settle()
    assert [request.result() for request in requests] == [3, 6]
    assert tripled([5]) == [15]
    assert tripled.batcher.name == "scaled"
    assert str(inspect.signature(tripled)) == "(xs: 'list[int]') -> 'list[int]'"


class Model:
    """Its instances hold a factor; unhashable on purpose."""

    made: Any = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __eq__(self, other: object) -> bool:
        return True

    @ubatch_decorator(max_size=2, timeout=5.0)
    def predict(self, xs: list[int]) -> list[int]:
        """Multiply."""
        return [self.factor * x for x in xs]


def model_class(runtime: VirtualRuntime) -> type[Model]:
    class VirtualModel(Model):
        @ubatch_decorator(max_size=2, timeout=5.0, runtime=runtime)
        def predict(self, xs: list[int]) -> list[int]:
            return [self.factor * x for x in xs]

    return VirtualModel


def test_each_instance_has_a_batcher_of_its_own(runtime: VirtualRuntime) -> None:
    cls = model_class(runtime)
    double, triple = cls(2), cls(3)
    assert double.predict.batcher is double.predict.batcher
    assert double.predict.batcher is not triple.predict.batcher
    requests = [double.predict.submit(1), triple.predict.submit(1), double.predict.submit(2), triple.predict.submit(2)]
    runtime.settle()
    assert [request.result() for request in requests] == [2, 3, 4, 6]
    mapped = runtime.call(double.predict.map, [5, 6])
    called = [runtime.call(triple.predict.ubatch, x) for x in (1, 2)]
    runtime.settle()
    assert mapped.value == [10, 12]
    assert [call.value for call in called] == [3, 6]


def test_a_method_called_directly_is_the_method_itself() -> None:
    assert Model(2).predict([1, 2]) == [2, 4]
    assert Model.predict(Model(3), [1]) == [3]  # type: ignore[call-arg]
    assert Model.predict.__doc__ == "Multiply."


def test_a_batcher_is_gone_with_its_instance(runtime: VirtualRuntime) -> None:
    model = model_class(runtime)(2)
    requests = [model.predict.submit(1), model.predict.submit(2)]
    runtime.settle()
    assert [request.result() for request in requests] == [2, 4]
    batcher, instance = ref(model.predict.batcher), ref(model)
    del model, requests
    gc.collect()
    runtime.settle()
    gc.collect()
    assert instance() is None
    assert batcher() is None


def test_a_pending_request_keeps_its_instance_alive(runtime: VirtualRuntime) -> None:
    model = model_class(runtime)(2)
    request = model.predict.submit(4)
    del model
    gc.collect()
    runtime.advance(5.0)
    assert request.result() == 8


def test_the_batcher_of_a_method_answers_too(runtime: VirtualRuntime) -> None:
    model = model_class(runtime)(2)
    batcher = model.predict.batcher
    requests = [batcher.submit(1), batcher.submit(2)]
    runtime.settle()
    assert [request.result() for request in requests] == [2, 4]
    late = batcher.submit(3)
    del model
    gc.collect()
    runtime.advance(5.0)
    assert isinstance(late.exception(), ReferenceError)


def test_an_instance_with_a_used_batcher_is_copied_and_pickled_without_it(runtime: VirtualRuntime) -> None:
    model = Model(2)
    batcher = model.predict.batcher
    for other in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.factor == 2
        assert other.predict.batcher is not batcher


def test_options_go_to_the_batcher() -> None:
    @ubatch_decorator(3, 0.5, name="named", executor="greenlet", max_in_flight=2)
    def squared(xs: list[int]) -> list[int]:
        return xs

    assert repr(squared.batcher) == "<UBatch 'named' max_size=3 timeout=0.5: open, not called yet>"


def test_a_call_that_does_not_fit_a_method_is_refused_without_self_in_the_count(runtime: VirtualRuntime) -> None:
    model = model_class(runtime)(2)
    with pytest.raises(TypeError, match="too many positional arguments"):
        model.predict.ubatch(1, 2)
