"""docs/observability.md, the dashboard and the alerts: their code runs, and what they name is what the package has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ubatch
from ubatch import UBatch

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "observability.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```\w*\n.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
SOURCE = "".join(path.read_text() for path in Path(ubatch.__file__).parent.rglob("*.py"))
DASHBOARD = (DOCS / "grafana-dashboard.json").read_text()
ALERTS = (DOCS / "alerts.yml").read_text()
EXPRESSIONS = re.findall(r"^```promql\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[0].splitlines()


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


def rows(header: str, text: str = TEXT) -> list[list[str]]:
    """The rows of the table with this header."""
    table = text.partition(f"| {header} |\n")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table[1:]]


def names(text: str) -> set[str]:
    return set(re.findall(r"\bubatch_[a-z_]+", text)) - {"ubatch_decorator"}


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_python_block_runs(block: str) -> None:
    for package, module in (
        ("flask", "flask"),
        ("prometheus", "prometheus_client"),
        ("opentelemetry", "opentelemetry"),
    ):
        if f"integrations.{package}" in block or f"import {package}" in block:
            pytest.importorskip(module)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_table_of_metrics_is_what_the_code_exports() -> None:
    told = set()
    for name, kind, labels, unit, meaning in rows("metric | type | labels | unit | meaning"):
        assert (unit == "seconds") is ("_seconds" in name)
        told.add(Metric(name.strip("`"), kind, tuple(sorted(re.findall(r"`(\w+)`", labels))), meaning))
    assert told == exported()


def test_the_ends_and_reasons_are_all_told() -> None:
    from ubatch._statistics import OUTCOMES

    reasons = {
        reason.strip("`")
        for reason, _, _ in rows("most batches are closed by | it means | what would change something")
    }
    assert all(f"`{end}`" in PROSE for end in OUTCOMES)
    assert reasons == {"full", "timeout", "idle", "drain"}
    assert all(f'"{reason}"' in SOURCE for reason in reasons)


@pytest.mark.parametrize("header", ["of a batch's span", "of a request's span, and of its link to the batch"])
def test_the_attributes_of_spans_are_those_of_the_code(header: str) -> None:
    pytest.importorskip("opentelemetry")
    from ubatch.integrations import opentelemetry

    attributes = [name.strip("`") for name, _ in rows(f"{header} |")]
    assert attributes == [name.strip("`") for name, _ in rows(f"{header} |", opentelemetry.__doc__ or "")]
    assert all(f'"{name}"' in Path(opentelemetry.__file__).read_text() for name in attributes)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", PROSE) + re.findall(r'src="([^"]+)"', TEXT):
        assert (DOCS / target).exists(), target
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors


@pytest.mark.parametrize("words", ["has not come back for", "an instrument must not raise", "waited"])
def test_words_of_the_log_are_the_packages(words: str) -> None:
    assert words in PROSE
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
