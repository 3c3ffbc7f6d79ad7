"""`python health.py [URL]`: is it ready? For a container's HEALTHCHECK, without curl.

Asks the application for its readiness where `GUNICORN_BIND` says that it listens, or GETs the `http` address given. The
exit status is 0 if the answer is 200 and came within `LIMIT` seconds, 1 if not; one line says what came instead.

It runs every few seconds beside the application, so it imports the standard library only.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from urllib.parse import urlsplit

READINESS = "/readyz"
LIMIT = 2.0
BIND = "127.0.0.1:8000"  # where gunicorn.conf.py listens if `GUNICORN_BIND` is not set, or empty

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # addresses to listen at, not to ask


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python health.py", description="Ready?")
    parser.add_argument("url", nargs="?", help="what to GET (the application's readiness)")
    url = parser.parse_args(arguments).url
    try:
        connection, path = _parts(url) if url else (_application(), READINESS)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    answer = _get(connection, path)
    sys.stdout.write(f"GET {path}: {answer}\n")
    return 0 if answer.startswith("200 ") else 1


# ---------------------------------------------------------------------------------------------------------------------


class _UnixConnection(http.client.HTTPConnection):
    """A connection to a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=LIMIT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _application() -> http.client.HTTPConnection:
    """A connection to the application, not made yet. Raises ValueError where it listens at no address to ask."""
    bind = os.environ.get("GUNICORN_BIND", "").strip() or BIND
    if bind.startswith("unix:"):
        return _UnixConnection(bind.removeprefix("unix:"))
    if not re.fullmatch(r"[^\s/,]+:[0-9]+", bind):
        raise ValueError(f"GUNICORN_BIND must be HOST:PORT or unix:PATH, but got {bind!r}")
    return _parts(f"http://{bind}")[0]


def _parts(url: str) -> tuple[http.client.HTTPConnection, str]:
    """A connection to the server of `url`, not made yet, and the path to ask it for. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"the URL must be an address such as http://127.0.0.1:8001/, but got {url!r}")
    host = EVERYWHERE.get(parts.hostname, parts.hostname)
    return http.client.HTTPConnection(host, parts.port or 80, timeout=LIMIT), parts.path or "/"


def _get(connection: http.client.HTTPConnection, path: str) -> str:
    """The status and the body, or what went wrong, on one line."""
    try:
        with closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return f"{response.status} {response.read(500).decode(errors='replace').strip()}"
    except (OSError, http.client.HTTPException) as error:
        return repr(error)


if __name__ == "__main__":
    sys.exit(main())
