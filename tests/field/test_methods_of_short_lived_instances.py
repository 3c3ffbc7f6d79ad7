"""A batcher per instance, where instances are made per request, or come and go."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from threading import Thread
from typing import Any

import gevent
import pytest
from flask import Flask
from flask.views import MethodView
from flask_restx import Api, Resource

from ubatch import ubatch_decorator
from ubatch._decorator import MANY_ALONE
from ubatch.testing import VirtualRuntime

SET_NAME_ERROR = TypeError if sys.version_info >= (3, 12) else RuntimeError  # older ones wrap it


@pytest.mark.parametrize("base", [MethodView, Resource])
def test_a_view_class_with_an_instance_per_request_is_refused_where_it_is_written(base: Any) -> None:
    with pytest.raises(SET_NAME_ERROR) as raised:

        class Predict(base):  # type: ignore[misc]
            @ubatch_decorator(max_size=16, timeout=0.0, eager=True)
            def predict(self, xs: list[int]) -> list[int]:
                return xs

    error = raised.value if type(raised.value) is TypeError else raised.value.__cause__
    assert "Predict.predict must not carry a batcher" in str(error)
    assert "init_every_request = False" in str(error)


def test_so_is_one_that_inherits_the_method() -> None:
    class Model:
        @ubatch_decorator(max_size=16, timeout=0.0, eager=True)
        def predict(self, xs: list[int]) -> list[int]:
            return xs

    class Predict(Model, MethodView):
        pass

    assert Model().predict.batcher
    with pytest.raises(TypeError, match=r"Predict\.predict must not carry a batcher"):
        _ = Predict().predict


@pytest.mark.parametrize("world", ["threading", "gevent"])
def test_one_instance_for_all_requests_batches_them(world: str) -> None:
    sizes: list[int] = []
    app = Flask(__name__)
    api = Api(app)

    class Predict(Resource):  # type: ignore[misc]
        init_every_request = False

        @ubatch_decorator(max_size=4, timeout=30.0, runtime=world)
        def predict(self, xs: list[int]) -> list[int]:
            sizes.append(len(xs))
            return [x * x for x in xs]

        def get(self, x: int) -> dict[str, int]:
            return {"y": self.predict.ubatch(x)}

    api.add_resource(Predict, "/predict/<int:x>")
    answers: dict[int, Any] = {}

    def ask(x: int) -> None:
        answers[x] = app.test_client().get(f"/predict/{x}").json

    if world == "gevent":
        gevent.joinall([gevent.spawn(ask, x) for x in range(8)], timeout=50)
    else:
        threads = [Thread(target=ask, args=(x,)) for x in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
    assert answers == {x: {"y": x * x} for x in range(8)}
    assert sizes == [4, 4]


def made(runtime: VirtualRuntime) -> Any:
    class Model:
        @ubatch_decorator(max_size=2, timeout=1.0, runtime=runtime)
        def predict(self, xs: list[int]) -> list[int]:
            return xs

    return Model


def use(runtime: VirtualRuntime, model: Any, calls: int) -> None:
    requests = [model.predict.submit(x) for x in range(calls)]
    runtime.advance(2.0)
    assert [request.result() for request in requests] == list(range(calls))
    stopping = runtime.call(model.predict.batcher.stop)
    runtime.settle()
    assert stopping.done


@pytest.mark.parametrize(
    ("calls", "warned"), [(lambda n: 1, 1), (lambda n: 2 if n == 30 else 1, 0), (lambda n: 0, 0)], ids=str
)
def test_many_instances_that_only_saw_batches_of_one_are_told_once(
    runtime: VirtualRuntime, caplog: pytest.LogCaptureFixture, calls: Callable[[int], int], warned: int
) -> None:
    model = made(runtime)
    for n in range(2 * MANY_ALONE + 2):
        use(runtime, model(), calls(n))
    told = [record for record in caplog.records if "ever had a second request" in record.getMessage()]
    assert len(told) == warned
    for record in told:
        assert record.levelname == "WARNING"
        assert f"{MANY_ALONE} instances of Model" in record.getMessage()


def test_few_instances_or_long_lived_ones_are_told_nothing(
    runtime: VirtualRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    model = made(runtime)
    kept = [model() for _ in range(MANY_ALONE + 1)]
    for one in kept:
        use(runtime, one, 1)
    _ = model().predict
    assert not caplog.records


INSTANCES = """
import gc, os, sys, time
if sys.argv[1] == "gevent":
    from gevent import monkey
    monkey.patch_all()
from ubatch import ubatch_decorator

class Model:
    @ubatch_decorator(max_size=8, timeout=0.0, executor=sys.argv[2])
    def predict(self, xs):
        time.sleep(0.001)  # in a patched process it makes a hub in this thread
        return [x + 1 for x in xs]

def once():
    model = Model()
    assert model.predict.ubatch(1) == 2
    batcher = model.predict.batcher
    batcher.stop()  # returns when its threads have ended

def files():
    return len(os.listdir("/proc/self/fd"))

for _ in range(5):
    once()
before = files()
for _ in range(100):
    once()
print(before, files())
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
@pytest.mark.parametrize("executor", ["auto", "native", "greenlet"])
@pytest.mark.parametrize("world", ["threading", "gevent"])
def test_instances_that_come_and_go_leave_no_files_open(world: str, executor: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", INSTANCES, world, executor],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    before, after = map(int, ran.stdout.split())
    assert after <= before + 2
