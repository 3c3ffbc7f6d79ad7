"""What users read: every code block of the README and of docs/ runs, every link leads somewhere, and the names, tables
and messages in them are the package's. So do docstrings, and the examples of the documentation of 1.x.
"""

from __future__ import annotations

import doctest
import importlib
import json
import os
import pkgutil
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ubatch
from ubatch import Statistics, UBatch
from ubatch.testing import VirtualRuntime

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BIN = Path(sys.executable).parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted(DOCS.glob("*.md")),
    ROOT / "docker" / "README.md",
    ROOT / "examples" / "flask_app" / "README.md",
    ROOT / "changelog.d" / "README.md",
]
TEXT = {path.name: path.read_text() for path in [ROOT / "README.md", *DOCS.glob("*.md")]}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROSE = {name: FENCED.sub("", text) for name, text in TEXT.items()}
SOURCE = "".join(path.read_text() for path in Path(ubatch.__file__).parent.rglob("*.py"))
ERRORS = {name for name in ubatch.__all__ if isinstance(getattr(ubatch, name), type)}
ERRORS = {name for name in ERRORS if issubclass(getattr(ubatch, name), ubatch.UBatchError)}
DASHBOARD = (DOCS / "grafana-dashboard.json").read_text()
ALERTS = (DOCS / "alerts.yml").read_text()
MODULES = [
    module.name for module in pkgutil.walk_packages(ubatch.__path__, "ubatch.") if "integrations" not in module.name
]
NEEDED = {
    "integrations.flask": "flask",
    "import flask": "flask",
    "from flask": "flask",
    "integrations.prometheus": "prometheus_client",
    "integrations import prometheus": "prometheus_client",
    "integrations.opentelemetry": "opentelemetry",
    "integrations import opentelemetry": "opentelemetry",
    "flask_restx": "flask_restx",
    "requests": "requests",
    "torch": "torch",
    "sklearn": "sklearn",
}


class Block(NamedTuple):
    page: str
    language: str
    text: str
    line: int


def blocks() -> list[Block]:
    return [
        Block(page, found[1], found[2], text[: found.start()].count("\n") + 1)
        for page, text in TEXT.items()
        for found in FENCED.finditer(text)
    ]


def commands() -> list[tuple[list[str], str]]:
    """The README's console blocks: each command, and the output that is shown for it."""
    found = []
    for block in blocks():
        if (block.page, block.language) == ("README.md", "console"):
            for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                found.append((shlex.split(command), output))
    return found


APP = [block for block in blocks() if block.text.startswith("# app.py")]
SNIPPETS = [block for block in blocks() if block.language == "python" and block not in APP]
GUNICORN = [command for command, _ in commands() if command[0] == "gunicorn"]
CURL = [pytest.param(*command, id=" ".join(command[0])) for command in commands() if command[0][0] == "curl"]
EXPRESSIONS = [line for block in blocks() if block.language == "promql" for line in block.text.splitlines()]


@pytest.mark.parametrize("block", SNIPPETS, ids=lambda block: f"{block.page}-{block.line}")
def test_a_python_block_runs(block: Block) -> None:
    for words, module in NEEDED.items():
        if words in block.text:
            pytest.importorskip(module)
    done = subprocess.run([sys.executable, "-c", block.text], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    prose = FENCED.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'src="([^"]+)"', prose):
        if re.match(r"[a-z]+:", target):  # elsewhere in the world
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_every_block_is_of_a_kind_that_is_tested_here() -> None:
    assert {block.language for block in blocks()} <= {"python", "console", "text", "promql", ""}
    assert {command[0] for command, _ in commands()} == {"make", "pip", "gunicorn", "curl"}
    assert (len(APP), len(GUNICORN)) == (1, 1)


# The README.


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


# docs/failures.md


def test_every_error_that_a_caller_can_get_is_told_about() -> None:
    assert {name for name in ERRORS if f"`{name}`" not in PROSE["failures.md"]} <= {"UBatchError", "BatcherClosed"}


@pytest.mark.parametrize(
    "words",
    ["it has not come back for", "has not come back for", "; it is at:", "was killed: try again", "ubatch-collector:"],
)
def test_words_that_failures_quotes_are_the_packages(words: str) -> None:
    assert words in " ".join(PROSE["failures.md"].split())
    assert words in SOURCE


# docs/observability.md, the dashboard and the alerts.


class Metric(NamedTuple):
    name: str
    type: str
    labels: tuple[str, ...]
    help: str


def exported() -> set[Metric]:
    """What the code exports, of a batcher that has answered."""
    pytest.importorskip("prometheus_client")
    from prometheus_client import CollectorRegistry

    from ubatch.integrations import prometheus

    registry = CollectorRegistry()
    batcher = UBatch[int, int](2, 60.0, instruments=[prometheus.instrument(registry)]).set_handler(list)
    batcher.map([1, 2])
    found = set()
    for family in registry.collect():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found.add(Metric(name, family.type, tuple(sorted(labels)), family.documentation))
    batcher.stop()
    return found


