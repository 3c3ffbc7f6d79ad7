"""Prometheus: what batchers do, as metrics with the label `batcher`, from one process or from all workers of a server.

    from ubatch.integrations import prometheus

    metrics = prometheus.instrument()                               # once per program
    predict = UBatch(64, 0.01, instruments=[metrics]).set_handler(model.predict)
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/metrics": prometheus.metrics_app()})

Guarantees:

* In one process the metrics are read from `UBatch.statistics` when somebody asks for them. They are exact, and a call
  pays nothing.
* Where `PROMETHEUS_MULTIPROC_DIR` is set, before anything imports prometheus_client, each worker writes its own values
  (prometheus_client's multiprocess mode) and any of them answers for all. That costs some microseconds a call. Counters
  and histograms are as of each worker's last batch. The gauges are too, and besides as of its last call, to 10 ms, and
  of the last time that it answered `metrics_app` itself.
* Totals never go down: not when a batcher is gone, and not when a worker is. The gauges of a worker that has died stay
  until gunicorn's master has called `child_exit`, so its configuration file must import that.
* Batchers of the same name, as those of a decorated method are, count as one.

Needs the extra `ubatch[prometheus]`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app, multiprocess
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
except ImportError as _error:
    raise ImportError(
        "ubatch.integrations.prometheus needs prometheus-client: pip install 'ubatch[prometheus]'"
    ) from _error

from .. import BatcherView, Instrument, Statistics, native_lock
from .. import Histogram as Counted

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .. import Batch, Request

__all__ = ["child_exit", "instrument", "metrics_app"]

MOST_GONE = 64  # batchers; arbitrary: what is kept of them by a program that nobody scrapes
REFRESHED_EVERY = 0.01  # seconds, at most, by calls; arbitrary: so that it costs next to nothing under any load


class Described(NamedTuple):
    """A metric. Its name is without the suffix that its kind adds."""

    name: str
    help: str


CALLS = Described("ubatch_calls", "Calls that have ended, by their outcome.")
BATCHES = Described("ubatch_batches", "Batches, by the reason they were closed.")
SIZE = Described("ubatch_batch_size", "Requests per batch.")
QUEUE = Described("ubatch_request_queue_seconds", "Seconds that a request waited for its batch.")
HANDLER = Described("ubatch_handler_seconds", "Seconds that the handler took for a batch.")
STATE = {
    "pending": Described("ubatch_requests_pending", "Requests that no batch has taken yet."),
    "in_flight": Described("ubatch_requests_in_flight", "Requests that are at the handler."),
    "stalled": Described("ubatch_stalled", "Batchers whose handler has run for longer than stall_after."),
}
SETTINGS = {
    "max_size": Described("ubatch_max_size", "The most requests in one batch."),
    "timeout": Described("ubatch_timeout_seconds", "Seconds that the oldest request waits for company, at most."),
    "max_in_flight": Described("ubatch_max_in_flight", "Batches that may be at the handler at once, per process."),
}


def instrument(registry: CollectorRegistry = REGISTRY) -> Instrument:
    """Make the one instrument that all batchers of the program share, and register its metrics.

    Raises ValueError where the registry has metrics of these names already: a second instrument needs its own.

    >>> from ubatch import UBatch
    >>> registry = CollectorRegistry()
    >>> batcher = UBatch[int, int](2, 60.0, name="squares", instruments=[instrument(registry)])
    >>> with batcher.set_handler(lambda xs: [x * x for x in xs]):
    ...     batcher.map([3, 4])
    [9, 16]
    >>> registry.get_sample_value("ubatch_calls_total", {"batcher": "squares", "outcome": "answered"})
    2.0
    """
    return _Written(registry) if _has_workers() else _Read(registry)


def metrics_app(registry: CollectorRegistry = REGISTRY) -> WSGIApplication:
    """A WSGI application that answers with the registry's metrics; those of all workers, where they write them.

    Raises ValueError where `PROMETHEUS_MULTIPROC_DIR` is no directory.
    """
    if not _has_workers():
        return make_wsgi_app(registry)
    merged = CollectorRegistry()
    multiprocess.MultiProcessCollector(merged)  # type: ignore[no-untyped-call]
    answer = make_wsgi_app(merged)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        for written in list(_all_written):
            written.refresh()
        return answer(environ, start_response)  # type: ignore[no-any-return]

    return app


def child_exit(server: Any, worker: Any) -> None:
    """A hook for gunicorn's configuration file: a worker is gone, and so are its gauges. Runs in the master."""
    if _has_workers():
        multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


