"""WSGI middleware: a request's deadline, batching errors as JSON, and readiness, for an application of any framework.

    application = UBatchMiddleware(application, deadline=2.0, readiness="/ready")

Guarantees:

* A `UBatchError` that leaves the application before anything was sent becomes a JSON answer with the error's status,
  and with `Retry-After` where trying again is safe. Any other exception goes on as if this were not here.
* Refusals and passed deadlines (503, 504) are an overloaded server's daily business and are not logged. A mistake of
  the program (500) is logged with its traceback, and the client is told no more than that.
* The deadline is in force in the request's greenlet or thread, for as long as the application makes the answer, a body
  that is made while it is sent included; not before, and not for the next request. A request that is `exempt`, or whose
  application calls `environ["ubatch.lift_deadline"]()`, has none.
* A request whose deadline header is no number of seconds never reaches the application, unless it is `exempt`.
* The answer to a HEAD request has no body, and a line of the log tells of one request, whatever its path holds.
* A body of the application's is closed once: by the server that got it, or here where the server could not.
* Readiness is answered here: no other part of the application can fail it, slow it down or ask it for a password.

It assumes that the application makes an answer in one greenlet or thread, as WSGI servers do.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.client import responses
from itertools import islice
from math import ceil, inf
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from .. import NotProcessed, UBatch, UBatchError, called_batchers
from .. import deadline as within
from .._validation import function, seconds

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["UBatchMiddleware"]

MAX_DEADLINE = 60.0  # arbitrary; what a header may ask for, unless the program says otherwise
MAX_RETRY_AFTER = 3600  # seconds; arbitrary: nobody comes back later than that for what was refused now
LIFT_DEADLINE = "ubatch.lift_deadline"  # where the application finds a function without arguments


class UBatchMiddleware:
    r"""Stands around a WSGI application and gives its requests deadlines, its errors a status, and itself a readiness.

    `deadline` bounds each request's calls, in seconds (default: not). `deadline_header` names a header by which a
    client may ask for its own instead, such as "X-Deadline" with "0.25" (default: none); nobody gets more than
    `max_deadline` by it. A header that is not written as 2, 0.25 or 1e-3 is answered with 400.

    `exempt(environ)` says of a request that it has no deadline, whatever its header: a websocket or a stream of events,
    whose calls take as long as somebody listens. Such a program gives each message its own:
    `with ubatch.deadline(0.5): …`.

    `readiness` is a path, such as "/ready": GET answers 200, or 503 while a batcher is stopped or stalled (see
    `stall_after`). It asks `batchers`, or, without them, all that have been called in this process; name them where
    the program stops some for good and goes on.

    Raises TypeError or ValueError for an option that cannot be.

    >>> def application(environ, start_response):
    ...     raise NotProcessed("try again")
    >>> def start_response(status, headers, exc_info=None):
    ...     print(status, dict(headers)["Retry-After"])
    >>> UBatchMiddleware(application)({"PATH_INFO": "/"}, start_response)
    503 Service Unavailable 1
    [b'{"error": "NotProcessed", "message": "try again", "retry": true}\n']
    """

    def __init__(
        self,
        application: WSGIApplication,
        *,
        deadline: float | None = None,
        deadline_header: str | None = None,
        max_deadline: float = MAX_DEADLINE,
        exempt: Callable[[WSGIEnvironment], bool] | None = None,
        readiness: str | None = None,
        batchers: Iterable[UBatch[Any, Any]] | None = None,
    ) -> None:
        self._application = application
        self._deadline = inf if deadline is None else seconds("deadline", deadline)
        self._header = deadline_header
        self._header_key = None if deadline_header is None else _environ_key(deadline_header)
        self._max_deadline = seconds("max_deadline", max_deadline)
        self._exempt = None if exempt is None else function("exempt", exempt)
        self._readiness = None if readiness is None else _as_wsgi_tells(checked_path("readiness", readiness))
        self._batchers = None if batchers is None else tuple(batchers)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request (PEP 3333)."""
        if self._readiness is not None and environ.get("PATH_INFO") == self._readiness:
            return _send(self._ready(environ.get("REQUEST_METHOD", "GET")), environ, start_response)
        exempt = self._exempt is not None and self._exempt(environ)
        try:
            limit = _Limit(inf if exempt else monotonic() + self._seconds(environ))
        except ValueError as error:
            refusal = _answer(400, error="BadDeadline", message=str(error), retry=False)
            return _send(refusal, environ, start_response)
        environ[LIFT_DEADLINE] = limit.lift
        start = _Start(start_response)
        try:
            return self._begin(environ, start, limit)
        except UBatchError as error:
            if start.sent:
                raise
            answer = answer_to(error)
            if answer.status == 500:
                _log.error("%s of %s %s", type(error).__name__, *_request_line(environ), exc_info=error)
            return _send(answer, environ, start_response)

    # -----------------------------------------------------------------------------------------------------------------

    def _begin(self, environ: WSGIEnvironment, start: _Start, limit: _Limit) -> Iterable[bytes]:
        """The application's answer, of which the head is sent and the first piece made."""
        with limit.in_force():
            body = self._application(environ, start)
        try:
            if not _is_made(body, environ):
                body = _Body(body, limit)
            start.send()
        except BaseException:  # the server will not get it, so nobody else would close it
            _close(body)
            raise
        return body

    def _seconds(self, environ: WSGIEnvironment) -> float:
        """How long this request may take. Raises ValueError for a header that does not say it."""
        text = None if self._header_key is None else environ.get(self._header_key)
        if text is None:
            return self._deadline
        asked = float(text) if _NUMBER.fullmatch(text) else inf
        if asked == inf:
            raise ValueError(f"the header {self._header} must be a number of seconds, at least 0; got {text[:40]!r}")
        return min(asked, self._max_deadline)

    def _ready(self, method: str) -> Answer:
        if method not in ("GET", "HEAD"):
            answer = _answer(405, error="MethodNotAllowed", message=f"the method must be GET; got {method[:40]}")
            return answer._replace(headers=[*answer.headers, ("Allow", "GET, HEAD")])
        batchers = called_batchers() if self._batchers is None else self._batchers
        stopped = [batcher.name for batcher in batchers if batcher.stopped]
        stalled = [batcher.name for batcher in batchers if batcher.stalled]
        ready = not (stopped or stalled)
        answer = _answer(200 if ready else 503, ready=ready, stopped=stopped, stalled=stalled)
        return answer._replace(headers=[*answer.headers, ("Cache-Control", "no-store")])


