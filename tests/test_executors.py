"""`executor="auto"`: where the handler runs, by what it takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ubatch import UBatch
from ubatch._runtime._gevent import REMEMBERED, SHORT, AutoExecutor
from ubatch._runtime._native import allocate_lock, get_ident


class Runs:
    """An executor that runs a job where it stands, and writes down its own name."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name = name
        self._log = log

    def start(self, job: Callable[[], None], done: Callable[[], None]) -> None:
        self._log.append(self._name)
        try:
            job()
        finally:
            done()

    def close(self) -> None:
        self._log.append(f"{self._name} closed")


class Auto:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.now = 0.0
        self.ended = 0
        self.executor = AutoExecutor(Runs("hub", self.log), Runs("native", self.log), lambda: self.now)

    def run(self, *takes: float) -> list[str]:
        """Run handlers that take so many seconds each, and return where they ran."""
        self.log.clear()
        for seconds in takes:
            self.executor.start(lambda seconds=seconds: self.take(seconds), self.end)  # type: ignore[misc]
        return self.log

    def take(self, seconds: float) -> None:
        self.now += seconds

    def end(self) -> None:
        self.ended += 1


def test_a_short_handler_comes_to_the_hub_when_enough_is_known_of_it() -> None:
    auto = Auto()
    assert auto.run(*[SHORT / 2] * (REMEMBERED + 3)) == ["native"] * REMEMBERED + ["hub"] * 3
    assert auto.ended == REMEMBERED + 3


def test_a_long_handler_stays_off_the_hub() -> None:
    assert set(Auto().run(*[SHORT * 2] * 50)) == {"native"}


def test_a_handler_that_gets_long_leaves_the_hub_at_once() -> None:
    auto = Auto()
    auto.run(*[SHORT / 2] * REMEMBERED)
    assert auto.run(SHORT * 2, *[SHORT / 2] * REMEMBERED, SHORT / 2) == ["hub", *["native"] * REMEMBERED, "hub"]


def test_one_long_batch_among_short_ones_starts_the_count_anew() -> None:
    auto = Auto()
    auto.run(*[SHORT / 2] * (REMEMBERED - 1))
    assert set(auto.run(SHORT * 2, *[SHORT / 2] * REMEMBERED)) == {"native"}
    assert auto.run(SHORT / 2) == ["hub"]


def test_a_handler_that_raises_is_timed_too() -> None:
    auto = Auto()

    def job() -> None:
        auto.take(SHORT / 2)
        raise RuntimeError

    for _ in range(REMEMBERED):
        with pytest.raises(RuntimeError):
            auto.executor.start(job, auto.end)
    assert auto.run(SHORT / 2) == ["hub"]


def test_closing_ends_the_native_threads() -> None:
    auto = Auto()
    auto.executor.close()
    assert auto.log == ["native closed"]


def test_in_real_time_a_short_handler_comes_to_the_hub() -> None:
    idents: list[int] = []

    def handler(xs: list[int]) -> list[int]:
        idents.append(get_ident())
        return xs

    with UBatch[int, int](8, 0.0, executor="auto", runtime="gevent").set_handler(handler) as batcher:
        batcher.ubatch(0)
        assert idents[-1] != get_ident()
        while idents[-1] != get_ident():  # a busy machine may make one look long
            assert batcher.ubatch(1) == 1
    assert len(idents) > REMEMBERED


def test_in_real_time_a_handler_that_holds_its_thread_stays_off_the_hub() -> None:
    idents: list[int] = []
    held = allocate_lock()
    held.acquire()

    def handler(xs: list[int]) -> list[int]:
        idents.append(get_ident())
        held.acquire(True, 4 * SHORT)
        return xs

    with UBatch[int, int](1, 0.0, executor="auto", runtime="gevent").set_handler(handler) as batcher:
        for x in range(REMEMBERED + 4):
            assert batcher.ubatch(x) == x
    assert get_ident() not in idents
