"""`python -m digits_demo.demo`: does it pay to answer many requests with one call of the model?

Starts the title service and the application under `gunicorn -k gevent`, sends the images that the
model was not trained with from many clients at once, first one by one, then in batches, and prints
what it measured. The machine that serves also asks, so the numbers are for comparing.

Every answer is checked against the one that the model gives alone, in this process. The exit
status is 0 if each of them came and was right, 1 if not (and says so), 130 after Ctrl-C. Whatever
it started is stopped in every case.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import IO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from digits_app.model import Digits, Image, Model, Prediction, load_model, model_path, unseen_digits
from digits_app.settings import Settings, SettingsError
from digits_demo.load import Load, Reply, post_all
from digits_demo.servers import (
    Server,
    ServerError,
    Stopped,
    running_app,
    running_upstream,
    stop_on_signals,
)
from digits_demo.upstream import is_fake

CLIENTS = 64
REQUESTS = 1350  # each of the 450 unseen images three times
TITLES = 500
PROBLEMS_SHOWN = 5
LOG_TAIL = 20

T = TypeVar("T")


@dataclass(frozen=True)
class Phase:
    """One run of the load: what it measured, and what was wrong with it."""

    path: str
    load: Load
    mean_batch_size: float
    problems: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status."""
    options = _options(arguments)
    console = Console()
    stop_on_signals()
    try:
        return _demo(console, options.requests, options.clients)
    except Stopped:
        console.print("Stopped; nothing is left running.")
        raise
    except (ServerError, SettingsError) as error:
        console.print(f"FAILED: {error}", style="bold red", markup=False)
        return 1


def wrong_predictions(replies: Sequence[Reply], expected: Sequence[Prediction]) -> list[str]:
    """Say of each reply that is not the expected prediction what it should have been."""
    problems = []
    for number, (reply, alone) in enumerate(zip(replies, expected, strict=True)):
        if not _is_prediction(reply, alone):
            problems.append(
                f"image {number}: must be {alone.digit} ({alone.confidence:.3f}), "
                f"but got {_said(reply)}"
            )
    return problems


def wrong_titles(replies: Sequence[Reply], titles: Sequence[str]) -> list[str]:
    """Say of each reply that is not the title's prediction what it should have been."""
    return [
        f"title {title!r}: must be {is_fake(title)}, but got {_said(reply)}"
        for reply, title in zip(replies, titles, strict=True)
        if reply.status != 200 or reply.answer != {"prediction": is_fake(title)}
    ]


# ----------------------------------------------------------------------------------------------


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m digits_demo.demo", description="The demo.")
    parser.add_argument(
        "--requests", type=_positive, default=REQUESTS, help="in each phase (%(default)s)"
    )
    parser.add_argument("--clients", type=_positive, default=CLIENTS, help="at once (%(default)s)")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= 100_000:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 100000, but got {text!r}")


def _demo(console: Console, requests: int, clients: int) -> int:
    folder = Settings.read(os.environ).model_dir
    kept = model_path(folder).exists()
    console.print("Loading the model." if kept else "Training the model, this once.")
    model = load_model(folder)
    unseen = unseen_digits()
    expected = _alone(console, model, unseen.images[:requests])
    with tempfile.TemporaryFile() as log:
        try:
            phases = _measure(console, log, unseen, expected, requests, clients)
        except ServerError:
            _print_tail(console, log)
            raise
        if any(phase.problems for phase in phases):
            _print_tail(console, log)
    return _report(console, phases, unseen)


def _alone(console: Console, model: Model, images: Sequence[Image]) -> list[Prediction]:
    """What the model answers to each image when nothing else is asked."""
    with _progress(console, "the model alone", len(images)) as advance:
        expected = []
        for image in images:
            expected += model.predict([image])
            advance()
    return expected


def _measure(
    console: Console,
    log: IO[bytes],
    unseen: Digits,
    expected: Sequence[Prediction],
    requests: int,
    clients: int,
) -> list[Phase]:
    with running_upstream(log=log) as upstream, running_app(upstream.url, log=log) as app:
        console.print(f"The application listens at {app.url}, {clients} clients ask at once.")
        post = partial(_phase, console, app, clients)
        images = [{"pixels": image} for image in _repeated(unseen.images, requests)]
        answers = _repeated(expected, requests)
        titles = _titles(TITLES)
        return [
            post("/predict-unbatched", images, lambda got: wrong_predictions(got, answers)),
            post("/predict", images, lambda got: wrong_predictions(got, answers)),
            post("/title", [{"title": t} for t in titles], lambda got: wrong_titles(got, titles)),
        ]


