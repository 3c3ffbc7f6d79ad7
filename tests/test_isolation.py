"""One bad item fails its own caller: how the failing items are found, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ubatch import BadBatchOutputSize, HandlerAborted
from ubatch._core.isolation import Isolation
from ubatch.testing import Gate, VirtualRuntime

from .conftest import Harness


class Poison(Exception):
    pass


def search(
    handler: Callable[[Sequence[int]], list[Any]], size: int, should_isolate: Callable[[Exception], bool] | None = None
) -> tuple[list[Any], list[list[int]]]:
    """The outcomes for the items 0 … size-1, and the further calls after the first."""
    calls: list[list[int]] = []

    def call(items: Sequence[int]) -> list[Any]:
        calls.append(list(items))
        return handler(items)

    outcomes = Isolation(should_isolate or (lambda _: True))(call, list(range(size)))
    return outcomes, calls[1:]


def poisoned_by(*poison: int) -> Callable[[Sequence[int]], list[Any]]:
    def handler(items: Sequence[int]) -> list[Any]:
        bad = [item for item in items if item in poison]
        if bad:
            raise Poison(*bad)
        return [item * item for item in items]

    return handler


def assert_only_these_failed(outcomes: list[Any], poison: set[int]) -> None:
    for item, outcome in enumerate(outcomes):
        if item in poison:
            assert isinstance(outcome, Poison)
            assert outcome.args == (item,)
        else:
            assert outcome == item * item


@pytest.mark.parametrize("poison", [0, 1, 31, 32, 63])
def test_one_poison_item_among_64_costs_twelve_further_calls_at_most(poison: int) -> None:
    outcomes, calls = search(poisoned_by(poison), 64)
    assert_only_these_failed(outcomes, {poison})
    assert len(calls) <= 12


@given(size=st.integers(2, 70), data=st.data())
def test_any_one_poison_item_costs_at_most_two_calls_per_halving(size: int, data: st.DataObject) -> None:
    poison = data.draw(st.integers(0, size - 1))
    outcomes, calls = search(poisoned_by(poison), size)
    assert_only_these_failed(outcomes, {poison})
    assert len(calls) <= 2 * math.ceil(math.log2(size))


@given(size=st.integers(2, 70), data=st.data())
def test_several_poison_items_stand_alone_within_the_bound(size: int, data: st.DataObject) -> None:
    poison = data.draw(st.sets(st.integers(0, size - 1), max_size=size - 1))
    outcomes, calls = search(poisoned_by(*poison), size)
    assert len(calls) <= 2 * size
    assert len(calls) <= 2 * len(poison) * math.ceil(math.log2(size)) + 4
    probes = {size * i // 4 for i in range(4)}
    if not probes <= poison:
        assert_only_these_failed(outcomes, poison)
    for item in range(size):
        assert isinstance(outcomes[item], Poison) or outcomes[item] == item * item


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 64])
def test_where_everything_fails_six_further_calls_are_enough(size: int) -> None:
    outcomes, calls = search(poisoned_by(*range(size)), size)
    assert len(calls) <= 6
    assert all(isinstance(outcome, Poison) for outcome in outcomes)


def test_a_handler_that_is_down_is_not_asked_for_each_item() -> None:
    down = ConnectionError("database")

    def handler(items: Sequence[int]) -> list[Any]:
        raise down

    outcomes, calls = search(handler, 64)
    assert outcomes == [down] * 64
    assert len(calls) == 6


@pytest.mark.parametrize("fits", [32, 16, 8, 1])
def test_a_batch_too_large_is_answered_in_parts_that_fit(fits: int) -> None:
    def handler(items: Sequence[int]) -> list[Any]:
        if len(items) > fits:
            raise MemoryError(len(items))
        return [item * item for item in items]

    outcomes, _ = search(handler, 64)
    assert outcomes == [item * item for item in range(64)]


def test_no_item_is_run_again_once_it_is_answered() -> None:
    answered: list[int] = []

    def handler(items: Sequence[int]) -> list[Any]:
        outputs = poisoned_by(0, 40)(items)
        answered.extend(items)
        return outputs

    search(handler, 64)
    assert sorted(answered) == [item for item in range(64) if item not in (0, 40)]


def test_the_predicate_decides_at_every_call() -> None:
    def handler(items: Sequence[int]) -> list[Any]:
        raise Poison() if len(items) == 8 else ConnectionError()

    outcomes, calls = search(handler, 8, lambda error: isinstance(error, Poison))
    assert len(calls) == 2
    assert all(isinstance(outcome, ConnectionError) for outcome in outcomes)
    with pytest.raises(ConnectionError):
        search(handler, 4, lambda error: isinstance(error, Poison))


def test_a_single_item_is_tried_once() -> None:
    with pytest.raises(Poison):
        search(poisoned_by(0), 1)


# What it learns.


class Counted:
    """Batches of 64, of which this share is bad, one after the other."""

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self.isolation = Isolation(lambda _: True)
        self.random = Random(5)
        self.calls: list[int] = []

    def run(self, share: float, batches: int) -> float:
        """How many calls a batch takes, on average."""
        self.calls.clear()
        for _ in range(batches):
            self.batch({item for item in range(self.size) if self.random.random() < share})
        return len(self.calls) / batches

    def batch(self, poison: set[int]) -> None:
        handler = poisoned_by(*poison)

        def call(items: list[int]) -> list[Any]:
            self.calls.append(len(items))
            return handler(items)

        outcomes = self.isolation(call, list(range(self.size)))
        if not {self.size * i // 4 for i in range(4)} <= poison:
            assert_only_these_failed(outcomes, poison)


@pytest.mark.parametrize("share", [0.02, 0.05, 0.12, 0.25])
def test_the_calls_are_within_a_fifth_of_the_fewest_that_are_possible(share: float) -> None:
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    calls = Counted().run(share, 300)
    assert 64 * entropy <= calls <= 1.2 * 64 * entropy


def test_with_many_bad_items_it_comes_near_to_trying_each_alone() -> None:
    assert Counted().run(0.5, 100) <= 66


def test_once_the_bad_items_are_gone_whole_batches_are_tried_again() -> None:
    counted = Counted()
    counted.run(0.3, 30)
    counted.run(0.0, 40)
    assert counted.run(0.0, 10) == 1
    assert set(counted.calls) == {64}


def test_a_handler_that_is_down_teaches_nothing_and_costs_no_more_later() -> None:
    counted = Counted()
    down = set(range(64))
    for share in (0.0, 0.12, 0.5):
        counted.run(share, 20)
        before = counted.isolation._share
        for _ in range(20):
            counted.calls.clear()
            counted.batch(down)
            assert len(counted.calls) <= 7
        assert counted.isolation._share == before


def test_a_handler_that_runs_out_of_memory_teaches_nothing() -> None:
    def handler(items: Sequence[int]) -> list[Any]:
        if len(items) > 8:
            raise MemoryError(len(items))
        return [item * item for item in items]

    isolation = Isolation(lambda _: True)
    for _ in range(10):
        assert isolation(handler, list(range(64))) == [item * item for item in range(64)]
    assert isolation._share == 0.0


@settings(max_examples=300)
@given(
    size=st.integers(2, 70),
    share=st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.5, 1.0]),
    seen=st.sampled_from([0, 8, 512]),
    data=st.data(),
)
def test_whatever_was_learned_all_are_found_in_two_calls_for_each_at_most(
    size: int, share: float, seen: int, data: st.DataObject
) -> None:
    poison = data.draw(st.sets(st.integers(0, size - 1), max_size=size))
    calls: list[list[int]] = []
    handler = poisoned_by(*poison)

    def call(items: list[int]) -> list[Any]:
        calls.append(items)
        return handler(items)

    isolation = Isolation(lambda _: True)
    isolation._share, isolation._seen = share, seen
    outcomes = isolation(call, list(range(size)))
    assert len(calls) <= 2 * size
    assert all(items == sorted(items) for items in calls)  # the order of the calls
    if not {size * i // 4 for i in range(4)} <= poison:
        assert_only_these_failed(outcomes, poison)
    for item in range(size):
        assert isinstance(outcomes[item], Poison) or outcomes[item] == item * item


# In the batcher.


def test_callers_of_good_items_are_answered(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(poisoned_by(2), max_size=4, isolate_errors=True)
    requests = [batcher.submit(x) for x in range(4)]
    runtime.settle()
    assert calls == [[0, 1, 2, 3], [0, 1], [2, 3], [2], [3]]
    assert [requests[x].result() for x in (0, 1, 3)] == [0, 1, 9]
    assert isinstance(requests[2].exception(), Poison)


def test_without_the_option_the_handler_runs_once(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(poisoned_by(2), max_size=4)
    requests = [batcher.submit(x) for x in range(4)]
    runtime.settle()
    assert calls == [[0, 1, 2, 3]]
    assert all(isinstance(request.exception(), Poison) for request in requests)


def test_an_output_of_the_wrong_length_is_isolated_too(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(lambda xs: [x for x in xs if x != 1], max_size=4, isolate_errors=True)
    requests = [batcher.submit(x) for x in range(4)]
    runtime.settle()
    assert [requests[x].result() for x in (0, 2, 3)] == [0, 2, 3]
    assert isinstance(requests[1].exception(), BadBatchOutputSize)


def test_an_exception_at_a_position_needs_no_isolation(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, calls = harness.batcher(
        lambda xs: [Poison(x) if x == 1 else x for x in xs], max_size=3, isolate_errors=True
    )
    requests = [batcher.submit(x) for x in range(3)]
    runtime.settle()
    assert calls == [[0, 1, 2]]
    assert [type(request.exception()) for request in requests] == [type(None), Poison, type(None)]


def test_an_exit_ends_the_search(harness: Harness, runtime: VirtualRuntime) -> None:
    def handler(xs: list[int]) -> list[int]:
        raise SystemExit(1) if len(xs) == 2 else Poison()

    batcher, calls = harness.batcher(handler, max_size=4, isolate_errors=True)
    requests = [batcher.submit(x) for x in range(4)]
    runtime.settle()
    assert calls == [[0, 1, 2, 3], [0, 1]]
    assert all(isinstance(request.exception(), HandlerAborted) for request in requests)


def test_columns_and_keywords_are_split_together(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    def handler(a: list[int], *, b: list[int]) -> list[int]:
        return [x // y for x, y in zip(a, b, strict=True)]

    batcher, _ = harness.batcher(handler, max_size=3, isolate_errors=True)
    requests = [batcher.submit(6, b=divisor) for divisor in (1, 0, 2)]
    runtime.settle()
    assert [requests[0].result(), requests[2].result()] == [6, 3]
    assert isinstance(requests[1].exception(), ZeroDivisionError)
