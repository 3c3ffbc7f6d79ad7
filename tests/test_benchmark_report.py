"""What the benchmarks share: when a result is kept and when it is refused, and how a failed row is told."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _report
from benchmarks._peers import Missing, reason, same
from benchmarks._report import Report, interval, number, parser, spread


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    kept, scratch = tmp_path / "kept", tmp_path / "scratch"
    monkeypatch.setattr(_report, "RESULTS", kept)
    monkeypatch.setattr(_report, "SCRATCH", scratch)
    return kept, scratch


def report(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, others: float = 0.0, speeds: tuple[float, ...] = (1.0, 1.0)
) -> Report:
    """A report on a machine that is as given."""
    looks = iter(speeds)
    monkeypatch.setattr(_report, "busy_cores", lambda: others)
    monkeypatch.setattr(_report, "_loop_seconds", lambda: next(looks))
    return Report("what", "What?\n\nMore.", parser("what", "What?").parse_args(arguments))


def test_a_result_of_a_quiet_machine_is_kept(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert report(monkeypatch).save([1.23456789, float("nan")]) == 0
    result = json.loads((folders[0] / "what.json").read_text())
    assert (result["question"], result["doubts"], result["data"]) == ("What?", [], [1.2346, None])
    assert result["machine"]["cores"] >= 1


@pytest.mark.parametrize("machine", [{"others": 0.5}, {"speeds": (1.0, 1.5)}], ids=["busy", "changed its speed"])
def test_a_result_of_another_machine_is_refused(
    machine: Any, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(monkeypatch, **machine).save([]) == 1
    assert not folders[0].exists()
    assert (folders[1] / "what.json").exists()
    assert "REFUSED" in capsys.readouterr().out


def test_a_ratio_that_does_not_tell_whether_a_bound_is_kept_is_a_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    one = report(monkeypatch)
    one.precise("known", [1.0, 1.4] * 5 + [1.2] * 20, 1.2)
    one.precise("below", [1.0, 1.2, 1.4], 1.5)
    one.precise("either", [1.0, 1.2, 1.4], 1.3)
    assert [doubt.partition(":")[0] for doubt in one.doubts] == ["either"]


@pytest.mark.parametrize(
    ("count", "low", "high"), [(1, 1, 1), (5, 1, 5), (6, 1, 6), (9, 2, 8), (20, 6, 15), (60, 22, 39)]
)
def test_the_interval_of_a_median_is_that_of_the_tables(count: int, low: int, high: int) -> None:
    found = interval(float(x) for x in range(1, count + 1))
    assert (found.low, found.high) == (low, high)


def test_where_systems_take_turns_the_speed_of_the_machine_is_told_and_no_doubt(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = report(monkeypatch, speeds=(1.0, 1.5))
    one.by_turns = True
    assert one.save([]) == 0
    assert "A fixed loop took 1,000 to 1,500 ms" in capsys.readouterr().out


def test_a_quick_run_fails_for_no_doubt_and_is_not_kept(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report(monkeypatch, "--quick", others=1.0).save([]) == 0
    assert not folders[0].exists()


def test_the_same_data_are_drawn_to_the_same_file(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    pytest.importorskip("matplotlib")

    def plot(figure: Any, data: list[int]) -> None:
        figure.subplots().plot(data)

    drawn = []
    for _ in range(2):
        assert report(monkeypatch).save([1, 3, 2], plot) == 0
        drawn.append((folders[0] / "what.svg").read_bytes())
    assert drawn[0] == drawn[1]
    assert 1000 < (folders[0] / "what.png").stat().st_size < 100_000


def test_medians_are_told_with_their_spread() -> None:
    assert str(spread([3.0, 1.0, 20.0])) == "3.00 (1.00 - 20.0)"
    assert [number(x) for x in (0.123, 12.34, 12345.6, float("nan"))] == ["0.12", "12.3", "12,346", "-"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Missing("x cannot be installed"), "x cannot be installed"),
        (subprocess.TimeoutExpired(["/a/path"], 20.0), "no figure within 20 s"),
        (subprocess.CalledProcessError(1, ["/a/path"], stderr="Traceback\nKeyError: 1\n"), "KeyError: 1"),
        (subprocess.CalledProcessError(1, ["/a/path"]), "exit status 1"),
    ],
)
def test_a_row_that_failed_says_why_in_a_line(error: Exception, told: str) -> None:
    assert reason(error) == told


def test_peers_get_the_packages_of_this_environment() -> None:
    import gevent

    assert same("gevent") == [f"gevent=={gevent.__version__}"]
