"""The command lines for people: what they print, how they end, and that nothing is left."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest

from digits_app.model import Prediction
from digits_demo.demo import CLIENTS, wrong_predictions, wrong_titles
from digits_demo.load import UNANSWERED, Load, Reply

ALONE = Prediction(3, 0.93)


def reply(status: int, answer: object) -> Reply:
    return Reply(status, answer, seconds=0.01)


@contextmanager
def started(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()  # stops what it started; does nothing if it has ended


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """The next line that holds `word`; what comes before it is passed over."""
    assert process.stdout is not None
    return next(line for line in process.stdout if word in line)


def address_in(line: str) -> tuple[str, int]:
    url = next(word for word in line.split() if word.startswith("http://"))
    parts = urlsplit(url.strip(","))
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def ask(address: tuple[str, int], method: str, path: str, body: str | None = None) -> Any:
    with closing(HTTPConnection(*address, timeout=30)) as connection:
        connection.request(method, path, body)
        return json.loads(connection.getresponse().read())


def assert_nobody_listens(address: tuple[str, int]) -> None:
    with pytest.raises(ConnectionRefusedError):
        ask(address, "GET", "/healthz")


def test_the_demo_measures_checks_and_stops_what_it_started() -> None:
    with started("digits_demo.demo", "--requests", "60", "--clients", "16") as demo:
        address = address_in(read_until(demo, "listens at"))
        rest, _ = demo.communicate()
    assert demo.returncode == 0, rest
    for word in ("/predict-unbatched", "req/s", "p50", "p99", "mean batch", "accuracy", "ratio"):
        assert word in rest
    assert "All 620 answers came, and each is the one that it must be." in rest
    assert_nobody_listens(address)


def test_the_demo_fails_plainly_when_answers_are_missing() -> None:
    with started("digits_demo.demo", "--requests", "1500") as demo:
        address = address_in(read_until(demo, "listens at"))
        stats = ask(address, "GET", "/stats")
        while stats["predict_unbatched"]["calls"] < CLIENTS:  # not every client has begun
            stats = ask(address, "GET", "/stats")
        os.kill(stats["pid"], signal.SIGKILL)
        rest, _ = demo.communicate()
    assert demo.returncode == 1
    assert "FAILED:" in rest
    assert "wrong or missing" in rest
    assert_nobody_listens(address)


def test_the_demo_shows_why_the_application_did_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUNICORN_LOGLEVEL", "loud")
    with started("digits_demo.demo", "--requests", "1") as demo:
        output, _ = demo.communicate()
    assert demo.returncode == 1
    assert "error: GUNICORN_LOGLEVEL must be one of debug, info" in output
    assert "FAILED: the application does not answer GET /healthz" in output


def test_ctrl_c_leaves_nothing_running() -> None:
    with started("digits_demo.demo", "--requests", "5000") as demo:
        address = address_in(read_until(demo, "listens at"))
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate()
    assert demo.returncode == 130
    assert "Stopped; nothing is left running." in rest
    assert "Traceback" not in rest
    assert_nobody_listens(address)


def test_the_printed_curl_line_is_answered() -> None:
    with started("digits_demo.serve") as serve:
        shown = read_until(serve, "the image shows a").strip()
        _curl, _d, body, url = shlex.split(read_until(serve, "curl"))
        address = address_in(url)
        digit = ask(address, "POST", "/predict", body)["digit"]
        serve.send_signal(signal.SIGTERM)
        serve.communicate()
    assert shown.endswith(f"{digit}):")
    assert serve.returncode == 0
    assert_nobody_listens(address)


def test_a_right_answer_is_no_problem() -> None:
    right = reply(200, {"digit": 3, "confidence": 0.93 + 1e-12})
    assert wrong_predictions([right], [ALONE]) == []
    assert wrong_titles([reply(200, {"prediction": True})], ["Now!"]) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (reply(200, {"digit": 4, "confidence": 0.93}), "but got 200 {'digit': 4"),
        (reply(200, {"digit": 3, "confidence": 0.94}), "but got 200 {'digit': 3"),
        (reply(200, {"digit": 3}), "but got 200 {'digit': 3}"),
        (reply(200, None), "but got 200 None"),
        (reply(503, {"message": "closed"}), "but got 503 {'message': 'closed'}"),
        (UNANSWERED, "but got no answer: not answered in time"),
    ],
)
def test_a_wrong_or_missing_answer_is_told(wrong: Reply, said: str) -> None:
    (problem,) = wrong_predictions([wrong], [ALONE])
    assert problem.startswith("image 0: must be 3 (0.930)")
    assert said in problem
    (problem,) = wrong_titles([wrong], ["Now!"])
    assert problem.startswith("title 'Now!': must be True")


def test_latency_is_the_nearest_rank_of_what_was_answered() -> None:
    replies = [Reply(200, None, seconds / 100) for seconds in range(1, 101)]
    load = Load([*replies, UNANSWERED], seconds=2.0)
    assert (load.latency(50), load.latency(99), load.rate) == (0.5, 0.99, 50.0)
