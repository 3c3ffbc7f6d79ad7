"""Native threads and locks, whatever `gevent.monkey` has patched: what code off the hub is made of.

The names below are fetched when this module is imported: the originals from gevent if it has patched them by then,
else the ones of the standard library, which later patching replaces in their modules but not here.
"""

from __future__ import annotations

import sys
import threading
from _queue import SimpleQueue  # the C type; gevent patches only its name in `queue`
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeAlias


def _monkey(name: str) -> Any:
    """A function of `gevent.monkey`; None where that is not imported. Nor where another thread is importing it right
    now: then it has patched nothing yet.
    """
    return getattr(sys.modules.get("gevent.monkey"), name, None)


def _original(module: str, name: str) -> Any:
    get_original = _monkey("get_original")
    return getattr(import_module(module), name) if get_original is None else get_original(module, name)


LONGEST_END = 1.0  # seconds; a thread takes some microseconds to end
LAST_ACTS = 0.02  # seconds, for one that may have done its job just now

allocate_lock = _original("_thread", "allocate_lock")
RLock = _original("_thread", "RLock")
get_ident = _original("_thread", "get_ident")
_start_new_thread = _original("_thread", "start_new_thread")


def threading_is_patched() -> bool:
    """Whether `threading.Thread` makes greenlets in this process."""
    is_module_patched = _monkey("is_module_patched")
    return is_module_patched is not None and bool(is_module_patched("threading"))


def start_thread(target: Callable[[], None], name: str) -> None:
    """Start a native daemon thread. It carries `name` where `threading` knows native threads at all."""
    if threading_is_patched():
        start_raw_thread(target)
        return
    thread = threading.Thread(target=target, name=name, daemon=True)
    if get_ident() == threading.main_thread().ident:
        _start_undisturbed(thread)
    else:
        thread.start()


def _start_undisturbed(thread: threading.Thread) -> None:
    """Start it where no signal's handler can raise: in the midst of that, `threading` would lose count of its threads,
    and raise something else.
    """
    failed: list[Exception] = []
    done = ThreadWaiter()

    def start() -> None:
        try:
            thread.start()
        except Exception as error:
            failed.append(error)
        finally:
            done.set()

    start_raw_thread(start)
    done.get()
    if failed:
        raise failed[0]


def start_raw_thread(target: Callable[[], None]) -> None:
    """Start a native thread that `threading` knows nothing of."""
    _start_new_thread(target, ())


