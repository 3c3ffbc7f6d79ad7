"""Every code block of the README runs: Python as it stands, the app under its command, and curl against it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks() -> list[Block]:
    text = (ROOT / "README.md").read_text()
    return [
        Block(found[1], found[2], text[: found.start()].count("\n") + 1)
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def commands() -> list[tuple[list[str], str]]:
    """The console blocks: each command, and the output that is shown for it."""
    found = []
    for block in blocks():
        if block.language == "console":
            for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                found.append((shlex.split(command), output))
    return found


APP = [block for block in blocks() if block.text.startswith("# app.py")]
SNIPPETS = [block for block in blocks() if block.language == "python" and block not in APP]
GUNICORN = [command for command, _ in commands() if command[0] == "gunicorn"]
CURL = [pytest.param(*command, id=" ".join(command[0])) for command in commands() if command[0][0] == "curl"]
TESTED = {"make", "pip", "gunicorn", "curl"}


def test_every_block_is_of_a_kind_that_is_tested_here() -> None:
    assert {block.language for block in blocks()} <= {"python", "console", "text"}
    assert {command[0] for command, _ in commands()} == TESTED
    assert (len(APP), len(GUNICORN)) == (1, 1)


@pytest.mark.parametrize("block", SNIPPETS, ids=lambda block: f"line-{block.line}")
def test_a_python_block_runs(block: Block) -> None:
    done = subprocess.run([sys.executable, "-c", block.text], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", [command for command, _ in commands() if command[0] == "make"], ids=" ".join)
def test_a_make_target_is_there(command: list[str]) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not here")
    subprocess.run([*command, "-n"], cwd=ROOT, capture_output=True, timeout=30, check=True)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("command", [command for command, _ in commands() if command[0] == "pip"], ids=" ".join)
def test_the_package_can_be_installed_as_shown(command: list[str], tmp_path: Path) -> None:
    pip = [sys.executable, "-m", *command, "--no-deps", "--quiet", "--target", str(tmp_path)]
    subprocess.run(pip, cwd=ROOT, capture_output=True, timeout=170, check=True)
    assert (tmp_path / "ubatch" / "py.typed").exists()
    assert not (tmp_path / "tests").exists()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The README's app under the README's command, on a free port."""
    for package in ("flask", "flask_restx", "gunicorn"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("readme")
    (folder / "app.py").write_text(APP[0].text)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        number = int(listener.getsockname()[1])
        server = subprocess.Popen(
            [str(BIN / GUNICORN[0][0]), *GUNICORN[0][1:], "--bind", f"fd://{listener.fileno()}"],
            cwd=folder,
            pass_fds=[listener.fileno()],
            start_new_session=True,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    # The socket listened before the server started, so a request waits for it instead of being refused.
    try:
        yield number
    finally:
        server.terminate()
        try:
            server.wait(30)
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)


@pytest.mark.parametrize(("command", "output"), CURL)
def test_the_app_answers_as_shown(port: int, command: list[str], output: str) -> None:
    """With urllib, because curl is not on every machine; the arguments are read from the command."""
    headers = dict(command[i + 1].split(": ") for i, word in enumerate(command) if word == "-H")
    data = command[command.index("-d") + 1].encode()
    url = command[-1].replace(":8000/", f":{port}/")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data, headers), timeout=30) as response:
        assert json.loads(response.read()) == json.loads(output)
