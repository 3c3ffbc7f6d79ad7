"""The matrix: every server, every way to make a batcher, every kind of caller. Each answer is right, and comes once."""

from __future__ import annotations

from itertools import cycle

import pytest

from .clients import Clients, ask, batch_sizes, failures, squares
from .conftest import Tally
from .servers import SETUPS, WAYS, Server


@pytest.mark.parametrize("way", WAYS)
def test_every_request_is_answered_right_and_once(server: Server, tally: Tally, way: str) -> None:
    setup = server.setup
    paths = squares(f"/ask/{way}", 200 if setup.batches else 60)
    with Clients(server.port, paths, keep_alive=setup.keep_alive) as clients:
        outcomes = clients.wait()
    assert failures(outcomes) == []
    assert len(outcomes) == len(paths)
    sizes = batch_sizes(outcomes)
    tally.answers += len(outcomes)
    tally.batches += len(sizes)
    if setup.batches:
        assert len(outcomes) / len(sizes) > 2
    else:
        assert set(sizes) == {1}  # one request at a time


GREEN = [pytest.param(setup, id=setup.id) for setup in SETUPS if setup.green]


@pytest.mark.parametrize("server", GREEN, indirect=True)
@pytest.mark.parametrize("first", ["greenlet", "pool", "native", "hub"])
def test_greenlets_native_threads_and_other_hubs_share_a_batcher(server: Server, tally: Tally, first: str) -> None:
    callers = cycle(["greenlet", "pool", "native", "hub"])
    paths = [f"/call/{first}/{first}/0"]
    paths += [f"/call/{first}/{caller}/{x}" for x, caller in zip(range(200), callers, strict=False)]
    ask(server.port, paths[0])
    with Clients(server.port, paths[1:]) as clients:
        outcomes = clients.wait()
    assert failures(outcomes) == []
    sizes = batch_sizes(outcomes)
    tally.answers += len(outcomes)
    tally.batches += len(sizes)
    assert len(outcomes) / len(sizes) > 2
