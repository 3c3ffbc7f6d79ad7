"""What the endpoints accept, checked by hand: a batch is shared, so nothing odd may enter it.

Pure functions from a request's body to what a handler takes. `InvalidInput` says what must be and
what was got.
"""

from __future__ import annotations

import json
from typing import NoReturn

from digits_app.model import BRIGHTEST, PIXELS, Image

LONGEST_TITLE = 200


class InvalidInput(ValueError):
    """The body is not what the endpoint takes; the message is for the caller."""


def image_from(body: bytes) -> Image:
    """The image in `{"pixels": [...]}`."""
    pixels = _member(body, "pixels", f"a list of {PIXELS} numbers")
    if not isinstance(pixels, list):
        raise InvalidInput(f'"pixels" must be a list of {PIXELS} numbers, but got {_kind(pixels)}')
    if len(pixels) != PIXELS:
        raise InvalidInput(f'"pixels" must be a list of {PIXELS} numbers, but got {len(pixels)}')
    return [_brightness(position, value) for position, value in enumerate(pixels)]


def title_from(body: bytes) -> str:
    """The title in `{"title": "..."}`."""
    title = _member(body, "title", "a text")
    if not isinstance(title, str):
        raise InvalidInput(f'"title" must be a text, but got {_kind(title)}')
    if not title.strip() or len(title) > LONGEST_TITLE:
        raise InvalidInput(
            f'"title" must have from 1 to {LONGEST_TITLE} characters, not all of them blank, '
            f"but got {len(title)}"
        )
    return title


# ----------------------------------------------------------------------------------------------


def _member(body: bytes, name: str, what: str) -> object:
    document = _json(body, name, what)
    if not isinstance(document, dict) or name not in document:
        got = "an object without it" if isinstance(document, dict) else _kind(document)
        raise InvalidInput(f'the body must be a JSON object with "{name}", {what}, but got {got}')
    return document[name]


def _json(body: bytes, name: str, what: str) -> object:
    try:
        return json.loads(body, parse_constant=_not_a_number)
    except InvalidInput:
        raise
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or brackets too deep to follow
        got = "something else" if body.strip() else "an empty body"
        raise InvalidInput(
            f'the body must be a JSON object with "{name}", {what}, but got {got}'
        ) from None


def _not_a_number(name: str) -> NoReturn:
    # Python's reader accepts NaN and Infinity, which JSON does not know.
    raise InvalidInput(f"every number must be finite, but got {name}")


def _brightness(position: int, value: object) -> float:
    # bool is an int to Python, not to the caller. 1e999 reads as infinity and fails the range.
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if 0 <= value <= BRIGHTEST:
            return float(value)
        got = f"{value:.6g}" if abs(value) < 1e300 else "far beyond"
    else:
        got = _kind(value)
    raise InvalidInput(
        f'"pixels" must be numbers from 0 to {BRIGHTEST}, but number {position} is {got}'
    )


def _kind(value: object) -> str:
    """What JSON calls `value`, without repeating what may be long."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return kinds.get(type(value), "null" if value is None else "a number")
