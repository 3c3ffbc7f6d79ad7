"""What real handlers return and raise: several outputs, squeezed ones, exceptions; and how real calls are spelled."""

from __future__ import annotations

import gc
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ubatch import BadBatchOutput, HandlerAborted, NotProcessed, QueueFull, ResultTimeout, UBatch, deadline
from ubatch.testing import VirtualRuntime

TopK = namedtuple("TopK", "values indices")


@pytest.fixture(params=["threading", "gevent"])
def runtime(request: pytest.FixtureRequest) -> VirtualRuntime:
    return VirtualRuntime(request.param)


def answers(runtime: VirtualRuntime, handler: Callable[..., Any], *calls: Any, **options: Any) -> list[Any]:
    """What each of these calls, which share a batch, comes to."""
    batcher = UBatch[Any, Any](64, 1.0, runtime=runtime, **options).set_handler(handler)
    requests = [batcher.submit(call) for call in calls]
    runtime.advance(1.0)
    found = [request.exception() or request.result() for request in requests]
    stopping = runtime.call(batcher.stop)
    runtime.settle()
    assert stopping.done
    return found


def columns(rows: list[Any]) -> Any:
    return np.stack(rows).max(axis=1), np.stack(rows).argmax(axis=1)


def named(rows: list[Any]) -> Any:
    return TopK(*columns(rows))


def parts_of_time(rows: list[Any]) -> Any:
    return time.gmtime(0)


@pytest.mark.parametrize("handler", [columns, named, parts_of_time])
@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_columns_are_refused_whatever_the_size_of_the_batch(
    runtime: VirtualRuntime, handler: Callable[..., Any], size: int
) -> None:
    for error in answers(runtime, handler, *[np.arange(3.0)] * size):
        assert type(error) is BadBatchOutput
        assert "list(zip(*outputs))" in str(error)


def test_the_remedy_that_is_named_works(runtime: VirtualRuntime) -> None:
    rows = [np.array([1.0, 5.0]), np.array([7.0, 2.0])]
    assert answers(runtime, lambda xs: list(zip(*columns(xs), strict=True)), *rows) == [(5.0, 1), (7.0, 0)]


def test_a_list_of_as_many_arrays_as_the_batch_is_refused_until_they_are_known_to_be_rows(
    runtime: VirtualRuntime,
) -> None:
    def rows(xs: list[Any]) -> list[Any]:
        return [np.array([x, -x]) for x in xs]

    assert [type(error) for error in answers(runtime, rows, 1, 2)] == [BadBatchOutput] * 2
    batcher = UBatch[Any, Any](2, 1.0, runtime=runtime).set_handler(rows)
    lone = batcher.submit(1)
    runtime.advance(1.0)
    both = [batcher.submit(2), batcher.submit(3)]
    runtime.settle()
    assert [list(request.result()) for request in [lone, *both]] == [[1, -1], [2, -2], [3, -3]]


def test_a_squeezed_batch_of_one_is_told(runtime: VirtualRuntime) -> None:
    for handler in (lambda xs: np.stack(xs).sum(axis=1).squeeze(), lambda xs: np.stack(xs).squeeze()):
        (error,) = answers(runtime, handler, np.arange(3.0))
        assert isinstance(error, BadBatchOutput)
        assert "of shape (" in str(error)
        assert "a squeeze() of a batch of one?" in str(error)


def test_no_exception_is_handed_out_as_a_value(runtime: VirtualRuntime) -> None:
    outputs = [1, ValueError, SystemExit(), int]
    good, a_class, an_exit, a_type = answers(runtime, lambda _: list(outputs), *range(4))
    assert (good, a_type) == (1, int)
    assert type(a_class) is BadBatchOutput
    assert "the class ValueError" in str(a_class)
    assert type(an_exit) is HandlerAborted


async def awaited(xs: list[int]) -> list[int]:
    return xs


class AwaitedWhenCalled:
    async def __call__(self, xs: list[int]) -> list[int]:
        return xs


@pytest.mark.parametrize("handler", [awaited, AwaitedWhenCalled(), lambda: []])
def test_a_handler_that_cannot_answer_is_refused_when_it_is_set(handler: Any) -> None:
    with pytest.raises(TypeError, match=r"^handler must "):
        UBatch[Any, Any](2, 1.0).set_handler(handler)


def test_every_spelling_of_a_call_joins_the_same_batch(runtime: VirtualRuntime) -> None:
    seen = []

    def handler(xs: list[int], ys: list[int], *, scale: list[int]) -> list[int]:
        seen.append((xs, ys, scale))
        return [(x - y) * s for x, y, s in zip(xs, ys, scale, strict=True)]

    batcher = UBatch[Any, int](3, 9.0, runtime=runtime).set_handler(handler)
    requests = [
        batcher.submit(5, 1, scale=2),
        batcher.submit(5, ys=2, scale=3),
        batcher.submit(scale=4, ys=3, xs=5),
    ]
    runtime.settle()
    assert [request.result() for request in requests] == [8, 9, 8]
    assert seen == [([5, 5, 5], [1, 2, 3], [2, 3, 4])]


