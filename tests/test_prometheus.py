"""Prometheus's metrics: in virtual time, and from real workers."""

from __future__ import annotations

import doctest
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ubatch import Instrument, QueueFull, UBatch
from ubatch._instrument import METHODS
from ubatch.testing import Gate, VirtualRuntime

from .conftest import Harness
from .serving import Alone, Gunicorn

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from ubatch.integrations import prometheus


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture(params=[prometheus._Read, prometheus._Written], ids=["read", "written"])
def metrics(request: pytest.FixtureRequest, registry: CollectorRegistry) -> Instrument:
    """Both ways in one process, where they must tell the same."""
    return request.param(registry)  # type: ignore[no-any-return]


@pytest.fixture
def value(registry: CollectorRegistry) -> Callable[..., float | None]:
    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"batcher": "b", **labels})

    return value


Value = Callable[..., float | None]


def test_the_examples_in_docstrings_run() -> None:
    assert doctest.testmod(prometheus).failed == 0


def test_calls_are_counted_by_their_end(
    harness: Harness, runtime: VirtualRuntime, gate: Gate, metrics: Instrument, value: Value
) -> None:
    def handler(xs: list[int]) -> list[Any]:
        return [ValueError(x) if x < 0 else x for x in xs]

    batcher, _ = harness.batcher(handler, gate=gate, max_size=2, max_queue=2, instruments=[metrics], name="b")
    requests = [batcher.submit(x) for x in (1, -1)]
    runtime.settle()
    requests += [batcher.submit(x) for x in (2, 3)]
    with pytest.raises(QueueFull):
        batcher.submit(4)
    requests[2].cancel()
    gate.open()
    runtime.advance(5.0)
    outcomes = ("answered", "raised", "rejected", "expired", "abandoned", "closed")
    assert [value("ubatch_calls_total", outcome=outcome) for outcome in outcomes] == [2, 1, 1, 0, 1, 0]


def test_batches_are_counted_by_reason_and_measured(
    harness: Harness, runtime: VirtualRuntime, gate: Gate, metrics: Instrument, value: Value
) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=2, timeout=5.0, instruments=[metrics], name="b")
    for x in range(3):
        batcher.submit(x)
    runtime.advance(2.0)
    gate.open()
    runtime.advance(3.0)
    assert value("ubatch_batches_total", reason="full") == 1
    assert value("ubatch_batches_total", reason="timeout") == 1
    assert (value("ubatch_batch_size_count"), value("ubatch_batch_size_sum")) == (2, 3)
    assert (value("ubatch_batch_size_bucket", le="1.0"), value("ubatch_batch_size_bucket", le="2.0")) == (1, 2)
    assert (value("ubatch_request_queue_seconds_count"), value("ubatch_request_queue_seconds_sum")) == (3, 5.0)
    assert value("ubatch_request_queue_seconds_bucket", le="0.0005") == 2
    assert value("ubatch_request_queue_seconds_bucket", le="5.0") == 3
    assert (value("ubatch_handler_seconds_count"), value("ubatch_handler_seconds_sum")) == (2, 2.0)


def test_gauges_tell_the_state_and_the_settings(
    harness: Harness, runtime: VirtualRuntime, gate: Gate, metrics: Instrument, value: Value
) -> None:
    options: dict[str, Any] = {"max_size": 2, "timeout": 5.0, "stall_after": 3.0, "instruments": [metrics], "name": "b"}
    batcher, _ = harness.batcher(gate=gate, **options)
    for x in range(2):
        batcher.submit(x)
    runtime.advance(4.0)
    batcher.submit(2)
    state = ("ubatch_requests_in_flight", "ubatch_requests_pending", "ubatch_stalled")
    assert [value(name) for name in state] == [2, 1, 1]
    gate.open()
    runtime.advance(5.0)
    assert [value(name) for name in state] == [0, 0, 0]
    settings = ("ubatch_max_size", "ubatch_timeout_seconds", "ubatch_max_in_flight")
    assert [value(name) for name in settings] == [2, 5.0, 1]


def test_batchers_of_one_name_count_as_one(
    harness: Harness, runtime: VirtualRuntime, metrics: Instrument, value: Value
) -> None:
    for max_size in (1, 2):
        batcher, _ = harness.batcher(max_size=max_size, instruments=[metrics], name="b")
        batcher.submit(1), batcher.submit(2)
    runtime.settle()
    assert value("ubatch_calls_total", outcome="answered") == 4
    assert value("ubatch_batches_total", reason="full") == 3
    assert (value("ubatch_batch_size_count"), value("ubatch_batch_size_sum")) == (3, 4)
    assert value("ubatch_max_size") == 2


