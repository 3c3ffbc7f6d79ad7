"""Alone and in company: what does batching do for a web server, from one client to 256?

    python -m benchmarks.company                     # twenty minutes
    python -m benchmarks.company --quick             # a minute: 1 and 64 connections, one round, without the peers
    python -m benchmarks.company --models light --connections 1 64 --variants unbatched "eager, greenlet"

The server is `gunicorn -k gevent` with one worker and a Flask application, the load is wrk: so many connections, each
with one request at a time and the next as soon as the answer is there. A request has no body; the application takes
one image after the other, and checks the model's answer. Each variant has a server of its own, which is halted (not
ended) while another is measured; the variants take turns in each round, after a tenth of a second to warm up. wrk has
one core, in turns each, and a worker with one thread the other. Linux.

* heavy: the example's forest. light: about 0.3 ms for one image, a small network in numpy. What each takes for 1, 8 and
  64 images is measured first, in a process without a server.
* no model: Flask alone, which knows the answers. unbatched: a call of the model for each request.
* fixed: uBatch that waits so long for a full batch of 64. eager: that sends what is there when nobody else can come,
  and waits 20 ms at most. The fixed ones have the greenlet executor, which is the better one for both models: they
  compute in Python and numpy on one core, and a native thread would only compete with the hub for the GIL.
* uBatch 1.0.0, and service-streamer 0.1.2 (`ThreadedStreamer`, 5 ms), in environments of their own with the same
  Flask, gunicorn, numpy and scikit-learn.

Requests per second, and p50 and p99 as wrk tells them, in ms (of a request that is not answered by the end nothing is
told); the mean batch by the application's own count; and microseconds of the worker's processor time per request, all
its threads together. Medians of the rounds; all values are in the result.

The targets, of uBatch with eager=True and the better executor for that model: with 1 connection at least 0.95 x
unbatched; from 8 connections on at least the best of all others, but "no model", at each point; with the heavy model at
64 connections at least 0.9 x Flask alone (full batches without Flask come to about as much). For each there is a duel:
the two take turns of some tenths of a second, ours between two of the other's, until it is clear. Its figure is the
median of the ratios, with the 95 % confidence interval of the median; it is "even" where it is at least 0.97 and the
interval has the target in it. Exits with 1 where one is missed, or the result is refused. wrk and the servers belong to
this benchmark: others are looked for only while these are halted.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks._company_app import MAX_SIZE, MODELS, VARIANTS
from benchmarks._peers import FOLDER, PEERS, Missing, environment
from benchmarks._report import COLOURS, CORES, Report, Spread, interval, number, parser, spread, tells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

APPLICATION = Path(__file__).with_name("_company_app.py")
KEPT = FOLDER / "model"
CONNECTIONS = (1, 2, 8, 32, 64, 256)
COMPANY = 8  # connections, from which on eager has to be the best
WARM = 0.1  # seconds
START = 60.0  # seconds until a server answers, at most
DRAIN = 20.0  # seconds until it has answered what wrk has left behind, at most
STOP = 5.0  # seconds for wrk and for a server to end, at most
EVEN = 0.97
MORE = 6  # times as many duels, at most, where they do not tell
TOLD = {"requests": "requests per second", "p50": "p50, ms", "p99": "p99, ms", "batch": "mean batch",
        "cpu": "microseconds of processor time per request"}  # fmt: skip
PEERS_NEED = ("flask", "gunicorn[gevent]", "numpy", "scikit-learn")

Cell = tuple[str, int]  # a variant, and how many connections


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and return the exit status."""
    options = _options(arguments)
    if missing := _missing():
        print(f"Skipped: {missing}")
        return 0
    report = Report("company", __doc__, options, by_turns=True)
    data: dict[str, Any] = {"models": {}, "targets": []}
    for model in options.models:
        figures = measure(report, model, options)
        data["models"][model] = figures.data()
        _print_model(report, figures, options)
        data["targets"] += judged(figures)
    headings = ["model", "connections", "target", "at least", "measured", ""]
    rows = [[*(row[heading] for heading in headings[:4]), Spread(*row["measured"]), row["verdict"]]
            for row in data["targets"]]  # fmt: skip
    report.table(headings, rows)
    missed = any(row["verdict"] in ("MISSED", "not measured") for row in data["targets"])
    return report.save(data, plot) or int(missed and not options.quick)


