"""What may be set, and what is said of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from digits_app.settings import Reader, Settings, SettingsError


def test_nothing_has_to_be_set() -> None:
    settings = Settings.read({})
    assert settings.max_size == 64
    assert settings.timeout == 0.005
    assert settings.executor == "native"
    assert settings.model_dir.name == "digits_app"
    assert settings.upstream_url == "http://127.0.0.1:8001"


def test_every_setting_has_a_name_in_the_environment() -> None:
    settings = Settings.read(
        {
            "UBATCH_MAX_SIZE": "8",
            "UBATCH_TIMEOUT": "0.25",
            "UBATCH_EXECUTOR": "greenlet",
            "DIGITS_MODEL_DIR": "/models",
            "UPSTREAM_URL": "https://titles.example/v1/",
        }
    )
    assert settings == Settings(8, 0.25, "greenlet", Path("/models"), "https://titles.example/v1")


def test_an_empty_value_counts_as_not_set() -> None:
    assert Settings.read({"UBATCH_MAX_SIZE": "", "UPSTREAM_URL": " "}) == Settings.read({})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("UBATCH_MAX_SIZE", "abc", "must be a whole number from 1 to 4096, but got 'abc'"),
        ("UBATCH_MAX_SIZE", "0", "must be a whole number from 1 to 4096, but got '0'"),
        ("UBATCH_MAX_SIZE", "1.5", "must be a whole number from 1 to 4096, but got '1.5'"),
        ("UBATCH_MAX_SIZE", "9" * 5000, "must be a whole number from 1 to 4096"),
        ("UBATCH_TIMEOUT", "soon", "must be a number of seconds from 0 to 10, but got 'soon'"),
        ("UBATCH_TIMEOUT", "-1", "must be a number of seconds from 0 to 10, but got '-1'"),
        ("UBATCH_TIMEOUT", "nan", "must be a number of seconds from 0 to 10, but got 'nan'"),
        ("UBATCH_TIMEOUT", "inf", "must be a number of seconds from 0 to 10, but got 'inf'"),
        ("UBATCH_EXECUTOR", "gpu", "must be one of native, greenlet, but got 'gpu'"),
        ("UPSTREAM_URL", "titles:80", "must be an address such as http://127.0.0.1:8001"),
        ("UPSTREAM_URL", "http://", "must be an address such as http://127.0.0.1:8001"),
        ("UPSTREAM_URL", "http://x:99999", "must be an address such as http://127.0.0.1:8001"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_must_be(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.read({name: value})
    assert str(caught.value).startswith(f"{name} {message}")


@pytest.mark.parametrize(
    "value", ["127.0.0.1:8000", "0.0.0.0:80", "localhost:0", "[::1]:8000", "unix:/run/a", "fd://3"]
)
def test_gunicorn_may_be_bound_to(value: str) -> None:
    assert Reader({"BIND": value}).bind("BIND", "") == value


@pytest.mark.parametrize("value", ["8000", ":8000", "host:port", "host:70000", "fd://x", "unix:"])
def test_gunicorn_may_not_be_bound_to(value: str) -> None:
    with pytest.raises(SettingsError, match="must be HOST:PORT, unix:PATH or fd://NUMBER"):
        Reader({"BIND": value}).bind("BIND", "")
