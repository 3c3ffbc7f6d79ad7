"""What callers pass in is let go when they have had their answer or error, without the cyclic collector."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from weakref import ref

import pytest

from ubatch import HandlerAborted, UBatch
from ubatch.testing import VirtualRuntime


class Image:
    """Something large."""


def fine(images: list[Any]) -> list[Any]:
    return [1 for _ in images]


def broken(images: list[Any]) -> list[Any]:
    raise ValueError("bad model")


def deep(images: list[Any]) -> list[Any]:
    return layer(5, images)


def layer(n: int, images: list[Any]) -> list[Any]:
    return layer(n - 1, images) if n else broken(images)


def chained(images: list[Any]) -> list[Any]:
    try:
        return broken(images)
    except ValueError as error:
        raise KeyError("worse") from error


def at_its_position(images: list[Any]) -> list[Any]:
    return [ValueError("bad item") for _ in images]


def caught(images: list[Any]) -> list[Any]:
    found: list[Any] = []
    for image in images:
        try:
            broken([image])
        except ValueError as error:
            found.append(error)
    return found


def ends(images: list[Any]) -> list[Any]:
    raise SystemExit(3)


def too_few(images: list[Any]) -> list[Any]:
    return []


def long(images: list[Any]) -> list[Any]:
    until = time.perf_counter() + 0.006  # so that "auto" takes it off the hub
    while time.perf_counter() < until:
        pass
    return broken(images)


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("options", [{}, {"isolate_errors": True}, {"stall_after": 60.0}], ids=str)
@pytest.mark.parametrize("executor", ["auto", "native", "greenlet"])
@pytest.mark.parametrize("runtime", ["threading", "gevent"])
@pytest.mark.parametrize("handler", [fine, broken, deep, chained, at_its_position, caught, ends, too_few, long])
def test_a_call(handler: Callable[..., Any], runtime: str, executor: str, options: dict[str, Any]) -> None:
    batcher = UBatch[Any, Any](4, 0.0, runtime=runtime, executor=executor, **options).set_handler(handler)

    def call() -> ref[Any]:
        image = Image()
        reference = ref(image)
        with suppress(Exception):
            batcher.ubatch(image)
        return reference

    references = [call() for _ in range(5)]
    batcher.stop()  # a thread may have to come out of the last batch
    assert [reference() for reference in references] == [None] * 5


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("executor", ["native", "greenlet"])
@pytest.mark.parametrize("runtime", ["threading", "gevent"])
@pytest.mark.parametrize("handler", [broken, caught, ends])
def test_a_batch_of_several_that_fails_by_halves(handler: Callable[..., Any], runtime: str, executor: str) -> None:
    batcher = UBatch[Any, Any](
        9, 60.0, runtime=runtime, executor=executor, isolate_errors=True, should_isolate=lambda _: True
    ).set_handler(handler)

    def call() -> list[ref[Any]]:
        images = [Image() for _ in range(9)]
        requests = [batcher.submit(image) for image in images]
        for request in requests:
            assert isinstance(request.exception(), ValueError | HandlerAborted)
        return [ref(image) for image in images]

    references = call()
    batcher.stop()
    assert not any(reference() for reference in references)


@pytest.mark.usefixtures("no_gc")
def test_while_a_caller_holds_its_exception_the_frames_tell_where_the_handler_was(runtime: VirtualRuntime) -> None:
    batcher = UBatch[Any, Any](4, 1.0, runtime=runtime).set_handler(deep)
    call = runtime.call(batcher.ubatch, Image())
    runtime.advance(1.0)
    assert call.error is not None
    cause = call.error.__cause__
    assert cause is not None
    names = []
    traceback = cause.__traceback__
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert names == ["deep", *["layer"] * 6, "broken"]
    stopping = runtime.call(batcher.stop)
    runtime.settle()
    assert stopping.done
