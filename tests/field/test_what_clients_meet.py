"""What a client of the server meets: HEAD, odd paths and headers, errors with odd fields, websockets, event streams."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.views import MethodView
from flask_restx import Api, Resource

import ubatch
from tests.serving import Gunicorn
from tests.test_wsgi import ask, hello, raising
from ubatch import QueueFull, UBatch, UBatchError
from ubatch._deadline import time_left
from ubatch.integrations._page import Page
from ubatch.integrations.flask import UBatchExtension, no_deadline
from ubatch.integrations.wsgi import UBatchMiddleware

LIMIT = 40.0

APPLICATION = """
    import sys
    from ubatch import NotProcessed, QueueTimeout, UBatchError
    from ubatch.integrations.wsgi import UBatchMiddleware

    ERRORS = {"/500": UBatchError("mine"), "/503": NotProcessed("later"), "/504": QueueTimeout("late")}

    def application(environ, start_response):
        if environ["PATH_INFO"] in ERRORS:
            raise ERRORS[environ["PATH_INFO"]]
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
        return [b"hello"]

    app = UBatchMiddleware(application, deadline_header="X-Deadline", readiness="/ready")
"""
SERVE = """
import sys, textwrap
exec(textwrap.dedent(sys.argv[2]))
if sys.argv[1] == "gevent.pywsgi":
    from gevent.pywsgi import WSGIServer
    server = WSGIServer(("127.0.0.1", 0), app, log=None)
    server.start()
    print(server.server_port, flush=True)
    server.serve_forever()
else:
    import waitress
    server = waitress.create_server(app, host="127.0.0.1", port=0)
    print(server.effective_port, flush=True)
    server.run()
