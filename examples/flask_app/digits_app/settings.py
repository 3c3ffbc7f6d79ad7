"""What may be set from outside, checked once and before anything starts.

Every value is read, checked and converted here. A wrong one raises `SettingsError`, one line that
says what must be and what was got. An empty value counts as not set, as in a compose file's
`UBATCH_MAX_SIZE=${UBATCH_MAX_SIZE}`.

`gunicorn.conf.py` reads the application's settings too, although it does not need them: there a
mistake ends the master before it has a worker. Found by a worker it would be found again and again.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


class SettingsError(ValueError):
    """A setting is not what it must be; the message is one line for the person who set it."""


@dataclass(frozen=True)
class Settings:
    """What the application needs to know."""

    max_size: int
    timeout: float
    eager: bool
    executor: str
    max_queue: int
    deadline: float
    model_dir: Path
    upstream_url: str

    @classmethod
    def read(cls, values: Mapping[str, object]) -> Settings:
        """Check `values`, by the names of the environment variables. Raises `SettingsError`."""
        reader = Reader(values)
        max_size = reader.whole("UBATCH_MAX_SIZE", 64, least=1, most=4096)
        return cls(
            max_size=max_size,
            timeout=reader.seconds("UBATCH_TIMEOUT", 0.02, most=10.0),
            eager=reader.yes("UBATCH_EAGER", True),
            executor=reader.choice("UBATCH_EXECUTOR", "auto", among=("auto", "native", "greenlet")),
            max_queue=reader.whole(
                "UBATCH_MAX_QUEUE", max(1024, max_size), least=max_size, most=1_000_000
            ),
            deadline=reader.seconds("UBATCH_DEADLINE", 5.0, least=0.01, most=60.0),
            model_dir=reader.folder("DIGITS_MODEL_DIR", _cache_dir),
            upstream_url=reader.url("UPSTREAM_URL", "http://127.0.0.1:8001"),
        )

    def __post_init__(self) -> None:
        if self.timeout >= self.deadline:  # an image without company would never be answered
            raise SettingsError(
                f"UBATCH_TIMEOUT must be less than UBATCH_DEADLINE, {self.deadline:g}, "
                f"but got '{self.timeout:g}'"
            )


class Reader:
    """Reads values by name out of a mapping (`os.environ`, say), one method for each kind."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    def whole(self, name: str, default: int, *, least: int, most: int) -> int:
        text = self._text(name, str(default))
        if re.fullmatch(r"[0-9]{1,9}", text) and least <= int(text) <= most:
            return int(text)
        raise _must_be(name, f"a whole number from {least} to {most}", text)

    def seconds(self, name: str, default: float, *, least: float = 0.0, most: float) -> float:
        text = self._text(name, str(default))
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if least <= value <= most:  # never true for NaN
            return value
        raise _must_be(name, f"a number of seconds from {least:g} to {most:g}", text)

    def yes(self, name: str, default: bool) -> bool:
        return self.choice(name, "01"[default], among=("0", "1")) == "1"

    def choice(self, name: str, default: str, *, among: tuple[str, ...]) -> str:
        text = self._text(name, default)
        if text in among:
            return text
        raise _must_be(name, "one of " + ", ".join(among), text)

    def url(self, name: str, default: str) -> str:
        text = self._text(name, default)
        if re.fullmatch(r"https?://[^\s/]+(/\S*)?", text) and _has_host(text):
            return text.rstrip("/")
        raise _must_be(name, "an address such as http://127.0.0.1:8001", text)

    def bind(self, name: str, default: str) -> str:
        """What gunicorn takes as an address."""
        text = self._text(name, default)
        if re.fullmatch(r"unix:.+|fd://[0-9]+", text):
            return text
        if re.fullmatch(r"[^\s/,:]+:[0-9]+|\[[0-9a-fA-F:.]+\]:[0-9]+", text) and _has_host(
            f"http://{text}"
        ):
            return text
        raise _must_be(name, "HOST:PORT, unix:PATH or fd://NUMBER", text)

    def folder(self, name: str, default: Callable[[], Path]) -> Path:
        text = self._text(name, "")
        return Path(text) if text else default()

    def writable_folder(self, name: str) -> None:
        """Check a folder that somebody else reads out of the environment."""
        text = self._text(name, "")
        if text and not (Path(text).is_dir() and os.access(text, os.W_OK)):
            raise _must_be(name, "a folder that is there and may be written to", text)

    def _text(self, name: str, default: str) -> str:
        return str(self._values.get(name, "")).strip() or default


# ----------------------------------------------------------------------------------------------


def _must_be(name: str, what: str, got: str) -> SettingsError:
    return SettingsError(f"{name} must be {what}, but got {got!r}")


def _has_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != -1  # .port raises above 65535
    except ValueError:
        return False


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "digits_app"
    except RuntimeError:  # a user without a home folder, as in a container
        raise SettingsError("DIGITS_MODEL_DIR must be set: this user has no home folder") from None
