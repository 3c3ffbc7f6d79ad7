"""Spans of batches, and what the spans of requests know: in virtual time, in real time, and under Flask."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ubatch import QueueFull, UBatch
from ubatch.testing import Gate, VirtualRuntime

from .conftest import Harness
from .serving import Gunicorn

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, StaticSampler

from ubatch.integrations import opentelemetry


class Tracing:
    """A provider with what it has exported, and an instrument of it."""

    def __init__(self, sampled: Callable[[str], bool] = lambda name: True) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=ParentBased(_ByName(sampled)), shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("tests")
        self.instrument = opentelemetry.instrument(self.provider)

    def spans(self) -> dict[str, ReadableSpan]:
        """The spans that have ended, by name."""
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def ask(self, name: str, call: Callable[..., Any], *args: Any) -> Any:
        """Make a call in a span of this name."""
        with self.tracer.start_as_current_span(name):
            return call(*args)


class _ByName(StaticSampler):
    def __init__(self, sampled: Callable[[str], bool]) -> None:
        super().__init__(Decision.RECORD_AND_SAMPLE)
        self._sampled = sampled

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *args: Any, **named: Any) -> Any:
        self._decision = Decision.RECORD_AND_SAMPLE if self._sampled(name) else Decision.DROP
        return super().should_sample(parent_context, trace_id, name, *args, **named)


@pytest.fixture
def tracing() -> Tracing:
    return Tracing()


def ids(span: ReadableSpan | Any) -> tuple[int, int]:
    context = span.context
    return context.trace_id, context.span_id


def test_the_examples_in_docstrings_run() -> None:
    assert doctest.testmod(opentelemetry).failed == 0


def test_a_batch_has_one_span_that_is_linked_to_every_requests_span_and_they_to_it(
    harness: Harness, runtime: VirtualRuntime, gate: Gate, tracing: Tracing
) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=2, timeout=5.0, instruments=[tracing.instrument], name="b")
    calls = [runtime.call(tracing.ask, "one", batcher.ubatch, 1)]
    runtime.advance(2.0)
    calls += [runtime.call(tracing.ask, "two", batcher.ubatch, 2)]
    runtime.advance(3.0)
    gate.open()
    runtime.settle()
    assert [call.value for call in calls] == [1, 2]
    spans = tracing.spans()
    batch = spans["batch b"]
    assert set(spans) == {"one", "two", "batch b"}
    assert [ids(link) for link in batch.links] == [ids(spans["one"]), ids(spans["two"])]
    assert dict(batch.attributes or {}) == {
        "messaging.batch.message_count": 2,
        "ubatch.batcher": "b",
        "ubatch.batch.reason": "full",
    }
    for name, waited in (("one", 2.0), ("two", 0.0)):
        told = {"ubatch.batcher": "b", "ubatch.queue.duration": waited, "ubatch.handler.duration": 3.0}
        assert dict(spans[name].attributes or {}) == told
        assert [(ids(link), dict(link.attributes or {})) for link in spans[name].links] == [(ids(batch), told)]


def test_a_batchs_span_lasts_as_long_as_its_handler(
    harness: Harness, runtime: VirtualRuntime, gate: Gate, tracing: Tracing
) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=1, instruments=[tracing.instrument], name="b")
    batcher.submit(1)
    runtime.advance(7.0)
    gate.open()
    runtime.settle()
    span = tracing.spans()["batch b"]
    assert span.start_time is not None
    assert span.end_time == span.start_time + 7_000_000_000


def test_a_batch_is_a_child_of_its_first_requests_span(
    harness: Harness, runtime: VirtualRuntime, tracing: Tracing
) -> None:
    batcher, _ = harness.batcher(max_size=1, instruments=[tracing.instrument], name="b")
    runtime.call(tracing.ask, "request", batcher.ubatch, 1)
    runtime.settle()
    spans = tracing.spans()
    parent = spans["batch b"].parent
    assert parent is not None
    assert (parent.trace_id, parent.span_id) == ids(spans["request"])


def test_without_a_span_in_the_call_a_batch_still_has_one_of_its_own(
    harness: Harness, runtime: VirtualRuntime, tracing: Tracing
) -> None:
    batcher, _ = harness.batcher(max_size=1, instruments=[tracing.instrument], name="b")
    call = runtime.call(batcher.ubatch, 1)
    runtime.settle()
    assert call.value == 1
    span = tracing.spans()["batch b"]
    assert (span.parent, list(span.links)) == (None, [])


def test_the_batch_of_a_sampled_request_is_recorded_whatever_the_others_are(
    harness: Harness, runtime: VirtualRuntime
) -> None:
    tracing = Tracing(lambda name: name == "sampled")
    batcher, _ = harness.batcher(max_size=2, instruments=[tracing.instrument], name="b")
    runtime.call(tracing.ask, "dropped", batcher.ubatch, 1)
    runtime.settle()
    runtime.call(tracing.ask, "sampled", batcher.ubatch, 2)
    runtime.settle()
    spans = tracing.spans()
    assert set(spans) == {"sampled", "batch b"}
    assert len(spans["batch b"].links) == 2


def test_a_batch_of_requests_that_are_not_sampled_is_not_recorded(harness: Harness, runtime: VirtualRuntime) -> None:
    tracing = Tracing(lambda name: name != "dropped")
    batcher, _ = harness.batcher(max_size=1, instruments=[tracing.instrument], name="b")
    call = runtime.call(tracing.ask, "dropped", batcher.ubatch, 1)
    runtime.settle()
    assert call.value == 1
    assert tracing.spans() == {}


def test_spans_made_in_the_handler_are_below_the_batchs_span(
    harness: Harness, runtime: VirtualRuntime, tracing: Tracing
) -> None:
    def handler(xs: list[int]) -> list[int]:
        with tracing.tracer.start_as_current_span("inference"):
            return xs

    batcher, _ = harness.batcher(handler, max_size=1, instruments=[tracing.instrument], name="b")
    for name in ("one", "two"):
        runtime.call(tracing.ask, name, batcher.ubatch, 1)
        runtime.settle()
    inference, batch = tracing.spans()["inference"], tracing.spans()["batch b"]
    assert inference.parent is not None
    assert (inference.parent.trace_id, inference.parent.span_id) == ids(batch)
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_failed_batch_is_an_error_with_its_exception(
    harness: Harness, runtime: VirtualRuntime, tracing: Tracing
) -> None:
    def handler(xs: list[int]) -> list[int]:
        raise LookupError("no model")

    batcher, _ = harness.batcher(handler, max_size=1, instruments=[tracing.instrument], name="b")
    batcher.submit(1)
    runtime.settle()
    span = tracing.spans()["batch b"]
    assert (span.status.status_code, span.status.description) == (trace.StatusCode.ERROR, "no model")
    assert span.attributes is not None
    assert (span.attributes["error.type"], span.attributes["ubatch.batch.failed_count"]) == ("LookupError", 1)
    assert [event.name for event in span.events] == ["exception"]


def test_failed_items_are_counted_and_the_batch_is_no_error(
    harness: Harness, runtime: VirtualRuntime, tracing: Tracing
) -> None:
    def handler(xs: list[int]) -> list[Any]:
        return [ValueError(x) if x < 0 else x for x in xs]

    batcher, _ = harness.batcher(handler, max_size=3, instruments=[tracing.instrument], name="b")
    for x in (1, -1, -2):
        batcher.submit(x)
    runtime.settle()
    span = tracing.spans()["batch b"]
    assert span.status.status_code == trace.StatusCode.UNSET
    assert span.attributes is not None
    assert span.attributes["ubatch.batch.failed_count"] == 2


def test_several_calls_of_one_request_are_several_links(
    harness: Harness, runtime: VirtualRuntime, tracing: Tracing
) -> None:
    batcher, _ = harness.batcher(max_size=2, instruments=[tracing.instrument], name="b")
    call = runtime.call(tracing.ask, "request", batcher.map, range(4))
    runtime.settle()
    assert call.value == [0, 1, 2, 3]
    batches = [ids(span) for span in tracing.exporter.get_finished_spans() if span.name == "batch b"]
    links = [ids(link) for link in tracing.spans()["request"].links]
    assert len(batches) == 2
    assert sorted(links) == sorted([*batches, *batches])


def test_a_call_that_no_batch_took_says_how_long_it_was_for_nothing(
    harness: Harness, runtime: VirtualRuntime, gate: Gate, tracing: Tracing
) -> None:
    batcher, _ = harness.batcher(
        gate=gate, max_size=1, max_queue=1, deadline=2.0, instruments=[tracing.instrument], name="b"
    )
    batcher.submit(0)
    runtime.settle()
    late = runtime.call(tracing.ask, "late", batcher.ubatch, 1)
    runtime.settle()
    refused = runtime.call(tracing.ask, "refused", batcher.ubatch, 2)
    runtime.advance(2.0)
    assert late.done
    assert isinstance(refused.error, QueueFull)
    assert dict(tracing.spans()["late"].attributes or {}) == {"ubatch.batcher": "b"}
    assert dict(tracing.spans()["refused"].attributes or {}) == {}
    gate.open()
    runtime.settle()


class _WhenABatchStarts(SpanProcessor):
    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if span.name == "batch b":
            self._then()


def test_a_caller_that_gives_up_while_its_batch_starts_does_no_harm(
    harness: Harness, runtime: VirtualRuntime, tracing: Tracing
) -> None:
    batcher, _ = harness.batcher(max_size=2, instruments=[tracing.instrument], name="b")
    requests: list[Any] = []
    tracing.provider.add_span_processor(_WhenABatchStarts(lambda: tracing.instrument.call_ended(requests[0])))
    span = tracing.tracer.start_span("request")
    with trace.use_span(span):
        requests.append(batcher.submit(1))
    batcher.submit(2)
    runtime.settle()
    assert requests[0].result() == requests[0].result() == 1
    span.end()
    spans = tracing.spans()
    batch = ids(spans["batch b"])
    assert [ids(link) for link in spans["request"].links] == [batch]
    assert [ids(link) for link in spans["batch b"].links] == [ids(spans["request"])]


@pytest.mark.parametrize("runtime_name", ["gevent", "threading"])
@pytest.mark.parametrize("executor", ["native", "greenlet"])
def test_in_real_time_every_request_is_linked_to_its_batch(runtime_name: str, executor: str, tracing: Tracing) -> None:
    batcher = UBatch[int, int](
        4, 60.0, runtime=runtime_name, executor=executor, instruments=[tracing.instrument], name="b"
    ).set_handler(list)
    if runtime_name == "gevent":
        import gevent

        tasks = [gevent.spawn(tracing.ask, f"{x}", batcher.ubatch, x) for x in range(16)]
        gevent.joinall(tasks, timeout=20)
    else:
        threads = [threading.Thread(target=tracing.ask, args=(f"{x}", batcher.ubatch, x)) for x in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    batcher.stop(10)
    spans = tracing.spans()
    batches = {ids(span): span for span in tracing.exporter.get_finished_spans() if span.name == "batch b"}
    assert len(batches) == 4
    for x in range(16):
        (link,) = spans[f"{x}"].links
        assert ids(spans[f"{x}"]) in [ids(back) for back in batches[ids(link)].links]


APPLICATION = """
import json
from flask import Flask
from opentelemetry import trace
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from ubatch import UBatch
from ubatch.integrations import opentelemetry

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
squares = UBatch(3, 60.0, name="squares", instruments=[opentelemetry.instrument()])
squares.set_handler(lambda xs: [x * x for x in xs])
app = Flask(__name__)
FlaskInstrumentor().instrument_app(app, excluded_urls="/spans")

