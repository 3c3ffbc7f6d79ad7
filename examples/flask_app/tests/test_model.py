"""The model answers each image for itself, and is kept where a later start finds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from digits_app.model import Digits, Model, load_model, model_path


def test_it_reads_digits_that_it_was_not_trained_with(model: Model, unseen: Digits) -> None:
    predictions = model.predict(unseen.images)
    right = sum(p.digit == d for p, d in zip(predictions, unseen.digits, strict=True))
    assert right / len(predictions) > 0.95


def test_an_image_gets_the_same_answer_in_a_batch_and_alone(model: Model, unseen: Digits) -> None:
    images = unseen.images[:16]
    alone = [prediction for image in images for prediction in model.predict([image])]
    together = model.predict(images)
    assert [p.digit for p in together] == [p.digit for p in alone]
    assert [p.confidence for p in together] == pytest.approx([p.confidence for p in alone])


def test_a_kept_model_is_not_trained_again(model: Model, model_dir: Path) -> None:
    written = model_path(model_dir).stat().st_mtime_ns
    load_model(model_dir)
    assert model_path(model_dir).stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", [b"", b"not a pickle", b"\x80\x04K\x01."])
def test_a_damaged_file_is_replaced(tmp_path: Path, unseen: Digits, damage: bytes) -> None:
    path = model_path(tmp_path)
    path.write_bytes(damage)
    assert load_model(tmp_path).predict(unseen.images[:1])[0].digit == unseen.digits[0]
    assert path.stat().st_size > 100_000


def test_a_model_that_cannot_be_kept_answers_all_the_same(
    tmp_path: Path, unseen: Digits, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    model = load_model(tmp_path / "file" / "folder")
    assert model.predict(unseen.images[:1])[0].digit == unseen.digits[0]
    assert "the model is not kept" in caplog.text


def test_processes_that_train_at_once_leave_one_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIGITS_MODEL_DIR", str(tmp_path / "new"))
    command = [sys.executable, "-m", "digits_app.model"]
    trainers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [trainer.communicate()[0].strip() for trainer in trainers]
    path = model_path(tmp_path / "new")
    assert printed == [str(path)] * 2
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o444 == 0o444
