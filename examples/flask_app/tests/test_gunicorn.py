"""The application as it is run: gunicorn, gevent and --preload, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from itertools import count
from pathlib import Path

import pytest

from digits_app.api import MAX_BODY
from digits_app.model import Digits, Model
from digits_demo.demo import wrong_predictions
from digits_demo.load import post_until_refused
from digits_demo.servers import PROJECT, Server, running_app, running_upstream

CLIENTS = 32
MANY_CLIENTS = 300


@pytest.fixture(scope="module")
def upstream() -> Iterator[Server]:
    with running_upstream() as server:
        yield server


@pytest.fixture(scope="module")
def served(upstream: Server) -> Iterator[Server]:
    with running_app(upstream.url) as server:
        yield server


def connected(server: Server) -> closing[HTTPConnection]:
    return closing(HTTPConnection("127.0.0.1", server.port, timeout=30))


def post(server: Server, path: str, body: object) -> tuple[int, object]:
    with connected(server) as connection:
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_many_clients_each_get_the_answer_to_their_own_image(
    served: Server, model: Model, unseen: Digits
) -> None:
    images = unseen.images[:200]
    expected = [(200, prediction._asdict()) for prediction in model.predict(images)]
    before = served.get_json("/stats")["predict"]
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda x: post(served, "/predict", {"pixels": x}), images))
    after = served.get_json("/stats")["predict"]
    assert answers == expected
    assert after["items"] - before["items"] == 200
    assert after["calls"] - before["calls"] < 150


def test_both_ways_of_asking_go_together(served: Server, model: Model, unseen: Digits) -> None:
    images = unseen.images[:100]
    expected = [(200, prediction._asdict()) for prediction in model.predict(images)]
    paths = ["/predict", "/predict-unbatched"] * 50
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = clients.map(lambda path, x: post(served, path, {"pixels": x}), paths, images)
        assert list(answers) == expected


def test_many_titles_share_calls_of_the_title_service(served: Server, upstream: Server) -> None:
    titles = [f"Title {n}{'!' * (n % 2)}" for n in range(100)]
    before = upstream.get_json("/stats")
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda x: post(served, "/title", {"title": x}), titles))
    after = upstream.get_json("/stats")
    assert answers == [(200, {"prediction": n % 2 == 1}) for n in range(100)]
    assert after["titles"] - before["titles"] == 100
    assert after["calls"] - before["calls"] < 75


@pytest.mark.parametrize(("length", "status"), [(MAX_BODY, 400), (MAX_BODY + 1, 413)])
def test_a_body_of_unknown_length_is_limited_too(served: Server, length: int, status: int) -> None:
    chunks = iter([b" " * (length - 1000), b" " * 1000])
    with connected(served) as connection:
        connection.request("POST", "/predict", chunks, encode_chunked=True)
        assert connection.getresponse().status == status


def test_a_request_that_waits_for_a_batch_is_answered_before_the_worker_ends(
    monkeypatch: pytest.MonkeyPatch, upstream: Server, unseen: Digits
) -> None:
    monkeypatch.setenv("UBATCH_EAGER", "0")
    monkeypatch.setenv("UBATCH_TIMEOUT", "2")
    body = json.dumps({"pixels": unseen.images[0]})
    with running_app(upstream.url) as server, connected(server) as connection:
        connection.request("POST", "/predict", body, {"Connection": "close"})
        server.get_json("/healthz")  # came later and is answered: the other one waits by now
        server.stop()
        assert connection.getresponse().status == 200


def test_a_stop_under_load_answers_whoever_could_connect(
    upstream: Server, model: Model, unseen: Digits
) -> None:
    """Two workers, and more clients than they can keep up with."""
    replied = count(1)

    def stop_in_the_middle() -> None:
        if next(replied) == 3 * MANY_CLIENTS:
            server.terminate()

    with running_app(upstream.url, workers=2) as server:
        asked = post_until_refused(
            server.port,
            "/predict",
            [{"pixels": image} for image in unseen.images],
            clients=MANY_CLIENTS,
            on_reply=stop_in_the_middle,
        )
    expected = model.predict(unseen.images)
    alone = [expected[number] for number, _ in asked]
    assert wrong_predictions([reply for _, reply in asked], alone) == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("UBATCH_MAX_SIZE", "abc", "must be a whole number from 1 to 4096, but got 'abc'"),
        ("UBATCH_TIMEOUT", "-1", "must be a number of seconds from 0 to 10, but got '-1'"),
        ("GUNICORN_WORKERS", "0", "must be a whole number from 1 to 256, but got '0'"),
        ("GUNICORN_PRELOAD", "no", "must be one of 0, 1, but got 'no'"),
        ("GUNICORN_GRACEFUL_TIMEOUT", "5", "must be a whole number from 7 to 3600, but got '5'"),
        (
            "PROMETHEUS_MULTIPROC_DIR",
            "/nowhere",
            "must be a folder that is there and may be written to, but got '/nowhere'",
        ),
        (
            "GUNICORN_BIND",
            "nowhere",
            "must be HOST:PORT, unix:PATH or fd://NUMBER, but got 'nowhere'",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_and_the_end_of_the_process(
    name: str, value: str, message: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn"],
        cwd=PROJECT,
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"error: {name} {message}\n"
    assert done.stdout == ""


def test_spans_of_requests_and_batches_are_printed_where_they_are_asked_for(
    upstream: Server, unseen: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.instrumentation.flask")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    with (tmp_path / "log").open("wb") as log, running_app(upstream.url, log=log) as server:
        status, _ = post(server, "/predict", {"pixels": unseen.images[0]})
        assert status == 200
    printed = (tmp_path / "log").read_text()
    assert '"name": "batch digits"' in printed
    assert '"ubatch.queue.duration"' in printed


def test_the_containers_health_check_finds_it_ready(served: Server) -> None:
    script = PROJECT.parent.parent / "docker" / "health.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "GUNICORN_BIND": f"127.0.0.1:{served.port}"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert '"ready": true' in done.stdout
