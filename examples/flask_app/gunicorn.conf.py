"""How gunicorn runs the application; in this folder, `gunicorn` alone is the whole command.

Everything that depends on the machine is an environment variable. All of them are checked here, in
the master and before it has a worker: a mistake is one line and the end of the process. Found by a
worker, it would be found again by the next one.
"""

import os
import sys
from typing import Any

from digits_app.settings import Reader, Settings, SettingsError

DRAIN_LIMIT = 5.0

wsgi_app = "digits_app.wsgi:app"

# Requests are greenlets: thousands may wait for a batch at the cost of a few kilobytes each.
worker_class = "gevent"

# The model is trained or loaded once, in the master, and its pages are shared by the workers. It
# also keeps training out of a worker, whose silence the master would take for a hang (`timeout`).
preload_app = True

# Nothing here uses gunicorn's control socket, and a user without a home folder cannot make it.
control_socket_disable = True

# The heartbeat is a file. On a disk a busy disk can stop a worker; this folder is memory, and it
# is writable where the root file system is not.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

try:
    env = Reader(os.environ)
    Settings.read(os.environ)  # not needed here, only checked

    bind = env.bind("GUNICORN_BIND", "127.0.0.1:8000")

    # One batch holds the requests of one worker, so a worker more means smaller batches: add one
    # for each core that would be idle otherwise, not "2 x cores + 1".
    workers = env.whole("GUNICORN_WORKERS", 1, least=1, most=256)

    # Seconds without a heartbeat until a worker is killed. The hub turns while the model computes
    # on a native thread, so this is no limit for a request; only a stuck hub reaches it.
    timeout = env.whole("GUNICORN_TIMEOUT", 30, least=1, most=3600)

    # Seconds for the requests in flight after SIGTERM. Above the slowest answer (the title
    # service: 7 s), and below the time after which Docker (10 s) or Kubernetes (30 s) kills.
    graceful_timeout = env.whole("GUNICORN_GRACEFUL_TIMEOUT", 8, least=1, most=3600)

    # Seconds that a connection may idle. Behind a proxy it must be longer than the proxy's own; a
    # stop waits that long for idle connections too, so keep it below `graceful_timeout`.
    keepalive = env.whole("GUNICORN_KEEPALIVE", 5, least=1, most=3600)

    loglevel = env.choice(
        "GUNICORN_LOGLEVEL", "info", among=("debug", "info", "warning", "error", "critical")
    )
except SettingsError as error:
    sys.exit(f"error: {error}")


def worker_exit(server: Any, worker: Any) -> None:
    """Answer what is still waiting for a batch; gunicorn has stopped accepting by now."""
    app = getattr(worker, "wsgi", None)  # a worker that failed early has none
    if app is not None:
        app.extensions["digits_app"].stop(timeout=DRAIN_LIMIT)
