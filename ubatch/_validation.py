"""Checks of options. Each says what must be and what was got, and returns the value in its plain type."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from numbers import Integral, Real
from typing import Any


def count(name: str, value: int, least: int = 1) -> int:
    """An int of at least `least`."""
    message = f"{name} must be an int of at least {least}; got {value!r}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(message)
    if value < least:
        raise ValueError(message)
    return int(value)


def seconds(name: str, value: float) -> float:
    """A finite number of seconds, at least 0."""
    message = f"{name} must be a number of seconds, at least 0; got {value!r}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(message)
    if not 0 <= value < inf:
        raise ValueError(message)
    return float(value)


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """One of a few words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
    return value


def flag(name: str, value: bool) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return value


def function(name: str, value: Callable[..., Any]) -> Callable[..., Any]:
    """Something that can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable; got {value!r}")
    return value
