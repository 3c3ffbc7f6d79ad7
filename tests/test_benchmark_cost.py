"""`python -m benchmarks.cost`, with two callers: that each of our systems runs, and how figures are judged."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cost
from benchmarks._peers import PEERS, Missing
from benchmarks._report import Report


def test_each_system_of_ours_answers_in_a_process_of_its_own(tmp_path: Path) -> None:
    assert cost.main(["--quick", "--callers", "2", "--results", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "cost.json").read_text())["data"]
    ours = {(world, system) for world in cost.SYSTEMS for system in cost.SYSTEMS[world] if system not in PEERS}
    assert {(row["world"], row["system"]) for row in rows} == ours
    for row in rows:
        assert "failed" not in row, row
        assert row["wall"][0] > 0
        assert row["batch"][0] > 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Missing("it cannot be installed"), "it cannot be installed"),
        (subprocess.TimeoutExpired("it", cost.LIMIT), "no figure within 20 s"),
        (subprocess.CalledProcessError(1, "it", stderr="Traceback\nImportError: no it\n"), "ImportError: no it"),
        (subprocess.CalledProcessError(1, "it", stderr=""), "exit status 1"),
    ],
)
def test_what_cannot_be_measured_is_marked_and_not_tried_again(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fails(world: str, system: str, callers: int, seconds: float) -> Any:
        tried.append(system)
        if system in PEERS:
            raise error
        return {"wall": 2.0, "cpu": 2.0, "batch": 1.0}

    monkeypatch.setattr(cost, "_in_a_process", fails)
    costs = cost.Costs(0.1)
    costs.round([1], peers=True)
    costs.round([1], peers=True)
    rows = {(row["world"], row["system"]): row for row in costs.data()}
    assert tried.count("batched 0.1.5") == len(cost.SYSTEMS)  # once in each world
    assert rows["threads", "batched 0.1.5"]["failed"] == reason
    assert rows["threads", "floor"]["wall"] == [2.0, 2.0]


@pytest.mark.parametrize(("slow", "met"), [(1.3, True), (1.5, False)])
def test_a_ratio_is_judged_by_its_median_of_the_rounds(
    slow: float, met: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    walls = {"floor": 10.0, "greenlet, fixed": 10.0 * slow}

    def figures(world: str, system: str, callers: int, seconds: float) -> Any:
        return {"wall": walls.get(system, 10.0), "cpu": 1.0, "batch": 64.0}

    monkeypatch.setattr(cost, "_in_a_process", figures)
    costs = cost.Costs(0.1)
    costs.round([cost.AT, cost.MANY], peers=False)
    report = Report.__new__(Report)  # `table` needs no more
    assert cost._print_requirements(report, costs) is met
    assert ("MISSED" in capsys.readouterr().out) is not met
