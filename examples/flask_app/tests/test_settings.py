"""What may be set, and what is said of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from digits_app.settings import Reader, Settings, SettingsError


def test_nothing_has_to_be_set() -> None:
    settings = Settings.read({})
    assert settings.max_size == 64
    assert settings.timeout == 0.02
    assert settings.eager
    assert settings.executor == "auto"
    assert settings.max_queue == 1024
    assert settings.deadline == 5.0
    assert settings.model_dir.name == "digits_app"
    assert settings.upstream_url == "http://127.0.0.1:8001"


def test_every_setting_has_a_name_in_the_environment() -> None:
    settings = Settings.read(
        {
            "UBATCH_MAX_SIZE": "8",
            "UBATCH_TIMEOUT": "0.25",
            "UBATCH_EAGER": "0",
            "UBATCH_EXECUTOR": "greenlet",
            "UBATCH_MAX_QUEUE": "100",
            "UBATCH_DEADLINE": "1.5",
            "DIGITS_MODEL_DIR": "/models",
            "UPSTREAM_URL": "https://titles.example/v1/",
        }
    )
    assert settings == Settings(
        max_size=8,
        timeout=0.25,
        eager=False,
        executor="greenlet",
        max_queue=100,
        deadline=1.5,
        model_dir=Path("/models"),
        upstream_url="https://titles.example/v1",
    )


def test_the_queue_holds_a_whole_batch() -> None:
    assert Settings.read({"UBATCH_MAX_SIZE": "2000"}).max_queue == 2000
    with pytest.raises(SettingsError, match="UBATCH_MAX_QUEUE must be a whole number from 32 to"):
        Settings.read({"UBATCH_MAX_SIZE": "32", "UBATCH_MAX_QUEUE": "31"})


def test_an_image_waits_for_company_less_than_it_may_take() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.read({"UBATCH_TIMEOUT": "2", "UBATCH_DEADLINE": "2"})
    assert str(caught.value) == "UBATCH_TIMEOUT must be less than UBATCH_DEADLINE, 2, but got '2'"


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
        ("UBATCH_DEADLINE", "0", "must be a number of seconds from 0.01 to 60, but got '0'"),
        ("UBATCH_MAX_QUEUE", "none", "must be a whole number from 64 to 1000000, but got 'none'"),
        ("UBATCH_EXECUTOR", "gpu", "must be one of auto, native, greenlet, but got 'gpu'"),
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


@pytest.mark.parametrize(("value", "meaning"), [("0", False), ("1", True), ("", True)])
def test_a_switch_is_0_or_1(value: str, meaning: bool) -> None:
    assert Reader({"PRELOAD": value}).yes("PRELOAD", True) is meaning


def test_a_switch_is_nothing_else() -> None:
    with pytest.raises(SettingsError, match="PRELOAD must be one of 0, 1, but got 'no'"):
        Reader({"PRELOAD": "no"}).yes("PRELOAD", True)