class Failed(Exception):
    """A variant cannot be measured, or not at this point."""


class Figures:
    """What was measured of one model: by variant and connections, then by round; what failed, and why."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.alone: dict[int, float] = {}  # ms that the model takes without a server, by images
        self.failed: dict[Cell, str] = {}
        self.of: dict[Cell, dict[int, dict[str, float]]] = defaultdict(dict)
        self.duels: dict[Target, list[float]] = {}

    def values(self, cell: Cell, what: str = "requests") -> list[float]:
        """Of all rounds. None where one failed."""
        return [] if cell in self.failed else [figures[what] for figures in self.of.get(cell, {}).values()]

    def median(self, cell: Cell, what: str = "requests") -> float:
        """NaN where there is none."""
        values = self.values(cell, what)
        return statistics.median(values) if values else math.nan

    def data(self) -> dict[str, Any]:
        """For the result."""
        return {
            "milliseconds, by images": self.alone,
            "rows": [
                {
                    "variant": cell[0],
                    "connections": cell[1],
                    **{what: self.values(cell, what) for what in TOLD},
                    **({"failed": self.failed[cell]} if cell in self.failed else {}),
                }
                for cell in sorted({*self.of, *self.failed}, key=lambda cell: (list(VARIANTS).index(cell[0]), cell[1]))
            ],
        }


class Target(NamedTuple):
    """That at so many connections one variant answers at least this part of what another does."""

    connections: int
    ours: str
    other: str
    words: str
    least: float


def measure(report: Report, model: str, options: argparse.Namespace) -> Figures:
    """All variants with all numbers of connections, in rounds, every other round backwards; then the duels."""
    figures = Figures(model)
    figures.alone = _alone(model)
    with _servers(figures, options) as servers:
        report.look()
        for n in range(options.rounds):
            for connections in options.connections:
                for server in servers[:: -1 if n % 2 else 1]:
                    _measure(figures, server, connections, options.seconds, n)
            report.look()
        by_variant = {server.variant: server for server in servers}
        for target in targets(figures, options.connections):
            ours, other = by_variant[target.ours], by_variant[target.other]
            figures.duels[target] = _duel(ours, other, target, options)
            words = f"{model}, {target.connections} connections: {target.words}"
            report.precise(words, figures.duels[target], target.least)
        report.look()
    return figures


def targets(figures: Figures, measured: Sequence[int]) -> list[Target]:
    """Those whose figures there are."""
    rows: list[Target] = []
    eager = _better(figures, measured)
    if eager is None:
        return []
    others = [variant for variant in VARIANTS if variant != "no model" and not variant.startswith("eager")]
    for connections in measured:
        if connections == 1 and figures.values(("unbatched", 1)):
            rows.append(Target(1, eager, "unbatched", f"{eager}, to unbatched", 0.95))
        there = [variant for variant in others if figures.values((variant, connections))]
        if connections >= COMPANY and there:
            best = max(there, key=lambda variant: figures.median((variant, connections)))
            rows.append(Target(connections, eager, best, f"{eager}, to the best other ({best})", 1.0))
        if connections == MAX_SIZE and figures.model == "heavy" and figures.values(("no model", MAX_SIZE)):
            rows.append(Target(MAX_SIZE, eager, "no model", f"{eager}, to Flask alone", 0.9))
    return rows


def judged(figures: Figures) -> list[dict[str, Any]]:
    """A row for each target."""
    rows = []
    for target, ratios in figures.duels.items():
        ratio = interval(ratios) if ratios else Spread(math.nan, math.nan, math.nan)
        even = ratio.median >= EVEN * target.least and ratio.high >= target.least
        verdict = "met" if ratio.median >= target.least else "even" if even else "MISSED" if ratios else "not measured"
        rows.append({"model": figures.model, "connections": target.connections, "target": target.words,
                     "at least": target.least, "measured": ratio, "verdict": verdict, "ratios": ratios})  # fmt: skip
    return rows


def plot(figure: Figure, data: dict[str, Any]) -> None:
    """The median requests per second by connections, and their range, of each model."""
    models = data["models"]
    panels: Any = figure.subplots(1, len(models), squeeze=False, sharey=True)
    for axes, (model, of_model) in zip(panels[0], models.items(), strict=True):
        for variant in VARIANTS:
            rows = [row for row in of_model["rows"] if row["variant"] == variant and row["requests"]]
            if not rows:
                continue
            x = [row["connections"] for row in rows]
            middle, low, high = zip(*(spread(row["requests"]) for row in rows), strict=True)
            colour, style = _look(variant)
            axes.plot(x, middle, style, color=colour, marker=".", label=variant)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        ticks = sorted({row["connections"] for row in of_model["rows"]})
        axes.set(title=f"{model}: {of_model['milliseconds, by images'][1]:.2g} ms for one image",
                 xlabel="connections", xscale="log", yscale="log")  # fmt: skip
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.xaxis.minorticks_off()
    panels[0][0].set_ylabel("requests per second")
    if panels[0][-1].lines:
        panels[0][-1].legend(fontsize=7)


# ---------------------------------------------------------------------------------------------------------------------


class _Server:
    """gunicorn with one variant, in a process group of its own, halted but where it is measured."""

    def __init__(self, model: str, variant: str) -> None:
        self.variant = variant
        peer = next((peer for peer in PEERS if variant.startswith(peer)), None)
        python = environment(peer, *_same_versions()) if peer else sys.executable
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it is closed with the server
        with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
            self._port = listener.getsockname()[1]
            self._process = subprocess.Popen(
                [python, "-I", APPLICATION, "serve", model, variant, KEPT, str(listener.fileno())],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> _Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP)
        self._signal(signal.SIGKILL)  # the worker too, whatever has become of gunicorn
        self._process.wait()
        self._log.close()

    def wait_until_it_serves(self) -> None:
        """And halt it."""
        self._counts(START)
        self._signal(signal.SIGSTOP)

    def measure(self, connections: int, seconds: float, core: int) -> dict[str, float]:
        """Let it run, load it, and halt it. wrk is on this core; the worker on another, if it has one thread only."""
        self._signal(signal.SIGCONT)
        try:
            before = self._at_rest()
            if not self.variant.endswith("native"):
                os.sched_setaffinity(int(before["worker"]), set(CORES) - {core} or {core})
            _wrk(self._port, connections, WARM, core)
            before = self._at_rest()
            measured = told(_wrk(self._port, connections, seconds, core))
            after = self._at_rest()
        finally:
            self._signal(signal.SIGSTOP)
        done = {what: after[what] - before[what] for what in after}
        if not done["requests"]:
            raise Failed("no request was answered")
        batch = done["images"] / done["calls"] if done["calls"] else math.nan
        return {**measured, "batch": batch, "cpu": done["cpu"] / done["requests"] * 1e6}

    def _at_rest(self) -> dict[str, float]:
        """The counts, when what wrk has left behind is answered."""
        ends = time.monotonic() + DRAIN
        while True:
            counts = self._counts(DRAIN)
            if counts["begun"] == counts["requests"]:
                return counts
            if time.monotonic() > ends:
                raise Failed(f"requests without an answer after {DRAIN:.0f} s")
            time.sleep(0.01)

    def _counts(self, limit: float) -> dict[str, float]:
        """They come when the worker serves. It may still start, or be busy."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=0.5)
        ends = time.monotonic() + limit
        try:
            connection.request("GET", "/counts", headers={"Connection": "close"})
            self._wait_for_an_answer(connection.sock, ends)
            answer = connection.getresponse()
            return json.loads(answer.read())  # type: ignore[no-any-return]
        except (OSError, HTTPException, ValueError) as error:
            raise Failed(f"no answer from the server ({error!r}){self._last_words()}") from None
        finally:
            connection.close()

    def _wait_for_an_answer(self, connection: socket.socket, ends: float) -> None:
        while time.monotonic() < ends:
            if self._process.poll() is not None:
                raise Failed(f"the server ended{self._last_words()}")
            with suppress(TimeoutError):
                connection.recv(1, socket.MSG_PEEK)
                return
        raise Failed(f"no answer from the server within a limit{self._last_words()}")

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log if re.match(r"\w*(Error|Exception)\b", line)]
        return f": {lines[-1]}" if lines else ""

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@contextmanager
def _servers(figures: Figures, options: argparse.Namespace) -> Iterator[list[_Server]]:
    """Those that serve, all halted."""
    started, serving = [], []

    def fail(variant: str, error: Exception) -> None:
        figures.failed.update({(variant, connections): str(error) for connections in options.connections})

    with ExitStack() as stack:
        for variant in options.variants:
            try:
                started.append(stack.enter_context(_Server(figures.model, variant)))
            except Missing as error:
                fail(variant, error)
        for server in started:
            try:
                server.wait_until_it_serves()
                serving.append(server)
            except Failed as error:
                fail(server.variant, error)
        yield serving


