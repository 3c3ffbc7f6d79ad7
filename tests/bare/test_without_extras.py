"""In an environment with gevent and no extra: the package does what it is for, and what needs an extra says so."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from importlib.util import find_spec

import pytest

from ubatch import BadBatchOutputSize, QueueTimeout, UBatch, called_batchers, deadline, ubatch_decorator
from ubatch.testing import RecordingHandler, VirtualRuntime, check_handler

EXTRAS = ("numpy", "flask", "flask_restx", "gunicorn", "prometheus_client", "opentelemetry", "hypothesis")

pytestmark = pytest.mark.skipif(find_spec("flask") is not None, reason="for an environment of its own: make test-bare")


@pytest.fixture(params=["gevent", "threading"])
def predict(request: pytest.FixtureRequest) -> Iterator[UBatch[int, int]]:
    batcher = UBatch[int, int](8, 0.02, eager=True, runtime=request.param)
    batcher.set_handler(lambda xs: [x * x for x in xs])
    yield batcher
    assert batcher.stop(10.0)


def test_there_is_no_extra_here() -> None:
    assert [name for name in EXTRAS if find_spec(name) is not None] == []
    assert [need for need in requires("ubatch") or () if "extra ==" not in need] == ["gevent>=24.10.1"]


def test_calls_are_answered(predict: UBatch[int, int]) -> None:
    assert predict.map(range(100)) == [x * x for x in range(100)]
    assert predict.ubatch(3) == 9
    assert predict.submit(4).result(10.0) == 16
    assert predict in called_batchers()
    assert predict.statistics().answered == 102


def test_a_decorated_function_and_a_deadline() -> None:
    @ubatch_decorator(max_size=8, timeout=60.0)
    def halves(xs: list[float]) -> list[float]:
        return [x / 2 for x in xs]

    with deadline(0.01), pytest.raises(QueueTimeout):
        halves.ubatch(3.0)
    halves.batcher.stop()


def test_a_wrong_number_of_outputs_is_an_error() -> None:
    short = UBatch[int, int](1, 0.0).set_handler(lambda xs: [])
    with pytest.raises(BadBatchOutputSize):
        short.ubatch(1)
    short.stop()


@pytest.mark.parametrize("name", ["gevent", "threading"])
def test_virtual_time(name: str) -> None:
    runtime = VirtualRuntime(name)
    handler = RecordingHandler()
    batcher = UBatch[int, int](4, 5.0, runtime=runtime).set_handler(handler)
    batcher.submit(3)
    runtime.advance(5.0)
    assert handler.calls == [[3]]
    check_handler(list, [1, 2, 3])


@pytest.mark.parametrize("name", ["flask", "prometheus", "opentelemetry"])
def test_what_needs_an_extra_says_which(name: str) -> None:
    with pytest.raises(ImportError, match=r"pip install 'ubatch\[" + name):
        importlib.import_module(f"ubatch.integrations.{name}")
    assert f"ubatch.integrations.{name}" not in sys.modules


def test_what_needs_none_is_there() -> None:
    importlib.import_module("ubatch.integrations.wsgi")
    importlib.import_module("ubatch.integrations.gunicorn")
