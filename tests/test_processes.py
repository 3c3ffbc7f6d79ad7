"""The end of a process, and its forks: scripts with no server, in processes of their own.

Nobody hangs, nothing is printed that the script does not print, and what a fork left behind is never waited for.
"""

from __future__ import annotations

import textwrap

import pytest

from .conftest import ON_LIBUV
from .test_reality import EXECUTORS, RUNTIMES, run

patched_or_not = pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
each_executor = pytest.mark.parametrize("executor", EXECUTORS)


# The end.


@patched_or_not
@each_executor
def test_main_and_greenlets_share_a_batcher_in_a_script(patched: bool, executor: str) -> None:
    done = run(
        f"""
        import gevent
        from ubatch import UBatch
        def handler(xs):
            gevent.sleep(0.01)
            return xs
        batcher = UBatch(4, 0.001, executor={executor!r}).set_handler(handler)
        callers = [gevent.spawn(batcher.ubatch, x) for x in range(10)]
        gevent.joinall(callers)
        print([caller.value for caller in callers], batcher.ubatch(10))
        """,
        patched=patched,
    )
    assert (done.stdout, done.stderr, done.returncode) == (f"{list(range(10))} 10\n", "", 0)


@patched_or_not
@each_executor
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("stop", ["", "batcher.stop(0.1)"], ids=["without stop", "with a bounded stop"])
def test_a_script_ends_though_its_handler_does_not(patched: bool, executor: str, runtime: str, stop: str) -> None:
    done = run(
        f"""
        import gevent
        from ubatch import DeadlineExceeded, UBatch
        from ubatch._runtime._native import allocate_lock
        def handler(xs):
            if {executor!r} == "greenlet" and {runtime!r} == "gevent":
                gevent.sleep(60)
            lock = allocate_lock()
            lock.acquire()
            lock.acquire()
        batcher = UBatch(2, 0, executor={executor!r}, runtime={runtime!r}).set_handler(handler)
        requests = [batcher.submit(x) for x in range(5)]
        try:
            requests[0].result(0.1)
        except DeadlineExceeded as error:
            print(error)
        {stop}
        """,
        patched=patched,
    )
    assert done.stdout == "no answer within 0.1 seconds: the request is still at the handler\n"
    assert (done.stderr, done.returncode) == ("", 0)


