"""Asks the application beside it for hundreds of predictions at once, and again while it is stopped in the middle.

Runs in a container of the image itself, in the application's network: `docker/verify` starts it. It prints a line for
each thing that holds, and "stop now" when it wants the application to be stopped. The exit status is 1 if an answer is
wrong or missing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from http.client import HTTPConnection
from itertools import count, islice
from pathlib import Path

from digits_app.model import load_model, unseen_digits
from digits_demo.demo import wrong_predictions, wrong_titles
from digits_demo.load import Reply, post_all, post_until_refused

PORT = 8000
CLIENTS = 300
REQUESTS = 1800  # each of the 450 images four times
TITLES = 600


def main() -> None:
    images = unseen_digits().images
    alone = load_model(Path(os.environ["DIGITS_MODEL_DIR"])).predict(images)
    bodies = [{"pixels": image} for image in images]
    times = REQUESTS // len(images)

    load = post_all(PORT, "/predict", bodies * times, clients=CLIENTS)
    check(wrong_predictions(load.replies, alone * times))
    say(f"ok: {len(load.replies)} predictions for {CLIENTS} clients at once, each the one that the model gives alone")

    titles = [f"Title {n}{'!' * (n % 2)}" for n in range(TITLES)]
    check(wrong_titles(post_all(PORT, "/title", [{"title": t} for t in titles], clients=CLIENTS).replies, titles))
    say(f"ok: {TITLES} titles, each checked by the title service")

    batches = workers()
    say("ok: two workers, batches of " + " and ".join(batches) + " predictions on average")

    asked = under_a_stop(bodies)
    check(wrong_predictions([reply for _, reply in asked], [alone[n] for n, _ in asked]))
    say(f"ok: {len(asked)} predictions around a stop, none wrong, none lost; then every client was refused")


def under_a_stop(bodies: Sequence[object]) -> list[tuple[int, Reply]]:
    """All that could connect before the application was gone, of clients that never stop asking."""
    replied = count(1)

    def stop_in_the_middle() -> None:
        if next(replied) == 2 * CLIENTS:
            say("stop now")

    return post_until_refused(PORT, "/predict", bodies, clients=CLIENTS, on_reply=stop_in_the_middle)


def workers() -> list[str]:
    """The mean batch size of each of the two workers."""
    sizes = {}
    for _ in islice(count(), 200):
        connection = HTTPConnection("127.0.0.1", PORT, timeout=10)
        connection.request("GET", "/stats")
        stats = json.loads(connection.getresponse().read())
        connection.close()
        sizes[stats["pid"]] = str(stats["predict"]["mean_batch_size"])
        if len(sizes) == 2:
            return list(sizes.values())
    sys.exit("FAIL: only one worker answers")


def check(problems: list[str]) -> None:
    if problems:
        sys.exit("\n".join([*problems[:5], f"FAIL: {len(problems)} answers are wrong or missing"]))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
