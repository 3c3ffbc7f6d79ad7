"""The Flask extension: in views, in flask-restx resources, and in a real `gunicorn -k gevent`."""

from __future__ import annotations

import doctest
import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection
from math import inf
from pathlib import Path
from typing import Any

import flask_restx as restx
import pytest
from flask import Blueprint, Flask, request
from werkzeug.exceptions import NotFound

from ubatch import HandlerAborted, NotProcessed, QueueFull, UBatch, UBatchError
from ubatch._deadline import time_left
from ubatch._runtime._native import allocate_lock
from ubatch.integrations.flask import UBatchExtension

from .servers.servers import Server, gevent_worker

FULL = QueueFull("many are pending", 2.1)
FULL_JSON = {"error": "QueueFull", "message": "many are pending", "retry": True}


def make_app(extension_last: bool = True, blueprint: bool = False, **config: Any) -> Flask:
    """An application whose views raise what they are given: `/flask` is Flask's, `/restx` a resource."""
    app = Flask(__name__)
    app.config.from_mapping(config)
    if not extension_last:
        UBatchExtension(app)
    api = restx.Api(Blueprint("api", __name__) if blueprint else None)
    app.extensions["api"] = api

    @app.get("/flask")
    def flask_view() -> Any:
        raise app.extensions["error"]

    @api.route("/restx")
    class Resource(restx.Resource):  # type: ignore[misc]
        def get(self) -> Any:
            raise app.extensions["error"]

    if blueprint:
        app.register_blueprint(api.blueprint)
    else:
        api.init_app(app)
    if extension_last:
        UBatchExtension(app)
    return app


def get(app: Flask, path: str, error: Exception | None = None, **options: Any) -> Any:
    app.extensions["error"] = error
    return app.test_client().get(path, **options)


# Errors.

apps = pytest.mark.parametrize(
    "make",
    [
        pytest.param(partial(make_app, last, blueprint), id=f"{order}-{where}")
        for last, order in ((True, "extension last"), (False, "extension first"))
        for blueprint, where in ((False, "api on the app"), (True, "api on a blueprint"))
    ],
)
modes = pytest.mark.parametrize("config", [{}, {"TESTING": True}, {"DEBUG": True}], ids=str)
paths = pytest.mark.parametrize("path", ["/flask", "/restx"])


@apps
@modes
@paths
def test_an_error_is_json_with_its_status_and_retry_after_and_nothing_is_logged(
    make: Callable[..., Flask], config: dict[str, Any], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = get(make(**config), path, FULL)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "3")
    assert (answer.content_type, answer.json) == ("application/json", FULL_JSON)
    assert caplog.messages == []


