"""Does anything go wrong, get lost or grow in a million calls, while handlers and callers fail at random?

    python -m benchmarks.soak                                # make soak: a million calls, a few minutes
    python -m benchmarks.soak --calls 20000 --seed 7

A fifth of the calls is made in each world: gevent with each executor, and plain threads with two. What is injected:

* by the handler, for a whole batch: it raises, returns one output too few, takes up to ten milliseconds, exits
  (`SystemExit`); or it returns an exception for one item;
* by the caller: it leaves after up to four milliseconds (its greenlet is killed, a `gevent.Timeout` goes off; a thread,
  which nothing can kill, cancels its request), or it has a deadline that short;
* from outside, where there are greenlets: the collector is killed, a handler's greenlet is killed;
* by signals, every two milliseconds of work, at any line: their handler asks for statistics, submits and cancels, or it
  raises where a caller is in the midst of its call, as an alarm does (not in the last line of `deadline`, which could
  then not take its deadline away);
* the queue is short, so calls are refused.

Handlers, callers and an instrument write to one log, with a handler for a file that rotates all the time, and handlers
and callers share a session: a connection that answers, behind a lock. Where handlers are native, sessions stay with
the callers, and in a patched process nobody logs where gevent is too old for that, or the runtime is "threading"
(docs/servers.md, "Logging, and other locks, in handlers").

Each item carries what the handler did with it, so that each outcome is checked: an answer must be this item's, an
exception must be the caller's own and the one that the handler raised for this item, and where the error says that the
handler never saw the item, it must not have seen it by the end of the run either.

Exits with 1 where a figure that must be 0 is not. Memory is the interpreter's own count of blocks that are in use;
resident memory, which depends on the allocator's mood, is printed beside it.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from textwrap import fill
from types import FrameType
from typing import Any, NamedTuple

import gevent
import gevent.lock
import gevent.socket

from ubatch import (
    BadBatchOutputSize,
    Batch,
    DeadlineExceeded,
    HandlerAborted,
    Instrument,
    NotProcessed,
    QueueFull,
    QueueTimeout,
    ReentrantCall,
    ResultTimeout,
    UBatch,
    deadline,
)
from ubatch._runtime._gevent_locks import why_not_natively
from ubatch._runtime._native import ThreadWaiter, threading_is_patched

WORLDS = [
    ("gevent", "auto"),
    ("gevent", "native"),
    ("gevent", "greenlet"),
    ("threading", "native"),
    ("threading", "auto"),
]
TENTHS = 10
SIGNAL_EVERY = 0.002  # seconds of the processor's time
LOGGED = 0.03  # of batches, and of calls, that write to the log
ASKED = 0.02  # of batches, and of calls, that use the session
LIMIT = 120.0  # seconds for a tenth; what has not ended by then is unanswered
SLOW = 0.010  # seconds, at most
PATIENCE = 0.004  # seconds, at most, of a caller that leaves
CALLERS = {"gevent": 200, "threading": 48}
OPTIONS: dict[str, dict[str, Any]] = {
    "gevent": {"max_size": 32, "max_queue": 160, "timeout": 0.001, "max_in_flight": 2},
    "threading": {"max_size": 8, "max_queue": 36, "timeout": 0.001, "max_in_flight": 2},
}
MOST_BLOCKS = 1000  # of some 60,000: a moment of rest is never quite like another, however many calls lie between


class Measure(NamedTuple):
    """What could grow, at a moment when no call is on its way."""

    blocks: int
    resident: int
    threads: int
    greenlets: int


@dataclass
class Report:
    """What came of the calls in one world."""

    world: str
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    measures: list[Measure] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def unanswered(self) -> int:
        return self.counts["calls"] - self.counts["ended"]

    @property
    def growth(self) -> Measure:
        """From the end of the first tenth to the end of the last."""
        first, last = self.measures[0], self.measures[-1]
        return Measure(*(after - before for before, after in zip(first, last, strict=True)))

    @property
    def passed(self) -> bool:
        if self.wrong or self.unanswered:
            return False
        growth = self.growth
        return growth.threads <= 0 and growth.greenlets <= 0 and growth.blocks <= MOST_BLOCKS


def soak(calls: int, seed: int = 1) -> Iterator[Report]:
    """Make so many calls, in all worlds together, and report on each world."""
    for runtime, executor in WORLDS:
        yield _World(runtime, executor, seed).run(calls // len(WORLDS))


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=1_000_000, help="in all (default: a million)")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of the faults (default: any)")
    options = parser.parse_args(arguments)
    print(f"python -m benchmarks.soak --calls {options.calls} --seed {options.seed}\n", flush=True)
    reports = []
    for report in soak(options.calls, options.seed):
        reports.append(report)
        print(_line(report), flush=True)
    print(_summary(reports))
    return 0 if all(report.passed for report in reports) else 1


# ---------------------------------------------------------------------------------------------------------------------


class Raised(Exception):
    """By the handler, for a whole batch."""


class BadItem(Exception):
    """By the handler, for one item."""


class Alarm(Exception):
    """By a signal's handler, in a caller."""


