"""When a batch is due and what goes into it: tables and random cases on pure functions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubatch._core.pending import Pending
from ubatch._core.policy import Close, Eager, FixedWait, Wait


@dataclass(eq=False)
class Item:
    call_form: str
    accepted_at: float


def pending_of(*items: tuple[str, float]) -> Pending:
    pending = Pending()
    for item in items:
        pending.add(Item(*item))
    return pending


POLICY = FixedWait(max_size=3, timeout=5.0)


@pytest.mark.parametrize(
    ("items", "now", "decision"),
    [
        ([], 100.0, Wait(inf, 1)),
        ([("a", 100.0)], 100.0, Wait(105.0, 3)),
        ([("a", 100.0)], 104.9, Wait(105.0, 3)),
        ([("a", 100.0)], 105.0, Close("a", 3, "timeout")),
        ([("a", 100.0)] * 2, 101.0, Wait(105.0, 3)),
        ([("a", 100.0)] * 3, 101.0, Close("a", 3, "full")),
        ([("a", 100.0)] * 7, 999.0, Close("a", 3, "full")),
        ([("a", 100.0), ("b", 101.0)], 104.0, Wait(105.0, 4)),
        ([("a", 100.0), ("b", 101.0), ("b", 102.0)], 104.0, Wait(105.0, 4)),
        ([("a", 100.0), ("b", 101.0)], 105.0, Close("a", 3, "timeout")),
        ([("b", 101.0), ("a", 100.0)], 105.0, Close("a", 3, "timeout")),
        ([("a", 100.0), *[("b", 101.0)] * 3], 104.0, Close("b", 3, "full")),
        ([("a", 100.0), *[("b", 101.0)] * 3], 105.0, Close("a", 3, "timeout")),
    ],
)
def test_when_a_batch_is_due(items: list[tuple[str, float]], now: float, decision: Close | Wait) -> None:
    assert POLICY.decide(pending_of(*items), now, draining=False) == decision


def test_a_drain_waits_for_no_company() -> None:
    assert POLICY.decide(pending_of(("a", 100.0)), 100.0, draining=True) == Close("a", 3, "drain")
    assert POLICY.decide(pending_of(*[("a", 100.0)] * 3), 100.0, draining=True) == Close("a", 3, "full")
    assert POLICY.decide(pending_of(), 100.0, draining=True) == Wait(inf, 1)


EAGER = Eager(max_size=3, timeout=5.0)


@pytest.mark.parametrize(
    ("items", "now", "idle", "decision"),
    [
        ([], 100.0, True, Wait(inf, 1)),
        ([("a", 100.0)], 100.0, False, Wait(105.0, 3, or_idle=True)),
        ([("a", 100.0)], 100.0, True, Close("a", 3, "idle")),
        ([("a", 100.0)], 105.0, False, Close("a", 3, "timeout")),
        ([("a", 100.0)], 105.0, True, Close("a", 3, "idle")),
        ([("a", 100.0)] * 3, 100.0, True, Close("a", 3, "full")),
        ([("b", 101.0), ("b", 102.0), ("a", 100.0)], 103.0, True, Close("a", 3, "idle")),
        ([("b", 101.0)] * 3 + [("a", 100.0)], 103.0, True, Close("b", 3, "full")),
    ],
)
def test_when_an_eager_batch_is_due(
    items: list[tuple[str, float]], now: float, idle: bool, decision: Close | Wait
) -> None:
    assert EAGER.decide(pending_of(*items), now, draining=False, idle=idle) == decision


@pytest.mark.parametrize(
    ("items", "now", "idle", "decision"),
    [
        ([("a", 100.0)], 199.0, False, Wait(204.0, 3, or_idle=True)),
        ([("a", 100.0)], 199.0, True, Close("a", 3, "idle")),
        ([("a", 100.0)], 204.0, False, Close("a", 3, "timeout")),
        ([("a", 100.0)] * 3, 199.0, False, Close("a", 3, "full")),
        ([("a", 200.0)], 202.0, False, Wait(205.0, 3, or_idle=True)),
        ([("a", 100.0), *[("b", 101.0)] * 3], 199.0, False, Close("a", 3, "timeout")),
        ([("a", 100.0), *[("b", 101.0)] * 3], 199.0, True, Close("a", 3, "idle")),
    ],
)
def test_an_eager_batch_waits_in_vain_only_since_there_is_a_slot(
    items: list[tuple[str, float]], now: float, idle: bool, decision: Close | Wait
) -> None:
    assert EAGER.decide(pending_of(*items), now, draining=False, idle=idle, slot_free_at=199.0) == decision


def test_an_eager_drain_waits_for_no_company() -> None:
    assert EAGER.decide(pending_of(("a", 100.0)), 100.0, draining=True) == Close("a", 3, "drain")
    assert EAGER.decide(pending_of(), 100.0, draining=True, idle=True) == Wait(inf, 1)


def test_taking_leaves_the_rest_in_order() -> None:
    pending, items = Pending(), [Item("a", float(i)) for i in range(5)]
    for item in items:
        pending.add(item)
    pending.remove(items[1])
    assert pending.take("a", 2) == [items[0], items[2]]
    assert pending.oldest() is items[3]
    assert pending.take("a", 9) == [items[3], items[4]]
    assert (pending.count, pending.all()) == (0, [])


def test_a_queue_that_was_emptied_past_what_was_removed_is_gone() -> None:
    pending, items = Pending(), [Item("a", float(i)) for i in range(6)]
    for item in items:
        pending.add(item)
    for item in items[1:4]:
        pending.remove(item)
    assert pending.take("a", 5) == [items[0], *items[4:]]
    pending.add(later := Item("b", 7.0))
    assert (pending.count, pending.oldest()) == (1, later)


steps = st.lists(st.tuples(st.sampled_from(["add", "add", "remove", "take"]), st.sampled_from("ab"), st.integers(0, 9)))


@given(steps=steps)
def test_pending_requests_are_what_a_list_of_them_would_be(steps: list[tuple[str, str, int]]) -> None:
    pending, model = Pending(), list[Item]()
    for time, (step, call_form, number) in enumerate(steps):
        there = [item for item in model if item.call_form == call_form]
        if step == "add":
            model.append(Item(call_form, float(time)))
            pending.add(model[-1])
        elif step == "remove" and model:
            pending.remove(model.pop(number % len(model)))
        elif step == "take" and there:
            gone = pending.take(call_form, number)
            assert gone == there[:number]
            model = [item for item in model if item not in gone]
        assert pending.count == len(model)
        for each in {item.call_form for item in model}:
            assert pending.head(each, 99) == [item for item in model if item.call_form == each]
            assert pending.size(each) == len(pending.head(each, 99))
        if model:
            assert pending.oldest() is model[0]
            assert pending.size(pending.largest()) == max(Counter(item.call_form for item in model).values())
    assert sorted(pending.all(), key=model.index) == model


items = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 10)), max_size=12)


@given(items=items, now=st.floats(0, 20), max_size=st.integers(1, 5), timeout=st.floats(0, 5), draining=st.booleans())
def test_a_decision_keeps_the_bounds(
    items: list[tuple[str, float]], now: float, max_size: int, timeout: float, draining: bool
) -> None:
    pending = pending_of(*items)
    count, sizes = pending.count, Counter(call_form for call_form, _ in items)
    match FixedWait(max_size, timeout).decide(pending, now, draining):
        case Close(call_form, size, _):
            taken = pending.take(call_form, size)
            assert 1 <= len(taken) <= max_size
            assert {item.call_form for item in taken} == {call_form}
            assert pending.count == count - len(taken)
        case Wait(until, wake_at_count, False):
            assert not draining or count == 0
            assert all(size < max_size for size in sizes.values())
            if count:
                assert until == pending.oldest().accepted_at + timeout
                assert until > now
                # No fewer further requests could fill a call_form, so being woken any earlier would be in vain.
                assert wake_at_count == count + max_size - max(sizes.values())
            else:
                assert (until, wake_at_count) == (inf, 1)