@apps
@paths
def test_a_mistake_of_the_program_is_logged_and_not_told(
    make: Callable[..., Flask], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = get(make(), path, HandlerAborted("the secret"))
    assert answer.status_code == 500
    assert answer.json["message"] == "the server has made a mistake; its log says which"
    (record,) = caplog.records
    assert (record.getMessage(), record.levelno) == (f"Exception on {path} [GET]", logging.ERROR)
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the secret"


@apps
@paths
def test_other_exceptions_go_the_usual_way(make: Callable[..., Flask], path: str) -> None:
    """As without the extension: 404 for a NotFound, 500 for what nobody handles, the exception itself in a test."""
    assert get(make(), path, NotFound()).status_code == 404
    answer = get(make(), path, ValueError("mine"))
    assert answer.status_code == 500
    assert b"mine" not in answer.data
    with pytest.raises(ValueError, match="mine"):
        get(make(TESTING=True), path, ValueError("mine"))


@apps
@paths
def test_a_handler_of_the_application_wins(make: Callable[..., Flask], path: str) -> None:
    app = make()
    app.register_error_handler(QueueFull, lambda error: ("mine", 418))
    assert get(app, path, FULL).status_code == 418
    assert get(app, path, NotProcessed("other")).status_code == 503


@apps
@pytest.mark.parametrize("where", ["api", "namespace"])
def test_a_handler_of_the_api_wins(make: Callable[..., Flask], where: str) -> None:
    app = make()
    api = app.extensions["api"]
    space = api if where == "api" else api.namespace("space")
    space.errorhandler(QueueFull)(lambda error: ({"message": "mine"}, 418))
    assert get(app, "/restx", FULL).status_code == 418
    assert get(app, "/restx", NotProcessed("other")).status_code == 503
    assert get(app, "/flask", FULL).status_code == 503


@apps
def test_a_handler_of_the_api_for_every_exception_is_not_for_these(make: Callable[..., Flask]) -> None:
    """As in Flask, where the handler of the nearest class wins."""
    app = make()
    app.extensions["api"].errorhandler(Exception)(lambda error: ({"message": "anything"}, 400))
    assert get(app, "/restx", ValueError("mine")).status_code == 400
    assert get(app, "/restx", FULL).json == FULL_JSON


@apps
@paths
def test_an_error_before_the_view_is_answered_too(make: Callable[..., Flask], path: str) -> None:
    app = make()

    @app.before_request
    def authorize() -> None:
        raise FULL

    assert get(app, path).json == FULL_JSON
    assert get(app, "/nowhere").json == FULL_JSON


@apps
@paths
def test_what_comes_after_a_request_comes_after_an_error(make: Callable[..., Flask], path: str) -> None:
    app = make()
    after: list[Any] = []

    @app.after_request
    def see(response: Any) -> Any:
        after.append(response.status_code)
        return response

    app.teardown_request(after.append)
    get(app, path, FULL)
    assert after == [503, None]


def test_two_apis_are_kept_apart() -> None:
    app = make_app(extension_last=False)
    other = restx.Api(Blueprint("other", __name__, url_prefix="/other"))

    @other.route("/restx")
    class Resource(restx.Resource):  # type: ignore[misc]
        def get(self) -> Any:
            raise FULL

    app.register_blueprint(other.blueprint)
    other.errorhandler(UBatchError)(lambda error: ({"message": "mine"}, 418))
    assert get(app, "/other/restx").status_code == 418
    assert get(app, "/restx", FULL).status_code == 503


def test_a_handlers_own_exception_is_the_applications_to_handle() -> None:
    app = Flask(__name__)
    UBatchExtension(app)
    app.register_error_handler(LookupError, lambda error: (f"no {error.args[0]}", 404))
    batcher: UBatch[str, Any] = UBatch(1, 0.0, runtime="threading")
    with batcher.set_handler(lambda names: [LookupError(name) for name in names]):
        app.get("/<names>")(batcher.ubatch)
        answer = app.test_client().get("/row")
    assert (answer.status_code, answer.text) == (404, "no row")


# Configuration.


def make_telling_app(**config: Any) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(config)
    UBatchExtension(app, batchers=[])
    app.get("/")(lambda: f"{time_left(inf)}")
    return app


def test_by_default_there_is_no_deadline_no_header_and_no_readiness() -> None:
    app = make_telling_app()
    assert get(app, "/", headers={"X-Deadline": "1"}).text == "inf"
    assert get(app, "/ready").status_code == 404
    assert {name: value for name, value in app.config.items() if name.startswith("UBATCH_")} == {
        "UBATCH_DEADLINE": None,
        "UBATCH_DEADLINE_HEADER": None,
        "UBATCH_MAX_DEADLINE": 60.0,
        "UBATCH_READINESS": None,
        "UBATCH_PAGE": None,
    }


def test_the_configuration_sets_deadline_header_cap_and_readiness() -> None:
    app = make_telling_app(
        UBATCH_DEADLINE=1000.0,
        UBATCH_DEADLINE_HEADER="X-Deadline",
        UBATCH_MAX_DEADLINE=100.0,
        UBATCH_READINESS="/ready",
    )
    assert 900 < float(get(app, "/").text) <= 1000
    assert 0 < float(get(app, "/", headers={"X-Deadline": "500"}).text) <= 100
    assert get(app, "/", headers={"X-Deadline": "soon"}).status_code == 400
    assert get(app, "/ready").json == {"ready": True, "stopped": [], "stalled": []}


def test_a_setting_that_cannot_be_is_refused_by_init_app() -> None:
    with pytest.raises(TypeError, match="deadline must be a number of seconds, at least 0; got '2'"):
        make_telling_app(UBATCH_DEADLINE="2")


def test_one_extension_serves_several_applications() -> None:
    extension = UBatchExtension()
    for seconds in (100.0, 200.0):
        app = Flask(__name__)
        app.config["UBATCH_DEADLINE"] = seconds
        extension.init_app(app)
        app.get("/")(lambda: f"{time_left(inf)}")
        assert seconds - 100 < float(get(app, "/").text) <= seconds
        assert app.extensions["ubatch"] is extension


def test_readiness_does_not_go_through_the_application() -> None:
    app = make_telling_app(UBATCH_READINESS="/ready")

    @app.before_request
    def authorize() -> Any:
        return "who are you?", 401

    assert get(app, "/").status_code == 401
    assert get(app, "/ready").status_code == 200


def test_a_streamed_body_is_under_the_deadline_too() -> None:
    app = Flask(__name__)
    app.config["UBATCH_DEADLINE"] = 1000.0
    UBatchExtension(app)

    @app.get("/")
    def stream() -> Any:
        def pieces() -> Iterator[str]:
            for _ in range(3):
                yield f"{time_left(inf)} "

        return pieces(), {"Content-Type": "text/plain"}

    times = [float(text) for text in get(app, "/").text.split()]
    assert len(times) == 3
    assert all(900 < seconds <= 1000 for seconds in times)


def test_the_examples_in_docstrings_run() -> None:
    assert doctest.testmod(importlib.import_module("ubatch.integrations.flask")).failed == 0


def test_without_flask_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ubatch.integrations.flask"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flask", None)
    with pytest.raises(ImportError, match=r"needs Flask: pip install 'ubatch\[flask\]'"):
        importlib.import_module(name)


