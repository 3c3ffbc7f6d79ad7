"""At any load, is dispatching early as good as the best fixed timeout that one could have chosen in hindsight?

    python -m benchmarks.load                        # twelve minutes
    python -m benchmarks.load --quick                # half a minute, two loads
    python -m benchmarks.load --runtime threading    # the same with plain threads; its result is kept apart
    python -m benchmarks.load --simulated            # half a minute: the simulation alone

An open loop: requests come as a Poisson process, whether or not earlier ones have been answered, at 10 to 95 % of the
capacity. The handler takes a + b·n for a batch of n, asleep on its native thread; the batch size is at most 32. The
capacity is what full batches, one after the other, come to through the batcher. `UBatch(32, 0.02, eager=True)` is
compared with a fixed `timeout` of 0, 1, 2, 5, 10, 20 and 50 ms.

All policies of a cell get the same arrivals: a Poisson process with the number of its arrivals given, so that each run
has exactly its rate. A native thread keeps the time, as a network would, and what is due then is called from the hub,
each call in a greenlet of its own; a latency is from the moment for which a call was intended until its caller goes on,
so it holds all lateness. (With plain threads a thread for each call would cost more than the rest, so it is until the
handler came back.) A run that missed its rate, or whose arrivals were late, is made again, at most three times; then it
is in doubt.

Each cell is a second or two for each policy in each round, from an empty start, with as many requests as the table
says; p99 rests on a hundredth of those, so a few percent of it are chance. The mean and p99 are of all rounds together;
in parentheses, the least and the most that the ratio was in one round. "Best" is the least of seven that all vary by
chance, so the ratio is rather too high than too low.

The simulation is the cross-check: the same policies, the library's own (`ubatch._core.policy`), in virtual time, where
deciding and waking cost nothing and the loop is idle at once, with so many arrivals that p99 is exact. It knows nothing
of what a machine adds, the measurement has little else.

The requirement: at each load, in the mean and in p99, eager takes at most 1.1 x what the best fixed timeout does. Exits
with 1 where it is not met, or the result is refused.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
from gevent.event import Event
from gevent.monkey import get_original

from benchmarks._report import COLOURS, SCRATCH, Report, parser
from ubatch import UBatch
from ubatch._core.pending import Pending
from ubatch._core.policy import Close, Eager, FixedWait

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_SIZE = 32
LOADS = (10, 30, 50, 70, 80, 90, 95)  # percent of the capacity
SHAPES = {"a large": (0.008, 0.00005), "b large": (0.0005, 0.0015), "both": (0.004, 0.0005)}  # seconds
EAGER = "eager"
POLICIES: dict[str, dict[str, Any]] = {
    EAGER: {"timeout": 0.02, "eager": True},
    **{f"{ms} ms": {"timeout": ms / 1000} for ms in (0, 1, 2, 5, 10, 20, 50)},
}
MOST = 1.1  # times the best fixed timeout
FEWEST = 250  # requests in a run: where they come seldom, it lasts longer
LATE = 0.002  # seconds; with more at p99, or a hundredth less than the rate, a run has missed it
SIMULATED = 100_000  # arrivals in each cell
TRIES = 4  # of a run that misses its rate
LIMIT = 20.0  # seconds that a run may take beyond its arrivals

sleep = get_original("time", "sleep")  # all that is patched here, where it is: in the tests
start_thread = get_original("_thread", "start_new_thread")
allocate_lock = get_original("_thread", "allocate_lock")


class Run(NamedTuple):
    """What came of one run: seconds."""

    latencies: list[float]
    late: float = 0.0
    missed: bool = False


class Cell(NamedTuple):
    """One load of one shape: the runs of each policy, one a round."""

    shape: str
    load: int
    rate: float
    runs: dict[str, list[Run]]


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and return the exit status."""
    options = parser("load", __doc__)
    options.add_argument("--runtime", choices=("gevent", "threading"), default="gevent")
    options.add_argument("--simulated", action="store_true", help="the simulation alone")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--seconds", type=float, default=1.7, help="of each policy in each cell and round, at least")
    options.add_argument("--loads", type=int, nargs="+", default=LOADS, help="percent of the capacity")
    chosen = options.parse_args(arguments)
    fewest, arrivals = FEWEST, SIMULATED
    if chosen.quick:
        chosen.rounds, chosen.seconds, chosen.loads, fewest, arrivals = 1, 0.3, (30, 90), 60, 2000
    if chosen.runtime != "gevent" and chosen.results is None:
        chosen.results = SCRATCH / chosen.runtime  # `benchmarks/results` has gevent's
    report = Report("load", __doc__, chosen, by_turns=True)
    simulated = [_simulate(shape, load, arrivals) for shape in SHAPES for load in chosen.loads]
    if chosen.simulated:
        return int(not _print(report, "simulated", simulated) and not chosen.quick)
    rates = {shape: capacity(shape, chosen.runtime) for shape in SHAPES}
    for shape, rate in rates.items():
        print(f"{shape}: the capacity is {rate:,.0f} requests per second; without any overhead {ideal(shape):,.0f}")
    print(flush=True)
    cells = [Cell(shape, load, rates[shape] * load / 100, {}) for shape in SHAPES for load in chosen.loads]
    for number in range(chosen.rounds):
        for cell in cells:
            _measure(report, cell, number, chosen.runtime, max(fewest, math.ceil(cell.rate * chosen.seconds)))
        report.look()
    _print(report, "simulated", simulated)
    met = _print(report, f"measured, {chosen.runtime}", cells)
    data = {"runtime": chosen.runtime, "capacity": rates, "measured": _rows(cells), "simulated": _rows(simulated)}
    return report.save(data, plot) or int(not met and not chosen.quick)


