"""Starts servers, shows the log of those that fail, and prints the table: server, result, mean batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .servers import SETUPS, Server, Setup, alive

Start = Callable[[Setup], Server]


@dataclass
class Tally:
    """What the cells of one server came to."""

    passed: int = 0
    failed: int = 0
    answers: int = 0
    batches: int = 0


tallies = {setup.name: Tally() for setup in SETUPS}
notes: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.servers)
            item.add_marker(pytest.mark.timeout(120))


@pytest.fixture(scope="session", params=SETUPS, ids=lambda setup: setup.id)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server of the matrix, shared by its cells; pytest groups them, in random order too."""
    setup: Setup = request.param
    if setup.missing:
        pytest.skip(setup.missing)
    environment = {"USED_AT_IMPORT": "1"} if setup.threads_before_fork else {}
    server = Server(setup, tmp_path_factory.mktemp("server"), **environment)
    try:
        yield server
        server.stop()
        assert server.matches("Traceback|Exception ignored|LoopExit") == []
    finally:
        server.kill()


@pytest.fixture
def tally(server: Server) -> Tally:
    return tallies[server.setup.name]


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a server for this test alone."""
    started: list[Server] = []

    def start(setup: Setup) -> Server:
        if setup.missing:
            pytest.skip(setup.missing)
        started.append(Server(setup, tmp_path_factory.mktemp("server")))
        return started[-1]

    yield start
    for server in started:
        server.kill()


@pytest.fixture
def note() -> Callable[[str], None]:
    """Have a line printed at the end."""
    return notes.append


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed and Path(__file__).parent in item.path.parents:
        for server in alive:
            report.sections.append((f"log of {server.setup.name}", "\n".join(server.lines[-100:])))
    if report.when == "call" and "tally" in getattr(item, "fixturenames", ()):
        tally = tallies[item.callspec.params["server"].name]
        tally.passed += report.passed
        tally.failed += report.failed
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = [(name, tally) for name, tally in tallies.items() if tally.passed or tally.failed]
    if rows or notes:
        terminalreporter.section("servers")
    if rows:
        terminalreporter.line("| server | cells passed | answers | batches | mean batch size |")
        terminalreporter.line("| --- | --- | --- | --- | --- |")
    for name, tally in rows:
        mean = tally.answers / tally.batches if tally.batches else 0.0
        cells = f"{tally.passed} of {tally.passed + tally.failed}"
        terminalreporter.line(f"| `{name}` | {cells} | {tally.answers} | {tally.batches} | {mean:.1f} |")
    for line in notes:
        terminalreporter.line(line)
