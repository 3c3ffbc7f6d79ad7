"""`python -m benchmarks.cost`, with two callers: that each of our systems runs, and how figures are judged."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

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

    class Fails:
        def __init__(self, cell: cost.Cell, seconds: float) -> None:
            tried.append(cell[1])
            if cell[1] in PEERS:
                raise error

        def __enter__(self) -> Fails:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def measure(self, core: int) -> dict[str, float]:
            return {"wall": 2.0, "cpu": 2.0, "batch": 1.0}

    monkeypatch.setattr(cost, "_Callers", Fails)
    costs = cost.Costs(0.1)
    for _ in range(2):
        costs.take_turns([("threads", "batched 0.1.5", 1), ("threads", "threads, eager", 1)], cost._floor, 1)
    rows = {row["system"]: row for row in costs.data()}
    assert tried.count("batched 0.1.5") == 1
    assert rows["batched 0.1.5"]["failed"] == reason
    assert rows["threads, eager"]["ratio to the floor"] == [1.0, 1.0]


def test_a_process_that_fails_while_it_is_measured_says_why(tmp_path: Path) -> None:
    with cost._Callers(("threads", "floor", 1), 0.01) as callers:
        assert callers.measure(cost.CORES[0])["wall"] > 0
        callers._process.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            callers.measure(cost.CORES[0])
    with (
        pytest.raises(subprocess.CalledProcessError, match="exit status 1") as raised,
        cost._Callers(("threads", "no such system", 1), 0.01),
    ):
        pass
    assert "KeyError" in raised.value.stderr


@pytest.mark.parametrize(("slow", "met"), [(1.3, True), (1.5, False)])
def test_a_ratio_is_judged_by_its_median_of_the_rounds(
    slow: float, met: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = cost.Costs(0.1)
    cell = ("gevent", "greenlet, fixed", cost.AT)
    costs._ratios[cell, cost._floor(cell)] = [slow - 0.1, slow, slow + 0.1]
    report = Report.__new__(Report)  # `table` and `precise` need no more
    report.doubts = []
    assert cost._print_requirements(report, costs) is met
    assert ("MISSED" in capsys.readouterr().out) is not met
