"""gunicorn's gevent worker, and what it lacks to lose no request when it stops.

gunicorn answers what its workers have read. What they have not is lost when the last of them closes the listening
socket:

* Connections that nobody has accepted yet are reset, though their clients have sent a request. Under load there are
  hundreds: of several workers, each accepts one connection in each turn of its hub.
* A connection that was accepted in the last moment ends with an error, because the worker asks the closed socket for
  its address.

So this worker accepts, before it closes the socket, everything that has come until then. Whoever comes later is
refused, and knows that nothing was done.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from gevent.server import StreamServer
from gunicorn.workers.ggevent import GeventWorker


class AcceptingGeventWorker(GeventWorker):  # type: ignore[misc]
    """A gevent worker whose servers leave nothing in the backlog."""

    # Where gunicorn lets a worker bring its own kind of server. What it says of WSGI is for servers that read requests
    # themselves; here `handle` does, as in the class above.
    def server_class(
        self,
        listener: Any,
        *,
        spawn: Any,
        application: object,
        log: object,
        handler_class: object,
        environ: object,
        **ssl: Any,
    ) -> StreamServer:
        where = _Where(listener.getsockname())
        server = _Server(listener, handle=partial(self.handle, where), spawn=spawn, **ssl)
        if self.cfg.workers > 1:  # as gunicorn does it: workers take turns
            server.max_accept = 1
        return server


# ---------------------------------------------------------------------------------------------------------------------


class _Where(NamedTuple):
    """All that `handle` wants to know of a listening socket; it outlives the socket."""

    name: Any

    def getsockname(self) -> Any:
        return self.name


class _Server(StreamServer):  # type: ignore[misc]
    def close(self) -> None:
        """Accept whoever waits, then close the listening socket."""
        if self.started:
            self.stop_accepting()
            with suppress(OSError):  # such as too many open files
                while accepted := self.do_read():
                    self.do_handle(*accepted)
        super().close()