# ---------------------------------------------------------------------------------------------------------------------


def _has_workers() -> bool:
    """Whether prometheus_client is in its multiprocess mode."""
    return bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))


# In one process: read when asked.


class _Read(Instrument):
    """A collector in Prometheus's sense. Of a batcher it is told only when it is opened, so a call pays nothing."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._batchers: list[BatcherView] = []
        self._gone: list[Statistics] = []  # the last of batchers that are no more, one per name
        self._swept_at = MOST_GONE  # batchers, before those that are gone are added up
        self._lock = native_lock()
        registry.register(self)

    def batcher_opened(self, batcher: BatcherView) -> None:
        with self._lock:
            self._batchers.append(batcher)
            if len(self._batchers) >= self._swept_at:
                self._sweep()
                self._swept_at = 2 * len(self._batchers) + MOST_GONE

    def describe(self) -> Iterable[Any]:
        return _families([], [])

    def collect(self) -> Iterable[Any]:
        with self._lock:
            self._sweep()
            return _families([batcher.statistics() for batcher in self._batchers], self._gone)

    def _sweep(self) -> None:
        """Keep no more of what is gone than its figures, one for each name; nothing of a parent's."""
        here = [batcher for batcher in self._batchers if batcher.of_this_process]
        gone_by_now = [batcher for batcher in here if batcher.gone]
        self._batchers = [batcher for batcher in here if batcher not in gone_by_now]
        gone = [*self._gone, *(batcher.statistics() for batcher in gone_by_now)]
        self._gone = [_sum(same) for same in _by_name(gone).values()]


def _families(living: list[Statistics], gone: list[Statistics]) -> list[Any]:
    """The metrics. What is gone adds to totals, and has no state."""
    totals = {name: _sum(same) for name, same in _by_name([*living, *gone]).items()}
    calls = CounterMetricFamily(*CALLS, labels=("batcher", "outcome"))
    batches = CounterMetricFamily(*BATCHES, labels=("batcher", "reason"))
    for name, total in totals.items():
        for outcome in Statistics.OUTCOMES:
            calls.add_metric((name, outcome), float(getattr(total, outcome)))
        for reason, count in total.reasons.items():
            batches.add_metric((name, reason), float(count))
    families: list[Any] = [calls, batches]
    for described, field in ((SIZE, "sizes"), (QUEUE, "queue_seconds"), (HANDLER, "handler_seconds")):
        histogram = HistogramMetricFamily(*described, labels=("batcher",))
        for name, total in totals.items():
            counted: Counted = getattr(total, field)
            histogram.add_metric((name,), _buckets(counted), counted.sum)
        families.append(histogram)
    groups = _by_name(living)
    families += _gauges(STATE, groups, sum)
    families += _gauges(SETTINGS, groups, max)
    return families


def _gauges(
    described: dict[str, Described], groups: dict[str, list[Statistics]], merge: Callable[[Any], float]
) -> Iterator[Any]:
    for field, (name, help) in described.items():
        gauge = GaugeMetricFamily(name, help, labels=("batcher",))
        for batcher, same in groups.items():
            gauge.add_metric((batcher,), merge([getattr(statistics, field) for statistics in same]))
        yield gauge


def _buckets(counted: Counted) -> list[tuple[str, float]]:
    bounds = [*(repr(float(bound)) for bound in counted.bounds), "+Inf"]
    return list(zip(bounds, accumulate(counted.counts), strict=True))


def _by_name(them: Iterable[Statistics]) -> dict[str, list[Statistics]]:
    groups = defaultdict(list)
    for statistics in them:
        groups[statistics.name].append(statistics)
    return groups


def _sum(them: list[Statistics]) -> Statistics:
    """Their counters, added up; the rest is the first one's."""
    if len(them) == 1:
        return them[0]
    reasons: defaultdict[str, int] = defaultdict(int)
    for statistics in them:
        for reason, count in statistics.reasons.items():
            reasons[reason] += count
    outcomes: dict[str, Any] = {
        outcome: sum(getattr(statistics, outcome) for statistics in them) for outcome in Statistics.OUTCOMES
    }
    return replace(
        them[0],
        **outcomes,
        reasons=reasons,
        sizes=_sum_histograms([statistics.sizes for statistics in them]),
        queue_seconds=_sum_histograms([statistics.queue_seconds for statistics in them]),
        handler_seconds=_sum_histograms([statistics.handler_seconds for statistics in them]),
    )


