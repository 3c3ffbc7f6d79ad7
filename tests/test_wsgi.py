"""The middleware around a plain WSGI application: errors, deadlines, readiness. Both sides are checked for PEP 3333."""

from __future__ import annotations

import doctest
import io
import json
import logging
from collections.abc import Iterable, Iterator
from math import inf
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest

import ubatch
from ubatch import HandlerAborted, NotProcessed, QueueFull, QueueTimeout, ResultLost, ResultTimeout, UBatch, UBatchError
from ubatch._deadline import time_left
from ubatch.integrations import wsgi
from ubatch.integrations.wsgi import UBatchMiddleware
from ubatch.testing import RecordingHandler, VirtualRuntime


class Answer(NamedTuple):
    status: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["Content-Type"] == "application/json"
        assert self.headers["Content-Length"] == str(len(self.body))
        return json.loads(self.body)


def ask(application: Any, path: str = "/", method: str = "GET", **environ: str) -> Answer:
    """One request, as a server makes it."""
    answers: list[Any] = []
    environ = {"SCRIPT_NAME": "", "PATH_INFO": path, "REQUEST_METHOD": method, "QUERY_STRING": ""} | environ
    setup_testing_defaults(environ)
    written: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        if exc_info is not None and written:
            raise exc_info[1]
        assert len({name for name, _ in headers}) == len(headers)
        answers[:] = [status, dict(headers)]
        return written.append

    body: Any = validator(application)(environ, start_response)
    try:
        written += list(body)
    finally:
        body.close()
    status, sent = answers
    return Answer(status, sent, b"".join(written))