@app.get("/square/<int:x>")
def square(x):
    return str(squares.ubatch(x))

@app.get("/spans")
def spans():
    squares.stop()  # then every batch has been observed to its end
    return json.dumps([json.loads(span.to_json()) for span in exporter.get_finished_spans()])
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "worker", [("-k", "gevent"), ("-k", "gthread", "--threads", "8")], ids=lambda worker: str(worker[1])
)
def test_under_flasks_instrumentation_and_gunicorn_requests_and_batches_know_each_other(
    tmp_path: Path, worker: tuple[str, ...]
) -> None:
    pytest.importorskip("gunicorn")
    pytest.importorskip("opentelemetry.instrumentation.flask")
    with Gunicorn(tmp_path, APPLICATION, *worker) as server:
        answers: list[str] = []
        threads = [threading.Thread(target=lambda x=x: answers.append(server.ask(f"/square/{x}"))) for x in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers, key=int) == ["0", "1", "4", "9", "16", "25"]
        spans = json.loads(server.ask("/spans"))
    batches = {span["context"]["span_id"]: span for span in spans if span["name"] == "batch squares"}
    requests = [span for span in spans if "ubatch.queue.duration" in span["attributes"]]
    assert [span["attributes"]["messaging.batch.message_count"] for span in batches.values()] == [3, 3]
    assert len(requests) == 6
    for span in requests:
        assert span["kind"] == "SpanKind.SERVER"
        assert span["attributes"]["http.route"] == "/square/<int:x>"
        (link,) = span["links"]
        back = [link["context"]["span_id"] for link in batches[link["context"]["span_id"]]["links"]]
        assert span["context"]["span_id"] in back


def test_without_opentelemetry_the_error_names_the_extra() -> None:
    script = "import sys; sys.modules['opentelemetry'] = None; import ubatch.integrations.opentelemetry"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    message = "ubatch.integrations.opentelemetry needs opentelemetry-api: pip install 'ubatch[opentelemetry]'"
    assert f"ImportError: {message}" in done.stderr
