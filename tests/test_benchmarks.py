"""Each benchmark, on next to nothing: that it runs and keeps what it found. No figure is judged here."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from gevent.monkey import is_module_patched

from benchmarks import threads
from benchmarks.__main__ import benchmarks

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="they read /proc"),
    pytest.mark.skipif(is_module_patched("threading"), reason="they choose their worlds themselves: once is enough"),
]


def found(name: str, folder: Path, *arguments: str) -> Any:
    """The data of a quick run."""
    status = import_module(f"benchmarks.{name}").main(["--quick", "--results", str(folder), *arguments])
    assert status == 0
    return json.loads((folder / f"{name}.json").read_text())["data"]


def test_every_benchmark_opens_with_its_question() -> None:
    questions = benchmarks()
    assert {"hub", "idle", "gpu", "threads"} <= set(questions)
    assert [name for name, question in questions.items() if not question] == []


def test_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "CALLERS", (1, 4))
    monkeypatch.setattr(threads, "HANDLERS", {"nothing": list})
    rows = found("threads", tmp_path)
    assert [(row["callers"], row["rule"]) for row in rows] == [(n, rule) for n in (1, 4) for rule in threads.RULES]
    assert all(row["mean batch"] >= 1 for row in rows)


def test_hub(tmp_path: Path) -> None:
    rows = found("hub", tmp_path, "--without-peers")
    assert {row["way"] for row in rows} == {"idle hub", "auto", "native", "greenlet"}
    assert all(len(row["gaps"]) == 2 for row in rows)


def test_idle(tmp_path: Path) -> None:
    data = found("idle", tmp_path, "--without-peers")
    assert {row["process"] for row in data["idle"]} == {"bare", "uBatch", "uBatch, eager"}
    assert all(row["bytes each"] > 0 for row in data["memory"])


def test_gpu_says_that_it_was_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import gpu

    if gpu._missing("cuda") is None:
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 0
    assert capsys.readouterr().out.startswith("SKIPPED: ")


def test_where(tmp_path: Path) -> None:
    data = found("where", tmp_path)
    assert data["the whole call"]["bare"] > 0
    for way, stages in data["microseconds"].items():
        assert len(stages) == len(data["stages"])
        assert all(stage > 0 for stage in stages)
        assert data["the whole call"][way] > 0
