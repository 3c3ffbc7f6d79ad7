"""The model: scikit-learn's handwritten digits, read by a random forest of 200 trees.

- One image costs nearly as much as sixty-four: walking 200 trees is the price, the number of
  images walking along hardly matters. That is what makes batches worth while.
- Training is deterministic: the same scikit-learn gives the same forest, so whoever trains it
  gets the same answers.
- A trained forest is kept as a pickle, written whole or not at all: processes that train at the
  same time write the same thing, and the last one wins. Its name holds the version of
  scikit-learn; one that cannot be read is trained again.

A pickle runs code when it is loaded: keep the folder writable by yourself alone.

`python -m digits_app.model` trains and keeps the forest, for an image that is built in advance.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sklearn
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

from digits_app.settings import Settings, SettingsError

PIXELS = 64
BRIGHTEST = 16
TREES = 200

Image = list[float]
"""Eight rows of eight pixels, from 0 (paper) to 16 (ink)."""

_log = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """The digit that an image most probably shows, and that probability."""

    digit: int
    confidence: float


class Digits(NamedTuple):
    """Images, and the digit that each of them shows."""

    images: list[Image]
    digits: list[int]


class Model:
    """A trained forest."""

    def __init__(self, forest: RandomForestClassifier) -> None:
        self._forest = forest

    def predict(self, images: Sequence[Image]) -> list[Prediction]:
        """One answer for each image, in order, independent of the other images."""
        chances = self._forest.predict_proba(np.asarray(images, dtype=np.float32))
        best = chances.argmax(axis=1)
        return [
            Prediction(int(self._forest.classes_[winner]), float(row[winner]))
            for row, winner in zip(chances, best, strict=True)
        ]


def load_model(folder: Path) -> Model:
    """The model kept in `folder`, or one trained now (about a second) and kept there."""
    path = model_path(folder)
    forest = _read(path)
    if forest is None:
        forest = _train()
        _keep(forest, path)
    return Model(forest)


def model_path(folder: Path) -> Path:
    """Where `folder` keeps the forest that this version of scikit-learn trains."""
    return folder / f"forest-{TREES}-sklearn-{sklearn.__version__}.pickle"


def unseen_digits() -> Digits:
    """The images that the model was not trained with."""
    return _split()[1]


# ----------------------------------------------------------------------------------------------


def _split() -> tuple[Digits, Digits]:
    images, digits = load_digits(return_X_y=True)
    parts = train_test_split(images, digits, test_size=0.25, stratify=digits, random_state=0)
    seen, unseen, seen_digits, digits_unseen = (part.tolist() for part in parts)
    return Digits(seen, seen_digits), Digits(unseen, digits_unseen)


def _train() -> RandomForestClassifier:
    seen, _ = _split()
    # n_jobs=1: the batch is what runs in parallel here, and a worker that is forked later
    # must not inherit a pool of threads.
    forest = RandomForestClassifier(TREES, random_state=0, n_jobs=1)
    return forest.fit(seen.images, seen.digits)


def _read(path: Path) -> RandomForestClassifier | None:
    try:
        forest = pickle.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 - a damaged pickle may raise anything at all
        _log.warning("%s cannot be read (%r): training again", path, error)
        return None
    return forest if isinstance(forest, RandomForestClassifier) else None


def _keep(forest: RandomForestClassifier, path: Path) -> None:
    """Write the file beside its place, then move it there. Without a writable folder: warn."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _scratch_beside(path) as scratch:
            scratch.write_bytes(pickle.dumps(forest))
            scratch.chmod(0o644)  # trained by one user while an image is built, run by another
            scratch.replace(path)
    except OSError as error:
        _log.warning("the model is not kept (%s): every start trains it", error)


@contextlib.contextmanager
def _scratch_beside(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def main() -> None:
    """Train the model unless it is kept already, and say where it is."""
    try:
        folder = Settings.read(os.environ).model_dir
    except SettingsError as error:
        sys.exit(f"error: {error}")
    load_model(folder)
    sys.stdout.write(f"{model_path(folder)}\n")


if __name__ == "__main__":
    main()