def test_totals_stay_when_a_batcher_is_gone(
    runtime: VirtualRuntime, metrics: Instrument, value: Value, registry: CollectorRegistry
) -> None:
    for expected in (1, 2):
        batcher = UBatch[int, int](1, 0, runtime=runtime, instruments=[metrics], name="b").set_handler(list)
        batcher.submit(1)
        runtime.settle()
        assert value("ubatch_calls_total", outcome="answered") == expected
        del batcher
        gc.collect()
        runtime.settle()
        assert value("ubatch_calls_total", outcome="answered") == expected
        assert value("ubatch_request_queue_seconds_count") == expected


def test_a_batcher_without_the_instrument_is_not_told_of(
    harness: Harness, runtime: VirtualRuntime, metrics: Instrument, value: Value
) -> None:
    batcher, _ = harness.batcher(max_size=1, name="b")
    batcher.submit(1)
    runtime.settle()
    assert value("ubatch_calls_total", outcome="answered") is None


def test_in_one_process_the_instrument_observes_no_call_and_so_costs_nothing(registry: CollectorRegistry) -> None:
    metrics = prometheus.instrument(registry)
    observed = {method for method in METHODS if getattr(type(metrics), method) is not getattr(Instrument, method)}
    assert observed == {"batcher_opened"}


@pytest.mark.parametrize("runtime", ["threading", "gevent"])
def test_what_was_counted_between_two_scrapes_is_not_lost_when_the_batcher_goes(
    registry: CollectorRegistry, value: Value, runtime: str
) -> None:
    metrics = prometheus.instrument(registry)

    def come_and_go(calls: int) -> None:
        batcher = UBatch[int, int](8, 0.0, name="b", runtime=runtime, instruments=[metrics]).set_handler(list)
        batcher.map(range(calls))
        batcher.stop()

    for _ in range(10):
        come_and_go(3)
    gc.collect()
    assert value("ubatch_calls_total", batcher="b", outcome="answered") == 30
    for _ in range(3 * prometheus.MOST_GONE):  # more than are kept until somebody scrapes
        come_and_go(1)
    gc.collect()
    assert len(metrics._batchers) <= 2 * prometheus.MOST_GONE  # type: ignore[attr-defined]
    assert value("ubatch_calls_total", batcher="b", outcome="answered") == 30 + 3 * prometheus.MOST_GONE
    assert not metrics._batchers  # type: ignore[attr-defined]


@pytest.mark.parametrize("inner", ["threading", "gevent"])
def test_what_is_written_of_a_batcher_that_was_dropped_with_a_cancelled_request_goes_back_to_nothing(
    registry: CollectorRegistry, value: Value, inner: str
) -> None:
    metrics = prometheus._Written(registry)
    runtime = VirtualRuntime(inner)
    batcher = UBatch[int, int](8, 60.0, name="b", runtime=runtime, instruments=[metrics]).set_handler(list)
    first = batcher.submit(1)
    runtime.advance(1.0)
    second = batcher.submit(2)
    assert value("ubatch_requests_pending", batcher="b") == 2
    first.cancel()
    second.cancel()
    del batcher, first, second
    gc.collect()
    runtime.settle()
    assert value("ubatch_requests_pending", batcher="b") == 0
    assert value("ubatch_calls_total", batcher="b", outcome="abandoned") == 2


def test_a_second_instrument_needs_a_registry_of_its_own(metrics: Instrument, registry: CollectorRegistry) -> None:
    with pytest.raises(ValueError, match=r"[Dd]uplicate"):
        type(metrics)(registry)  # type: ignore[call-arg]


def test_what_is_written_is_as_fresh_as_the_last_call_to_10_milliseconds(
    harness: Harness, runtime: VirtualRuntime, gate: Gate, registry: CollectorRegistry, value: Value
) -> None:
    metrics = prometheus._Written(registry)
    batcher, _ = harness.batcher(gate=gate, max_size=1, instruments=[metrics], name="b")
    batcher.submit(1)
    runtime.settle()
    for seconds, pending in ((0.0, 0), (0.004, 0), (0.006, 3), (0.004, 3)):
        runtime.advance(seconds)
        batcher.submit(1)
        assert value("ubatch_requests_pending") == pending
    metrics.refresh()
    assert value("ubatch_requests_pending") == 4


def test_the_application_answers_in_prometheus_own_format(registry: CollectorRegistry) -> None:
    answers: list[Any] = []
    prometheus.instrument(registry)
    environ: Any = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"}
    body = prometheus.metrics_app(registry)(environ, lambda *answer: answers.append(answer))  # type: ignore[arg-type]
    assert answers[0][0] == "200 OK"
    assert dict(answers[0][1])["Content-Type"].startswith("text/plain")
    assert b"# TYPE ubatch_calls_total counter" in b"".join(body)


