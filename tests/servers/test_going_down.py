"""What a server loses when it, or a worker of it, goes down: nothing that it had accepted, where it has the time."""

from __future__ import annotations

import os
from collections.abc import Callable
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM
from typing import Any

import pytest

from .clients import Clients, Endless, Outcome, ask, batch_sizes, failures, squares
from .conftest import Start
from .servers import FLASK, HOOK, Server, Setup, gevent_worker, pywsgi, thread_worker, uwsgi_server, waitress

RELOADS = 20

worker_kinds = pytest.mark.parametrize("worker", [gevent_worker, thread_worker], ids=["gevent", "gthread"])


def closed(outcomes: list[Outcome]) -> list[Outcome]:
    """Those that ended with the connection, and not with an answer."""
    return [outcome for outcome in outcomes if outcome.status is None]


def processes(outcomes: list[Outcome]) -> set[int]:
    return {outcome.batch[0] for outcome in outcomes if outcome.batch is not None}


def boots(server: Server, workers: int) -> None:
    """Wait until so many workers have been started, and can answer."""
    server.wait_for("imported by", times=workers)


# Stop, reload, max_requests.


GRACEFUL = [
    gevent_worker("--preload"),
    gevent_worker("--preload", name="gunicorn -k gevent with the hook", conf=HOOK),
    thread_worker(threads=64),
    thread_worker(threads=64, name="gunicorn -k gthread with the hook", conf=HOOK),
    pywsgi(patched=True),
    pywsgi(patched=False),
    uwsgi_server("--gevent", "100"),
    uwsgi_server("--threads", "64"),
    waitress(threads=64),
]


@pytest.mark.parametrize("setup", GRACEFUL, ids=lambda setup: setup.id)
def test_a_server_that_is_stopped_answers_what_is_queued_and_in_flight(start: Start, setup: Setup) -> None:
    server = start(setup)
    with Clients(server.port, squares("/slow/0.3", 40), clients=40) as clients:  # five batches, one after the other
        server.wait_for("accepted 40")
        server.signal(setup.ends_by)
    assert failures(clients.outcomes) == []
    assert len(batch_sizes(clients.outcomes)) >= 5
    assert server.wait_until_ended() == 0


@worker_kinds
@pytest.mark.timeout(180)
def test_twenty_reloads_under_load_lose_nothing(start: Start, worker: Any, note: Callable[[str], None]) -> None:
    server = start(worker("-w", "2", conf=HOOK))
    boots(server, 2)
    load = Endless("/ask/module")
    with Clients(server.port, load, clients=8) as clients:
        try:
            for reload in range(1, RELOADS + 1):
                server.signal(SIGHUP)
                boots(server, 2 + 2 * reload)
                server.wait_for("Worker exiting", times=2 * reload)
        finally:
            load.end.set()
    assert failures(clients.outcomes) == []
    batch_sizes(clients.outcomes)
    workers = processes(clients.outcomes)
    assert len(workers) > RELOADS
    asked = f"{len(clients.outcomes)} requests to {len(workers)} workers"
    note(f"{RELOADS} reloads of {server.setup.name}: {asked}, 0 failed")


@worker_kinds
def test_recycling_workers_under_load_loses_nothing(start: Start, worker: Any, note: Callable[[str], None]) -> None:
    server = start(worker("-w", "2", "--max-requests", "60", "--max-requests-jitter", "20", conf=HOOK))
    load = Endless("/ask/module")
    with Clients(server.port, load, clients=8) as clients:
        try:
            server.wait_for("Worker exiting", times=6)
        finally:
            load.end.set()
    assert failures(clients.outcomes) == []
    batch_sizes(clients.outcomes)
    workers = processes(clients.outcomes)
    assert len(workers) >= 6
    note(f"{server.setup.name}: {len(clients.outcomes)} requests to {len(workers)} workers, 0 failed")


# The hook.


@worker_kinds
def test_the_hook_answers_what_no_request_waits_for(start: Start, worker: Any) -> None:
    server = start(worker("--graceful-timeout", "20", conf=HOOK))
    ask(server.port, "/leave/1.5/16")  # two batches of eight
    server.signal(SIGTERM)
    assert server.wait_until_ended() == 0
    assert 8 <= int(server.wait_for(r"ubatch: 'slow_handler': (\d+) answered$")[1]) <= 16