"""


@pytest.fixture(scope="module", params=["gunicorn gevent", "gunicorn gthread", "gevent.pywsgi", "waitress"])
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    server, _, worker = request.param.partition(" ")
    if server == "gunicorn":
        folder = tmp_path_factory.mktemp("server")
        with Gunicorn(folder, APPLICATION, "-k", worker, "--threads", "4", "--keep-alive", "30") as gunicorn:
            yield gunicorn.port
        return
    if find_spec(server.partition(".")[0]) is None:
        pytest.skip(f"{server} is not installed")
    command = [sys.executable, "-c", SERVE, server, APPLICATION]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/ready", "", 200),
        ("/anything", "X-Deadline: soon\r\n", 400),
        ("/500", "", 500),
        ("/503", "", 503),
        ("/504", "", 504),
    ],
)
def test_after_a_head_request_comes_the_next_answer_and_nothing_else(
    port: int, path: str, header: str, status: int
) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
        connection.settimeout(LIMIT)
        answers = connection.makefile("rb")
        connection.sendall(f"HEAD {path} HTTP/1.1\r\nHost: h\r\n{header}\r\n".encode())
        assert int(answers.readline().split()[1]) == status
        headers = {}
        while line := answers.readline().strip().decode():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        assert int(headers["content-length"]) > 0  # of the body that a GET would have
        if headers.get("connection", "keep-alive").lower() == "close":
            assert answers.read() == b""
            return
        connection.sendall(b"GET /fine HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert answers.readline().startswith(b"HTTP/1.1 200")
        assert answers.read().endswith(b"hello")


def test_a_readiness_that_must_be_asked_otherwise_tells_a_head_request_so_without_a_body() -> None:
    application = UBatchMiddleware(hello, readiness="/ready", batchers=[])
    assert ask(application, "/ready", "DELETE").status == "405 Method Not Allowed"
    answer = ask(application, "/ready", "HEAD")
    assert (answer.status, answer.body) == ("200 OK", b"")


@pytest.mark.parametrize("path", ["/a\nERROR all is lost", "/a\r\n\x1b[31mred", "/\x85next", "/ü"])
def test_a_path_makes_one_line_of_the_log(caplog: pytest.LogCaptureFixture, path: str) -> None:
    wsgi_path = path.encode().decode("latin-1")
    assert ask(UBatchMiddleware(raising(UBatchError("mine"))), wsgi_path).status.startswith("500")
    app = Flask(__name__)
    UBatchExtension(app)

    @app.get("/<path:path>")
    def view(path: str) -> str:
        raise UBatchError("mine")

    assert app.test_client().get(path).status_code == 500
    messages = [record.getMessage() for record in caplog.records if record.exc_info]
    assert len(messages) == 2
    for message in messages:
        assert message.isprintable()
        assert message.isascii()


def test_a_body_is_closed_where_the_server_does_not_take_it() -> None:
    class Body:
        closed = 0

        def __iter__(self) -> Iterator[bytes]:
            yield b"hello"

        def close(self) -> None:
            self.closed += 1

    body = Body()

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return body

    def start_response(*_: Any) -> Any:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        UBatchMiddleware(application, deadline=60.0)({"REQUEST_METHOD": "GET"}, start_response)
    assert body.closed == 1


@pytest.mark.parametrize("status", [599, 42, 200, 0, -1, "503", None, 10**6])
def test_whatever_status_an_error_has_its_client_is_answered(status: Any) -> None:
    class Odd(UBatchError):
        http_status = status

    answer = ask(UBatchMiddleware(raising(Odd("mine"))))
    assert int(answer.status[:3]) == (status if status == 599 else 500)
    assert answer.json["error"] == "Odd"


@pytest.mark.parametrize(
    ("retry_after", "told"),
    [(float("inf"), "3600"), (float("nan"), "1"), (-5.0, "1"), (0.0, "1"), (2.1, "3"), (1e300, "3600"), ("x", "1")],
)
def test_whatever_retry_after_an_error_has_its_client_is_told_whole_seconds(retry_after: Any, told: str) -> None:
    assert ask(UBatchMiddleware(raising(QueueFull("full", retry_after)))).headers["Retry-After"] == told


@pytest.mark.parametrize("text", ["1_0", " 1 ", "1 ", "\u0661", "１", "+1", "1e", ".", "1e999", "infinity"])
def test_a_deadline_is_written_in_plain_digits(text: str) -> None:
    application = UBatchMiddleware(hello, deadline_header="X-Deadline")
    answer = ask(application, HTTP_X_DEADLINE=text.encode().decode("latin-1"))
    assert answer.status == "400 Bad Request"


@pytest.mark.parametrize("text", ["1", "0.25", ".5", "2.", "1e-3", "1E3"])
def test_each_way_to_write_one_that_is_told_is_taken(text: str) -> None:
    assert ask(UBatchMiddleware(hello, deadline_header="X-Deadline"), HTTP_X_DEADLINE=text).status == "200 OK"


def test_a_readiness_path_may_have_any_letters() -> None:
    application = UBatchMiddleware(raising(AssertionError("reached")), readiness="/bereit/ü", batchers=[])
    assert ask(application, "/bereit/ü".encode().decode("latin-1")).json["ready"] is True
    app = Flask(__name__)
    app.config["UBATCH_READINESS"] = "/準備"
    UBatchExtension(app, batchers=[])
    assert app.test_client().get("/準備").json == {"ready": True, "stopped": [], "stalled": []}


# The page.


def test_the_page_tells_figures_and_names_only() -> None:
    with UBatch[int, int](8, 0.0, name="squares").set_handler(list) as batcher:
        batcher.map(range(3))
        page = Page([batcher])
        told = json.loads(page.json().body)
        assert set(told) == {"worker", "at", "more", "batchers"}
        assert re.fullmatch("[0-9a-f]{6}", told["worker"])
        assert told["batchers"][0]["id"] == json.loads(page.json().body)["batchers"][0]["id"] == 1
        text = json.dumps(told)
        assert f"{id(batcher):x}" not in text
        assert socket.gethostname() not in text
        assert dict(page.json().headers)["X-Content-Type-Options"] == "nosniff"


def test_its_script_is_named_by_its_hash() -> None:
    answer = Page([]).html()
    policy = dict(answer.headers)["Content-Security-Policy"]
    scripts = re.findall(rb"<script[^>]*>(.*?)</script>", answer.body, re.DOTALL)
    assert len(scripts) == 1
    (told,) = re.findall(r"script-src ([^;]*);", policy)
    digest = __import__("base64").b64encode(sha256(scripts[0]).digest()).decode()
    assert told == f"'sha256-{digest}'"


def test_it_comes_from_a_zip_as_well(tmp_path: Path) -> None:
    package = Path(ubatch.__file__).parent
    archive = tmp_path / "library.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for path in package.rglob("*"):
            if path.suffix in (".py", ".html", ".typed"):
                zipped.write(path, path.relative_to(package.parent))
    code = f"""
import sys
sys.path.insert(0, {str(archive)!r})
import ubatch
from ubatch.integrations._page import Page
assert ".zip" in ubatch.__file__
print(b"<script>" in Page([]).html().body)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=True)
    assert ran.stdout == "True\n"


# Deadlines, and what has none.


def late() -> str:
    """What is answered by a view whose request's deadline has passed."""
    try:
        return "answered" if time_left(1e9) == 1e9 else f"bound: {time_left(1e9) < 1000}"
    except UBatchError as error:
        return type(error).__name__


@no_deadline
def function() -> str:
    return late()


class Marked(MethodView):
    @no_deadline
    def get(self) -> str:
        return late()

    def post(self) -> str:
        return late()


@no_deadline
class All(MethodView):
    def get(self) -> str:
        return late()