def ideal(shape: str) -> float:
    """Requests per second in full batches where nothing costs anything but the handler."""
    a, b = SHAPES[shape]
    return MAX_SIZE / (a + b * MAX_SIZE)


def capacity(shape: str, runtime: str, batches: int = 20) -> float:
    """Requests per second in full batches, one after the other, of the real handler through the batcher."""
    with _batcher(shape, runtime, timeout=60.0) as batcher:
        batcher.map(range(MAX_SIZE))
        began = time.monotonic()
        batcher.map(range(batches * MAX_SIZE))
        return batches * MAX_SIZE / (time.monotonic() - began)


def poisson(rate: float, many: int, seed: str) -> list[float]:
    """So many arrivals at this rate, in seconds. That many were to come, so they are uniform, in order."""
    uniform = random.Random(seed).random
    return sorted(uniform() * many / rate for _ in range(many))


def simulate(policy: FixedWait, arrivals: Sequence[float], a: float, b: float) -> list[float]:
    """The latencies in virtual time, with one place at the handler."""
    pending, latencies = Pending(), []
    now, free_at, came = 0.0, -math.inf, 0
    while came < len(arrivals) or pending.count:
        while came < len(arrivals) and arrivals[came] <= now:
            pending.add(_Arrival(arrivals[came]))
            came += 1
        step = policy.decide(pending, now, draining=False, slot_free_at=free_at)
        if not isinstance(step, Close) and step.or_idle:
            step = policy.decide(pending, now, draining=False, idle=True, slot_free_at=free_at)
        if isinstance(step, Close):
            batch = pending.take(step.call_form, step.size)
            now = free_at = now + a + b * len(batch)
            latencies += [now - arrival.accepted_at for arrival in batch]
        else:
            last = came + step.wake_at_count - pending.count - 1  # the arrival with which there are that many
            now = min(step.until, arrivals[last]) if last < len(arrivals) else step.until
    return latencies


def run(batcher: UBatch[int, int], arrivals: Sequence[float], runtime: str) -> Run:
    """Call at the times of the arrivals, and return when all are answered."""
    batcher.ubatch(0)  # so that the batcher's threads have started
    gc.collect()
    began = time.monotonic() + 0.005
    intended = [began + at for at in arrivals]
    called, answered = (_on_the_hub if runtime == "gevent" else _in_a_thread)(batcher, intended)
    latencies = [end - at for end, at in zip(answered, intended, strict=True)]
    late = percentile([at - due for at, due in zip(called, intended, strict=True)], 0.99)
    slower = (called[-1] - began) / arrivals[-1] > 1.01 and called[-1] - intended[-1] > LATE
    return Run(latencies, late, late > LATE or slower)


def percentile(values: Sequence[float], part: float) -> float:
    """The least value that this part of them does not exceed."""
    return sorted(values)[math.ceil(part * len(values)) - 1]