def hello(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def raising(error: BaseException) -> Any:
    def application(environ: Any, start_response: Any) -> Iterable[bytes]:
        raise error

    return application


# Errors.


def test_an_answer_passes_through() -> None:
    answer = ask(UBatchMiddleware(validator(hello)))
    assert answer == ("200 OK", {"Content-Type": "text/plain"}, b"hello")


ERRORS = [
    (QueueFull("many are pending", 0.2), "503 Service Unavailable", "1", True),
    (QueueFull("many are pending", 2.1), "503 Service Unavailable", "3", True),
    (ubatch.QueueClosed("it is stopped"), "503 Service Unavailable", "1", True),
    (NotProcessed("its collector was killed"), "503 Service Unavailable", "1", True),
    (QueueTimeout("too late"), "504 Gateway Timeout", None, True),
    (ResultTimeout("too late"), "504 Gateway Timeout", None, False),
    (ResultLost("the handler had begun"), "503 Service Unavailable", None, False),
]


@pytest.mark.parametrize(("error", "status", "retry_after", "retry"), ERRORS, ids=str)
def test_an_error_is_answered_with_its_status_as_json(
    error: UBatchError, status: str, retry_after: str | None, retry: bool, caplog: pytest.LogCaptureFixture
) -> None:
    answer = ask(UBatchMiddleware(raising(error)))
    assert (answer.status, answer.headers.get("Retry-After")) == (status, retry_after)
    assert answer.json == {"error": type(error).__name__, "message": str(error), "retry": retry}
    assert caplog.messages == []


def test_a_mistake_of_the_program_is_told_to_the_log_and_not_to_the_client(caplog: pytest.LogCaptureFixture) -> None:
    answer = ask(UBatchMiddleware(raising(HandlerAborted("the secret"))), "/predict", "POST")
    assert answer.status == "500 Internal Server Error"
    assert answer.json == {
        "error": "HandlerAborted",
        "message": "the server has made a mistake; its log says which",
        "retry": False,
    }
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("ubatch", logging.ERROR)
    assert record.getMessage() == "HandlerAborted of POST /predict"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the secret"


@pytest.mark.parametrize("error", [ValueError("mine"), TimeoutError("mine"), KeyboardInterrupt()], ids=repr)
def test_other_exceptions_go_on(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        ask(UBatchMiddleware(raising(error)))
    assert caught.value is error


def test_an_error_replaces_an_answer_that_was_begun_and_not_sent() -> None:
    def application(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Set-Cookie", "a=b")])
        raise NotProcessed("try again")

    answer = ask(UBatchMiddleware(application))
    assert answer.status == "503 Service Unavailable"
    assert "Set-Cookie" not in answer.headers


class Pieces:
    """A body that is made while it is read, and knows whether it was closed."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self._pieces = iter(pieces)
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def close(self) -> None:
        self.closed += 1

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return self


@pytest.mark.parametrize("pieces", [[], [b"one"], [b"one", b"two"], [b"", b"one"]], ids=str)
def test_a_body_in_pieces_passes_through_and_is_closed_once(pieces: list[bytes]) -> None:
    application = Pieces(*pieces)
    assert ask(UBatchMiddleware(application)).body == b"".join(pieces)
    assert application.closed == 1


def test_an_error_in_the_first_piece_is_answered_too() -> None:
    application = Pieces(NotProcessed("try again"))
    assert ask(UBatchMiddleware(application)).status == "503 Service Unavailable"
    assert application.closed == 1


def test_an_error_in_a_later_piece_goes_to_the_server() -> None:
    application = Pieces(b"one", NotProcessed("try again"))
    with pytest.raises(NotProcessed):
        ask(UBatchMiddleware(application))
    assert application.closed == 1


def test_an_error_after_write_goes_to_the_server() -> None:
    def application(environ: Any, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"hello")
        raise NotProcessed("try again")

    with pytest.raises(NotProcessed):
        ask(UBatchMiddleware(application))


def test_what_is_written_passes_through() -> None:
    def application(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])(b"hello ")
        return [b"world"]

    assert ask(UBatchMiddleware(application)).body == b"hello world"


def test_the_server_gets_a_file_as_the_application_gave_it(tmp_path: Path) -> None:
    given: list[Any] = []

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        given.append(environ["wsgi.file_wrapper"](io.BytesIO(b"a file")))
        return given[-1]

    for wrapper in (FileWrapper, lambda file: file):  # a function, as in uWSGI
        environ = {"PATH_INFO": "/", "wsgi.file_wrapper": wrapper}
        assert UBatchMiddleware(application)(environ, lambda *_: None) is given[-1]  # type: ignore[arg-type]


# Deadlines.


def tell(environ: Any, start_response: Any) -> Iterable[bytes]:
    """Tell the deadline that is in force, at once and in a piece that is made later."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(2):
        yield f"{time_left(inf)} ".encode()


def deadlines(application: Any, **environ: str) -> list[float]:
    return [float(text) for text in ask(application, **environ).body.split()]


def test_without_the_options_there_is_no_deadline() -> None:
    assert deadlines(UBatchMiddleware(tell), HTTP_X_DEADLINE="5") == [inf, inf]


def test_the_deadline_is_in_force_until_the_body_is_made_and_not_after() -> None:
    application = UBatchMiddleware(tell, deadline=1000.0)
    first, second = deadlines(application)
    assert 900 < second <= first <= 1000
    assert time_left(inf) == inf


def test_the_deadline_is_not_in_force_after_an_error() -> None:
    with pytest.raises(ValueError, match="mine"):
        ask(UBatchMiddleware(raising(ValueError("mine")), deadline=1000.0))
    assert time_left(inf) == inf


@pytest.mark.parametrize(("text", "most"), [("5", 5.0), ("0.25", 0.25), ("70", 60.0), ("1e9", 60.0), ("0", 0.0)])
def test_a_client_may_ask_for_its_own_deadline_up_to_the_cap(text: str, most: float) -> None:
    application = UBatchMiddleware(tell, deadline=1000.0, deadline_header="X-Deadline")
    first, _ = deadlines(application, HTTP_X_DEADLINE=text)
    assert first <= most
    assert first > most - 60


def test_without_its_header_a_request_has_the_programs_deadline() -> None:
    application = UBatchMiddleware(tell, deadline=1000.0, deadline_header="X-Deadline")
    assert deadlines(application)[0] > 900
    assert deadlines(UBatchMiddleware(tell, deadline_header="X-Deadline")) == [inf, inf]


@pytest.mark.parametrize("text", ["soon", "", "-1", "nan", "inf", "1,2", "0x10"])
def test_a_header_that_is_no_number_of_seconds_never_reaches_the_application(text: str) -> None:
    application = UBatchMiddleware(raising(AssertionError("reached")), deadline_header="X-Deadline")
    answer = ask(application, HTTP_X_DEADLINE=text)
    assert answer.status == "400 Bad Request"
    assert answer.json == {
        "error": "BadDeadline",
        "message": f"the header X-Deadline must be a number of seconds, at least 0; got {text!r}",
        "retry": False,
    }


def test_a_call_ends_at_the_requests_deadline() -> None:
    with UBatch[int, int](8, 3600.0, runtime="threading").set_handler(list) as batcher:

        def application(environ: Any, start_response: Any) -> Any:
            batcher.ubatch(1)

        answer = ask(UBatchMiddleware(application, deadline=0.02))
    assert (answer.status, answer.json["error"]) == ("504 Gateway Timeout", "QueueTimeout")


# Readiness.


@pytest.fixture
def runtime() -> VirtualRuntime:
    return VirtualRuntime("threading")


def ready(application: Any) -> tuple[str, Any]:
    answer = ask(application, "/ready")
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.status[:3], answer.json


def test_a_stopped_batcher_is_not_ready_until_it_starts_again(runtime: VirtualRuntime) -> None:
    batcher = UBatch[int, int](8, 0.0, runtime=runtime, name="stops").set_handler(list)
    application = UBatchMiddleware(hello, readiness="/ready", batchers=[batcher])
    assert ready(application) == ("200", {"ready": True, "stopped": [], "stalled": []})
    batcher.stop()
    assert ready(application) == ("503", {"ready": False, "stopped": ["stops"], "stalled": []})
    batcher.start()
    assert ready(application)[0] == "200"


def test_a_batcher_that_drains_or_has_stalled_is_not_ready(runtime: VirtualRuntime) -> None:
    gate = runtime.gate()
    handler = RecordingHandler(gate=gate)
    batcher = UBatch[int, int](8, 0.0, stall_after=3.0, runtime=runtime, name="stuck").set_handler(handler)
    application = UBatchMiddleware(hello, readiness="/ready", batchers=[batcher])
    batcher.submit(1)
    runtime.advance(2.9)
    assert ready(application)[0] == "200"
    runtime.advance(0.1)
    assert ready(application) == ("503", {"ready": False, "stopped": [], "stalled": ["stuck"]})
    stopping = runtime.call(batcher.stop)
    runtime.settle()
    assert ready(application) == ("503", {"ready": False, "stopped": ["stuck"], "stalled": ["stuck"]})
    gate.open()
    runtime.settle()
    assert stopping.done
    assert ready(application) == ("503", {"ready": False, "stopped": ["stuck"], "stalled": []})


def test_without_batchers_readiness_asks_all_that_have_been_called_here(runtime: VirtualRuntime) -> None:
    called, uncalled = (UBatch[int, int](8, 0.0, runtime=runtime, name=name).set_handler(list) for name in "ab")
    application = UBatchMiddleware(hello, readiness="/ready")
    called.submit(1)
    runtime.settle()
    for batcher in (called, uncalled):
        runtime.call(batcher.stop)
    runtime.settle()
    stopped = ready(application)[1]["stopped"]
    assert "a" in stopped
    assert "b" not in stopped


def test_readiness_is_a_path_of_your_choice_for_get_alone() -> None:
    application = UBatchMiddleware(hello, readiness="/ready", batchers=[])
    assert ask(application, "/ready", "HEAD").status == "200 OK"
    assert ask(application, "/ready/").body == b"hello"
    assert ask(UBatchMiddleware(hello), "/ready").body == b"hello"
    refused = ask(application, "/ready", "POST")
    assert (refused.status, refused.headers["Allow"]) == ("405 Method Not Allowed", "GET, HEAD")
    assert refused.json["message"] == "the method must be GET; got POST"


# Options.


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"deadline": "2"}, TypeError, "deadline must be a number of seconds, at least 0; got '2'"),
        ({"deadline": -1}, ValueError, "deadline must be a number of seconds, at least 0; got -1"),
        ({"max_deadline": inf}, ValueError, "max_deadline must be a number of seconds, at least 0; got inf"),
        (
            {"deadline_header": "X_Deadline"},
            ValueError,
            "deadline_header must be the name of a header, such as 'X-Deadline'; got 'X_Deadline'",
        ),
        (
            {"deadline_header": 1},
            TypeError,
            "deadline_header must be the name of a header, such as 'X-Deadline'; got 1",
        ),
        ({"readiness": "ready"}, ValueError, "readiness must be a path, such as '/ready'; got 'ready'"),
        ({"readiness": True}, TypeError, "readiness must be a path, such as '/ready'; got True"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_refused_at_once(options: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        UBatchMiddleware(hello, **options)
    assert str(caught.value) == message


def test_the_examples_in_docstrings_run() -> None:
    assert doctest.testmod(wsgi).failed == 0
