"""gunicorn's hook without gunicorn: what it drains, in which order, how long, and where it does nothing."""

from __future__ import annotations

from ..test_reality import run

WORKER = """
import logging, os, sys
from types import SimpleNamespace
from ubatch import QueueClosed, UBatch
from ubatch.integrations.gunicorn import worker_exit
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(message)s")
worker = SimpleNamespace(
    pid=os.getpid(), log=logging.getLogger(), cfg=SimpleNamespace(graceful_timeout=20, timeout=20)
)
"""


def run_hook(script: str) -> list[str]:
    lines = [line.removeprefix("        ") for line in script.splitlines()]
    done = run(WORKER + "\n".join(lines))
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout.splitlines()


def test_a_handler_may_call_another_batcher_while_both_are_drained() -> None:
    assert run_hook(
        """
        inner = UBatch(4, 0, name="inner").set_handler(lambda xs: [x + 1 for x in xs])
        outer = UBatch(1, 0, name="outer").set_handler(inner.map)
        requests = [outer.submit(x) for x in range(20)]
        worker_exit(None, worker)
        print([request.result() for request in requests] == list(range(1, 21)))
        """
    )[-2:] == ["INFO ubatch: drained, 1 of 2 batchers had nothing left", "True"]


def test_batchers_share_the_time_and_none_is_drained_for_longer() -> None:
    assert run_hook(
        """
        import threading
        worker.cfg.timeout = 1
        for name in "ab":
            stuck = UBatch(1, 0, name=name).set_handler(lambda xs: threading.Event().wait())
            stuck.submit(1)
            globals()[name] = stuck
        worker_exit(None, worker)
        """
    ) == [
        "WARNING ubatch: 'a': 0 answered, 1 failed for want of time",
        "WARNING ubatch: 'b': 0 answered, 1 failed for want of time",
        "INFO ubatch: drained, 0 of 2 batchers had nothing left",
    ]


def test_it_does_nothing_in_the_master() -> None:
    assert run_hook(
        """
        batcher = UBatch(1, 0).set_handler(list)
        batcher.ubatch(1)
        worker.pid += 1
        worker_exit(None, worker)
        print(batcher.ubatch(2))
        """
    ) == ["2"]


def test_it_leaves_alone_what_was_called_before_the_fork_only() -> None:
    assert run_hook(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        batcher = UBatch(1, 0).set_handler(list)
        batcher.ubatch(1)
        child = os.fork()
        if child == 0:
            worker.pid = os.getpid()
            worker_exit(None, worker)
            os._exit(0)
        os.waitpid(child, 0)
        print(batcher.ubatch(2))
        """
    ) == ["INFO ubatch: drained, 0 of 0 batchers had nothing left", "2"]