def plot(figure: Figure, data: dict[str, Any]) -> None:
    """How many times the best fixed timeout's latency each policy has, as measured."""
    both: Any = figure.subplots(2, len(SHAPES), sharex=True, sharey=True, squeeze=False)
    shades = {name: str(0.85 - 0.1 * n) for n, name in enumerate(name for name in POLICIES if name != EAGER)}
    for line, what in zip(both, ("mean", "p99"), strict=True):
        for axes, shape in zip(line, SHAPES, strict=True):
            rows = [row for row in data["measured"] if row["shape"] == shape]
            loads = sorted({row["load"] for row in rows})
            best = {load: min(_fixed(rows, load, what).values()) for load in loads}
            for name in [*shades, EAGER]:
                points = {row["load"]: row[what] / best[row["load"]] for row in rows if row["policy"] == name}
                colour, width = (COLOURS[EAGER], 2.0) if name == EAGER else (shades[name], 1.2)
                axes.plot(points.keys(), points.values(), color=colour, linewidth=width, marker=".", label=name)
            axes.axhline(MOST, color=COLOURS["floor"], linestyle=":", linewidth=1)
            axes.set(yscale="log", title=shape if what == "mean" else None)
        line[0].set_ylabel(f"{what}, times the best fixed")
    for axes in both[-1]:
        axes.set_xlabel("load, %")
    figure.legend(*both[0][0].get_legend_handles_labels(), ncols=len(POLICIES), loc="outside upper center", fontsize=7)


# ---------------------------------------------------------------------------------------------------------------------


class _Arrival:
    """What a policy looks at in a request."""

    __slots__ = ("accepted_at",)
    call_form = None

    def __init__(self, at: float) -> None:
        self.accepted_at = at


def _batcher(shape: str, runtime: str, **options: Any) -> UBatch[int, int]:
    a, b = SHAPES[shape]

    def handler(xs: list[int]) -> list[int]:
        sleep(a + b * len(xs))
        return xs

    return UBatch[int, int](MAX_SIZE, runtime=runtime, executor="native", **options).set_handler(handler)


def _simulate(shape: str, load: int, many: int) -> Cell:
    rate = ideal(shape) * load / 100
    arrivals = poisson(rate, many, f"simulated, {shape}, {load}")
    policies = {
        name: (Eager if options.get("eager") else FixedWait)(MAX_SIZE, options["timeout"])
        for name, options in POLICIES.items()
    }
    runs = {name: [Run(simulate(policy, arrivals, *SHAPES[shape]))] for name, policy in policies.items()}
    return Cell(shape, load, rate, runs)


def _measure(report: Report, cell: Cell, number: int, runtime: str, many: int) -> None:
    """One round of a cell: every policy, in every other round backwards."""
    arrivals = poisson(cell.rate, many, f"{cell.shape}, {cell.load}, {number}")
    for name in list(POLICIES)[:: -1 if number % 2 else 1]:
        for _ in range(TRIES):
            with _batcher(cell.shape, runtime, **POLICIES[name]) as batcher:
                done = run(batcher, arrivals, runtime)
            if not done.missed:
                break
        else:
            what = f"{cell.shape}, {cell.load} %, {name}, round {number + 1}: missed its rate {TRIES} times"
            report.doubts.append(f"{what}; calls were {done.late * 1000:.1f} ms late at p99")
        cell.runs.setdefault(name, []).append(done)


def _on_the_hub(batcher: UBatch[int, int], intended: Sequence[float]) -> tuple[list[float], list[float]]:
    """When each call was made, and when its greenlet went on."""
    called, answered = [math.nan] * len(intended), [math.nan] * len(intended)
    all_answered = Event()
    left = len(intended)

    def call(which: int) -> None:
        nonlocal left
        called[which] = time.monotonic()
        batcher.ubatch(which)
        answered[which] = time.monotonic()
        left -= 1
        if not left:
            all_answered.set()

    def calls(first: int, end: int) -> None:
        for which in range(first, end):
            gevent.spawn_raw(call, which)

    loop = gevent.get_hub().loop
    start_thread(_keep_time, (intended, lambda first, end: loop.run_callback_threadsafe(calls, first, end)))
    if not all_answered.wait(intended[-1] - time.monotonic() + LIMIT):
        raise RuntimeError(f"{left} calls of {len(intended)} were not answered")
    return called, answered


