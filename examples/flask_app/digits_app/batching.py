"""Where uBatch stands: between the endpoints and what answers them.

Each request calls `DigitReader.predict(image)` and waits for its own answer; the model is called
with the images of all the requests that wait. Nothing here starts before the first call, so the
application can be made in gunicorn's master (`--preload`) and used in its workers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ubatch import UBatch

from digits_app import tracing
from digits_app.metrics import instrument
from digits_app.model import Digits, Image, Model, Prediction, load_model, unseen_digits
from digits_app.settings import Settings
from digits_app.titles import TitleChecker

# A batch of the forest takes hundredths of a second. One that is still there after ten is stuck: it
# is logged with its stack, and readiness says no.
STALL_AFTER = 10.0


class DigitReader:
    """The model, in batches and one by one."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.unbatched_calls = 0
        self._model = model
        self.batcher = UBatch[Image, Prediction](
            settings.max_size,
            settings.timeout,
            eager=settings.eager,
            executor=settings.executor,
            max_queue=settings.max_queue,
            stall_after=STALL_AFTER,
            instruments=[instrument, *tracing.instruments()],
            name="digits",
        ).set_handler(model.predict)

    def predict(self, image: Image) -> Prediction:
        """The answer for one image, computed together with those of other requests."""
        return self.batcher.ubatch(image)

    def predict_unbatched(self, image: Image) -> Prediction:
        """The same answer, computed alone: while it is, the worker does nothing else."""
        self.unbatched_calls += 1
        return self._model.predict([image])[0]


@dataclass(frozen=True)
class Services:
    """What the endpoints ask; one for each application."""

    digits: DigitReader
    titles: TitleChecker
    samples: Digits

    @classmethod
    def make(cls, settings: Settings) -> Services:
        """Load the model, or train it, and the images to try it with; start nothing."""
        reader = DigitReader(load_model(settings.model_dir), settings)
        return cls(reader, TitleChecker(settings.upstream_url), unseen_digits())

    @property
    def batchers(self) -> tuple[UBatch[Any, Any], ...]:
        """What readiness asks, and what a stop drains."""
        return self.digits.batcher, self.titles.batcher

    def stop(self, timeout: float) -> None:
        """Answer what was accepted, each for at most `timeout` seconds, and accept no more."""
        for batcher in self.batchers:
            batcher.stop(timeout)

    def stats(self) -> dict[str, object]:
        """The calls of each handler in this process, since it started."""
        alone = self.digits.unbatched_calls
        return {
            "pid": os.getpid(),
            "predict": _batches(self.digits.batcher),
            "predict_unbatched": _calls(alone, alone),
            "title": _batches(self.titles.batcher),
        }


# ----------------------------------------------------------------------------------------------


def _batches(batcher: UBatch[Any, Any]) -> dict[str, float]:
    statistics = batcher.statistics()
    return _calls(statistics.batches, statistics.items)


def _calls(calls: int, items: int) -> dict[str, float]:
    return {
        "calls": calls,
        "items": items,
        "mean_batch_size": round(items / calls, 2) if calls else 0.0,
    }