def _sum_histograms(them: list[Counted]) -> Counted:
    counts = (sum(column) for column in zip(*(one.counts for one in them), strict=True))
    return Counted(them[0].bounds, tuple(counts), sum(one.sum for one in them))


# In several processes: written as it happens.


class _Written(Instrument):
    """Writes into prometheus_client's values, mostly in the collector.

    Batches are observed one by one. Calls are counted by the difference that a collector's counters have made since the
    last look at them, so that none can be missed, whoever ends it.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        one = ("batcher",)
        self._calls = Counter(*CALLS, ("batcher", "outcome"), registry=registry)
        self._batches = Counter(*BATCHES, ("batcher", "reason"), registry=registry)
        self._sizes = Histogram(*SIZE, one, buckets=Statistics.SIZES, registry=registry)
        self._queue_seconds = Histogram(*QUEUE, one, buckets=Statistics.SECONDS, registry=registry)
        self._handler_seconds = Histogram(*HANDLER, one, buckets=Statistics.SECONDS, registry=registry)
        self._state = {
            field: Gauge(*described, one, multiprocess_mode="livesum", registry=registry)
            for field, described in STATE.items()
        }
        self._settings = {
            field: Gauge(*described, one, multiprocess_mode="livemax", registry=registry)
            for field, described in SETTINGS.items()
        }
        self._series: WeakKeyDictionary[BatcherView, _Series] = WeakKeyDictionary()
        self._lock = native_lock()
        _all_written.add(self)

    def call_accepted(self, request: Request[Any]) -> None:
        """Keep the gauges fresh while a handler runs for long, or stalls."""
        series = self._of(request.batcher)
        if request.accepted_at - series.looked_at >= REFRESHED_EVERY:
            self._look(request.batcher, series)

    def batch_started(self, batch: Batch) -> None:
        series = self._of(batch.batcher)
        self._batches.labels(batch.name, batch.reason).inc()
        series.sizes.observe(len(batch.requests))
        observe = series.queue_seconds.observe
        for request in batch.requests:
            observe(request.queue_seconds or 0.0)
        self._look(batch.batcher, series)

    def batch_ended(self, batch: Batch) -> None:
        series = self._of(batch.batcher)
        if batch.ended_at is not None:
            series.handler_seconds.observe(batch.ended_at - batch.started_at)
        self._look(batch.batcher, series)

    def batcher_closed(self, batcher: BatcherView) -> None:
        """Write what no batch has told: calls that were cancelled, or whose deadline has passed."""
        self._look(batcher, self._of(batcher))

    def refresh(self) -> None:
        """Write what has changed without a batch. What a fork left behind is the parent's to write."""
        with self._lock:
            known = list(self._series.items())
        for batcher, series in known:
            if batcher.of_this_process:
                self._look(batcher, series)

    def _of(self, batcher: BatcherView) -> _Series:
        series = self._series.get(batcher)
        if series is None:
            made = self._make(batcher)
            with self._lock:
                series = self._series.setdefault(batcher, made)
        return series

    def _make(self, batcher: BatcherView) -> _Series:
        name = batcher.name
        return _Series(
            counted={
                **{outcome: self._calls.labels(name, outcome) for outcome in Statistics.OUTCOMES},
                **{field: gauge.labels(name) for field, gauge in self._state.items()},
            },
            sizes=self._sizes.labels(name),
            queue_seconds=self._queue_seconds.labels(name),
            handler_seconds=self._handler_seconds.labels(name),
        )

    def _look(self, batcher: BatcherView, series: _Series) -> None:
        """Write the differences. They add up in whatever order threads write them."""
        with self._lock:
            now = batcher.statistics()
            before, series.seen = series.seen, now
            series.looked_at = batcher.clock()
        for field, gauge in self._settings.items():
            if before is None or getattr(now, field) != getattr(before, field):
                gauge.labels(batcher.name).set(getattr(now, field))
        for field, counter_or_gauge in series.counted.items():
            if difference := getattr(now, field) - (0 if before is None else getattr(before, field)):
                counter_or_gauge.inc(difference)


class _Series:
    """What one batcher's figures are written to, and how far they have been."""

    def __init__(self, *, counted: dict[str, Any], sizes: Any, queue_seconds: Any, handler_seconds: Any) -> None:
        self.counted = counted  # by field of the statistics
        self.sizes = sizes
        self.queue_seconds = queue_seconds
        self.handler_seconds = handler_seconds
        self.seen: Statistics | None = None
        self.looked_at = -inf


_all_written: WeakSet[_Written] = WeakSet()
