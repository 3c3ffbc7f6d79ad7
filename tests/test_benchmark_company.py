"""A short form of `python -m benchmarks.company`, which is for wrk: one variant, one connection, no figure judged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("flask")
pytest.importorskip("gunicorn")
pytest.importorskip("sklearn")

from benchmarks import company

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
needs_wrk = pytest.mark.skipif(company._missing() is not None, reason=str(company._missing()))

TOLD = """\
  Latency Distribution
     50%  287.00us
     99%    1.20s
  12 requests in 0.30s, 1.94KB read
Requests/sec:   3503.21
"""


@needs_wrk
def test_one_variant_is_loaded_measured_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quick", "--models", "light", "--connections", "1", "--seconds", "0.2", "--results", str(tmp_path)]
    assert company.main([*options, "--variants", "eager, greenlet"]) == 0
    result = json.loads((tmp_path / "company.json").read_text())
    (row,) = result["data"]["models"]["light"]["rows"]
    assert "failed" not in row, row
    assert (row["variant"], row["connections"], row["batch"]) == ("eager, greenlet", 1, [1.0])
    assert row["requests"][0] > 0
    assert "failed" not in capsys.readouterr().out


@needs_wrk
def test_a_variant_that_cannot_start_is_marked_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(company.VARIANTS, "eager, unknown", None)  # the application's own list does not have it
    options = ["--quick", "--models", "light", "--connections", "1", "--seconds", "0.2", "--results", str(tmp_path)]
    assert company.main([*options, "--variants", "eager, unknown", "no model"]) == 0
    rows = json.loads((tmp_path / "company.json").read_text())["data"]["models"]["light"]["rows"]
    assert {row["variant"]: "failed" in row for row in rows} == {"no model": False, "eager, unknown": True}
    assert "failed: eager, unknown at 1: " in capsys.readouterr().out


def test_without_wrk_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert company.main([]) == 0
    assert "Skipped" in (output := capsys.readouterr().out)
    assert "apt-get install wrk" in output


def test_what_wrk_tells_is_read() -> None:
    assert company.told(TOLD) == pytest.approx({"requests": 3503.21, "p50": 0.287, "p99": 1200.0})
    with pytest.raises(company.Failed, match="3 requests failed"):
        company.told(TOLD + "  Non-2xx or 3xx responses: 3\n")
    with pytest.raises(company.Failed, match="sockets failed"):
        company.told(TOLD + "  Socket errors: connect 0, read 2, write 0, timeout 0\n")


def test_targets_are_for_the_better_executor_and_judged_by_the_median_of_their_duels() -> None:
    figures = company.Figures("heavy")
    figures.alone = {64: 10.0}
    rates = {"no model": 4000, "unbatched": 100, "fixed 0": 1000, "eager, greenlet": 995, "eager, native": 990}
    for connections in (1, 64):
        for variant, rate in rates.items():
            figures.of[variant, connections] = {0: {"requests": float(rate)}}
    chosen = company.targets(figures, (1, 64))
    assert [target[:3] for target in chosen] == [
        (1, "eager, greenlet", "unbatched"),
        (64, "eager, greenlet", "fixed 0"),
        (64, "eager, greenlet", "no model"),
    ]
    figures.duels = dict(zip(chosen, ([0.9, 0.96, 1.0], [0.9, 0.98, 1.01], [0.2, 0.3, 0.4]), strict=True))
    assert [row["verdict"] for row in company.judged(figures)] == ["met", "even", "MISSED"]
