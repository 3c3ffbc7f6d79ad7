"""The short form of `python -m benchmarks.soak`: thousands of calls, faults at random, every outcome checked."""

from __future__ import annotations

import gc

import pytest

from benchmarks.soak import WORLDS, Alarm, Measure, Report, is_alarmed, soak

CALLS = 3000  # in each world


@pytest.mark.timeout(300)
def test_under_faults_no_answer_is_wrong_or_missing_and_nothing_grows(capfd: pytest.CaptureFixture[str]) -> None:
    # It looks through all objects for greenlets, time and again: those of the tests before are none of its own.
    gc.collect()
    gc.freeze()
    try:
        reports = list(soak(CALLS * len(WORLDS)))
    finally:
        gc.unfreeze()
    assert [report.wrong for report in reports] == [[]] * len(WORLDS)
    assert [(report.counts["calls"], report.unanswered) for report in reports] == [(CALLS, 0)] * len(WORLDS)
    assert all(report.counts["answered"] > CALLS / 5 for report in reports)  # the slower it runs, the more are struck
    for fault in ("raised", "wrong length", "exited", "slow", "left", "signals", "alarms"):
        assert sum(report.counts[fault] for report in reports) > 0, fault
    for report in reports:
        assert report.growth.greenlets <= 0
        assert report.growth.threads <= 2  # the places at the handler, where the first tenth needed fewer
    assert capfd.readouterr().err == ""


REST = Measure(blocks=60_000, resident=20_000_000, threads=3, greenlets=1)


@pytest.mark.parametrize(
    ("report", "passed"),
    [
        (Report("", measures=[REST, REST]), True),
        (Report("", measures=[REST, REST], wrong=["an answer"]), False),
        (Report("", measures=[REST, REST._replace(blocks=62_000)]), False),
        (Report("", measures=[REST, REST._replace(threads=4)]), False),
        (Report("", measures=[REST, REST._replace(greenlets=2)]), False),
    ],
    ids=["as it should", "wrong", "memory", "threads", "greenlets"],
)
def test_a_figure_that_must_be_0_and_is_not_fails_the_soak(report: Report, passed: bool) -> None:
    assert report.passed is passed


def test_a_call_without_an_answer_fails_the_soak() -> None:
    report = Report("", measures=[REST, REST])
    report.counts.update(calls=2, ended=1)
    assert report.unanswered == 1
    assert not report.passed


def test_an_alarm_on_its_way_is_known_beneath_what_cleans_up_after_it() -> None:
    alarm, error = Alarm(), ValueError()
    error.__context__ = alarm
    assert is_alarmed(alarm)
    assert is_alarmed(error)
    assert not is_alarmed(ValueError())
    assert not is_alarmed(None)