def series() -> set[str]:
    """The names that a query may use."""
    found = set()
    for metric in exported():
        parts = ("_bucket", "_sum", "_count") if metric.type == "histogram" else ("",)
        found |= {metric.name + part for part in parts}
    return found


def rows(header: str, text: str = TEXT["observability.md"]) -> list[list[str]]:
    """The rows of the table with this header."""
    table = text.partition(f"| {header} |\n")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table[1:]]


def names(text: str) -> set[str]:
    return set(re.findall(r"\bubatch_[a-z_]+", text)) - {"ubatch_decorator"}


def test_the_table_of_metrics_is_what_the_code_exports() -> None:
    told = set()
    for name, kind, labels, unit, meaning in rows("metric | type | labels | unit | meaning"):
        assert (unit == "seconds") is ("_seconds" in name)
        told.add(Metric(name.strip("`"), kind, tuple(sorted(re.findall(r"`(\w+)`", labels))), meaning))
    assert told == exported()


def test_the_ends_and_reasons_are_all_told() -> None:
    reasons = {
        reason.strip("`")
        for reason, _, _ in rows("most batches are closed by | it means | what would change something")
    }
    assert all(f"`{end}`" in PROSE["observability.md"] for end in Statistics.OUTCOMES)
    assert reasons == {"full", "timeout", "idle", "drain"}
    assert all(f'"{reason}"' in SOURCE for reason in reasons)


@pytest.mark.parametrize("header", ["of a batch's span", "of a request's span, and of its link to the batch"])
def test_the_attributes_of_spans_are_those_of_the_code(header: str) -> None:
    pytest.importorskip("opentelemetry")
    from ubatch.integrations import opentelemetry

    attributes = [name.strip("`") for name, _ in rows(f"{header} |")]
    assert attributes == [name.strip("`") for name, _ in rows(f"{header} |", opentelemetry.__doc__ or "")]
    assert all(f'"{name}"' in Path(opentelemetry.__file__).read_text() for name in attributes)


@pytest.mark.parametrize("words", ["has not come back for", "an instrument must not raise", "waited"])
def test_words_that_observability_quotes_of_the_log_are_the_packages(words: str) -> None:
    assert words in PROSE["observability.md"]
    assert words in SOURCE


# The dashboard and the alerts.


def queries() -> list[str]:
    """The dashboard's expressions, with values for its variables."""
    panels: list[dict[str, Any]] = json.loads(DASHBOARD)["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    return [it.replace("$batcher", ".*").replace("$__rate_interval", "1m") for it in expressions]


def test_the_dashboard_and_the_alerts_name_only_what_is_exported() -> None:
    known = series()
    assert names(" ".join(queries())) <= known
    assert names(ALERTS) <= known
    assert names(" ".join(EXPRESSIONS)) <= known


def test_the_dashboard_shows_every_metric() -> None:
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in names(" ".join(queries()))}
    assert shown == {metric.name for metric in exported()}


def test_the_dashboard_asks_the_source_and_the_batchers_that_are_chosen() -> None:
    board = json.loads(DASHBOARD)
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "batcher"]
    for panel in board["panels"]:
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert target["expr"].count('batcher=~"$batcher"') == len(re.findall(r"\bubatch_[a-z_]+", target["expr"]))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_every_alert_is_explained() -> None:
    assert re.findall(r"- alert: (\w+)", ALERTS) == [
        name.strip("`") for name, _, _ in rows("alert | when | what to do")
    ]