def _measure(figures: Figures, server: _Server, connections: int, seconds: float, n: int) -> None:
    cell = (server.variant, connections)
    if cell in figures.failed:  # it would take the same time to fail again
        return
    try:
        figures.of[cell][n] = server.measure(connections, seconds, CORES[n % len(CORES)])
    except Failed as error:
        figures.failed[cell] = str(error)


def _duel(ours: _Server, other: _Server, target: Target, options: argparse.Namespace) -> list[float]:
    """Ratios of the requests per second: one between two of the other's, on each core in turn. More of them where they
    do not tell.
    """
    seconds = options.seconds * (2 if target.connections >= MAX_SIZE else 0.5)  # a round of many takes long

    def rate(server: _Server, core: int) -> float:
        return server.measure(target.connections, seconds, core)["requests"]

    ratios: list[float] = []
    with suppress(Failed):
        while len(ratios) < options.duels or (len(ratios) < MORE * options.duels and not tells(ratios, target.least)):
            core = CORES[len(ratios) % len(CORES)]
            before, between, after = rate(other, core), rate(ours, core), rate(other, core)
            ratios.append(between / ((before + after) / 2))
    return ratios


def _wrk(port: int, connections: int, seconds: float, core: int) -> str:
    """What it tells. It knows whole seconds only, and ends early, with its report, when interrupted."""
    command = ["taskset", "-c", str(core)]
    command += ["wrk", "-t1", f"-c{connections}", f"-d{math.ceil(seconds) + 60}s", "--timeout", "60s", "--latency",
               f"http://127.0.0.1:{port}/predict"]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=STOP)
    except subprocess.TimeoutExpired:
        raise Failed(f"wrk did not end within {STOP:.0f} s") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return output


