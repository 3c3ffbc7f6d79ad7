"""One wall-clock twin per promise: real time, real wake-ups, real threads. One-sided: "not before", never "within".

Scripts run in a process of their own, patched and unpatched, because what they prove is how a process behaves.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import gevent
import pytest

from ubatch import DeadlineExceeded, UBatch

RUNTIMES = ["gevent", "threading"]
EXECUTORS = ["native", "greenlet"]


@pytest.fixture(params=[(r, e) for r in RUNTIMES for e in EXECUTORS], ids="-".join)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    runtime, executor = request.param
    return {"runtime": runtime, "executor": executor}


def test_a_lone_call_is_answered_not_before_the_timeout(options: dict[str, Any]) -> None:
    with UBatch[int, int](8, 0.05, **options).set_handler(list) as batcher:
        start = time.monotonic()
        assert batcher.ubatch(7) == 7
        assert time.monotonic() - start >= 0.05


def test_a_full_batch_does_not_wait(options: dict[str, Any]) -> None:
    with UBatch[int, int](4, 3600.0, **options).set_handler(list) as batcher:
        assert batcher.map(range(8)) == list(range(8))


def test_native_threads_and_greenlets_share_one_batcher(options: dict[str, Any]) -> None:
    answers: list[int] = []
    with UBatch[int, int](8, 0.001, **options).set_handler(lambda xs: [x * x for x in xs]) as batcher:
        batcher.ubatch(0)
        pool = gevent.get_hub().threadpool
        from_pool = [pool.spawn(batcher.ubatch, x) for x in range(10)]
        from_greenlets = [gevent.spawn(batcher.ubatch, x) for x in range(10, 20)]
        answers = [task.get(timeout=30) for task in from_pool + from_greenlets]
    assert answers == [x * x for x in range(20)]


def test_a_wait_for_a_result_ends_in_real_time_too(options: dict[str, Any]) -> None:
    with UBatch[int, int](8, 3600.0, **options).set_handler(list) as batcher:
        request = batcher.submit(1)
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            request.result(0.05)
        assert time.monotonic() - start >= 0.049
        assert request.cancel()


def test_a_bounded_stop_ends_in_real_time_too(options: dict[str, Any]) -> None:
    stuck = threading.Event() if options["executor"] == "native" else gevent.event.Event()
    batcher = UBatch[int, int](1, 0.0, **options).set_handler(lambda xs: [stuck.wait(30) for _ in xs])
    request = batcher.submit(1)
    with pytest.raises(DeadlineExceeded):
        request.result(0.05)
    batcher.stop(0.05)
    assert request.done()
    stuck.set()


def test_hundreds_of_threads_get_their_own_answers() -> None:
    answers: dict[int, int] = {}
    with UBatch[int, int](32, 0.002, runtime="threading", max_in_flight=2).set_handler(
        lambda xs: [x * x for x in xs]
    ) as batcher:

        def call(start: int) -> None:
            for x in range(start, start + 20):
                answers[x] = batcher.ubatch(x)

        threads = [threading.Thread(target=call, args=(20 * i,)) for i in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {x: x * x for x in range(2000)}


def test_thousands_of_greenlets_get_their_own_answers() -> None:
    for executor in EXECUTORS:
        with UBatch[int, int](64, 0.002, runtime="gevent", executor=executor, max_in_flight=2).set_handler(
            lambda xs: [x * x for x in xs]
        ) as batcher:
            tasks = [gevent.spawn(batcher.ubatch, x) for x in range(3000)]
            assert [task.get(timeout=30) for task in tasks] == [x * x for x in range(3000)]


# Scripts.


def run(script: str, *, patched: bool = False, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    patch = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    # The test process may be patched itself: the child is started and read by gevent's subprocess then, as it should.
    return subprocess.run(
        [sys.executable, "-c", patch + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_a_process_that_uses_threads_never_imports_gevent() -> None:
    done = run(
        """
        import sys
        from ubatch import UBatch
        assert UBatch(4, 0).set_handler(list).ubatch(1) == 1
        print([name for name in ("gevent", "flask", "numpy", "gunicorn") if name in sys.modules])
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)


def test_importing_and_constructing_starts_nothing() -> None:
    done = run(
        """
        import threading, sys
        from ubatch import UBatch, ubatch_decorator
        @ubatch_decorator(4, 0.01)
        def f(xs): return xs
        batcher = UBatch(4, 0.01).set_handler(list).start()
        repr(batcher), repr(f), batcher.stop()
        from gevent._hub_local import get_hub_if_exists
        print(threading.active_count(), get_hub_if_exists())
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("1 None\n", "", 0)


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("stop", ["batcher.stop()", "pass"])
def test_a_script_ends_by_itself_when_main_ends(patched: bool, executor: str, stop: str) -> None:
    done = run(
        f"""
        import time
        from ubatch import UBatch
        def handler(xs):
            time.sleep(0.05)
            return xs
        batcher = UBatch(4, 0.001, executor={executor!r}).set_handler(handler)
        print(batcher.ubatch(1), batcher.map([2, 3]))
        {stop}
        """,
        patched=patched,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("1 [2, 3]\n", "", 0)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("patched", [False, True])
def test_a_handler_that_exits_does_not_end_the_process(runtime: str, patched: bool) -> None:
    done = run(
        f"""
        import sys
        from ubatch import UBatch, HandlerAborted
        for executor in ("native", "greenlet"):
            batcher = UBatch(1, 0, executor=executor, runtime={runtime!r}).set_handler(lambda xs: sys.exit(3))
            for _ in range(2):
                try:
                    batcher.ubatch(1)
                except HandlerAborted as error:
                    print(error)
        """,
        patched=patched,
    )
    assert done.stdout == "the handler '<lambda>' ended with SystemExit(3)\n" * 4
    assert (done.stderr, done.returncode) == ("", 0)


def test_ctrl_c_in_a_handler_on_the_hub_reaches_the_callers_and_the_main_greenlet() -> None:
    done = run(
        """
        import gevent
        from ubatch import UBatch, HandlerAborted
        def handler(xs):
            if xs == [1]:
                raise KeyboardInterrupt
            return xs
        batcher = UBatch(1, 0, executor="greenlet").set_handler(handler)
        caller = gevent.spawn(batcher.ubatch, 1)
        try:
            gevent.sleep(20)
        except KeyboardInterrupt:
            print("main")
        gevent.joinall([caller], timeout=5)
        print(type(caller.exception).__name__, gevent.spawn(batcher.ubatch, 2).get(timeout=5))
        """,
        patched=True,
    )
    assert (done.stdout, done.returncode) == ("main\nHandlerAborted 2\n", 0)


def test_ctrl_c_in_a_waiting_thread_takes_its_call_out_of_the_queue() -> None:
    done = run(
        """
        import os, signal, threading
        from ubatch import UBatch
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs this may ignore it
        batcher = UBatch(4, 3600).set_handler(list)
        over = threading.Event()

        def strike():  # again, if it came right before the lock was asked for: then the interpreter sees it after that
            while not over.wait(0.5):
                os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=strike).start()
        try:
            batcher.ubatch(1)
        except KeyboardInterrupt:
            over.set()
            print(batcher)
        """
    )
    assert done.stdout == "<UBatch 'list' max_size=4 timeout=3600.0: open, 0 pending, 0 in flight, threading>\n"
    assert (done.stderr, done.returncode) == ("", 0)
