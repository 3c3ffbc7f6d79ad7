"""`ubatch.testing.check_handler` finds the handlers of real libraries whose answers depend on their company."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ubatch.testing import check_handler


def double(xs: list[float]) -> list[float]:
    return [2 * x for x in xs]


def test_a_handler_that_answers_each_as_alone_passes() -> None:
    check_handler(double, [1.0, 2.5, -3.0, 4.0])
    check_handler(lambda xs, ys: [x + y for x, y in zip(xs, ys, strict=True)], [1, 2, 3], [10, 20, 30])
    weights = np.random.default_rng(1).normal(size=(4, 3))
    check_handler(lambda rows: np.stack(rows) @ weights, list(np.random.default_rng(2).normal(size=(9, 4))))
    check_handler(lambda xs: [ValueError("negative") if x < 0 else x for x in xs], [1, -1, 2])
    check_handler(lambda xs: [{"label": x, "score": float("nan")} for x in xs], ["a", "b", "c"])


buffer = np.zeros((16, 1))


def reuses_a_buffer(xs: list[float]) -> Any:
    buffer[: len(xs), 0] = xs  # each output is a view of it
    return buffer[: len(xs)]


def counts(xs: list[float]) -> list[float]:
    counts.calls = getattr(counts, "calls", 0) + 1  # type: ignore[attr-defined]
    return [x + counts.calls for x in xs]  # type: ignore[attr-defined]


def sorts_its_input(xs: list[float]) -> list[float]:
    xs.sort()
    return xs


def normalises(xs: list[float]) -> Any:
    return np.array(xs) / np.max(xs)


def output_in_a_list(xs: list[float]) -> list[Any]:
    return [np.array(xs) * 2]


def squeezes(xs: list[float]) -> Any:
    return np.array(xs)[:, None].squeeze()


def columns(xs: list[float]) -> Any:
    return np.array(xs), np.array(xs) * 2


def refuses_three(xs: list[float]) -> list[float]:
    if len(xs) == 3:
        raise RuntimeError("no kernel for 3")
    return xs


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (sorted, "its outputs are in an order of their own: for the items 0, 1 it returned those of 1, 0"),
        (lambda xs: list(xs)[::-1], "its outputs are in an order of their own"),
        (reuses_a_buffer, "it uses a buffer again"),
        (counts, r"item 0 alone is answered 4\.0, and .* among the items 0, 1"),
        (sorts_its_input, "it has changed its inputs"),
        (normalises, "item 1 alone is answered 1.0, and 0.33"),
        (output_in_a_list, r"for the items 0, 1: BadBatchOutputSize: .* does it return \[output\] instead of output\?"),
        (squeezes, "item 0 alone: BadBatchOutput: .*squeeze"),
        (columns, r"item 0 alone: BadBatchOutput: .*list\(zip\(\*outputs\)\)"),
        (refuses_three, "for the items 0, 1, 2: RuntimeError: no kernel for 3"),
    ],
)
def test_what_depends_on_its_company_is_told(handler: Callable[..., Any], told: str) -> None:
    with pytest.raises(AssertionError, match=told) as raised:
        check_handler(handler, [3.0, 1.0, 2.0, 5.0])
    lines = str(raised.value).splitlines()
    assert lines[0].endswith("must not depend on their company:")
    assert len(lines) <= 12


def test_a_missing_value_that_pandas_fills() -> None:
    pandas = pytest.importorskip("pandas")

    def handler(rows: list[dict[str, Any]]) -> list[str]:
        return [f"{row.age}" for row in pandas.DataFrame(rows).itertuples()]

    with pytest.raises(AssertionError, match=r"item 0 alone is answered '41', and '41\.0' among"):
        check_handler(handler, [{"age": 41}, {"age": None}, {"age": 3}])


def test_a_query_that_answers_in_the_order_of_its_table() -> None:
    import sqlite3

    connection = sqlite3.connect(":memory:")
    connection.executescript("create table users (id integer primary key, name text)")
    connection.executemany("insert into users values (?, ?)", [(n, f"user {n}") for n in range(9)])

    def handler(ids: list[int]) -> list[str]:
        marks = ", ".join("?" * len(ids))
        return [name for (name,) in connection.execute(f"select name from users where id in ({marks})", ids)]

    with pytest.raises(AssertionError, match="its outputs are in an order of their own"):
        check_handler(handler, [7, 1, 4])
    connection.close()


def test_a_model_of_scikit_learn_passes_and_one_that_normalises_over_the_batch_does_not() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows = np.random.default_rng(1).normal(size=(40, 5))
    model = linear_model.LogisticRegression().fit(rows, rows.sum(axis=1) > 0)
    examples = list(rows[:8])
    check_handler(lambda xs: model.predict_proba(np.stack(xs)), examples)
    check_handler(model.predict, examples)
    with pytest.raises(AssertionError, match="alone is answered"):
        check_handler(
            lambda xs: model.predict_proba((np.stack(xs) - np.mean(xs, axis=0)) / (np.std(xs, axis=0) + 1e-9)), examples
        )


def test_a_model_of_torch_in_training_mode_does_not() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))
    examples = list(torch.randn(6, 4))
    with torch.no_grad():
        check_handler(lambda xs: model.eval()(torch.stack(xs)), examples)
        with pytest.raises(AssertionError):
            check_handler(lambda xs: model.train()(torch.stack(xs)), examples)


def test_one_example_is_too_few() -> None:
    with pytest.raises(ValueError, match="at least two examples; got 1"):
        check_handler(double, [1.0])