# A real server. One request at the handler, one pending; the handler waits until it is let go.

gate = allocate_lock()  # a native one, which holds the handler's thread and no greenlet


def hold(xs: list[int]) -> list[int]:
    print("the handler has begun", flush=True)
    gate.acquire()
    gate.release()
    return [x * x for x in xs]


def served() -> Flask:
    """What the server serves."""
    app = Flask(__name__)
    app.config.from_mapping(UBATCH_DEADLINE=30.0, UBATCH_DEADLINE_HEADER="X-Deadline", UBATCH_READINESS="/ready")
    UBatchExtension(app)
    api = restx.Api(app)
    batcher = UBatch[int, int](1, 0.0, max_queue=1, stall_after=0.1, executor="native").set_handler(hold)
    gate.acquire()

    @api.route("/square/<int:x>")
    class Square(restx.Resource):  # type: ignore[misc]
        def get(self, x: int) -> Any:
            call = batcher.submit(x)
            print(f"accepted {x}", flush=True)
            return {"square": call.result()}

    @app.get("/open")
    def let_go() -> str:
        gate.release()
        return request.path

    return app


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    setup = gevent_worker()
    setup = replace(setup, command=(*setup.command[:-1], f"{__name__}:served()"))
    server = Server(setup, tmp_path, PYTHONPATH=str(Path(__file__).parents[1]))
    try:
        yield server
        server.stop()
    finally:
        server.kill()


def fetch(port: int, path: str, **headers: str) -> tuple[int, Any, dict[str, str]]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        body = response.read()
        return response.status, json.loads(body) if body[:1] == b"{" else body, dict(response.getheaders())
    finally:
        connection.close()


def test_a_real_server_refuses_expires_and_tells_that_it_is_stalled(server: Server) -> None:
    port = server.port
    assert fetch(port, "/ready")[0] == 200
    with ThreadPoolExecutor(2) as pool:
        at_the_handler = pool.submit(fetch, port, "/square/3")
        server.wait_for("the handler has begun")

        status, answer, _ = fetch(port, "/square/4", X_Deadline="0.05")
        assert (status, answer["error"], answer["retry"]) == (504, "QueueTimeout", True)
        assert fetch(port, "/square/4", X_Deadline="soon")[0] == 400

        pending = pool.submit(fetch, port, "/square/5")
        server.wait_for("accepted 5")
        status, answer, headers = fetch(port, "/square/6")
        assert (status, answer["error"], int(headers["Retry-After"])) == (503, "QueueFull", 1)
        assert headers["Content-Type"] == "application/json"

        server.wait_for("the handler 'hold' has not come back for")
        status, answer, _ = fetch(port, "/ready")
        assert (status, answer) == (503, {"ready": False, "stopped": [], "stalled": ["hold"]})

        fetch(port, "/open")
        assert [future.result(30)[:2] for future in (at_the_handler, pending)] == [
            (200, {"square": 9}),
            (200, {"square": 25}),
        ]
    assert fetch(port, "/ready")[0] == 200
    assert server.matches("Traceback") == []
