"""The small title service that the application asks: `python -m digits_demo.upstream`.

It stands for a service of another team that takes many titles in one call:

- `POST /predict` with `{"predict": ["title", ...]}` answers `{"predictions": [true, ...]}`.
- `GET /stats` says how many calls and titles it has answered.

Each call takes 20 ms, however many titles it brings: the way there and back.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

import gevent
import gevent.socket
from gevent.pywsgi import WSGIServer

from digits_app.settings import Reader, SettingsError

CALL_SECONDS = 0.02

StartResponse = Callable[[str, list[tuple[str, str]]], object]


def is_fake(title: str) -> bool:
    """Whether `title` is fake; stands for a model. Fake titles shout."""
    return "!" in title or title.isupper()


class TitleService:
    """The service as a WSGI application."""

    def __init__(self) -> None:
        self._calls = 0
        self._titles = 0

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        status, answer = self._answer(environ)
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]

    def _answer(self, environ: dict[str, Any]) -> tuple[str, object]:
        endpoint = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if endpoint == ("GET", "/stats"):
            return "200 OK", {"calls": self._calls, "titles": self._titles}
        if endpoint == ("POST", "/predict"):
            return self._predict(environ["wsgi.input"].read())
        return "404 Not Found", {"message": "must be POST /predict or GET /stats"}

    def _predict(self, body: bytes) -> tuple[str, object]:
        try:
            titles = json.loads(body)["predict"]
            predictions = [is_fake(title) for title in titles]
        except (ValueError, KeyError, TypeError, AttributeError):
            return "400 Bad Request", {"message": 'must be {"predict": ["title", ...]}'}
        self._calls += 1
        self._titles += len(titles)
        gevent.sleep(CALL_SECONDS)
        return "200 OK", {"predictions": predictions}


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="The title service that the example asks.")
    parser.add_argument("--bind", default="127.0.0.1:8001", help="HOST:PORT or fd://NUMBER")
    try:
        bind = Reader(vars(parser.parse_args())).bind("bind", "")
    except SettingsError as error:
        sys.exit(f"error: {error}")
    server = WSGIServer(_listener(bind), TitleService(), log=None)
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, server.stop)
    server.serve_forever()


# ----------------------------------------------------------------------------------------------


def _listener(bind: str) -> Any:
    """What gevent's server listens on: an address, or the socket that was handed over."""
    scheme, _, number = bind.partition("fd://")
    return bind if scheme else gevent.socket.socket(fileno=int(number))


if __name__ == "__main__":
    main()