class Rest(Resource):  # type: ignore[misc]
    @no_deadline
    def get(self) -> str:
        return late()

    def post(self) -> str:
        return late()


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.config.update(UBATCH_DEADLINE=500.0, UBATCH_DEADLINE_HEADER="X-Deadline")
    UBatchExtension(app)
    app.add_url_rule("/marked", view_func=Marked.as_view("marked"))
    app.add_url_rule("/all", view_func=All.as_view("all"))
    app.add_url_rule("/plain", view_func=late, endpoint="plain")
    app.add_url_rule("/function", view_func=function)
    api = Api(app, prefix="/api")
    api.add_resource(Rest, "/rest")
    return app


@pytest.mark.parametrize(
    ("method", "path", "bound"),
    [
        ("GET", "/plain", True),
        ("GET", "/function", False),
        ("GET", "/marked", False),
        ("POST", "/marked", True),
        ("GET", "/all", False),
        ("GET", "/api/rest", False),
        ("POST", "/api/rest", True),
    ],
)
def test_a_route_that_is_marked_has_no_deadline(app: Flask, method: str, path: str, bound: bool) -> None:
    for headers in ({}, {"X-Deadline": "0.5"}):
        answer = app.test_client().open(path, method=method, headers=headers)
        assert answer.status_code == 200
        assert ("bound: True" if bound else "answered") in answer.text
    assert app.test_client().open(path, method=method, headers={"X-Deadline": "soon"}).status_code == 400
    assert time_left(1e9) == 1e9


def test_no_deadline_marks_nothing_but_views() -> None:
    with pytest.raises(TypeError, match="no_deadline must mark a view"):
        no_deadline("/events")  # type: ignore[type-var]


def test_the_middleware_may_be_told_which_requests_have_none() -> None:
    seen: list[float] = []

    def application(environ: Any, start_response: Any) -> Any:
        seen.append(time_left(1e9))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    wrapped = UBatchMiddleware(
        application,
        deadline=500.0,
        deadline_header="X-Deadline",
        exempt=lambda environ: environ["PATH_INFO"].startswith("/events"),
    )
    ask(wrapped, "/events/1", HTTP_X_DEADLINE="soon")
    ask(wrapped, "/other")
    assert seen[0] == 1e9
    assert seen[1] <= 500
    with pytest.raises(TypeError, match="exempt"):
        UBatchMiddleware(application, exempt="/events")  # type: ignore[arg-type]


STREAMS = """
import json, sys
from gevent import monkey
monkey.patch_all()
import urllib.request
from flask import Flask, Response, stream_with_context
from flask_sock import Sock
from gevent.pywsgi import WSGIServer
from simple_websocket import Client
import gevent
import ubatch
from ubatch import UBatch
from ubatch.integrations.flask import UBatchExtension, no_deadline

marked = sys.argv[1] == "marked"
predict = UBatch(max_size=8, timeout=0.005, eager=True).set_handler(lambda xs: [x * x for x in xs])
app = Flask(__name__)
app.config.update(UBATCH_DEADLINE=0.05)
UBatchExtension(app)
sock = Sock(app)

def mark(view):
    return no_deadline(view) if marked else view

def answer(x):
    try:
        return predict.ubatch(x)
    except ubatch.UBatchError as error:
        return type(error).__name__

@sock.route("/ws")
@mark
def ws(ws):
    while True:
        x = json.loads(ws.receive())
        with ubatch.deadline(30, fresh=x < 0):
            ws.send(json.dumps(answer(abs(x))))

@app.get("/sse")
@mark
def sse():
    def events():
        for x in range(3):
            yield f"data: {answer(x)}\\n\\n"
            gevent.sleep(0.06)
    return Response(stream_with_context(events()), mimetype="text/event-stream")

server = WSGIServer(("127.0.0.1", 0), app, log=None)
server.start()
client = Client(f"ws://127.0.0.1:{server.server_port}/ws")
def ask(x):
    client.send(json.dumps(x))
    return json.loads(client.receive(timeout=30))
first = ask(3)
gevent.sleep(0.06)
print(json.dumps([first if marked else 9, ask(3), ask(-3)]))
client.close()
body = urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/sse", timeout=30).read().decode()
print(body.count("data:"), "QueueTimeout" in body)
server.stop()
"""


@pytest.mark.skipif(find_spec("flask_sock") is None, reason="flask-sock is not installed")
@pytest.mark.parametrize(
    ("marked", "answers", "events"),
    [("marked", [9, 9, 9], "3 False"), ("not marked", [9, "QueueTimeout", 9], "3 True")],
)
def test_a_websocket_and_a_stream_of_events_live_on(marked: str, answers: list[Any], events: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", STREAMS, marked], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert ran.returncode == 0, ran.stderr
    told, counted = ran.stdout.splitlines()
    assert json.loads(told) == answers
    assert counted == events