def _phase(
    console: Console,
    app: Server,
    clients: int,
    path: str,
    bodies: Sequence[object],
    problems: Callable[[Sequence[Reply]], list[str]],
) -> Phase:
    before = _handler_stats(app, path)
    with _progress(console, f"POST {path}", len(bodies)) as advance:
        load = post_all(app.port, path, bodies, clients=clients, on_reply=advance)
    after = _handler_stats(app, path)
    calls = after["calls"] - before["calls"]
    items = after["items"] - before["items"]
    return Phase(path, load, items / calls if calls else 0.0, problems(load.replies))


def _handler_stats(app: Server, path: str) -> dict[str, float]:
    counts: dict[str, float] = app.get_json("/stats")[path.strip("/").replace("-", "_")]
    return counts


def _report(console: Console, phases: Sequence[Phase], unseen: Digits) -> int:
    """Print the table and the verdict; return the exit status."""
    unbatched, batched, titles = phases
    digits = _repeated(unseen.digits, len(batched.load.replies))
    table = Table(title="one by one, and in batches")
    table.add_column("POST", no_wrap=True)
    for column in ("req/s", "p50", "p99", "mean batch", "accuracy", "ratio"):
        table.add_column(column, justify="right")
    for phase in (unbatched, batched):
        table.add_row(*_row(phase, unbatched, digits))
    console.print(table)
    console.print(
        f"/title: {len(titles.load.replies)} titles, {titles.mean_batch_size:.1f} "
        "in each call of the title service on average."
    )
    return _verdict(console, phases)


def _row(phase: Phase, unbatched: Phase, digits: Sequence[int]) -> list[str]:
    rate, base = phase.load.rate, unbatched.load.rate
    return [
        phase.path,
        f"{rate:,.0f}",
        f"{phase.load.latency(50) * 1000:,.0f} ms",
        f"{phase.load.latency(99) * 1000:,.0f} ms",
        f"{phase.mean_batch_size:.1f}",
        f"{_accuracy(phase.load.replies, digits):.1%}",
        f"{rate / base:.1f}" if base else "-",
    ]


def _verdict(console: Console, phases: Sequence[Phase]) -> int:
    total = sum(len(phase.load.replies) for phase in phases)
    problems = [f"{phase.path}: {problem}" for phase in phases for problem in phase.problems]
    if not problems:
        console.print(f"All {total:,} answers came, and each is the one that it must be.")
        return 0
    for problem in problems[:PROBLEMS_SHOWN]:
        console.print(problem, markup=False, highlight=False)
    console.print(
        f"FAILED: {len(problems):,} of {total:,} answers are wrong or missing.", style="bold red"
    )
    return 1


def _is_prediction(reply: Reply, alone: Prediction) -> bool:
    if reply.status != 200 or not isinstance(reply.answer, dict):
        return False
    digit, confidence = reply.answer.get("digit"), reply.answer.get("confidence")
    # The trees' votes are added up as floats: their last digits may differ, the digit may not.
    return (
        digit == alone.digit
        and isinstance(confidence, float)
        and math.isclose(confidence, alone.confidence, abs_tol=1e-6)
    )


def _said(reply: Reply) -> str:
    return f"{reply.status} {reply.answer}" if reply.status else f"no answer: {reply.answer}"


def _accuracy(replies: Sequence[Reply], digits: Sequence[int]) -> float:
    """The share of the images whose digit was found; one without an answer was not."""
    right = [
        digit
        for reply, digit in zip(replies, digits, strict=True)
        if isinstance(reply.answer, dict) and reply.answer.get("digit") == digit
    ]
    return len(right) / len(digits)


def _repeated(values: Sequence[T], count: int) -> list[T]:
    return list(islice(cycle(values), count))


def _titles(count: int) -> list[str]:
    return [f"Title {n}: buy now!" if n % 3 == 0 else f"Title {n}" for n in range(count)]


@contextmanager
def _progress(console: Console, title: str, total: int) -> Iterator[Callable[[], object]]:
    """A progress bar to advance; in a file or a pipe a line is all there is to see."""
    if not console.is_terminal:
        console.print(f"{title}: {total:,}", highlight=False)
        yield lambda: None
        return
    columns = TextColumn("{task.description:<23}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


def _print_tail(console: Console, log: IO[bytes]) -> None:
    """What the servers said last."""
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()[-LOG_TAIL:]
    console.print("\n".join(lines), markup=False, highlight=False, style="dim")


if __name__ == "__main__":
    sys.exit(main())
