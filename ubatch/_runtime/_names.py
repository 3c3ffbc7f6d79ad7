"""What people call a handler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


def unwrapped(handler: Any) -> Any:
    """The function that a partial object calls in the end."""
    while isinstance(handler, partial):
        handler = handler.func
    return handler


def handler_name(handler: Callable[..., Any]) -> str:
    """What people call this handler: its function's name, through partials, or its class's."""
    handler = unwrapped(handler)
    return str(getattr(handler, "__name__", type(handler).__name__))
