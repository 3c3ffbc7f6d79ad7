"""`python -m benchmarks.load`, on a few requests: that it runs and says what it found. No figure is judged here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import load
from ubatch._core.policy import Eager, FixedWait


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
