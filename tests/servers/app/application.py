"""The one application of the matrix. Its routes differ in how their batcher was made, and in who calls it.

An answer carries what the handler made of the input, and which handler call that was: process, batcher, number, size.
So the client alone can tell that an answer is right, how large the batches were, and that nothing was handled twice or
for nobody: of a batch of five it must have seen five answers.

A handler that takes time waits on a native lock, which lets go of the GIL as a model does and which nothing patches.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable
from itertools import count
from typing import Any

from flask import Flask, jsonify

from ubatch import UBatch, ubatch_decorator
from ubatch._runtime._native import _original, allocate_lock

Labelled = tuple[int, tuple[int, str, int, int]]

LIMITS = {"max_size": 32, "timeout": 0.005}
HANDLER_SECONDS = 0.004
numbers: defaultdict[str, count[int]] = defaultdict(count)  # of handler calls, by batcher


def say(text: str) -> None:
    """A line of the log, in one write, because workers share it."""
    os.write(2, f"{text}\n".encode())


def take(seconds: float) -> None:
    """Be busy without the GIL."""
    lock = allocate_lock()
    lock.acquire()
    lock.acquire(timeout=seconds)


def square(way: str, xs: list[int], seconds: float = HANDLER_SECONDS) -> list[Labelled]:
    """What every handler here does."""
    take(seconds)
    batch = (os.getpid(), way, next(numbers[way]), len(xs))
    return [(x * x, batch) for x in xs]


def make(way: str, **options: Any) -> UBatch[int, Labelled]:
    def handler(xs: list[int]) -> list[Labelled]:
        return square(way, xs)

    return UBatch[int, Labelled](**(LIMITS | options), name=way).set_handler(handler)


module_level = make("module")
started = make("started").start()
used = make("used")
if os.environ.get("USED_AT_IMPORT"):
    assert used.ubatch(3)[0] == 9


@ubatch_decorator(**LIMITS)
def decorated(xs: list[int]) -> list[Labelled]:
    return square("decorated", xs)


class Model:
    @ubatch_decorator(**LIMITS)
    def predict(self, xs: list[int]) -> list[Labelled]:
        return square("method", xs)


model = Model()


def cooperate(xs: list[int]) -> list[Labelled]:
    """A handler for the executor "greenlet", which waits as cooperative input and output does."""
    if used_world() == "gevent":
        import gevent

        gevent.sleep(HANDLER_SECONDS)
        return square("greenlet", xs, 0)
    return square("greenlet", xs)


cooperative = UBatch[int, Labelled](**LIMITS, executor="greenlet").set_handler(cooperate)


def used_world() -> str:
    return "gevent" if "gevent" in repr(cooperative) else "threading"


# Who calls.


def in_pool_thread(call: Callable[[], Any]) -> Any:
    import gevent

    return gevent.get_hub().threadpool.apply(call)


def in_native_thread(call: Callable[[], Any]) -> Any:
    """In a thread that nothing knows of: no hub, no `threading.Thread`, no patching."""
    import gevent
    from gevent.event import AsyncResult

    result = AsyncResult()
    loop = gevent.get_hub().loop

    def run() -> None:
        try:
            value = call()
        except BaseException as error:
            loop.run_callback_threadsafe(result.set_exception, error)
        else:
            loop.run_callback_threadsafe(result.set, value)

    _original("_thread", "start_new_thread")(run, ())
    return result.get()


def in_thread_with_hub(call: Callable[[], Any]) -> Any:
    """In a greenlet of another thread's hub, a thread that ends with the call."""
    import gevent

    def run() -> Any:
        try:
            return gevent.spawn(call).get()
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    return in_native_thread(run)


CALLERS: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "greenlet": lambda call: call(),
    "pool": in_pool_thread,
    "native": in_native_thread,
    "hub": in_thread_with_hub,
}


# What takes longer, for the tests of going down.


def slow_handler(xs: list[int], seconds: list[float]) -> list[Labelled]:
    return square("slow", xs, max(seconds))


def stuck_handler(xs: list[int]) -> list[int]:
    """Keep the hub for a minute, where a signal's Python handler gets in (3), or never does (4)."""
    say("stuck")
    if xs[0] == 4:
        hashlib.pbkdf2_hmac("sha256", b"uninterruptible", b"", 300_000_000)
    take(60)
    return xs


slow = UBatch[int, Labelled](max_size=8, timeout=0.005, executor="native").set_handler(slow_handler)
stuck = UBatch[int, int](max_size=8, timeout=0, executor="greenlet").set_handler(stuck_handler)


def create_app() -> Flask:
    app = Flask(__name__)
    factory = make("factory")
    lazy: dict[str, UBatch[int, Labelled]] = {}
    accepted = count(1)
    ways: dict[str, Callable[[], Callable[[int], Labelled]]] = {
        "module": lambda: module_level.ubatch,
        "factory": lambda: factory.ubatch,
        "lazy": lambda: lazy.setdefault("lazy", lazy.get("lazy") or make("lazy")).ubatch,
        "used": lambda: used.ubatch,
        "started": lambda: started.ubatch,
        "decorated": lambda: decorated.ubatch,
        "method": lambda: model.predict.ubatch,
        "cooperative": lambda: cooperative.ubatch,
    }

    @app.get("/ask/<way>/<int:x>")
    def ask(way: str, x: int) -> Any:
        return jsonify(ways[way]()(x))

    @app.get("/call/<first>/<caller>/<int:x>")
    def call(first: str, caller: str, x: int) -> Any:
        """Ask the batcher that a `first` kind of caller calls first."""
        batcher = lazy.setdefault(first, lazy.get(first) or make(first))
        return jsonify(CALLERS[caller](lambda: batcher.ubatch(x)))

    @app.get("/slow/<float:seconds>/<int:x>")
    def ask_slow(seconds: float, x: int) -> Any:
        pending = slow.submit(x, seconds)
        say(f"accepted {next(accepted)}")
        return jsonify(pending.result())

    @app.get("/leave/<float:seconds>/<int:n>")
    def leave(seconds: float, n: int) -> Any:
        """Submit so many calls, and go without an answer."""
        for x in range(n):
            slow.submit(x, seconds)
        return jsonify([n, [os.getpid(), "leave", 0, 1]])

    @app.get("/stuck/<int:x>")
    def ask_stuck(x: int) -> Any:
        return jsonify(stuck.ubatch(x))

    @app.get("/pid")
    def pid() -> Any:
        return jsonify([0, [os.getpid(), "pid", 0, 1]])

    return app


app = create_app()
say(f"imported by {os.getpid()}")