class Session:
    """A connection that gives back what it gets, for one at a time: with threads, or in a hub."""

    def __init__(self, runtime: str) -> None:
        kind: Any = gevent.socket if runtime == "gevent" else socket
        self._lock: Any = gevent.lock.RLock() if runtime == "gevent" else threading.Lock()
        self._near, self._far = kind.socketpair()
        self._near.settimeout(LIMIT)
        if runtime == "gevent":
            gevent.spawn(self._answer)
        else:
            threading.Thread(target=self._answer, daemon=True).start()

    def ask(self, number: int) -> None:
        """Raises AssertionError for somebody else's answer."""
        text = b"%020d" % number
        with self._lock:
            self._near.sendall(text)
            assert self._near.recv(20, socket.MSG_WAITALL) == text

    def close(self) -> None:
        self._near.close()

    def _answer(self) -> None:
        with self._far:
            while text := self._far.recv(20):
                self._far.sendall(text)


class Logs(Instrument):
    """A line for some batches."""

    def __init__(self, log: Callable[[str, int], None]) -> None:
        self._log = log

    def batch_ended(self, batch: Batch) -> None:
        self._log("a batch of %d has ended", len(batch.requests))


class Item:
    """What a call hands over. It knows what the answer must be, and what the handler did with it."""

    __slots__ = ("fate", "hurried", "number", "seen")

    def __init__(self, number: int) -> None:
        self.number = number
        self.hurried = False
        self.fate = "nothing"
        self.seen = 0

    @property
    def answer(self) -> int:
        return self.number * 3 + 1


RIGHT: dict[type[Exception], tuple[str, ...]] = {  # which fates go with an exception
    Raised: ("raised",),
    BadItem: ("bad item",),
    BadBatchOutputSize: ("wrong length",),
    HandlerAborted: ("exited", "handler killed"),
}


LEFT = "left"
BY_DESIGN: dict[type[Exception], str] = {
    QueueFull: "refused",
    QueueTimeout: "late in the queue",
    ResultTimeout: "late at the handler",
    NotProcessed: "lost its collector",
}


