"""The health check: it asks where the application listens, and says no to everything but a 200."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import UnixStreamServer
from threading import Thread
from typing import Any

import pytest

from digits_app.health import main
from digits_app.servers import running_app


def handler(answers: dict[str, int]) -> type[BaseHTTPRequestHandler]:
    class Canned(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.get(self.path, 404))
            self.end_headers()
            self.wfile.write(b"said\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Canned


@contextmanager
def serving(server: Any) -> Iterator[Any]:
    with server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def listening(answers: dict[str, int], host: str = "127.0.0.1") -> Iterator[int]:
    with serving(HTTPServer((host, 0), handler(answers))) as server:
        yield server.server_port


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_server_that_is_ready_is_healthy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    with listening({"/readyz": 200}) as port:
        monkeypatch.setenv("GUNICORN_BIND", f"{host}:{port}")
        assert main([]) == 0
    assert capsys.readouterr().out == "GET /readyz: 200 said\n"


def test_a_unix_socket_is_asked_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    monkeypatch.setenv("GUNICORN_BIND", f"unix:{path}")
    assert main([]) == 1
    with serving(UnixStreamServer(path, handler({"/readyz": 200}))):
        assert main([]) == 0


def test_a_server_that_is_not_ready_is_unhealthy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with listening({"/readyz": 503}) as port:
        monkeypatch.setenv("GUNICORN_BIND", f"127.0.0.1:{port}")
        assert main([]) == 1
    assert capsys.readouterr().out == "GET /readyz: 503 said\n"


def test_nobody_there_is_unhealthy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        monkeypatch.setenv("GUNICORN_BIND", f"127.0.0.1:{nobody_listens.getsockname()[1]}")
        assert main([]) == 1
    assert "ConnectionRefusedError" in capsys.readouterr().out


def test_a_server_that_does_not_answer_is_unhealthy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("digits_app.health.LIMIT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as nobody_answers:
        monkeypatch.setenv("GUNICORN_BIND", f"127.0.0.1:{nobody_answers.getsockname()[1]}")
        assert main([]) == 1
    assert "timed out" in capsys.readouterr().out


def test_another_server_can_be_asked() -> None:
    with listening({"/stats": 200}) as port:
        assert main([f"http://127.0.0.1:{port}/stats"]) == 0
        assert main([f"http://127.0.0.1:{port}/"]) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere", "error: GUNICORN_BIND must be HOST:PORT, unix:PATH or fd://NUMBER, but got"),
        ("fd://3", "error: GUNICORN_BIND must say where to ask, but got 'fd://3'"),
    ],
)
def test_an_address_that_cannot_be_asked_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str, message: str
) -> None:
    monkeypatch.setenv("GUNICORN_BIND", value)
    assert main([]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1


def test_the_running_application_is_healthy_and_the_check_imports_no_package() -> None:
    with running_app("http://127.0.0.1:9") as server:
        script = (
            "import sys; from digits_app.health import main; assert main([]) == 0; "
            "print([n for n in ('flask', 'gevent', 'numpy', 'ubatch') if n in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "GUNICORN_BIND": f"127.0.0.1:{server.port}"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("[]\n")
    assert '"ready": true' in done.stdout
