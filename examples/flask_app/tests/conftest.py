"""What the tests share: a model trained once, an environment without surprises, an application."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from digits_app import create_app
from digits_app.model import Digits, Model, load_model, unseen_digits

OURS = ("UBATCH_", "DIGITS_", "GUNICORN_", "UPSTREAM_")


@pytest.fixture(scope="session", autouse=True)
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the model in a folder of the test run, for this process and those that it starts."""
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(OURS)]:
            patch.delenv(name)
        patch.setenv("DIGITS_MODEL_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def model(model_dir: Path) -> Model:
    return load_model(model_dir)


@pytest.fixture(scope="session")
def unseen() -> Digits:
    return unseen_digits()


@pytest.fixture
def app() -> Iterator[Flask]:
    app = create_app({"TESTING": True})
    yield app
    app.extensions["digits_app"].stop(timeout=5)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()
