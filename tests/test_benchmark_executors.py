"""`python -m benchmarks.executors`, on a few requests: that it runs and says what it found. No figure is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gevent.monkey import is_module_patched

from benchmarks import executors

pytestmark = pytest.mark.skipif(is_module_patched("threading"), reason="it chooses its world itself: once is enough")


def test_two_kinds_of_short_handlers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--quick", "--kinds", "python", "http", "--lengths", "0.2", "--seconds", "0.01", "--results", str(tmp_path)]
    assert executors.main(few) == 0
    rows = json.loads((tmp_path / "executors.json").read_text())["data"]["rows"]
    assert {row["kind"] for row in rows} == {"python", "http"}
    assert {row["load"] for row in rows} == {"1 caller", "64 callers", "64 that work"}
    hub = {row["executor"]: row["rounds"][0]["on the hub"] for row in rows if row["load"] == "1 caller"}
    assert (hub["native"], hub["greenlet"]) == (0.0, 1.0)
    assert all(row["rounds"][0]["requests"] > 0 for row in rows)
    assert "python, 64 callers: native answers" in capsys.readouterr().out


def test_a_kind_whose_package_is_missing_has_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(executors, "KINDS", {"torch": "no_such_package"})
    assert executors.main(["--quick", "--results", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "executors.json").read_text())["data"]["rows"] == []
    assert "no row for torch: no_such_package is not installed" in capsys.readouterr().out


def test_ratios_are_of_the_same_round() -> None:
    rounds: executors.Rounds = {
        "native": [{"requests": 50.0}, {"requests": 80.0}],
        "greenlet": [{"requests": 100.0}, {"requests": 40.0}],
        "auto": [{"requests": 90.0}, {"requests": 80.0}],
    }
    assert executors.ratios(rounds, "native", "greenlet") == [0.5, 2.0]
    assert executors.auto_ratios(rounds) == [0.9, 2.0]  # greenlet answers more in the median


def test_a_kind_that_cannot_be_measured_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "KINDS", {"no such kind": None})
    assert executors.main(["--quick", "--results", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "executors.json").read_text())["data"]
    assert data["rows"] == []
    assert "no such kind" in data["failed"]["no such kind"]