def promtool(*arguments: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not here: apt-get install prometheus")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_every_expression(tmp_path: Path) -> None:
    rules = [{"record": f"shown:{n}", "expr": it} for n, it in enumerate([*queries(), *EXPRESSIONS])]
    (tmp_path / "shown.yml").write_text(json.dumps({"groups": [{"name": "shown", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "shown.yml"), str(DOCS / "alerts.yml"))


# What a server did, minute by minute, as promtool writes it: FROM+STEPxTIMES. Requests that wait 1 s each and handlers
# of 0.4 s; three of a hundred calls are refused; one handler is stuck from the tenth minute on.
BUSY = {
    'ubatch_stalled{job="j", instance="i", batcher="b"}': "0x10 1x20",
    'ubatch_calls_total{job="j", instance="i", batcher="b", outcome="answered"}': "0+97x30",
    'ubatch_calls_total{job="j", instance="i", batcher="b", outcome="rejected"}': "0+2x30",
    'ubatch_calls_total{job="j", instance="i", batcher="b", outcome="expired"}': "0+1x30",
    'ubatch_request_queue_seconds_sum{job="j", instance="i", batcher="b"}': "0+97x30",
    'ubatch_request_queue_seconds_count{job="j", instance="i", batcher="b"}': "0+97x30",
    'ubatch_handler_seconds_sum{job="j", instance="i", batcher="b"}': "0+4x30",
    'ubatch_handler_seconds_count{job="j", instance="i", batcher="b"}': "0+10x30",
    'ubatch_timeout_seconds{job="j", instance="i", batcher="b"}': "0.02x30",
}
# The same with shorter waits, one refusal in a thousand calls, and nobody stuck.
CALM = {
    name: {"ubatch_stalled": "0x30", "ubatch_request_queue_seconds_sum": "0+48x30"}.get(name.partition("{")[0], values)
    for name, values in BUSY.items()
    if "outcome=" not in name
} | {
    'ubatch_calls_total{job="j", instance="i", batcher="b", outcome="answered"}': "0+999x30",
    'ubatch_calls_total{job="j", instance="i", batcher="b", outcome="rejected"}': "0+1x30",
}


@pytest.mark.parametrize(("server", "firing"), [(BUSY, True), (CALM, False)], ids=["busy", "calm"])
def test_an_alert_fires_when_it_should_and_only_then(server: dict[str, str], firing: bool, tmp_path: Path) -> None:
    alerts = re.findall(r"- alert: (\w+)", ALERTS)
    expressions = [f'count(ALERTS{{alertname="{alert}", alertstate="firing", batcher="b"}})' for alert in alerts]
    expected = [{"labels": "{}", "value": 1}] if firing else []
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in server.items()],
        "promql_expr_test": [{"expr": it, "eval_time": "25m", "exp_samples": expected} for it in expressions],
    }
    path = tmp_path / "test.yml"
    path.write_text(
        json.dumps({"rule_files": [str(DOCS / "alerts.yml")], "tests": [test], "evaluation_interval": "1m"})
    )
    promtool("test", "rules", str(path))


# Docstrings, and the documentation of 1.x.


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def run_example_of_1x(source: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run an example as it stands, but in virtual time: ten threads that start late on a busy machine are one batch
    more than the documentation shows. It is changed in nothing but the option that says so.
    """
    runtime = VirtualRuntime("threading")
    source = textwrap.dedent(source).replace("timeout=0.01)", "timeout=0.01, runtime=runtime)")
    exec(compile(source, "<1.x>", "exec"), {"runtime": runtime})
    return capsys.readouterr().out


def test_the_first_example_of_1x_prints_the_same_batches(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_example_of_1x(
        """
        import threading

        from typing import List
        from ubatch import ubatch_decorator


        @ubatch_decorator(max_size=5, timeout=0.01)
        def squared(a: List[int]) -> List[int]:
            print(a)
            return [x ** 2 for x in a]


        inputs = list(range(10))

        # Run squared as usual
        _ = squared(inputs)


        def thread_function(number: int) -> None:
            _ = squared.ubatch(number)

        # Multiple threads squared individual inputs
        threads = []
        for i in inputs:
            t = threading.Thread(target=thread_function, args=(i,))
            threads.append(t)
            t.start()

        for t in threads:
            t.join()
        """,
        capsys,
    )
    assert printed == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n[0, 1, 2, 3, 4]\n[5, 6, 7, 8, 9]\n"


SQUARED_CUBE = """
    inputs = list(range(10))
    modes = ['square' if i % 2 == 0 else 'cube' for i in inputs]

    _ = {direct}(inputs, modes)


    def thread_function(number: int, mode: str) -> None:
        _ = {batched}.ubatch(number, mode)

    threads = []
    for i, j in zip(inputs, modes):
        t = threading.Thread(target=thread_function, args=(i, j))
        threads.append(t)
        t.start()

    for t in threads:
        t.join()
"""
TEN_MODES = str(["square", "cube"] * 5)
PRINTED = (
    f"[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n{TEN_MODES}\n"
    "[0, 1, 2, 3, 4]\n['square', 'cube', 'square', 'cube', 'square']\n"
    "[5, 6, 7, 8, 9]\n['cube', 'square', 'cube', 'square', 'cube']\n"
)


def test_the_second_example_of_1x_with_two_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    source = """
    import threading

    from typing import List
    from ubatch import ubatch_decorator


    @ubatch_decorator(max_size=5, timeout=0.01)
    def squared_cube(a: List[int], mode: List[str]) -> List[int]:
        print(a)
        print(mode)
        return [x ** 2 if y == 'square' else x ** 3 for x, y in zip(a, mode)]

    """ + SQUARED_CUBE.format(direct="squared_cube", batched="squared_cube")
    assert run_example_of_1x(source, capsys) == PRINTED


def test_the_third_example_of_1x_with_a_partial(capsys: pytest.CaptureFixture[str]) -> None:
    source = """
    import threading

    from functools import partial
    from typing import List, Any
    from ubatch import ubatch_decorator


    def squared_cube(model: Any, a: List[int], mode: List[str]) -> List[int]:
        print(a)
        print(mode)
        return [x ** 2 if y == 'square' else x ** 3 for x, y in zip(a, mode)]

    squared_cube = partial(squared_cube, 'This is a model')
    squared_cube = ubatch_decorator(max_size=5, timeout=0.01)(squared_cube)
    """ + SQUARED_CUBE.format(direct="squared_cube", batched="squared_cube")
    assert run_example_of_1x(source, capsys) == PRINTED


def test_the_names_of_1x_are_there() -> None:
    names: dict[str, Any] = vars(ubatch)
    for name in ("UBatch", "ubatch_decorator", "HandlerNotSet", "HandlerAlreadySet", "BadBatchOutputSize"):
        assert name in names