class _World:
    """One batcher, its callers, and those who disturb them."""

    def __init__(self, runtime: str, executor: str, seed: int) -> None:
        self.runtime = runtime
        self.executor = executor
        self.report = Report(f"{runtime}, {executor}")
        self._random = random.Random(f"{seed} {runtime} {executor}")
        self._batcher: UBatch[Item, int] = UBatch(
            runtime=runtime,
            executor=executor,
            name=f"soak-{runtime}-{executor}",
            instruments=[Logs(self._log)],
            **OPTIONS[runtime],
        ).set_handler(self._handle)
        self._logger = logging.getLogger(f"{__name__}.{runtime}.{executor}")
        self._session = Session(runtime)
        patched = threading_is_patched()
        # Where callers are greenlets and handlers are not.
        self._native = patched if runtime == "threading" else executor == "native"
        self._logs = not self._native or (runtime == "gevent" and why_not_natively() is None)
        self._numbers = iter(range(0))
        self._unseen: deque[Item] = deque(maxlen=10_000)  # of which the error said that the handler never saw them

    def run(self, calls: int) -> Report:
        start = time.monotonic()
        with ExitStack() as stack:
            stack.enter_context(_log_file(self._logger))
            stack.callback(self._session.close)
            for tenth in range(TENTHS):
                self._numbers = iter(range(tenth * calls // TENTHS, (tenth + 1) * calls // TENTHS))
                with _signals(self._interrupt):
                    self._make_calls()
                if self.report.unanswered:
                    break
                self._look_again_at_the_unseen()
                self.report.measures.append(self._measure())
            self.report.seconds = time.monotonic() - start
            self._batcher.stop(LIMIT)
        alarms, interrupted = self.report.counts["alarms"], self.report.counts["interrupted"]
        if alarms != interrupted:
            self.report.wrong.append(f"{alarms} alarms went off in callers, and {interrupted} of these got one")
        return self.report

    # The handler.

    def _handle(self, items: list[Item]) -> list[Any]:
        for item in items:
            item.seen += 1
            item.fate = "handler killed"  # if it gets no further
        draw = self._random.random()
        fate = "slow" if draw < 0.02 else "answered"
        if fate == "slow":
            self._take(self._random.random() * SLOW)
        self._log("the handler has %d items", len(items))
        if not self._native and self._random.random() < ASKED:
            self._session.ask(items[0].number)
        outputs: list[Any] = [item.answer for item in items]
        error: BaseException | None = None
        if 0.02 <= draw < 0.04:
            fate, error = "raised", Raised(items[0].number)
        elif 0.04 <= draw < 0.05:
            fate, error = "exited", SystemExit(3)
        elif 0.05 <= draw < 0.07:
            fate = "wrong length"
            outputs.pop()
        for item in items:
            item.fate = fate
        if 0.07 <= draw < 0.10:
            outputs[-1] = BadItem(items[-1].number)
            items[-1].fate = "bad item"
        if error is not None:
            raise error
        return outputs

    def _take(self, seconds: float) -> None:
        if self.runtime == "gevent" and self.executor != "native":
            gevent.sleep(seconds)
        else:
            ThreadWaiter().wait(seconds)

    # The callers.

    def _make_calls(self) -> None:
        """The calls of one tenth, from many callers at once."""
        tallies = [Counter[str]() for _ in range(CALLERS[self.runtime])]
        if self.runtime == "gevent":
            disturber = gevent.spawn(self._disturb)
            gevent.joinall([gevent.spawn(self._call_on, tally) for tally in tallies], timeout=LIMIT)
            disturber.kill()
        else:
            threads = [threading.Thread(target=self._call_on, args=(tally,), daemon=True) for tally in tallies[1:]]
            for thread in threads:
                thread.start()
            self._call_on(tallies[0])  # in the main thread, which signals interrupt
            end = time.monotonic() + LIMIT
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))
        for tally in tallies:
            self.report.counts.update(tally)

    def _call_on(self, tally: Counter[str]) -> None:
        ways = [self._stay] * 95 + [self._hurry] * 2 + [self._leave] * 3
        for number in self._numbers:
            tally["calls"] += 1
            item = Item(number)
            self._log("a caller asks for item %d", number)
            if self._random.random() < ASKED:
                self._session.ask(number)
            try:
                outcome: object = self._random.choice(ways)(item)
            except Exception as error:
                outcome = error
            tally[self._judge(item, outcome)] += 1
            tally["ended"] += 1
            if isinstance(outcome, QueueFull):  # as a client does
                (gevent if self.runtime == "gevent" else time).sleep(outcome.retry_after)

    def _stay(self, item: Item) -> int:
        return self._batcher.ubatch(item)

    def _hurry(self, item: Item) -> int:
        item.hurried = True
        with deadline(self._random.random() * PATIENCE):
            return self._batcher.ubatch(item)

    def _leave(self, item: Item) -> object:
        patience = self._random.random() * PATIENCE
        if self.runtime == "threading":
            request = self._batcher.submit(item)
            try:
                return request.result(patience)
            except TimeoutError:
                if request.cancel():
                    self._unseen.append(item)
                return LEFT
        if self._random.random() < 0.5:
            with gevent.Timeout(patience, False):
                return self._batcher.ubatch(item)
            return LEFT
        caller = gevent.spawn(_outcome_of, self._batcher.ubatch, item)
        gevent.sleep(patience)
        caller.kill()
        return LEFT if isinstance(caller.value, gevent.GreenletExit) else caller.value

    def _log(self, text: str, number: int) -> None:
        if self._logs and self._random.random() < LOGGED:
            self._logger.info(text, number)

    def _interrupt(self, _: int, frame: FrameType | None) -> None:
        """A signal has come, at some line of the main thread, in whatever greenlet."""
        if self._random.random() < 0.3 and _is_in_a_call(frame) and not is_alarmed(sys.exc_info()[1]):
            self.report.counts["alarms"] += 1
            raise Alarm
        self.report.counts["signals"] += 1
        self._batcher.statistics()
        repr(self._batcher)
        with suppress(NotProcessed, ReentrantCall):
            self._batcher.submit(Item(-1)).cancel()

    def _disturb(self) -> None:
        """Kill the collector and the handler's greenlets now and then."""
        while True:
            gevent.sleep(0.01 + self._random.random() * 0.02)
            kind = self._random.choice(["collector", "handler"])
            for greenlet in _greenlets():
                if str(getattr(greenlet, "name", "")).startswith(f"ubatch-{kind}:{self._batcher.name}"):
                    greenlet.kill(block=False)
                    self.report.counts[f"{kind}s killed"] += 1
                    break

    # What must be.

    def _judge(self, item: Item, outcome: object) -> str:
        """What the call met; noted where it must not be."""
        if outcome is LEFT:
            return "left"
        if isinstance(outcome, Alarm):
            return "interrupted"
        if not isinstance(outcome, Exception):
            right = outcome == item.answer and item.seen == 1 and item.fate in ("answered", "slow")
            return item.fate if right else self._wrong(item, outcome)
        if isinstance(outcome, NotProcessed):
            self._unseen.append(item)
        if type(outcome) in BY_DESIGN:
            right = item.hurried or not isinstance(outcome, DeadlineExceeded)
            return BY_DESIGN[type(outcome)] if right else self._wrong(item, outcome)
        if isinstance(outcome, HandlerAborted) and not item.seen and self.executor != "native":
            item.seen, item.fate = 1, "handler killed"  # before it ran
        own = not hasattr(outcome, "caller") and item.seen == 1
        outcome.caller = item  # type: ignore[attr-defined]
        expected = RIGHT.get(type(outcome), ())
        if isinstance(outcome, BadItem):
            own = own and outcome.args == (item.number,)
        return item.fate if own and item.fate in expected else self._wrong(item, outcome)

    def _wrong(self, item: Item, outcome: object) -> str:
        self.report.wrong.append(f"item {item.number}, {item.fate}, seen {item.seen} times, ended with {outcome!r}")
        return "wrong"

    def _look_again_at_the_unseen(self) -> None:
        while self._unseen:
            item = self._unseen.popleft()
            if item.seen:
                self._wrong(item, "never seen")

    def _measure(self) -> Measure:
        self._batcher.submit(Item(0)).exception(LIMIT)  # so that there is a collector
        if self.runtime == "gevent":
            gevent.idle()
        for _ in range(3):
            gc.collect()
        threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()
        return Measure(sys.getallocatedblocks(), _resident(), threads, len(_greenlets()))


