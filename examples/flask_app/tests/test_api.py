"""What the endpoints answer: in this process, with plain threads and no server."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from digits_app import create_app
from digits_app.api import MAX_BODY
from digits_app.model import Digits, Model
from digits_demo.servers import running_upstream

PREDICTORS = ["/predict", "/predict-unbatched"]
POSTS = [*PREDICTORS, "/title"]


@pytest.mark.parametrize("path", PREDICTORS)
def test_an_image_is_answered_as_the_model_alone_does(
    client: FlaskClient, model: Model, unseen: Digits, path: str
) -> None:
    response = client.post(path, json={"pixels": unseen.images[0]})
    alone = model.predict(unseen.images[:1])[0]
    assert response.status_code == 200
    assert response.json is not None
    assert response.json.keys() == {"digit", "confidence"}
    assert response.json["digit"] == alone.digit
    assert math.isclose(response.json["confidence"], alone.confidence)


def test_a_body_is_read_as_json_whatever_its_content_type_says(
    client: FlaskClient, unseen: Digits
) -> None:
    body = json.dumps({"pixels": unseen.images[0]})
    response = client.post("/predict", data=body, content_type="application/x-www-form-urlencoded")
    assert response.status_code == 200


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'{"pixels": [NaN]}', b'{"title": 7}'])
def test_a_wrong_body_is_a_400_with_a_message(client: FlaskClient, path: str, body: bytes) -> None:
    response = client.post(path, data=body)
    assert response.status_code == 400
    assert response.json is not None
    assert "must be" in response.json["message"]


@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_is_too_large_is_a_413_with_a_message(client: FlaskClient, path: str) -> None:
    response = client.post(path, data=b" " * (MAX_BODY + 1))
    assert response.status_code == 413
    assert response.json == {"message": f"the body must have at most {MAX_BODY} bytes"}


@pytest.mark.parametrize("path", POSTS)
def test_the_largest_body_allowed_is_read(client: FlaskClient, path: str) -> None:
    assert client.post(path, data=b" " * MAX_BODY).status_code == 400


@pytest.mark.parametrize("sample", [0, 449])
def test_a_sample_is_answered_as_the_model_alone_does(
    client: FlaskClient, model: Model, unseen: Digits, sample: int
) -> None:
    answer: Any = client.get(f"/samples/{sample}").json
    alone = model.predict([unseen.images[sample]])[0]
    assert answer["sample"] == sample
    assert answer["digit"] == alone.digit
    assert math.isclose(answer["confidence"], alone.confidence)
    assert answer["label"] == unseen.digits[sample]


def test_a_sample_that_is_not_there_is_a_404_with_a_message(client: FlaskClient) -> None:
    response = client.get("/samples/450")
    assert response.status_code == 404
    assert response.json == {"message": "the sample must be from 0 to 449, but got 450"}
    assert client.get("/samples/-1").status_code == 404


def test_the_handlers_calls_are_counted(client: FlaskClient, unseen: Digits) -> None:
    for path in PREDICTORS:
        for image in unseen.images[:3]:
            client.post(path, json={"pixels": image})
    stats: Any = client.get("/stats").json
    one_by_one = {"calls": 3, "items": 3, "mean_batch_size": 1.0}
    assert stats["predict"] == stats["predict_unbatched"] == one_by_one
    assert stats["title"] == {"calls": 0, "items": 0, "mean_batch_size": 0.0}


def test_healthz_answers(client: FlaskClient) -> None:
    assert client.get("/healthz").json == {"status": "ok"}


def test_an_application_is_ready_until_it_is_stopped(app: Flask, client: FlaskClient) -> None:
    assert client.get("/readyz").status_code == 200
    app.extensions["digits_app"].stop(timeout=5)
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json == {"ready": False, "stopped": ["digits", "titles"], "stalled": []}
    assert client.get("/healthz").status_code == 200


def test_the_swagger_page_knows_every_endpoint(client: FlaskClient) -> None:
    assert b"swagger" in client.get("/").data
    document: Any = client.get("/swagger.json").json
    assert document["paths"].keys() == {*POSTS, "/samples/{sample}", "/healthz", "/stats"}
    responses = document["paths"]["/predict"]["post"]["responses"]
    assert responses.keys() == {"200", "400", "413", "503", "504"}


def test_an_unknown_path_is_a_404_as_json(client: FlaskClient) -> None:
    response = client.get("/nowhere")
    assert response.status_code == 404
    assert response.json is not None
    assert response.json["message"]


def test_an_application_that_stops_answers_503(app: Flask, unseen: Digits) -> None:
    app.extensions["digits_app"].stop(timeout=5)
    response = app.test_client().post("/predict", json={"pixels": unseen.images[0]})
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert response.json is not None
    assert response.json["error"] == "QueueClosed"
    assert response.json["message"]
    assert response.json["retry"] is True


def test_a_client_may_ask_for_less_time_and_gets_a_504_when_it_is_over(client: FlaskClient) -> None:
    response = client.get("/samples/0", headers={"X-Deadline": "0"})
    assert response.status_code == 504
    assert response.json is not None
    assert response.json["retry"] is True


def test_a_request_takes_no_longer_than_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody_answers:
        url = f"http://127.0.0.1:{nobody_answers.getsockname()[1]}"
        app = create_app({"TESTING": True, "UPSTREAM_URL": url, "UBATCH_DEADLINE": "0.1"})
        response = app.test_client().post("/title", json={"title": "A title"})
    app.extensions["digits_app"].stop(timeout=5)
    assert response.status_code == 504
    assert response.json is not None
    assert response.json["error"] == "ResultTimeout"


def test_titles_are_checked_by_the_title_service() -> None:
    with running_upstream() as upstream, titles_client(upstream.url) as client:
        assert client.post("/title", json={"title": "Buy now!"}).json == {"prediction": True}
        assert client.post("/title", json={"title": "A title"}).json == {"prediction": False}


def test_a_title_service_that_is_away_is_a_502() -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        with titles_client(f"http://127.0.0.1:{nobody_listens.getsockname()[1]}") as client:
            response = client.post("/title", json={"title": "A title"})
    assert response.status_code == 502
    assert response.json == {"message": "the title service gave no answer"}


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (500, "{}", "the title service gave no answer"),
        (200, "no json", "the title service gave no answer"),
        (200, "[]", "the title service must answer a list of true and false"),
        (200, '{"predictions": [1]}', "the title service must answer a list of true and false"),
        (200, '{"predictions": []}', "the title service must answer 1 titles, but answered 0"),
    ],
)
def test_a_title_service_that_breaks_its_promise_is_a_502(
    status: int, body: str, message: str
) -> None:
    with canned_service(status, body) as url, titles_client(url) as client:
        response = client.post("/title", json={"title": "A title"})
    assert response.status_code == 502
    assert response.json == {"message": message}


@contextmanager
def titles_client(url: str) -> Iterator[FlaskClient]:
    app = create_app({"TESTING": True, "UPSTREAM_URL": url})
    yield app.test_client()
    app.extensions["digits_app"].stop(timeout=5)


@contextmanager
def canned_service(status: int, body: str) -> Iterator[str]:
    """A service that gives the same answer to every post."""

    class Canned(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Canned) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_prometheus_is_told_what_the_batchers_do(client: FlaskClient, unseen: Digits) -> None:
    client.post("/predict", json={"pixels": unseen[0][0]})
    page = client.get("/metrics")
    assert page.status_code == 200
    assert 'ubatch_calls_total{batcher="digits",outcome="answered"}' in page.text
    assert 'ubatch_batch_size_count{batcher="digits"}' in page.text


def test_a_page_shows_what_the_batchers_do(client: FlaskClient, unseen: Digits) -> None:
    client.post("/predict", json={"pixels": unseen[0][0]})
    assert client.get("/ubatch").mimetype == "text/html"
    batchers = client.get("/ubatch?format=json").get_json()["batchers"]
    assert {batcher["name"] for batcher in batchers} == {"digits", "titles"}