def told(output: str) -> dict[str, float]:
    """Wrk's report. Raises Failed where requests failed, or none was answered."""
    if wrong := re.search(r"Non-2xx or 3xx responses: (\d+)", output):
        raise Failed(f"{wrong[1]} requests failed")
    if wrong := re.search(r"Socket errors: (.*[1-9].*)", output):
        raise Failed(f"sockets failed: {wrong[1]}")
    requests = re.search(r"Requests/sec:\s+([\d.]+)", output)
    latencies = {where: re.search(rf"\b{where}%\s+([\d.]+)(us|ms|s|m)\b", output) for where in (50, 99)}
    if requests is None or not float(requests[1]):
        raise Failed("no request was answered")
    unit = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
    milliseconds = {
        f"p{at}": float(found[1]) * unit[found[2]] if found else math.nan for at, found in latencies.items()
    }
    return {"requests": float(requests[1]), **milliseconds}


def _options(arguments: list[str] | None) -> argparse.Namespace:
    options = parser("company", __doc__)
    options.add_argument("--connections", type=int, nargs="+")
    options.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options.add_argument("--variants", nargs="+", choices=VARIANTS)
    options.add_argument("--rounds", type=int)
    options.add_argument("--seconds", type=float, help="of load for each figure, after a tenth of a second")
    options.add_argument("--duels", type=int, help="for each target")
    chosen = options.parse_args(arguments)
    quick = chosen.quick
    chosen.connections = sorted(chosen.connections or ((1, MAX_SIZE) if quick else CONNECTIONS))
    chosen.variants = chosen.variants or [
        variant for variant in VARIANTS if not (quick and variant.startswith(tuple(PEERS)))
    ]
    chosen.rounds = chosen.rounds or (1 if quick else 4)
    chosen.seconds = chosen.seconds or (0.4 if quick else 0.6)
    chosen.duels = chosen.duels or (1 if quick else 16)
    return chosen


