"""A small load generator: many clients, each with one connection that it keeps.

Guarantees:

- It ends: an answer is waited for at most `ANSWER_LIMIT` seconds, the whole at most `TOTAL_LIMIT`.
- Every request has a reply in the result, in the order of the bodies; one that was not answered
  has status 0 and says why.
- A client whose connection fails stops, and leaves its other requests to the rest.

`post_until_refused` does the same until the server is gone, to see what it lost on the way out.

The clients are greenlets on gevent's own sockets. Nothing is patched: the program around it (its
progress bar, the processes it started) stays as it is.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import gevent
import gevent.socket

ANSWER_LIMIT = 30.0
TOTAL_LIMIT = 180.0


@dataclass(frozen=True)
class Reply:
    """What came back: the status and the JSON document, or status 0 and the reason as text."""

    status: int
    answer: object
    seconds: float


UNANSWERED = Reply(0, "not answered in time", 0.0)


@dataclass(frozen=True)
class Load:
    """What a run measured."""

    replies: list[Reply]
    seconds: float

    @property
    def rate(self) -> float:
        """Answered requests per second."""
        return sum(reply.status != 0 for reply in self.replies) / self.seconds

    def latency(self, percent: int) -> float:
        """The seconds within which `percent` of the answers came (nearest rank)."""
        ordered = sorted(reply.seconds for reply in self.replies if reply.status != 0)
        if not ordered:
            return 0.0
        return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def post_all(
    port: int,
    path: str,
    bodies: Sequence[object],
    *,
    clients: int,
    on_reply: Callable[[], object] = lambda: None,
) -> Load:
    """POST each body as JSON to `path`, from `clients` clients at once."""
    replies = [UNANSWERED] * len(bodies)
    work = enumerate([json.dumps(body).encode() for body in bodies])
    start = time.perf_counter()
    greenlets = [
        gevent.spawn(_client, port, path, work, replies, on_reply)
        for _ in range(min(clients, len(bodies)))
    ]
    try:
        gevent.joinall(greenlets, timeout=TOTAL_LIMIT)
    finally:  # too slow, or Ctrl-C
        gevent.killall(greenlets)
    return Load(replies, time.perf_counter() - start)


def post_until_refused(
    port: int,
    path: str,
    bodies: Sequence[object],
    *,
    clients: int,
    on_reply: Callable[[], object] = lambda: None,
) -> list[tuple[int, Reply]]:
    """POST the bodies again and again, until no client can connect any more.

    Every other client makes a connection for each request. Returns each request that could connect,
    as the index of its body and the reply; status 0 is a request that was lost.
    """
    replies: list[tuple[int, Reply]] = []
    work = cycle(list(enumerate([json.dumps(body).encode() for body in bodies])))
    greenlets = [
        gevent.spawn(_client_until_refused, port, path, work, replies, on_reply, bool(n % 2))
        for n in range(clients)
    ]
    try:
        gevent.joinall(greenlets, timeout=TOTAL_LIMIT)
    finally:
        gevent.killall(greenlets)
    return replies


# ----------------------------------------------------------------------------------------------


class _Connection(http.client.HTTPConnection):
    """The stdlib's connection, on a socket that lets other greenlets run while it waits."""

    def connect(self) -> None:
        self.sock = gevent.socket.create_connection((self.host, self.port), self.timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _client(
    port: int,
    path: str,
    work: Iterator[tuple[int, bytes]],
    replies: list[Reply],
    on_reply: Callable[[], object],
) -> None:
    connection = _Connection("127.0.0.1", port, timeout=ANSWER_LIMIT)
    with contextlib.closing(connection):
        for index, body in work:
            replies[index] = _post(connection, path, body)
            on_reply()
            if replies[index].status == 0:
                return


def _client_until_refused(
    port: int,
    path: str,
    work: Iterator[tuple[int, bytes]],
    replies: list[tuple[int, Reply]],
    on_reply: Callable[[], object],
    keep: bool,
) -> None:
    connection = _Connection("127.0.0.1", port, timeout=ANSWER_LIMIT)
    with contextlib.closing(connection):
        for index, body in work:
            if not keep:
                connection.close()
            try:
                if connection.sock is None:  # the server may have closed it too
                    connection.connect()
            except ConnectionRefusedError:
                return
            replies.append((index, _post(connection, path, body)))
            on_reply()
            if replies[-1][1].status == 0:
                connection.close()


def _post(connection: _Connection, path: str, body: bytes) -> Reply:
    start = time.perf_counter()
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Reply(0, repr(error), time.perf_counter() - start)
    return Reply(response.status, answer, time.perf_counter() - start)
