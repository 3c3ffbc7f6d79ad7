"""One gunicorn worker with a Flask application around one model and one way to call it, for `benchmarks.company`:

    python -I benchmarks/_company_app.py serve heavy "eager, greenlet" .bench/model 3
    python -I benchmarks/_company_app.py capacity heavy .bench/model

`serve` listens on the socket that it has inherited as this file descriptor. `capacity` prints what the model can do
without a server, as JSON. It runs in the peers' environments too, so it imports nothing of this folder; `ubatch` is
there 1.0.0, and here the installed one. Of the example it takes the model only.

`GET /predict` takes one image after the other, so that the load needs no bodies, and checks the answer. `GET /counts`
tells what was done since the start: requests, calls of the handler, the images in them, and the processor time; and the
worker's process id.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MAX_SIZE = 64
UPPER = 0.020  # seconds, an eager batcher's upper bound
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "flask_app"

Image = list[float]
Handler = Callable[[list[Image]], list[int]]
Ask = Callable[[Image], int]
Model = Callable[[Sequence[Image]], list[int]]


def heavy(folder: Path) -> Model:
    """The example's forest of 200 trees: several ms for one image, and hardly more for 64."""
    from digits_app.model import load_model

    predict = load_model(folder).predict
    return lambda images: [answer.digit for answer in predict(images)]


def light(_: Path) -> Model:
    """A recurrent network of 8 leaky units, untrained, that takes an image's 64 pixels one after the other.

    64 steps of a few numpy calls on tiny arrays: about 0.3 ms for one image, and not twice as much for 64.
    """
    import numpy as np

    random, units = np.random.default_rng(0), 8
    from_pixel = random.normal(size=units).astype(np.float32)
    from_units = (random.normal(size=(units, units)) / units**0.5).astype(np.float32)
    to_digit = random.normal(size=(units, 10)).astype(np.float32)

    def predict(images: Sequence[Image]) -> list[int]:
        pixels = np.asarray(images, dtype=np.float32) / 16 - 0.5
        state = np.zeros((len(pixels), units), np.float32)
        for column in pixels.T:
            state = state * 0.5 + np.tanh(np.outer(column, from_pixel) + state @ from_units) * 0.5
        return (state @ to_digit).argmax(axis=1).tolist()

    return predict


MODELS: dict[str, Callable[[Path], Model]] = {"heavy": heavy, "light": light}


def unbatched(handler: Handler) -> Ask:
    """A call of the model for each request."""
    return lambda image: handler([image])[0]


def ours(timeout: float, **options: Any) -> Callable[[Handler], Ask]:
    """UBatch of this repository."""

    def make(handler: Handler) -> Ask:
        from ubatch import UBatch

        return UBatch[Image, int](MAX_SIZE, timeout, **options).set_handler(handler).ubatch

    return make


def ubatch_1(timeout: float) -> Callable[[Handler], Ask]:
    """UBatch 1.0.0."""

    def make(handler: Handler) -> Ask:
        from ubatch import UBatch

        batcher: Any = UBatch(MAX_SIZE, timeout)
        batcher.set_handler(handler)
        batcher.start()
        return batcher.ubatch  # type: ignore[no-any-return]

    return make


def service_streamer(handler: Handler) -> Ask:
    """The ThreadedStreamer. Under gevent its threads are greenlets."""
    from service_streamer import ThreadedStreamer

    predict = ThreadedStreamer(handler, batch_size=MAX_SIZE, max_latency=0.005).predict
    return lambda image: predict([image])[0]


VARIANTS: dict[str, Callable[[Handler], Ask] | None] = {
    "no model": None,
    "unbatched": unbatched,
    "uBatch 1.0.0, 5 ms": ubatch_1(0.005),
    "uBatch 1.0.0, 10 ms": ubatch_1(0.010),
    "service-streamer 0.1.2": service_streamer,
    "fixed 0": ours(0.0, executor="greenlet"),
    "fixed 5 ms": ours(0.005, executor="greenlet"),
    "fixed 10 ms": ours(0.010, executor="greenlet"),
    "eager, greenlet": ours(UPPER, executor="greenlet", eager=True),
    "eager, native": ours(UPPER, executor="native", eager=True),
}


def serve(model: str, variant: str, folder: str, listener: str) -> None:
    """Run gunicorn, until it is told to end, or whoever started it has."""
    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            wanted = {
                "bind": f"fd://{listener}",
                "worker_class": "gevent",
                "timeout": 0,  # the benchmark halts servers that it does not measure
                "graceful_timeout": 1,
                "keepalive": 60,
                "control_socket_disable": True,
                "loglevel": "warning",
                "post_fork": lambda server, worker: _end_with_the_parent(),
            }
            for name in wanted.keys() & self.cfg.settings.keys():
                self.cfg.set(name, wanted[name])

        def load(self) -> Any:
            return _application(model, variant, Path(folder))

    _end_with_the_parent()
    Server().run()


def capacity(model: str, folder: str) -> None:
    """Print the milliseconds that the model takes for 1, 8 and 64 images: medians. Train it first, if it must be."""
    predict, images = MODELS[model](Path(folder)), _images()
    print(json.dumps({size: _milliseconds(predict, images[:size]) for size in (1, 8, MAX_SIZE)}))


# ---------------------------------------------------------------------------------------------------------------------


def _application(model: str, variant: str, folder: Path) -> Any:
    """Made in the worker, where everything is patched by now."""
    from flask import Flask

    predict, images = MODELS[model](folder), _images()
    expected = predict(images)
    turns = itertools.cycle(range(len(images)))
    done = {"begun": 0, "requests": 0, "calls": 0, "images": 0}

    def handler(batch: list[Image]) -> list[int]:
        done["calls"] += 1
        done["images"] += len(batch)
        return predict(batch)

    make = VARIANTS[variant]
    ask = make(handler) if make else None
    app = Flask(__name__)

    @app.get("/predict")
    def answer() -> Any:
        done["begun"] += 1
        turn = next(turns)
        digit = ask(images[turn]) if ask else expected[turn]
        done["requests"] += 1
        return {"digit": digit} if digit == expected[turn] else ("the answer of another", 500)

    @app.get("/counts")
    def counts() -> Any:
        return {**done, "cpu": time.process_time(), "worker": os.getpid()}

    return app


def _images() -> list[Image]:
    from digits_app.model import unseen_digits

    return unseen_digits().images


def _milliseconds(predict: Model, images: list[Image]) -> float:
    predict(images)
    seconds, ends = [], time.perf_counter() + 0.5
    while time.perf_counter() < ends:
        began = time.perf_counter()
        predict(images)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1000


def _end_with_the_parent() -> None:
    """Even where this process is halted. Linux only."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a worker is for one core
    sys.path.append(str(EXAMPLE))
    {"serve": serve, "capacity": capacity}[sys.argv[1]](*sys.argv[2:])
