"""What users write, as mypy sees it. Checked by `make check`; every `type: ignore` here must be needed."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

from ubatch import Request, UBatch, ubatch_decorator


class Model:
    def batch_predict(self, xs: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        return np.array([float(x.sum()) for x in xs])


predict: UBatch[npt.NDArray[np.float64], float] = UBatch(max_size=50, timeout=0.01)
assert_type(predict.set_handler(Model().batch_predict), UBatch[npt.NDArray[np.float64], float])
assert_type(predict.ubatch(np.zeros(3)), float)
assert_type(predict.submit(np.zeros(3)), Request[float])
assert_type(predict.submit(np.zeros(3)).result(1.0), float)
assert_type(predict.submit(np.zeros(3)).exception(), Exception | None)
assert_type(predict.map([np.zeros(3)]), list[float])
assert_type(predict.map([np.zeros(3)], window=8, return_exceptions=True), list[float | Exception])
assert_type(next(predict.imap([np.zeros(3)])), float)
assert_type(next(predict.imap([np.zeros(3)], return_exceptions=True)), float | Exception)
predict.ubatch("no array")  # type: ignore[call-overload]
predict.map(["no array"])  # type: ignore[list-item]
predict.set_handler(3)  # type: ignore[arg-type]
UBatch(max_size="8", timeout=0.01)  # type: ignore[arg-type]
with UBatch[int, str](8, 0.01).set_handler(lambda xs: [str(x) for x in xs]) as texts:
    assert_type(texts, UBatch[int, str])
    assert_type(texts.ubatch(1), str)


def words(xs: list[int]) -> list[str]:
    return [str(x) for x in xs]


inferred = UBatch(max_size=8, timeout=0.01).set_handler(words)
assert_type(inferred, UBatch[int, str])
assert_type(inferred.ubatch(1), str)
as_in_1x: UBatch[npt.NDArray[np.float64], float] = UBatch(max_size=50, timeout=0.01)
as_in_1x.set_handler(handler=Model().batch_predict)
chained: UBatch[int, str] = UBatch(max_size=8, timeout=0.01).set_handler(words)

two_columns = UBatch[int, int](8, 0.01).set_handler(lambda a, mode: list(a))
assert_type(two_columns.ubatch(1, "square"), int)
assert_type(two_columns.ubatch(a=1, mode="square"), int)


@ubatch_decorator(max_size=5, timeout=0.01)
def squared(a: list[int]) -> list[int]:
    return [x**2 for x in a]


assert_type(squared([1, 2]), list[int])
assert_type(squared.ubatch(3), int)
assert_type(squared.submit(3), Request[int])
assert_type(squared.map([1, 2]), list[int])
squared.ubatch("3")  # type: ignore[arg-type]
squared("3")  # type: ignore[arg-type]


@ubatch_decorator(max_size=5, timeout=0.01, executor="greenlet")
def squared_cube(a: list[int], mode: list[str]) -> list[int]:
    return [x**2 if y == "square" else x**3 for x, y in zip(a, mode, strict=True)]


assert_type(squared_cube([1], ["square"]), list[int])
assert_type(squared_cube.ubatch(1, "square"), int)
assert_type(squared_cube.ubatch(1, mode="square"), int)


@ubatch_decorator(max_size=5, timeout=0.01)
def row_sums(rows: list[npt.NDArray[np.float64]]) -> tuple[float, ...]:
    return tuple(float(row.sum()) for row in rows)


assert_type(row_sums.ubatch(np.zeros(3)), float)

bound = ubatch_decorator(max_size=5, timeout=0.01)(partial(squared_cube.__wrapped__, mode=["cube"]))
assert_type(bound.ubatch(1), int)


class Scorer:
    @ubatch_decorator(max_size=5, timeout=0.01)
    def score(self, texts: list[str]) -> list[float]:
        return [float(len(text)) for text in texts]


assert_type(Scorer().score(["a"]), list[float])
assert_type(Scorer().score.ubatch("a"), float)
assert_type(Scorer().score.map(["a"]), list[float])
assert_type(next(Scorer().score.imap(["a"])), float)