class Answer(NamedTuple):
    """A whole answer: status, headers, and a JSON body."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def answer_to(error: UBatchError) -> Answer:
    """What the client of a request gets that has ended with this error.

    >>> answer_to(NotProcessed("try again")).status
    503
    """
    status, retry = _status_of(error), isinstance(error, NotProcessed)
    message = "the server has made a mistake; its log says which" if status == 500 else str(error)
    answer = _answer(status, error=type(error).__name__, message=message, retry=retry)
    if retry and status == 503:
        answer.headers.append(("Retry-After", str(_whole_seconds(getattr(error, "retry_after", 1.0)))))
    return answer


def in_a_log(text: str, encoding: str = "utf-8") -> str:
    r"""A request's path or method as its client wrote it: what would begin a new line, or colour it, is escaped.

    >>> in_a_log("/a b\nERROR all is lost")
    '/a%20b%0AERROR%20all%20is%20lost'
    """
    return quote(text, safe="/!$&'()*+,;=:@", encoding=encoding, errors="replace")


def checked_path(name: str, path: str) -> str:
    """A path of this server. Raises TypeError or ValueError where it is none."""
    message = f"{name} must be a path, such as '/ready'; got {path!r}"
    if not isinstance(path, str):
        raise TypeError(message)
    if not path.startswith("/") or not path.isprintable():
        raise ValueError(message)
    return path


# ---------------------------------------------------------------------------------------------------------------------

_log = logging.getLogger("ubatch")
_NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")  # float() also takes 1_0, " 1 " and ١


class _Limit:
    """A request's deadline, until the application lifts it."""

    def __init__(self, at: float) -> None:
        self._at = at
        self._within: within | None = None

    @contextmanager
    def in_force(self) -> Iterator[None]:
        if self._at == inf:
            yield
            return
        with within(max(0.0, self._at - monotonic())) as self._within:
            yield

    def lift(self) -> None:
        """From here on this request has no deadline. To be called in its own greenlet or thread."""
        self._at = inf
        if self._within is not None:
            self._within.lift()
            self._within = None


