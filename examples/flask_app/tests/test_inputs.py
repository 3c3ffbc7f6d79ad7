"""Which bodies are accepted, and what is said of the others."""

from __future__ import annotations

import json

import pytest

from digits_app.inputs import InvalidInput, image_from, title_from

GOOD = [0, 16, 0.5, *[1] * 61]


def with_pixel(value: str) -> bytes:
    return b'{"pixels": [%s]}' % ", ".join([value, *["1"] * 63]).encode()


def test_an_image_is_64_numbers() -> None:
    assert image_from(json.dumps({"pixels": GOOD}).encode()) == GOOD


def test_what_else_an_object_holds_is_ignored() -> None:
    assert image_from(json.dumps({"pixels": GOOD, "more": None}).encode()) == GOOD


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "but got an empty body"),
        (b"pixels=1", "but got something else"),
        (b"\xff\xfe", "but got something else"),
        (b"[" * 16_000, "but got something else"),
        (b"[1, 2]", "but got a list"),
        (b"null", "but got null"),
        (b"{}", "but got an object without it"),
        (b'{"pixels": "1"}', '"pixels" must be a list of 64 numbers, but got a text'),
        (b'{"pixels": []}', '"pixels" must be a list of 64 numbers, but got 0'),
        (json.dumps({"pixels": GOOD[1:]}).encode(), "a list of 64 numbers, but got 63"),
        (json.dumps({"pixels": [*GOOD, 1]}).encode(), "a list of 64 numbers, but got 65"),
        (with_pixel("NaN"), "every number must be finite, but got NaN"),
        (with_pixel("-Infinity"), "every number must be finite, but got -Infinity"),
        (with_pixel("1e999"), "numbers from 0 to 16, but number 0 is far beyond"),
        (with_pixel("1" + "0" * 400), "numbers from 0 to 16, but number 0 is far beyond"),
        (with_pixel("1" + "0" * 5000), "but got something else"),
        (with_pixel("16.01"), "numbers from 0 to 16, but number 0 is 16.01"),
        (with_pixel("-1"), "numbers from 0 to 16, but number 0 is -1"),
        (with_pixel("true"), "numbers from 0 to 16, but number 0 is true or false"),
        (with_pixel("null"), "numbers from 0 to 16, but number 0 is null"),
        (with_pixel('"1"'), "numbers from 0 to 16, but number 0 is a text"),
        (with_pixel("[1]"), "numbers from 0 to 16, but number 0 is a list"),
    ],
)
def test_anything_but_an_image_is_refused_and_the_message_says_what_must_be(
    body: bytes, message: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        image_from(body)
    assert message in str(caught.value)


def test_a_title_is_a_text() -> None:
    assert title_from(b'{"title": "Ein Titel"}') == "Ein Titel"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", 'a JSON object with "title", a text, but got an empty body'),
        (b'{"title": 1}', '"title" must be a text, but got a number'),
        (b'{"title": null}', '"title" must be a text, but got null'),
        (b'{"title": "  "}', "from 1 to 200 characters, not all of them blank, but got 2"),
        (json.dumps({"title": "x" * 201}).encode(), "from 1 to 200 characters"),
    ],
)
def test_anything_but_a_title_is_refused_and_the_message_says_what_must_be(
    body: bytes, message: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        title_from(body)
    assert message in str(caught.value)
