"""The client of the title service: many small posts, joined into one call.

The service takes `{"predict": ["title", ...]}` and answers `{"predictions": [true, ...]}`. A call
costs a round trip whatever it carries, so the titles that arrive together travel together.

The handler waits for the network and computes nothing. It is cooperative (gevent's sockets), so
it runs as a greenlet: `executor="greenlet"` saves the way to a native thread and back.
"""

from __future__ import annotations

import logging

from ubatch import UBatch, ubatch_decorator

from digits_app import tracing
from digits_app.metrics import instrument

CONNECT_LIMIT = 2.0
ANSWER_LIMIT = 5.0

_log = logging.getLogger(__name__)


class UpstreamError(Exception):
    """The title service gave no answer, or not the answer that it promises."""


class TitleChecker:
    """Asks the title service at `url` which titles are fake."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/predict"

    def is_fake(self, title: str) -> bool:
        """Whether `title` is fake; waits for a batch and its answer.

        Raises `UpstreamError` if the service is away, too slow, or answers something else.
        """
        return self._are_fake.ubatch(title)

    @property
    def batcher(self) -> UBatch[str, bool]:
        """The batcher of this instance."""
        return self._are_fake.batcher

    @ubatch_decorator(
        max_size=100,
        timeout=0.01,
        eager=True,
        executor="greenlet",
        name="titles",
        instruments=[instrument, *tracing.instruments()],
    )
    def _are_fake(self, titles: list[str]) -> list[bool]:
        try:
            return _ask(self._url, titles)
        except UpstreamError as error:
            # Once here, instead of once for every caller; the cause names hosts, so it stays here.
            _log.warning("%s: %s", error, error.__cause__)
            raise


# ----------------------------------------------------------------------------------------------


def _ask(url: str, titles: list[str]) -> list[bool]:
    # Imported at the first call and so in the worker, after gevent has patched `ssl`. Imported in
    # the master (--preload), urllib3 would hold on to the unpatched SSLContext for good.
    import requests

    try:
        response = requests.post(
            url, json={"predict": titles}, timeout=(CONNECT_LIMIT, ANSWER_LIMIT)
        )
        response.raise_for_status()
        answer = response.json()
    except requests.RequestException as error:
        raise UpstreamError("the title service gave no answer") from error
    return _predictions(answer, len(titles))


def _predictions(answer: object, expected: int) -> list[bool]:
    predictions = answer.get("predictions") if isinstance(answer, dict) else None
    if not isinstance(predictions, list) or not all(isinstance(p, bool) for p in predictions):
        raise UpstreamError("the title service must answer a list of true and false")
    if len(predictions) != expected:
        raise UpstreamError(
            f"the title service must answer {expected} titles, but answered {len(predictions)}"
        )
    return predictions
