"""What Prometheus may know: one instrument for all batchers, and the page that shows its numbers.

With several workers, set `PROMETHEUS_MULTIPROC_DIR` to an empty folder: then any worker answers for
all of them (docker/compose.yaml does). The hook in gunicorn.conf.py takes a worker that is gone out
of the sums.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from ubatch.integrations import prometheus

PATH = "/metrics"

_registry = CollectorRegistry()

instrument = prometheus.instrument(_registry)
page = prometheus.metrics_app(_registry)
