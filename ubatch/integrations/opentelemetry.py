"""OpenTelemetry: a span for each batch, linked to the spans of the requests in it, and they to it.

    from ubatch.integrations import opentelemetry

    predict = UBatch(64, 0.01, instruments=[opentelemetry.instrument()]).set_handler(model.predict)

Guarantees:

* A batch's span lasts from the moment the batch was closed until the handler came back. It has a link to the span that
  was current in each call, and it is current in the handler: spans made there are its children.
* It is a child of the first of these spans that is sampled. So, with a sampler that follows the parent (OpenTelemetry's
  default), the batch of a sampled request is always recorded, and one with no sampled request is not.
* The span that was current in a call gets a link to its batch's span, with the seconds that this call waited and that
  the handler took; and the same as attributes, those of its last call where there are several.
* Without a span in the call, or with one that records nothing, there is nothing to link, and that is all.

| of a batch's span | |
| --- | --- |
| `messaging.batch.message_count` | how many requests it holds |
| `ubatch.batcher` | the batcher's name |
| `ubatch.batch.reason` | why it was closed: "full", "timeout", "idle", "drain" |
| `ubatch.batch.failed_count` | how many of its requests failed; where some did |
| `error.type` | the error of the whole batch, which is recorded as an exception too |

| of a request's span, and of its link to the batch | |
| --- | --- |
| `ubatch.batcher` | the batcher's name |
| `ubatch.queue.duration` | seconds that the call waited for a batch |
| `ubatch.handler.duration` | seconds that the handler took for that batch; not where the call was over before |

Needs the extra `ubatch[opentelemetry]`, and whatever makes the requests' spans, such as Flask's instrumentation.
"""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any

try:
    from opentelemetry import context, trace
except ImportError as _error:
    raise ImportError(
        "ubatch.integrations.opentelemetry needs opentelemetry-api: pip install 'ubatch[opentelemetry]'"
    ) from _error

from .. import Instrument, __version__

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext, TracerProvider

    from .. import Batch, Request

__all__ = ["instrument"]


def instrument(tracer_provider: TracerProvider | None = None) -> Instrument:
    """Make an instrument, for any number of batchers; the provider is the global one unless another is given.

    >>> from ubatch import UBatch
    >>> batcher = UBatch[int, int](64, 0.0, instruments=[instrument()]).set_handler(list)
    >>> with trace.get_tracer("a request").start_as_current_span("GET /"):
    ...     batcher.ubatch(3)
    3
    >>> batcher.stop()
    True
    """
    return _Tracing(trace.get_tracer("ubatch", __version__, tracer_provider))


# ---------------------------------------------------------------------------------------------------------------------


class _Tracing(Instrument):
    """It writes on a request the caller's span, and then the batch's context too; on a batch, its span."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def call_made(self, request: Request[Any]) -> None:
        span = trace.get_current_span()
        if span.get_span_context().is_valid:
            request.extensions[self] = span, None

    def batch_started(self, batch: Batch) -> None:
        noted = [(request.extensions, *note) for request in batch.requests if (note := request.extensions.get(self))]
        contexts = [span.get_span_context() for _, span, _ in noted]
        started_at = time_ns() - round((batch.batcher.clock() - batch.started_at) * 1e9)
        span = self._tracer.start_span(
            f"batch {batch.name}",
            context=_below(contexts),
            start_time=started_at,
            links=[trace.Link(context) for context in contexts],
            attributes={
                "messaging.batch.message_count": len(batch.requests),
                "ubatch.batcher": batch.name,
                "ubatch.batch.reason": batch.reason,
            },
        )
        batch.extensions[self] = span, started_at
        if span.is_recording():
            # A caller that gives up meanwhile has taken its note already, and this one is put in its place. It goes
            # with the request; who asks that for its result again gets the link then.
            for notes, callers_span, _ in noted:
                notes[self] = callers_span, span.get_span_context()

    def handler_started(self, batch: Batch) -> None:
        # No detach: the context ends with the handler.
        context.attach(trace.set_span_in_context(batch.extensions[self][0]))

    def batch_ended(self, batch: Batch) -> None:
        span, started_at = batch.extensions.pop(self, (None, 0))
        if span is None:  # the collector was killed before it had said that the batch starts
            return
        if batch.failed:
            span.set_attribute("ubatch.batch.failed_count", batch.failed)
        if batch.error is not None:
            span.set_attribute("error.type", type(batch.error).__qualname__)
            span.record_exception(batch.error)
            span.set_status(trace.StatusCode.ERROR, str(batch.error))
        ended_at = batch.ended_at
        span.end(None if ended_at is None else started_at + round((ended_at - batch.started_at) * 1e9))

    def call_ended(self, request: Request[Any]) -> None:
        span, batch_context = request.extensions.pop(self, (None, None))
        if span is None or not span.is_recording():
            return
        attributes: dict[str, Any] = {"ubatch.batcher": request.batcher.name}
        if request.queue_seconds is not None:
            attributes["ubatch.queue.duration"] = request.queue_seconds
        if request.handler_seconds is not None:
            attributes["ubatch.handler.duration"] = request.handler_seconds
        span.set_attributes(attributes)
        if batch_context is not None:
            span.add_link(batch_context, attributes)


def _below(contexts: list[SpanContext]) -> context.Context:
    """A context in which the first sampled one is the parent; without any, the first; without that, none."""
    sampled = (it for it in contexts if it.trace_flags.sampled)
    parent = next(sampled, next(iter(contexts), trace.INVALID_SPAN_CONTEXT))
    return trace.set_span_in_context(trace.NonRecordingSpan(parent), context.Context())