class _Start:
    """The application's `start_response`. It waits for the first bytes: until then an error may still replace it."""

    def __init__(self, start_response: StartResponse) -> None:
        self._start_response = start_response
        self._arguments: tuple[Any, ...] | None = None
        self._write: Callable[[bytes], object] | None = None
        self.sent = False

    def __call__(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[..., object]:
        arguments = (status, headers) if exc_info is None else (status, headers, exc_info)
        if self.sent:  # the server raises what there is to raise
            return self._start_response(*arguments)
        self._arguments = arguments
        return self.write

    def write(self, data: bytes) -> object:
        self.send()
        assert self._write is not None, "write() comes from start_response()"
        return self._write(data)

    def send(self) -> None:
        arguments, self._arguments = self._arguments, None
        if arguments is not None and not self.sent:
            self.sent = True
            self._write = self._start_response(*arguments)


class _Body:
    """An answer's body that is made piece by piece, under its request's deadline. The first piece is made at once."""

    def __init__(self, pieces: Iterable[bytes], limit: _Limit) -> None:
        self._pieces = pieces
        self._limit = limit
        with limit.in_force():
            self._iterator = iter(pieces)
            self._first = list(islice(self._iterator, 1))

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._first:
            return self._first.pop()
        with self._limit.in_force():
            return next(self._iterator)

    def close(self) -> None:
        _close(self._pieces)


def _close(body: object) -> None:
    if hasattr(body, "close"):
        body.close()


def _is_made(body: object, environ: WSGIEnvironment) -> bool:
    """Whether nothing of the body is still to be made. The server gets it as it is, and may send a file its own way."""
    wrapper = environ.get("wsgi.file_wrapper")
    if isinstance(body, list | tuple):
        return True
    return isinstance(body, wrapper) if isinstance(wrapper, type) else hasattr(body, "read")  # a function, in uWSGI


def _answer(status: int, **fields: object) -> Answer:
    body = json.dumps(fields).encode() + b"\n"
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("X-Content-Type-Options", "nosniff"),
    ]
    return Answer(status, headers, body)


def _send(answer: Answer, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response(f"{answer.status} {responses.get(answer.status, 'Unknown')}", answer.headers)
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [answer.body]  # it would stand before the next answer


def _status_of(error: UBatchError) -> int:
    """The status that the error's class gives it; 500 where that is none of an answer that failed, and has a body."""
    status = error.http_status
    return int(status) if isinstance(status, int) and 400 <= status <= 599 else 500


def _whole_seconds(retry_after: object) -> int:
    """From 1 to an hour, whatever a program has put there."""
    if not isinstance(retry_after, int | float) or not retry_after > 1:  # nor is not-a-number
        return 1
    return ceil(min(retry_after, MAX_RETRY_AFTER))


def _request_line(environ: WSGIEnvironment) -> tuple[str, str]:
    path = in_a_log(environ.get("PATH_INFO", ""), "latin-1")  # as WSGI tells its bytes
    return in_a_log(environ.get("REQUEST_METHOD", "")), path


def _as_wsgi_tells(path: str) -> str:
    """A path as it is in PATH_INFO: each byte of its UTF-8 a character."""
    return path.encode().decode("latin-1")


def _environ_key(header: str) -> str:
    """Where WSGI keeps a request's header. Not for one with `_`, which proxies drop and servers mix up with `-`."""
    message = f"deadline_header must be the name of a header, such as 'X-Deadline'; got {header!r}"
    if not isinstance(header, str):
        raise TypeError(message)
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", header) is None:
        raise ValueError(message)
    return "HTTP_" + header.upper().replace("-", "_")