class Device:
    """A pretended one: a tensor takes units of it for as long as it lives."""

    size, used = 100, 0


class Tensor:
    def __init__(self, units: int) -> None:
        if Device.used + units > Device.size:
            raise MemoryError(f"{units} must be free; {Device.used} of {Device.size} are taken")
        Device.used += units
        self.units = units

    def __del__(self) -> None:
        Device.used -= getattr(self, "units", 0)


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_gc")
def test_a_batch_too_large_for_the_memory_is_answered_in_parts(runtime: VirtualRuntime) -> None:
    def forward(rows: list[int]) -> list[int]:
        layers = Tensor(4 * len(rows)), Tensor(4 * len(rows))  # 16 rows do not fit, 8 do
        return [row * 2 for row in rows if layers]

    assert answers(runtime, forward, *range(16), isolate_errors=True) == [2 * x for x in range(16)]
    assert Device.used == 0


def test_an_exception_made_in_c_arrives_as_what_it_is(runtime: VirtualRuntime) -> None:
    pydantic = pytest.importorskip("pydantic")
    check = pydantic.TypeAdapter(int).validate_python

    def whole(rows: list[Any]) -> list[int]:
        return [check(row) for row in rows]

    def each(rows: list[Any]) -> list[Any]:
        outputs = []
        for row in rows:
            try:
                outputs.append(check(row))
            except pydantic.ValidationError as error:
                outputs.append(error)
        return outputs

    assert [type(e) for e in answers(runtime, whole, 3, "old")] == [pydantic.ValidationError] * 2
    for handler, options in ((each, {}), (whole, {"isolate_errors": True})):
        good, bad = answers(runtime, handler, 3, "old", **options)
        assert good == 3
        assert type(bad) is pydantic.ValidationError
        assert bad.error_count() == 1


def test_a_syntax_error_of_lxml_arrives_with_its_place(runtime: VirtualRuntime) -> None:
    etree = pytest.importorskip("lxml.etree")

    def parse(texts: list[bytes]) -> list[Any]:
        return [etree.fromstring(text).tag for text in texts]

    for options in ({}, {"isolate_errors": True}):
        found = answers(runtime, parse, b"<a/>", b"<b", **options)
        assert type(found[1]) is etree.XMLSyntaxError
        assert found[1].position == (1, 3)
    assert found[0] == "a"


def test_a_handler_that_ran_is_never_called_not_processed(runtime: VirtualRuntime) -> None:
    def charge(xs: list[int]) -> list[int]:
        raise QueueFull("of another batcher", 1.0)

    (error,) = answers(runtime, charge, 1)
    assert not isinstance(error, NotProcessed)
    assert isinstance(error, HandlerAborted)
    assert type(error.__cause__) is QueueFull


def test_the_deadline_of_a_batch_goes_on_into_what_its_handler_calls(runtime: VirtualRuntime) -> None:
    gate = runtime.gate()
    inner = UBatch[int, int](1, 0.0, runtime=runtime, name="inner").set_handler(lambda xs: (gate.pass_through(), xs)[1])
    outer = UBatch[int, int](1, 0.0, runtime=runtime, name="outer").set_handler(lambda xs: [inner.ubatch(xs[0])])

    def ask() -> int:
        with deadline(5.0):
            return outer.ubatch(1)

    call = runtime.call(ask)
    runtime.advance(6.0)
    assert isinstance(call.error, ResultTimeout)
    assert inner.statistics().expired == 1
    gate.open()
    runtime.settle()
    assert outer.statistics().in_flight == inner.statistics().in_flight == 0


def test_a_call_that_expired_at_the_handler_is_counted_once(runtime: VirtualRuntime) -> None:
    gate = runtime.gate()
    batcher = UBatch[int, int](1, 0.0, runtime=runtime, deadline=2.0).set_handler(
        lambda xs: (gate.pass_through(), xs)[1]
    )
    call = runtime.call(batcher.ubatch, 1)
    runtime.advance(3.0)
    assert isinstance(call.error, ResultTimeout)
    assert batcher.statistics().calls == 1
    gate.open()
    runtime.settle()
    assert batcher.statistics().calls == 1


def test_requests_whose_deadline_has_passed_keep_nobody_out(runtime: VirtualRuntime) -> None:
    gate = runtime.gate()
    batcher = UBatch[int, int](1, 0.0, runtime=runtime, deadline=2.0, max_queue=2).set_handler(
        lambda xs: (gate.pass_through(), xs)[1]
    )
    batcher.submit(0)
    runtime.settle()
    late = [batcher.submit(x) for x in (1, 2)]
    with pytest.raises(QueueFull):
        batcher.submit(3)
    runtime.advance(3.0)
    request = batcher.submit(4)
    assert [type(each.exception()).__name__ for each in late] == ["QueueTimeout"] * 2
    gate.open()
    runtime.settle()
    assert request.result() == 4