@contextmanager
def _log_file(logger: logging.Logger) -> Iterator[None]:
    """The logger writes to a file that rotates all the time, and nowhere else."""
    with tempfile.TemporaryDirectory() as folder:
        handler = RotatingFileHandler(Path(folder) / "soak.log", maxBytes=20_000, backupCount=2)
        handler.setFormatter(logging.Formatter("%(asctime)s %(threadName)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()


@contextmanager
def _signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Signals come to this, the main thread, as long as the process works."""
    before = signal.signal(signal.SIGPROF, handler)
    signal.setitimer(signal.ITIMER_PROF, SIGNAL_EVERY, SIGNAL_EVERY)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def _is_in_a_call(frame: FrameType | None) -> bool:
    """Whether it is the library's, and a caller of this soak has called that."""
    module = "" if frame is None else str(frame.f_globals.get("__name__"))
    if not module.startswith("ubatch.") or module == "ubatch._deadline":
        return False
    while frame is not None:
        if frame.f_code.co_name == "__del__":  # what is raised in one, Python reports and forgets
            return False
        if frame.f_code in CALLERS_CODE:
            return True
        frame = frame.f_back
    return False


def is_alarmed(error: BaseException | None) -> bool:
    """Whether an alarm is on its way already: another one, in what cleans up after it, would take its place."""
    while error is not None:
        if isinstance(error, Alarm):
            return True
        error = error.__context__
    return False


CALLERS_CODE = {_World._stay.__code__, _World._hurry.__code__}


def _outcome_of(function: Callable[..., object], *args: object) -> object:
    try:
        return function(*args)
    except Exception as error:  # gevent would print it
        return error


def _greenlets() -> list[Any]:
    # Not with `isinstance`, which would follow a proxy whose object is gone.
    return [thing for thing in gc.get_objects() if issubclass(type(thing), gevent.Greenlet) and not thing.dead]


def _resident() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return 0


INDENT: dict[str, Any] = {"initial_indent": "    ", "subsequent_indent": "    "}


def _line(report: Report) -> str:
    counts = {name: count for name, count in report.counts.most_common() if name not in ("calls", "ended")}
    lines = [f"{report.world}: {report.counts['calls']:,} calls in {report.seconds:.0f} s"]
    lines.append(fill(", ".join(f"{name} {count:,}" for name, count in counts.items()), 110, **INDENT))
    if len(report.measures) == TENTHS:
        growth = report.growth
        lines.append(
            f"    growth: blocks {growth.blocks:+,} of {report.measures[0].blocks:,}, "
            f"resident {growth.resident / 2**20:+.1f} MiB of {report.measures[0].resident / 2**20:.1f}, "
            f"threads {growth.threads:+}, greenlets {growth.greenlets:+}"
        )
    lines += [f"    WRONG: {wrong}" for wrong in report.wrong[:10]]
    return "\n".join(lines)


def _summary(reports: list[Report]) -> str:
    calls = sum(report.counts["calls"] for report in reports)
    wrong = sum(len(report.wrong) for report in reports)
    unanswered = sum(report.unanswered for report in reports)
    verdict = "passed" if all(report.passed for report in reports) else "FAILED"
    return f"\n{calls:,} calls, wrong answers {wrong}, unanswered {unanswered}: {verdict}"


if __name__ == "__main__":
    sys.exit(main())
