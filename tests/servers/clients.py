"""Clients: some threads that ask at the same time, each one request after the other, and what came of every request."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from http.client import HTTPConnection, HTTPException
from itertools import count
from typing import Any, NamedTuple

LIMIT = 40.0  # seconds for one answer; long enough for a busy machine, and only ever waited out by a test that fails

Batch = tuple[int, str, int, int]  # process, batcher, number, size


class Outcome(NamedTuple):
    """What came of one request: an answer with a status, or an error."""

    path: str
    status: int | None
    value: Any
    batch: Batch | None


class Clients:
    """So many threads that ask for the paths in order; `with` waits until every outcome is there."""

    def __init__(self, port: int, paths: Iterable[str], clients: int = 32, keep_alive: bool = False) -> None:
        self.outcomes: list[Outcome] = []
        self._port = port
        self._keep_alive = keep_alive
        self._paths: Iterator[str] = iter(paths)
        self._taking = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def wait(self) -> list[Outcome]:
        for thread in self._threads:
            thread.join(2 * LIMIT)
            assert not thread.is_alive(), "a client still waits for its answer"
        return self.outcomes

    def _run(self) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=LIMIT)
        while True:
            with self._taking:
                path = next(self._paths, None)
            if path is None:
                break
            self.outcomes.append(self._ask(connection, path))
        connection.close()

    def _ask(self, connection: HTTPConnection, path: str) -> Outcome:
        headers = {} if self._keep_alive else {"Connection": "close"}
        try:
            connection.request("GET", path, headers=headers)  # opens again what the server has closed
            response = connection.getresponse()
            body = response.read()
        except (OSError, HTTPException) as error:
            connection.close()
            return Outcome(path, None, repr(error), None)
        if not self._keep_alive:
            connection.close()
        if response.status != 200:
            return Outcome(path, response.status, body.decode(errors="replace")[-300:], None)
        value, batch = json.loads(body)
        return Outcome(path, 200, value, tuple(batch))


def ask(port: int, *paths: str) -> list[Outcome]:
    """Ask all at the same time, one client each."""
    with Clients(port, paths, clients=len(paths)) as clients:
        return clients.wait()


def squares(path: str, numbers: int) -> list[str]:
    """Paths that ask for the squares of so many numbers."""
    return [f"{path}/{x}" for x in range(numbers)]


class Endless:
    """Paths without end, until it is told to."""

    def __init__(self, path: str) -> None:
        self.end = threading.Event()
        self._path = path

    def __iter__(self) -> Iterator[str]:
        for x in count():
            if self.end.is_set():
                return
            yield f"{self._path}/{x}"


def failures(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those that are not the square of the number at the path's end."""
    return [it for it in outcomes if it.status != 200 or it.value != int(it.path.rpartition("/")[2]) ** 2]


def batch_sizes(outcomes: Iterable[Outcome]) -> list[int]:
    """The sizes of the batches that these answers came from, each of which was answered whole and once."""
    answers = Counter(outcome.batch for outcome in outcomes if outcome.batch is not None)
    assert [(batch, seen) for batch, seen in answers.items() if batch[-1] != seen] == []
    return list(answers.values())