@patched_or_not
@each_executor
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_at_exit_the_answers_are_still_to_be_had(patched: bool, executor: str, runtime: str) -> None:
    done = run(
        f"""
        import atexit
        from ubatch import UBatch
        def squares(xs):
            return [x * x for x in xs]
        batcher = UBatch(2, 0.001, executor={executor!r}, runtime={runtime!r}).set_handler(squares)
        batcher.ubatch(0)
        atexit.register(lambda: print([request.result() for request in requests]))
        atexit.register(batcher.stop)
        requests = [batcher.submit(x) for x in range(5)]
        """,
        patched=patched,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[0, 1, 4, 9, 16]\n", "", 0)


@patched_or_not
@each_executor
def test_threads_that_wait_when_main_ends_get_their_answers(patched: bool, executor: str) -> None:
    done = run(
        f"""
        import threading
        from ubatch import UBatch
        from ubatch._runtime._native import allocate_lock
        def handler(xs):
            lock = allocate_lock()
            lock.acquire()
            lock.acquire(timeout=0.05)
            return [x * x for x in xs]
        batcher = UBatch(2, 0.001, executor={executor!r}).set_handler(handler)
        batcher.ubatch(0)  # from 3.12 on, Python starts no thread once main has ended
        answers = set()
        def ask(x):
            answers.add(batcher.ubatch(x))
            if len(answers) == 5:
                print(sorted(answers))
        for x in range(5):
            threading.Thread(target=ask, args=(x,)).start()
        """,
        patched=patched,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[0, 1, 4, 9, 16]\n", "", 0)


@patched_or_not
def test_calls_that_are_refused_leave_nothing_on_the_loop(patched: bool) -> None:
    done = run(
        """
        import gevent
        from ubatch import QueueClosed, UBatch
        batcher = UBatch(1, 0, runtime="threading").set_handler(list)
        def main():
            print(batcher.ubatch(1))
            batcher.stop()
            try:
                batcher.ubatch(2)
            except QueueClosed:
                batcher.stop()
        gevent.spawn(main).get()
        print(gevent.wait(timeout=20))
        """,
        patched=patched,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("1\nTrue\n", "", 0)


# A thread that collects, and ends. Under "auto" only the main thread's hub may run a collector; asked for, any may.


def test_the_hub_of_another_thread_is_not_chosen_as_home() -> None:
    done = run(
        """
        import threading, gevent
        from ubatch import UBatch
        batcher = UBatch(1, 0).set_handler(list)
        def first():
            print(gevent.spawn(batcher.ubatch, 1).get())
            gevent.get_hub().destroy(destroy_loop=True)
        thread = threading.Thread(target=first)
        thread.start()
        thread.join()
        print(batcher.ubatch(2), gevent.spawn(batcher.ubatch, 3).get(), batcher)
        """
    )
    assert done.stdout == "1\n2 3 <UBatch 'list' max_size=1 timeout=0.0: open, 0 pending, 0 in flight, threading>\n"
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("first", ["gevent", "ubatch"])
def test_greenlets_of_two_threads_come_first_at_once(first: str) -> None:
    """The gevent half of the package is imported then. A greenlet that waits for an import gets LoopExit."""
    imports = ["from gevent import monkey; monkey.patch_all()", "from ubatch import UBatch"]
    done = run(
        "; ".join(imports if first == "gevent" else reversed(imports))
        + textwrap.dedent("""
        import os, sys, gevent
        from gevent.event import AsyncResult
        from importlib.machinery import PathFinder, SourceFileLoader
        from ubatch._runtime._native import _start_new_thread, allocate_lock

        importing, never = allocate_lock(), allocate_lock()
        importing.acquire()
        never.acquire()

        class Slow(SourceFileLoader):
            def exec_module(self, module):
                importing.release()
                never.acquire(timeout=0.2)  # both are on their way
                super().exec_module(module)

        class Finder(PathFinder):
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                if name == "ubatch._runtime._gevent":
                    spec = super().find_spec(name, path, target)
                    spec.loader = Slow(name, spec.origin)
                    return spec

        sys.meta_path.insert(0, Finder)
        batcher = UBatch(1, 0, runtime="threading").set_handler(list)
        result = AsyncResult()
        loop = gevent.get_hub().loop

        def of_another_thread():
            importing.acquire(timeout=0.2)
            try:
                answer = gevent.spawn(batcher.ubatch, 1).get()
            except gevent.exceptions.LoopExit as error:
                answer = repr(error)
            gevent.get_hub().destroy(destroy_loop=True)
            loop.run_callback_threadsafe(result.set, answer)

        _start_new_thread(of_another_thread, ())
        print(gevent.spawn(batcher.ubatch, 2).get(), result.get(timeout=20), flush=True)
        os._exit(0)  # the thread may still be ending
        """)
    )
    assert (done.stdout, done.stderr, done.returncode) == ("2 1\n", "", 0)


@pytest.mark.skipif(ON_LIBUV, reason="there a hub with a watcher that waits cannot be destroyed, with or without us")
def test_when_home_ends_callers_elsewhere_are_told_and_the_next_call_finds_another_home() -> None:
    done = run(
        """
        import threading, gevent
        from ubatch import ResultLost, QueueClosed, UBatch
        begun, gate = threading.Event(), threading.Event()
        def handler(xs):
            begun.set()
            gate.wait(20)
            return xs
        batcher = UBatch(1, 0, runtime="gevent", executor="native").set_handler(handler)
        def home():
            gevent.spawn(batcher.submit, 1).get()
            gevent.get_hub().threadpool.apply(begun.wait, (20,))
            taken.set()
            waiting.wait(20)
            gevent.get_hub().destroy(destroy_loop=True)
        def ask(x):
            try:
                batcher.ubatch(x)
            except (QueueClosed, ResultLost) as error:
                print(type(error).__name__)
        taken, waiting = threading.Event(), threading.Event()
        thread = threading.Thread(target=home)
        thread.start()
        taken.wait(20)
        caller = threading.Thread(target=ask, args=(2,))
        caller.start()
        while "1 pending" not in repr(batcher):
            pass
        waiting.set()
        caller.join(20)
        thread.join(20)
        gate.set()
        print(gevent.spawn(batcher.ubatch, 3).get(timeout=20))
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("QueueClosed\n3\n", "", 0)


# Forks by the application itself.

# How a handler says that it has begun, and waits for the script, in each world.
IN_THREADS = """
import threading
begun, gate = threading.Event(), threading.Event()
begin, wait, wait_for_handler, open_gate = begun.set, gate.wait, begun.wait, gate.set
"""
IN_GEVENT = """
import gevent
from gevent.event import Event
from ubatch._runtime._native import allocate_lock
begun, gate, loop = Event(), allocate_lock(), gevent.get_hub().loop
gate.acquire()
begin, wait_for_handler, open_gate = lambda: loop.run_callback_threadsafe(begun.set), begun.wait, gate.release
def wait(seconds):
    if gate.acquire(timeout=seconds):
        gate.release()
"""
ON_THE_HUB = """
import gevent
from gevent.event import Event
begun, gate = Event(), Event()
begin, wait, wait_for_handler, open_gate = begun.set, gate.wait, begun.wait, gate.set
"""
WORLDS = {
    "threads": (IN_THREADS, False, "threading", "native"),
    "gevent": (IN_GEVENT, True, "gevent", "native"),
    "gevent, unpatched": (IN_GEVENT, False, "gevent", "native"),
    "on the hub": (ON_THE_HUB, True, "gevent", "greenlet"),
    "on the hub, unpatched": (ON_THE_HUB, False, "gevent", "greenlet"),
}
each_world = pytest.mark.parametrize("world", WORLDS)

FORK = """
import gc, os, sys, warnings
from ubatch import ResultLost, UBatch
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads in a process that forks
parent = os.getpid()
def handler(xs):
    if os.getpid() == parent:
        begin()
        wait(20)
    return [x * x for x in xs]
batcher = UBatch(2, 0.001, runtime={runtime!r}, executor={executor!r}, name="forked").set_handler(handler)
requests = [batcher.submit(x) for x in range(5)]
wait_for_handler(20)
"""


def run_forked(world: str, script: str) -> str:
    prelude, patched, runtime, executor = WORLDS[world]
    fork = FORK.format(runtime=runtime, executor=executor)
    done = run(prelude + fork + HELD + textwrap.dedent(script), patched=patched)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


HELD = """
from ubatch._runtime._native import allocate_lock, start_thread
def hold(lock):
    \"\"\"Another thread takes the lock, which a forked child does not have, until what is returned is called.\"\"\"
    taken, end = allocate_lock(), allocate_lock()
    taken.acquire()
    end.acquire()
    def holder():
        with lock:
            taken.release()
            end.acquire()
    start_thread(holder, "holder")
    taken.acquire()
    return end.release
"""


@each_world
@pytest.mark.parametrize("end", ["sys.exit()", "os._exit(0)"])
def test_after_a_fork_the_parent_answers_its_callers_and_the_child_starts_clean(world: str, end: str) -> None:
    printed = run_forked(
        world,
        f"""
        child = os.fork()
        if child == 0:
            print(batcher)
            print(batcher.ubatch(7), batcher.map([8, 9]), flush=True)
            {end}
        assert os.waitpid(child, 0)[1] == 0
        open_gate()
        print([request.result() for request in requests])
        """,
    )
    assert printed == (
        "<UBatch 'forked' max_size=2 timeout=0.001: open, not called yet>\n49 [64, 81]\n[0, 1, 4, 9, 16]\n"
    )


@each_world
def test_the_child_does_not_wait_for_what_the_fork_left_behind(world: str) -> None:
    printed = run_forked(
        world,
        """
        old = batcher._collector
        let_go = hold(old.lock)
        child = os.fork()
        if child == 0:
            print(requests[0], requests[4].cancel())
            try:
                requests[0].result()
            except ResultLost as error:
                print(error)
            open_gate()  # lets the copy of a handler's greenlet end
            print(batcher.ubatch(7), flush=True)
            batcher.stop()
            del batcher
            gc.collect()
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
        let_go()
        open_gate()
        print([request.result() for request in requests])
        """,
    )
    assert printed.splitlines() == [
        "<Request to 'forked': in flight> False",
        "the call was made in another process, before a fork: only that one can answer it",
        "49",
        "[0, 1, 4, 9, 16]",
    ]


@pytest.mark.parametrize("world", ["gevent", "gevent, unpatched"])
def test_a_child_that_uses_its_hub_takes_no_wake_up_of_the_parent(world: str) -> None:
    printed = run_forked(
        world,
        """
        import signal
        from ubatch._runtime._native import start_thread
        child = os.fork()
        if child == 0:
            gate.acquire(timeout=0.5)  # so that it is the last to poll, which is the first to be woken
            gevent.sleep(20)
            os._exit(0)
        start_thread(lambda: (gate.acquire(timeout=1.5), open_gate()), "opener")
        try:
            print([request.result(10) for request in requests])
        finally:
            os.kill(child, signal.SIGKILL)
        """,
    )
    assert printed == "[0, 1, 4, 9, 16]\n"


@pytest.mark.parametrize("world", [world for world in WORLDS if world != "threads"])
def test_callers_that_a_fork_copied_can_be_killed_in_the_child(world: str) -> None:
    printed = run_forked(
        world,
        """
        callers = [gevent.spawn(batcher.ubatch, x) for x in range(3)]
        gevent.sleep(0)
        let_go = hold(batcher._collector.lock)
        child = os.fork()
        if child == 0:
            gevent.killall(callers, timeout=20)
            print([caller.dead for caller in callers], batcher.ubatch(7), flush=True)
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
        let_go()
        open_gate()
        print([caller.get(timeout=20) for caller in callers])
        """,
    )
    assert printed == "[True, True, True] 49\n[0, 1, 4]\n"


def test_a_fork_ends_the_thread_that_was_home_without_its_lock() -> None:
    done = run(
        HELD
        + textwrap.dedent("""
        import os, threading, warnings, gevent
        from ubatch import UBatch
        warnings.simplefilter("ignore", DeprecationWarning)
        batcher = UBatch(1, 0, runtime="gevent").set_handler(list)
        called, end = threading.Event(), threading.Event()
        def home():
            print(gevent.spawn(batcher.ubatch, 1).get(), flush=True)
            called.set()
            end.wait(20)
        thread = threading.Thread(target=home)
        thread.start()
        called.wait(20)
        let_go = hold(batcher._collector.lock)
        child = os.fork()
        if child == 0:
            print(gevent.spawn(batcher.ubatch, 2).get(), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        let_go()
        end.set()
        """)
    )
    assert (done.stdout, done.stderr, done.returncode) == ("1\n2\n", "", 0)
