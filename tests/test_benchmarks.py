"""The benchmarks, on next to nothing: that each runs, keeps what it found, and judges figures as it says. No figure of
this machine is judged here.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from gevent.monkey import is_module_patched

from benchmarks import _report, cost, executors, load
from benchmarks.__main__ import benchmarks
from benchmarks._peers import PEERS, Missing, reason, same
from benchmarks._report import Report, aggregated, interval, number, parser, spread
from ubatch._core.policy import Eager, FixedWait

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="they read /proc"),
    pytest.mark.skipif(is_module_patched("threading"), reason="they choose their worlds themselves: once is enough"),
]
HAS_APP = all(find_spec(package) for package in ("flask", "gunicorn", "sklearn"))
if HAS_APP:
    from benchmarks import company
needs_app = pytest.mark.skipif(not HAS_APP, reason="needs flask, gunicorn and scikit-learn")
needs_wrk = pytest.mark.skipif(not HAS_APP or company._missing() is not None, reason="needs wrk")


def found(name: str, folder: Path, *arguments: str) -> Any:
    """The data of a quick run."""
    status = import_module(f"benchmarks.{name}").main(["--quick", "--results", str(folder), *arguments])
    assert status == 0
    return json.loads((folder / f"{name}.json").read_text())["data"]


def test_every_benchmark_opens_with_its_question() -> None:
    questions = benchmarks()
    assert {"cost", "load", "company", "executors", "overload", "soak", "gpu"} <= set(questions)
    assert [name for name, question in questions.items() if not question] == []


def test_hub(tmp_path: Path) -> None:
    rows = found("hub", tmp_path, "--without-peers")
    assert {row["way"] for row in rows} == {"idle hub", "auto", "native", "greenlet"}
    assert all(len(row["gaps"]) == 2 for row in rows)


def test_gpu_says_that_it_was_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import gpu

    if gpu._missing("cuda") is None:
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 0
    assert capsys.readouterr().out.startswith("SKIPPED: ")


# What they share.


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


def test_what_is_kept_has_a_median_and_a_spread_in_place_of_the_rounds() -> None:
    rounds = [{"requests": 1.0, "p50": 9.0}, {"requests": 3.0, "p50": 8.0}, {"requests": 2.0, "p50": 7.0}]
    data = {"rows": [{"kind": "a", "rounds": rounds, "gaps": [4.0, 1.0, 3.0, 2.0], "few": [1.0, 2.0]}]}
    assert aggregated(data) == {
        "rows": [{"kind": "a", "rounds": {"requests": 2.0, "p50": 8.0}, "gaps": [2.5, 1.0, 4.0], "few": [1.0, 2.0]}]
    }
    assert json.loads(_report._written(data)) == data


# cost


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
    ("error", "why"),
    [
        (Missing("it cannot be installed"), "it cannot be installed"),
        (subprocess.TimeoutExpired("it", cost.LIMIT), "no figure within 20 s"),
        (subprocess.CalledProcessError(1, "it", stderr="Traceback\nImportError: no it\n"), "ImportError: no it"),
        (subprocess.CalledProcessError(1, "it", stderr=""), "exit status 1"),
    ],
)
def test_what_cannot_be_measured_is_marked_and_not_tried_again(
    error: Exception, why: str, monkeypatch: pytest.MonkeyPatch
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
    assert rows["batched 0.1.5"]["failed"] == why
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
    one = Report.__new__(Report)  # `table` and `precise` need no more
    one.doubts = []
    assert cost._print_requirements(one, costs) is met
    assert ("MISSED" in capsys.readouterr().out) is not met


# executors


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


# load


@pytest.mark.parametrize("runtime", ["gevent", "threading"])
def test_a_few_requests_at_one_load(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "SHAPES", {"both": (0.001, 0.0001)})
    monkeypatch.setattr(load, "POLICIES", {name: load.POLICIES[name] for name in (load.EAGER, "1 ms")})
    monkeypatch.setattr(load, "FEWEST", 20)
    monkeypatch.setattr(load, "SIMULATED", 100)
    few = ["--loads", "50", "--rounds", "2", "--seconds", "0.001", "--results", str(tmp_path), "--runtime", runtime]
    assert load.main(few) in (0, 1)
    rows = json.loads((tmp_path / "load.json").read_text())["data"]["measured"]
    assert [(row["policy"], row["requests"]) for row in rows] == [(load.EAGER, 40), ("1 ms", 40)]
    assert all(row["p99"] >= row["mean"] >= 0.001 for row in rows)


def test_the_simulated_latencies() -> None:
    arrivals = [1.0, 1.5, 10.0]
    assert load.simulate(Eager(2, 60.0), arrivals, 1.0, 0.0) == [1.0, 1.5, 1.0]
    assert load.simulate(FixedWait(2, 60.0), arrivals, 1.0, 0.0) == [1.5, 1.0, 61.0]
    assert load.simulate(FixedWait(3, 0.5), arrivals, 1.0, 0.0) == [1.5, 1.0, 1.5]


def test_arrivals_are_the_same_each_time_and_have_their_rate() -> None:
    arrivals = load.poisson(100.0, 1000, "a seed")
    assert arrivals == load.poisson(100.0, 1000, "a seed") == sorted(arrivals)
    assert len(arrivals) == 1000
    assert 0.0 < arrivals[0] < arrivals[-1] < 10.0


def test_a_percentile_is_one_of_the_values() -> None:
    assert load.percentile(range(1, 101), 0.99) == 99
    assert load.percentile([3.0], 0.99) == 3.0
    assert math.isnan(load.percentile([math.nan], 0.5))


# company


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


@needs_app
def test_without_wrk_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert company.main([]) == 0
    assert "Skipped" in (output := capsys.readouterr().out)
    assert "apt-get install wrk" in output


@needs_app
def test_what_wrk_tells_is_read() -> None:
    assert company.told(TOLD) == pytest.approx({"requests": 3503.21, "p50": 0.287, "p99": 1200.0})
    with pytest.raises(company.Failed, match="3 requests failed"):
        company.told(TOLD + "  Non-2xx or 3xx responses: 3\n")
    with pytest.raises(company.Failed, match="sockets failed"):
        company.told(TOLD + "  Socket errors: connect 0, read 2, write 0, timeout 0\n")


@needs_app
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
