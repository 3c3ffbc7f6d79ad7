"""`AcceptingGeventWorker`: who waits to be accepted when a worker stops is served. The example runs under it."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any

import gevent.pool
import gevent.socket
import pytest

pytest.importorskip("gunicorn")

from ubatch.integrations import gunicorn


def test_who_waits_to_be_accepted_is_served_when_the_worker_stops_accepting() -> None:
    served: list[tuple[Any, Any]] = []

    def handle(where: socket.socket, client: socket.socket, _: object) -> None:
        served.append((where.getsockname(), client.getpeername()))

    stub: Any = SimpleNamespace(handle=handle, cfg=SimpleNamespace(workers=2))
    unused = dict.fromkeys(("application", "log", "handler_class", "environ"))
    with ExitStack() as opened:
        listener = opened.enter_context(gevent.socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = listener.getsockname()
        server = gunicorn.AcceptingGeventWorker.server_class(stub, listener, spawn=gevent.pool.Pool(10), **unused)
        connect = partial(socket.create_connection, address)
        clients = [opened.enter_context(connect()) for _ in range(50)]
        server.start()
        server.close()
        server.pool.join()
        assert sorted(served) == sorted((address, client.getsockname()) for client in clients)
        with pytest.raises(ConnectionRefusedError):
            connect()


def test_the_hook_imports_no_gevent_and_the_worker_is_found_by_its_name() -> None:
    script = """
import sys
import ubatch.integrations.gunicorn as module
assert "gevent" not in sys.modules
from gunicorn.util import load_class
assert load_class("ubatch.integrations.gunicorn.AcceptingGeventWorker") is module.AcceptingGeventWorker
try:
    module.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stderr, done.stdout) == ("", "module 'ubatch.integrations.gunicorn' has no attribute 'nothing'\n")