def _missing() -> str | None:
    """What has to be installed first."""
    if shutil.which("wrk") is None or shutil.which("taskset") is None:
        return "wrk or taskset is missing. Debian and Ubuntu: apt-get install wrk util-linux"
    for package in ("flask", "gunicorn", "numpy", "scikit-learn"):
        try:
            version(package)
        except PackageNotFoundError:
            return f"{package} is missing. `make bench` installs it, or: pip install -e '.[bench]'"
    return None


@functools.cache
def _same_versions() -> tuple[str, ...]:
    """What a peer's environment needs, as it is installed here."""
    return tuple(f"{package}=={version(package.partition('[')[0])}" for package in PEERS_NEED)


def _alone(model: str) -> dict[int, float]:
    """In a process without a server. It trains the forest where none is kept."""
    command = [sys.executable, "-I", APPLICATION, "capacity", model, KEPT]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=START)
    return {int(images): milliseconds for images, milliseconds in json.loads(done.stdout).items()}


def _better(figures: Figures, measured: Sequence[int]) -> str | None:
    """The eager variant that is faster, over all points that both have."""
    eager = [variant for variant in VARIANTS if variant.startswith("eager")]
    there = [variant for variant in eager if any(figures.values((variant, n)) for n in measured)]
    both = [n for n in measured if all(figures.values((variant, n)) for variant in there)]

    def mean(variant: str) -> float:
        return statistics.geometric_mean(figures.median((variant, n)) for n in both) if both else 0.0

    return max(there, key=mean, default=None)


def _print_model(report: Report, figures: Figures, options: argparse.Namespace) -> None:
    alone = ", ".join(f"{number(figures.alone[images])} ms for {images}" for images in sorted(figures.alone))
    print(f"{figures.model}: without a server {alone}, so at most "
          f"{number(MAX_SIZE / figures.alone[MAX_SIZE] * 1000)} per second\n")  # fmt: skip
    flask = [1000 / figures.median(("no model", n)) for n in options.connections if n == MAX_SIZE]
    if flask and not math.isnan(flask[0]):
        one_core = 1000 / (flask[0] + figures.alone[MAX_SIZE] / MAX_SIZE)
        print(f"Flask alone and full batches, one after the other on one core: {number(one_core)} per second\n")
    for what, title in TOLD.items():
        print(f"{figures.model}: {title}, by connections\n")
        rows = [
            [variant, *(_shown(figures, (variant, connections), what) for connections in options.connections)]
            for variant in options.variants
        ]
        report.table(["", *options.connections], rows)
    for reason in dict.fromkeys(figures.failed.values()):
        cells = [cell for cell in figures.failed if figures.failed[cell] == reason]
        at = ", ".join(f"{variant} at {connections}" for variant, connections in cells)
        print(f"failed: {at}: {reason}")
    print()


def _shown(figures: Figures, cell: Cell, what: str) -> object:
    if cell in figures.failed:
        return "failed"
    values = figures.values(cell, what)
    return "-" if not values else spread(values) if what == "requests" and len(values) > 1 else spread(values).median


def _look(variant: str) -> tuple[str, str]:
    """Its colour, and its line."""
    style = ":" if variant.endswith(" 0") else "--" if variant.endswith("10 ms") else "-"
    known = {"no model": "floor", "eager, native": "native"}
    name = known.get(variant) or next(name for name in COLOURS if variant.startswith(name))
    return COLOURS[name], style


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # with the servers
    sys.exit(main())
