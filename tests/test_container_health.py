"""The health check, docker/health.py: it asks where the application listens, and says no to all but a 200."""

from __future__ import annotations

import os
import runpy
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

SCRIPT = Path(__file__).parent.parent / "docker" / "health.py"

main = runpy.run_path(str(SCRIPT))["main"]


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


def test_nobody_there_is_unhealthy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        monkeypatch.setenv("GUNICORN_BIND", f"127.0.0.1:{nobody_listens.getsockname()[1]}")
        assert main([]) == 1
    assert "ConnectionRefusedError" in capsys.readouterr().out


def test_a_server_that_does_not_answer_is_unhealthy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(main.__globals__, "LIMIT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as nobody_answers:
        monkeypatch.setenv("GUNICORN_BIND", f"127.0.0.1:{nobody_answers.getsockname()[1]}")
        assert main([]) == 1
    assert "timed out" in capsys.readouterr().out


def test_another_server_can_be_asked() -> None:
    with listening({"/stats": 200}) as port:
        assert main([f"http://127.0.0.1:{port}/stats"]) == 0
        assert main([f"http://127.0.0.1:{port}/"]) == 1


@pytest.mark.parametrize("url", ["/stats", "https://127.0.0.1/", "ftp://127.0.0.1/", "http:///stats"])
def test_what_is_no_address_is_a_line(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert main([url]) == 1
    assert capsys.readouterr().err == (
        f"error: the URL must be an address such as http://127.0.0.1:8001/, but got {url!r}\n"
    )


@pytest.mark.parametrize("value", ["nowhere", "fd://3", "127.0.0.1:8000,127.0.0.1:8001"])
def test_a_bind_that_cannot_be_asked_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    monkeypatch.setenv("GUNICORN_BIND", value)
    assert main([]) == 1
    assert capsys.readouterr() == ("", f"error: GUNICORN_BIND must be HOST:PORT or unix:PATH, but got {value!r}\n")


@pytest.mark.parametrize("value", [None, "", " "])
def test_without_a_setting_it_asks_where_gunicorn_listens_without_one(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    settings = SCRIPT.parent.parent / "examples" / "flask_app" / "gunicorn.conf.py"
    assert f'env.bind("GUNICORN_BIND", "{main.__globals__["BIND"]}")' in settings.read_text()
    with listening({"/readyz": 200}) as port:
        monkeypatch.setitem(main.__globals__, "BIND", f"127.0.0.1:{port}")
        monkeypatch.delenv("GUNICORN_BIND", raising=False)
        if value is not None:
            monkeypatch.setenv("GUNICORN_BIND", value)
        assert main([]) == 0


def test_it_imports_no_package() -> None:
    with listening({"/readyz": 200}) as port:
        code = (
            f"import runpy, sys; assert runpy.run_path({str(SCRIPT)!r})['main']([]) == 0; "
            "print([name for name in ('flask', 'gevent', 'numpy', 'ubatch') if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "GUNICORN_BIND": f"127.0.0.1:{port}"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "GET /readyz: 200 said\n[]\n"
