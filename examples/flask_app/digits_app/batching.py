"""Where uBatch stands: between the endpoints and what answers them.

Each request calls `DigitReader.predict(image)` and waits for its own answer; the model is called
with the images of all the requests that wait. Nothing here starts before the first call, so the
application can be made in gunicorn's master (`--preload`) and used in its workers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ubatch import UBatch

from digits_app.model import Image, Model, Prediction, load_model
from digits_app.settings import Settings
from digits_app.tally import Tally
from digits_app.titles import TitleChecker


class DigitReader:
    """The model, in batches and one by one."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.batched = Tally()
        self.unbatched = Tally()
        self._model = model
        self._batcher = UBatch[Image, Prediction](
            settings.max_size, settings.timeout, executor=settings.executor, name="digits"
        ).set_handler(self._predict_batch)

    def predict(self, image: Image) -> Prediction:
        """The answer for one image, computed together with those of other requests."""
        return self._batcher.ubatch(image)

    def predict_unbatched(self, image: Image) -> Prediction:
        """The same answer, computed alone: while it is, the worker does nothing else."""
        self.unbatched.add(1)
        return self._model.predict([image])[0]

    def stop(self, timeout: float) -> None:
        """Answer what was accepted, for at most `timeout` seconds, and accept no more."""
        self._batcher.stop(timeout)

    def _predict_batch(self, images: list[Image]) -> list[Prediction]:
        self.batched.add(len(images))
        return self._model.predict(images)


@dataclass(frozen=True)
class Services:
    """What the endpoints ask; one for each application."""

    digits: DigitReader
    titles: TitleChecker

    @classmethod
    def make(cls, settings: Settings) -> Services:
        """Load the model, or train it; start nothing."""
        reader = DigitReader(load_model(settings.model_dir), settings)
        return cls(reader, TitleChecker(settings.upstream_url))

    def stop(self, timeout: float) -> None:
        """Answer what was accepted, each for at most `timeout` seconds, and accept no more."""
        self.digits.stop(timeout)
        self.titles.stop(timeout)

    def stats(self) -> dict[str, object]:
        """The calls of each handler in this process, since it started."""
        return {
            "pid": os.getpid(),
            "predict": self.digits.batched.as_dict(),
            "predict_unbatched": self.digits.unbatched.as_dict(),
            "title": self.titles.tally.as_dict(),
        }