def test_without_prometheus_client_the_error_names_the_extra() -> None:
    script = "import sys; sys.modules['prometheus_client'] = None; import ubatch.integrations.prometheus"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert "ImportError: ubatch.integrations.prometheus needs prometheus-client: pip install 'ubatch[prometheus]'" in (
        done.stderr
    )


# The same from several processes.

SCRIPT = """
import json
from prometheus_client.parser import text_string_to_metric_families
from ubatch import UBatch
from ubatch.integrations import prometheus

with UBatch(2, 60.0, name="b", instruments=[prometheus.instrument()]).set_handler(list) as batcher:
    batcher.map(range(4))
prometheus.child_exit(None, type("Worker", (), {"pid": 1}))
body = prometheus.metrics_app()({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *answer: None)
families = text_string_to_metric_families(b"".join(body).decode())
print(json.dumps(sorted(
    [family.name, family.type, family.documentation, sorted([sample.name, sorted(sample.labels.items()), sample.value]
    for sample in family.samples if not sample.name.endswith(("_created", "seconds_sum", "seconds_bucket")))]
    for family in families if family.name.startswith("ubatch_")
)))
"""


def test_both_ways_tell_the_same(tmp_path: Path) -> None:
    told = []
    for environment in ({}, {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=os.environ | environment,
        )
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout))
    assert told[0] == told[1]
    assert [family[0] for family in told[0]] == [
        "ubatch_batch_size",
        "ubatch_batches",
        "ubatch_calls",
        "ubatch_handler_seconds",
        "ubatch_max_in_flight",
        "ubatch_max_size",
        "ubatch_request_queue_seconds",
        "ubatch_requests_in_flight",
        "ubatch_requests_pending",
        "ubatch_stalled",
        "ubatch_timeout_seconds",
    ]


APPLICATION = """
from ubatch import UBatch
from ubatch.integrations import prometheus

def hold(xs):
    print("held", flush=True)
    from gevent.event import Event
    Event().wait()

metrics = prometheus.instrument()
squares = UBatch(8, 0.001, name="squares", instruments=[metrics]).set_handler(lambda xs: [x * x for x in xs])
held = UBatch(1, 0, name="held", executor="greenlet", instruments=[metrics]).set_handler(hold)
metrics_app = prometheus.metrics_app()

def app(environ, start_response):
    path = environ["PATH_INFO"].split("/")
    if path[1] == "metrics":
        return metrics_app(environ, start_response)
    answer = {"square": lambda: squares.ubatch(int(path[2])), "hold": lambda: held.ubatch(1), "ping": str}[path[1]]()
    start_response("200 OK", [])
    return [str(answer).encode()]
"""
CONF = """
from ubatch.integrations import prometheus

def child_exit(server, worker):
    prometheus.child_exit(server, worker)
    print("gone", worker.pid, flush=True)
"""


def scrape(server: Gunicorn) -> dict[tuple[str, ...], float]:
    """The samples, by name and labels."""
    families = text_string_to_metric_families(server.ask("/metrics"))
    samples = (sample for family in families for sample in family.samples)
    return {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value for sample in samples}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_two_workers_answer_as_one_and_a_dead_one_leaves_its_totals(tmp_path: Path, preload: tuple[str, ...]) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "values").mkdir()
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "values")}
    with Gunicorn(tmp_path, APPLICATION, "-k", "gevent", "-w", "2", *preload, conf=CONF, **environment) as server:
        first, second = server.workers(2)
        with Alone(first):
            answers = [server.ask(f"/square/{x}") for x in range(5)]
            server.ask("/ping")  # when it answers this, what came after the last answer is done
        with Alone(second):
            answers += [server.ask(f"/square/{x}") for x in range(3)]
            holding = threading.Thread(target=_ask_in_vain, args=(server,))
            holding.start()
            server.wait_for("held")
            server.ask("/ping")
        assert answers == ["0", "1", "4", "9", "16", "0", "1", "4"]
        both = scrape(server)
        assert both["ubatch_calls_total", "squares", "answered"] == 8
        assert both["ubatch_request_queue_seconds_count", "squares"] == 8
        assert both["ubatch_requests_in_flight", "held"] == 1
        assert both["ubatch_max_size", "squares"] == 8
        os.kill(first, signal.SIGKILL)
        server.wait_for(f"gone {first}")
        holding.join()
        left = scrape(server)
        assert left["ubatch_calls_total", "squares", "answered"] == 8
        assert left["ubatch_batches_total", "held", "full"] == 1
        assert left.get(("ubatch_requests_in_flight", "held"), 0) == 0
        replacement = server.workers(3)[2]
        with Alone(second):
            server.ask("/square/2")
            server.ask("/ping")
        assert replacement != first
        assert scrape(server)["ubatch_calls_total", "squares", "answered"] == 9


def _ask_in_vain(server: Gunicorn) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - the worker is killed; each version of Python says it its own way
        server.ask("/hold")
