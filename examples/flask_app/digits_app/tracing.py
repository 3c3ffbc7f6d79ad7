"""Traces, where OpenTelemetry's own variable asks for them: `OTEL_TRACES_EXPORTER=console`.

Then each request and each batch is a span, printed as JSON; the two are linked. Needs the extra
`digits-app[traces]`. Without the variable nothing of OpenTelemetry is imported, and nothing costs.
"""

from __future__ import annotations

import os

from flask import Flask
from ubatch import Instrument

_asked = os.environ.get("OTEL_TRACES_EXPORTER") == "console"


def instruments() -> list[Instrument]:
    """What makes the spans of batches; none where nobody asks."""
    if not _asked:
        return []
    from ubatch.integrations import opentelemetry

    return [opentelemetry.instrument()]


def trace_requests(app: Flask) -> None:
    """Make the spans of requests, where somebody asks, and print all spans."""
    if not _asked:
        return
    from opentelemetry import trace
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    trace.set_tracer_provider(provider)
    FlaskInstrumentor().instrument_app(app)  # type: ignore[no-untyped-call]
