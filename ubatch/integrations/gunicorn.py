"""For gunicorn's configuration file: a worker that ends drains its batchers, says so in the log, and loses nobody.

Two lines are all that the file needs; it is loaded before anything is patched, and this module imports no gevent:

    from ubatch.integrations.gunicorn import worker_exit
    worker_class = "ubatch.integrations.gunicorn.AcceptingGeventWorker"  # in place of "gevent"

gunicorn itself lets requests end that have been accepted (SIGTERM, reload, max_requests), and their batches with them.
So what is left for the hook is work that no request waits for, such as `submit` without `result`, and, in a worker of
threads, requests that outlast graceful_timeout: they keep the process alive until their handler ends.

Guarantees:

* A worker ends without waiting for a handler that does not: the hook takes at most half of graceful_timeout, or of
  timeout where that is less, because a worker that ends gives no heartbeat. What is left then fails.
* Batchers are drained in the order of their first calls, so that a handler which calls another batcher still can.
* It touches nothing in the master, where gunicorn calls the same hook for a worker whose process is gone: a batcher
  that is stopped in the master would be stopped in every worker forked later.
* `AcceptingGeventWorker` is gunicorn's own gevent worker, which accepts, before it closes the listening socket, every
  connection that has come until then; gunicorn's resets those.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING, Any

from .. import UBatch, called_batchers

if TYPE_CHECKING:
    from ._gunicorn_worker import AcceptingGeventWorker

__all__ = ["AcceptingGeventWorker", "worker_exit"]


def worker_exit(server: Any, worker: Any) -> None:
    """Drain every batcher of the worker, in bounded time, and log what was drained and what failed."""
    if worker.pid != os.getpid():
        return
    end = monotonic() + _limit(worker.cfg)
    drained: dict[int, UBatch[Any, Any]] = {}
    idle = 0
    while batchers := [batcher for batcher in called_batchers() if id(batcher) not in drained]:
        for batcher in batchers:
            idle += _drain(batcher, end, worker.log)
            drained[id(batcher)] = batcher
        if monotonic() >= end:  # else look again: a handler may have called another batcher for the first time
            break
    worker.log.info("ubatch: drained, %d of %d batchers had nothing left", idle, len(drained))


# ---------------------------------------------------------------------------------------------------------------------


def _drain(batcher: UBatch[Any, Any], end: float, log: Any) -> bool:
    """Drain one batcher, log what came of it, and return whether it had nothing left."""
    before = batcher.statistics()
    left = before.pending + before.in_flight
    batcher.stop(max(0.0, end - monotonic()))
    failed = batcher.statistics().closed - before.closed
    if failed:
        log.warning("ubatch: %r: %d answered, %d failed for want of time", batcher.name, left - failed, failed)
    elif left:
        log.info("ubatch: %r: %d answered", batcher.name, left)
    return left == 0


def _limit(cfg: Any) -> float:
    """Seconds for all batchers together."""
    limits = [cfg.graceful_timeout, cfg.timeout] if cfg.timeout else [cfg.graceful_timeout]
    return float(min(limits)) / 2


def __getattr__(name: str) -> Any:
    """The worker is imported when a worker process asks for it: it needs gevent, which the master must not import."""
    if name == "AcceptingGeventWorker":
        from ._gunicorn_worker import AcceptingGeventWorker

        return AcceptingGeventWorker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
