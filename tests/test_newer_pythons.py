"""What newer Pythons changed: annotations that are evaluated late, counts of references, chained descriptors.

Nothing here needs a thread or a greenlet, so `.ci/newest` can run it on CPython 3.14 where only pyodide's is to be had.
"""

from __future__ import annotations

import sys
import types

import pytest

from ubatch import UBatch, ubatch_decorator
from ubatch._core.handler import signature_of
from ubatch._core.isolation import Isolation
from ubatch._core.pending import Pending

LATE = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import numpy as np
    from models import Model

def predict(rows: list[np.ndarray], model: Model | None = None) -> np.ndarray:
    return rows
"""


def test_annotations_that_name_what_only_the_type_checker_imports() -> None:
    if sys.version_info < (3, 14):
        source = "from __future__ import annotations\n" + LATE  # else this module itself would not run
    else:
        source = LATE
    module = types.ModuleType("late")
    exec(compile(source, "late.py", "exec", dont_inherit=True), module.__dict__)
    batcher = UBatch[object, object](4, 0.1).set_handler(module.predict)
    assert "rows: " in str(signature_of(module.predict))
    with pytest.raises(TypeError, match=r"the arguments must fit the handler predict\(rows: .*np\.ndarray"):
        batcher.submit(1, 2, 3)
    decorated = ubatch_decorator(4, 0.1)(module.predict)
    assert decorated([1]) == [1]
    assert ubatch_decorator(4, 0.1)(decorated.function).__name__ == "predict"


def test_what_refers_to_nothing_else_is_counted_when_this_is_imported() -> None:
    count = getattr(sys, "getrefcount", None)
    if count is None:
        pytest.skip("this interpreter does not count")

    def of_one() -> int:
        alone = object()
        return int(count(alone))

    def of_two() -> int:
        alone = object()
        also = [alone]
        return int(count(alone)) + 0 * len(also)

    assert of_two() == of_one() + 1  # which is 2 up to 3.13, and 1 from 3.14 on


def test_classes_hold_decorated_class_and_static_methods() -> None:
    class Model:
        bias = 10

        @ubatch_decorator(4, 0.1)
        @classmethod
        def under(cls, xs: list[int]) -> list[int]:
            return [x + cls.bias for x in xs]

        @classmethod
        @ubatch_decorator(4, 0.1)
        def around(cls, xs: list[int]) -> list[int]:
            return [x + cls.bias for x in xs]

        @ubatch_decorator(4, 0.1)
        @staticmethod
        def static(xs: list[int]) -> list[int]:
            return xs

    assert Model.under([1]) == Model().under([1]) == Model.around([1]) == [11]
    assert Model.static([1]) == Model().static([1]) == [1]
    assert Model.under.batcher is Model().under.batcher
    assert repr(Model.under.batcher) == "<UBatch 'under' max_size=4 timeout=0.1: open, not called yet>"


def test_the_parts_that_are_pure_work() -> None:
    def call(items: list[int]) -> list[int]:
        if 3 in items:
            raise ValueError(items)
        return items

    outcomes = Isolation(lambda _: True)(call, list(range(9)))
    assert [type(outcome) for outcome in outcomes] == [int] * 3 + [ValueError] + [int] * 5
    assert Pending().count == 0