def _in_a_thread(batcher: UBatch[int, int], intended: Sequence[float]) -> tuple[list[float], list[float]]:
    """When each call was made, and when its handler came back."""
    requests: list[Any] = []

    def calls(first: int, end: int) -> None:
        requests.extend(batcher.submit(which) for which in range(first, end))

    def keep_time() -> None:
        try:
            _keep_time(intended, calls)
        finally:
            over.release()

    over = allocate_lock()
    over.acquire()
    start_thread(keep_time, ())
    over.acquire()
    for request in requests:
        request.result(LIMIT)
    return [each.accepted_at for each in requests], [each.timing.ended_at for each in requests]


def _keep_time(intended: Sequence[float], calls: Callable[[int, int], object]) -> None:
    """Have the calls made that are due, `calls(first, end)`, in the time of the system's own clock."""
    first = 0
    while first < len(intended):
        sleep(max(0.0, intended[first] - time.monotonic()))
        now, end = time.monotonic(), first
        while end < len(intended) and intended[end] <= now:
            end += 1
        calls(first, end)
        first = end


def _rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """For the result: a row for each policy in each cell; seconds."""
    return [
        {
            "shape": cell.shape,
            "load": cell.load,
            "requests per second": cell.rate,
            "policy": name,
            "requests": sum(len(each.latencies) for each in runs),
            "late at p99": max(each.late for each in runs),
            "missed": any(each.missed for each in runs),
            **{what: _figure(runs, what) for what in ("mean", "p99")},
            **{f"{what} by round": [_figure([each], what) for each in runs] for what in ("mean", "p99")},
        }
        for cell in cells
        for name, runs in cell.runs.items()
    ]


def _figure(runs: Sequence[Run], what: str) -> float:
    latencies = [latency for each in runs for latency in each.latencies]
    return statistics.fmean(latencies) if what == "mean" else percentile(latencies, 0.99)


def _fixed(rows: Sequence[dict[str, Any]], load: int, what: str) -> dict[str, float]:
    return {row["policy"]: row[what] for row in rows if row["load"] == load and row["policy"] != EAGER}


def _print(report: Report, how: str, cells: Sequence[Cell]) -> bool:
    """All latencies, then the requirement, and whether it is met."""
    rows = _rows(cells)
    print(f"{how}: milliseconds, mean / p99\n")
    report.table(["shape", "load, %", "requests", "late at p99", *POLICIES], _latencies(rows))
    print(f"{how}: eager to the best fixed timeout; at most {MOST}\n")
    required = list(_required(rows))
    report.table(
        ["shape", "load, %", "", "eager, ms", "best, ms", "at a timeout of", "ratio", ""],
        required,
    )
    met = [line[-1] == "met" for line in required]
    print(f"{how}: met in {sum(met)} of {len(met)}\n", flush=True)
    return all(met)


def _latencies(rows: Sequence[dict[str, Any]]) -> Iterator[list[object]]:
    for shape, load in dict.fromkeys((row["shape"], row["load"]) for row in rows):
        of = {row["policy"]: row for row in rows if (row["shape"], row["load"]) == (shape, load)}
        cells = [f"{of[name]['mean'] * 1000:.2f} / {of[name]['p99'] * 1000:.2f}" for name in POLICIES]
        late = max(row["late at p99"] for row in of.values()) * 1000
        yield [shape, load, f"{of[EAGER]['requests']:,}", f"{late:.2f}", *cells]


def _required(rows: Sequence[dict[str, Any]]) -> Iterator[list[object]]:
    for shape, load in dict.fromkeys((row["shape"], row["load"]) for row in rows):
        here = [row for row in rows if row["shape"] == shape]
        of = {row["policy"]: row for row in here if row["load"] == load}
        for what in ("mean", "p99"):
            fixed = _fixed(here, load, what)
            best = min(fixed, key=fixed.__getitem__)
            ratio = of[EAGER][what] / fixed[best]
            rounds = zip(*(of[name][f"{what} by round"] for name in (EAGER, best)), strict=True)
            ratios = [ours / theirs for ours, theirs in rounds]
            said = f"{ratio:.3f}" + (f" ({min(ratios):.3f} - {max(ratios):.3f})" if len(ratios) > 1 else "")
            verdict = "met" if ratio <= MOST else "MISSED"
            if any(row["missed"] for row in of.values()):
                verdict = "the rate was missed"
            yield [shape, load, what, of[EAGER][what] * 1000, fixed[best] * 1000, best, said, verdict]


if __name__ == "__main__":
    sys.exit(main())
