"""How gunicorn runs the application; in this folder, `gunicorn` alone is the whole command.

Everything that depends on the machine is an environment variable. All of them are checked here, in
the master and before it has a worker: a mistake is one line and the end of the process. Found by a
worker, it would be found again by the next one.
"""

import gc
import math
import os
import sys
from typing import Any

# A worker that ends answers what still waits for a batch, and says so in the log.
from ubatch.integrations.gunicorn import worker_exit  # noqa: F401
from ubatch.integrations.prometheus import child_exit  # noqa: F401

from digits_app.settings import Reader, Settings, SettingsError

wsgi_app = "digits_app.wsgi:app"

# gevent: requests are greenlets, and thousands may wait for a batch at the cost of a few kilobytes
# each. This one is gunicorn's own, and loses nothing when it stops.
worker_class = "ubatch.integrations.gunicorn.AcceptingGeventWorker"

# Nothing here uses gunicorn's control socket, and a user without a home folder cannot make it.
control_socket_disable = True

# The heartbeat is a file. On a disk a busy disk can stop a worker; this folder is memory, and it
# is writable where the root file system is not.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

try:
    env = Reader(os.environ)
    settings = Settings.read(os.environ)
    env.writable_folder("PROMETHEUS_MULTIPROC_DIR")

    bind = env.bind("GUNICORN_BIND", "127.0.0.1:8000")

    # --preload. The model is loaded once, in the master, and its pages are shared by the workers; a
    # worker that is replaced is there at once; and training never happens in a worker, whose
    # silence the master would take for a hang (`timeout`). The price: SIGHUP loads no new code.
    preload_app = env.yes("GUNICORN_PRELOAD", True)

    # One batch holds the requests of one worker, so a worker more means smaller batches: add one
    # for each core that would be idle otherwise, not "2 x cores + 1".
    workers = env.whole("GUNICORN_WORKERS", 1, least=1, most=256)

    # Seconds without a heartbeat until a worker is killed. The hub turns while the model computes
    # on a native thread, so this is no limit for a request; only a stuck hub reaches it.
    timeout = env.whole("GUNICORN_TIMEOUT", 30, least=1, most=3600)

    # Seconds for the requests in flight after SIGTERM. No request takes longer than the deadline;
    # gunicorn's worker looks once a second whether it should stop and whether it is done. Keep it
    # below the time after which Docker (10 s) or Kubernetes (30 s) kills.
    least = math.ceil(settings.deadline) + 2
    graceful_timeout = env.whole("GUNICORN_GRACEFUL_TIMEOUT", least + 1, least=least, most=3600)

    # Seconds that a connection may idle. Behind a proxy it must be longer than the proxy's own; a
    # stop waits that long for idle connections too, so keep it below `graceful_timeout`.
    keepalive = env.whole("GUNICORN_KEEPALIVE", 5, least=1, most=3600)

    loglevel = env.choice(
        "GUNICORN_LOGLEVEL", "info", among=("debug", "info", "warning", "error", "critical")
    )
except SettingsError as error:
    sys.exit(f"error: {error}")


def when_ready(server: Any) -> None:
    """Take what is loaded by now out of the garbage collector's sight, before workers are forked.

    A collection writes into every object that it looks at, and what is written is copied: in each
    worker, for memory that never changes (docker/README.md has the numbers).
    """
    gc.collect()
    gc.freeze()