@worker_kinds
def test_the_hook_fails_what_does_not_end_in_half_of_graceful_timeout(start: Start, worker: Any) -> None:
    server = start(worker("--graceful-timeout", "4", conf=HOOK))
    ask(server.port, "/leave/60.0/16")
    server.signal(SIGTERM)
    assert server.wait_until_ended() == 0
    server.wait_for("ubatch: 'slow_handler': 0 answered, 16 failed for want of time")
    assert server.matches("SIGKILL") == []


@worker_kinds
def test_without_the_hook_a_handler_that_does_not_end_holds_up_nothing(start: Start, worker: Any) -> None:
    server = start(worker("--graceful-timeout", "4"))
    ask(server.port, "/leave/60.0/16")
    server.signal(SIGTERM)
    assert server.wait_until_ended() == 0
    assert server.matches("SIGKILL") == []


@worker_kinds
@pytest.mark.parametrize("conf", [(), HOOK], ids=["bare", "hook"])
def test_ctrl_c_ends_a_server_whose_handler_does_not(start: Start, worker: Any, conf: tuple[str, ...]) -> None:
    server = start(worker("--graceful-timeout", "4", conf=conf))
    ask(server.port, "/leave/60.0/16")
    server.signal(SIGINT)
    assert server.wait_until_ended() == 0
    assert server.matches("SIGKILL") == []


def test_the_hook_ends_the_requests_of_a_thread_worker_that_outlast_graceful_timeout(start: Start) -> None:
    server = start(thread_worker("--graceful-timeout", "2", conf=HOOK))
    with Clients(server.port, ["/slow/60.0/5"], clients=1) as client:
        server.wait_for("accepted 1")
        server.signal(SIGHUP)
        server.wait_for("0 answered, 1 failed for want of time")
    assert [outcome.status for outcome in client.outcomes] == [500]
    boots(server, 2)
    assert failures(ask(server.port, "/ask/module/7")) == []
    assert server.stop() == 0
    assert server.matches("SIGKILL|WORKER TIMEOUT") == []


# Workers that are killed.


@worker_kinds
def test_a_killed_worker_takes_only_its_own_requests_with_it(start: Start, worker: Any) -> None:
    server = start(worker("-w", "2"))
    boots(server, 2)
    load = Endless("/ask/module")
    with Clients(server.port, load, clients=8) as clients:
        try:
            victim = processes(ask(server.port, "/pid"))
            os.kill(*victim, SIGKILL)
            boots(server, 3)
            afterwards = ask(server.port, *squares("/ask/decorated", 64))
        finally:
            load.end.set()
    failed = failures(clients.outcomes)
    assert failed == closed(failed)
    assert len(failed) <= 8
    batch_sizes(outcome for outcome in clients.outcomes if processes([outcome]) != victim)
    assert failures(afterwards) == []
    assert len(processes(clients.outcomes + afterwards) - victim) == 2


@pytest.mark.parametrize(("x", "status"), [(3, 500), (4, None)], ids=["in Python", "in C"])
def test_a_handler_stuck_on_the_hub_costs_one_worker_only(start: Start, x: int, status: int | None) -> None:
    server = start(gevent_worker("-w", "2", "--timeout", "2"))
    boots(server, 2)
    load = Endless("/ask/module")
    with Clients(server.port, [f"/stuck/{x}"], clients=1) as stuck:
        server.wait_for("stuck")
        with Clients(server.port, load, clients=8) as clients:
            try:
                server.wait_for("WORKER TIMEOUT")
                boots(server, 3)
            finally:
                load.end.set()
    assert [outcome.status for outcome in stuck.outcomes] == [status]
    assert failures(clients.outcomes) == []  # the worker that is stuck accepts no more
    assert failures(ask(server.port, *squares("/ask/module", 64))) == []


@worker_kinds
def test_a_native_handler_may_take_longer_than_timeout(start: Start, worker: Any) -> None:
    server = start(worker("--timeout", "2"))
    assert failures(ask(server.port, "/slow/4.5/5")) == []
    assert server.matches("WORKER TIMEOUT") == []


# Flask's reloader.


def test_the_reloader_of_flask_starts_over_with_a_batcher_that_works(start: Start, tmp_path: Any) -> None:
    watched = tmp_path / "watched"
    watched.touch()
    server = start(FLASK.but("--extra-files", str(watched)))
    before = ask(server.port, *squares("/ask/module", 16))
    watched.write_text("changed")
    boots(server, 3)  # the process that restarts the other one imports the application as well
    after = ask(server.port, *squares("/ask/module", 16))
    assert failures(before + after) == []
    assert processes(before) & processes(after) == set()