class ThreadWaiter:
    """Parks a native thread (`Waiter`)."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def get(self) -> object:
        return self._lock.acquire()

    def wait(self, timeout: float) -> object:
        return self._lock.acquire(True, min(timeout, threading.TIMEOUT_MAX))

    def set(self) -> None:
        try:  # noqa: SIM105 (it takes three times as long)
            self._lock.release()
        except RuntimeError:  # set before
            pass


class End(ThreadWaiter):
    """What a thread of a pool finds among its jobs when it shall end. It sets it last of all."""

    __slots__ = ()


Jobs: TypeAlias = "SimpleQueue[Callable[[], None] | End]"


class NativePool:
    """Up to `size` native threads, started one by one as jobs find none idle; they end at `close`.

    An exception that is set on one of them from outside (`PyThreadState_SetAsyncExc`) ends neither the thread nor a job
    that it had taken and not begun.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._lock = allocate_lock()
        self._jobs: Jobs = SimpleQueue()
        self._waiting: dict[Callable[[], None], bool] = {}  # submitted and not begun
        self._threads = 0
        self._idle = 0

    def submit(self, job: Callable[[], None], refused: Callable[[], object] | None = None) -> None:
        """Run `job`, which must not raise, on a thread of the pool; it waits where all are busy.

        Raises RuntimeError where the system gives no thread at all. Whatever it raises, an exception from outside too:
        if the job has not begun it never will, and `refused` is called.
        """
        grow, number, jobs = False, 0, self._jobs
        place = [None]  # of a new thread: it claims it when it comes up, unless somebody has given it up
        try:
            with self._lock:
                jobs = self._jobs
                self._waiting[job] = True
                grow = self._idle == 0 and self._threads < self._size
                if grow:
                    self._threads += 1
                    number = self._threads
                else:
                    self._idle -= 1
                    jobs.put(job)  # in here: behind what `close` puts, nobody would take it
            if grow:
                hands = [job]  # which the thread empties; the pool may be closed before it comes up
                start_thread(lambda: self._live(jobs, hands, place), f"{self._name}-{number}")
        except BaseException as error:
            never_up = grow and _claim(place)
            if isinstance(error, RuntimeError) and never_up and self._leave_to_others(job, jobs):
                return
            if self._forget(job, jobs, never_up) and refused is not None:
                refused()
            raise

    def close(self) -> None:
        """Let every thread end after what it has been given. Jobs submitted later get threads of their own.

        Returns when they have, unless one still runs a job: at the end of the process the interpreter would break off
        what a thread does last, which with a hub's greenlets ends in `std::terminate`.
        """
        with self._lock:
            jobs, idle, ends = self._jobs, self._idle, [End() for _ in range(self._threads)]
            self._jobs, self._threads, self._idle = SimpleQueue(), 0, 0
            for end in ends:
                jobs.put(end)
        for number, end in enumerate(ends):
            end.wait(LONGEST_END if number < idle else LAST_ACTS)

    def _leave_to_others(self, job: Callable[[], None], jobs: Jobs) -> bool:
        """There is no thread to be had: let the job wait for another one of the pool, if there is any."""
        with self._lock:
            others = jobs is self._jobs and self._threads > 1
            if others:
                self._threads -= 1
                self._idle -= 1
                jobs.put(job)
            return others

    def _forget(self, job: Callable[[], None], jobs: Jobs, never_up: bool) -> bool:
        """True if the job has not begun; then it never will."""
        forgotten = self._waiting.pop(job, False)
        with self._lock:
            if jobs is self._jobs:
                if never_up:
                    self._threads -= 1
                elif forgotten:  # who finds it gone does not count itself
                    self._idle += 1
        return forgotten

    def _live(self, jobs: Jobs, hands: list[Callable[[], None]], place: list[None]) -> None:
        if not _claim(place):
            return
        end = None
        try:
            end = self._serve(jobs, hands)
        finally:
            _destroy_hub()
            if end is not None:
                end.set()

    def _serve(self, jobs: Jobs, hands: list[Callable[[], None]]) -> End | None:
        while True:
            try:
                job: Callable[[], None] | End | None = hands.pop() if hands else jobs.get()
                while not isinstance(job, End):
                    self._run(job, jobs)  # type: ignore[arg-type]
                    job = None  # it holds a batch, with its callers' arguments
                    job = jobs.get()
                return job
            except BaseException:  # set from outside; the queue may have given a job that never arrived here
                job = None
                self._run_all(jobs)
                if jobs is not self._jobs:
                    return None

    def _run_all(self, jobs: Jobs) -> None:
        for job in list(self._waiting):
            self._run(job, jobs)

    def _run(self, job: Callable[[], None], jobs: Jobs) -> None:
        if not self._waiting.pop(job, False):  # another thread has begun it
            return
        try:
            job()
        finally:
            del job  # the handler's frame keeps this one, and what it refers to
            with self._lock:
                if jobs is self._jobs:
                    self._idle += 1


def _claim(place: list[None]) -> bool:
    """True for the first who asks."""
    try:
        place.pop()
    except IndexError:
        return False
    return True


def _destroy_hub() -> None:
    """A thread that waits in gevent's way gets a hub of its own, with two open files, which it leaves behind."""
    gevent = sys.modules.get("gevent._hub_local")
    hub = None if gevent is None else gevent.get_hub_if_exists()
    if hub is not None:
        hub.destroy(destroy_loop=True)
