"""The worlds as fixtures: one test body runs in each runtime, with each executor, in virtual time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from greenlet import greenlet

from ubatch import UBatch
from ubatch.testing import Gate, RecordingHandler, VirtualRuntime

ON_LIBUV = "libuv" in str(gevent.config.loop)

WORLDS = [
    pytest.param((runtime, executor), id=f"{runtime}-{executor}")
    for runtime, executor in [
        ("gevent", "native"),
        ("gevent", "greenlet"),
        ("gevent", "auto"),
        ("threading", "native"),
        ("threading", "greenlet"),
    ]
]


class Harness:
    """Makes batchers in one world, and stops them when the test ends."""

    def __init__(self, runtime: VirtualRuntime, executor: str) -> None:
        self.runtime = runtime
        self.executor = executor
        self._made: list[tuple[UBatch[Any, Any], Gate | None]] = []

    def batcher(
        self, function: Callable[..., Any] | None = None, *, gate: Gate | None = None, **options: Any
    ) -> tuple[UBatch[Any, Any], list[Any]]:
        """A batcher over a recording handler, and the list of the batches that it is given."""
        options = {"max_size": 4, "timeout": 5.0, "executor": self.executor, "runtime": self.runtime} | options
        handler = RecordingHandler(function, gate)
        batcher: UBatch[Any, Any] = UBatch(**options).set_handler(handler)
        self._made.append((batcher, gate))
        return batcher, handler.calls

    def close(self) -> None:
        for batcher, gate in self._made:
            if gate is not None:
                gate.open()
            stopping = self.runtime.call(batcher.stop, 1.0)
            self.runtime.advance(2.0)
            assert stopping.done
            assert stopping.error is None


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def runtime(world: tuple[str, str]) -> VirtualRuntime:
    return VirtualRuntime(world[0])


@pytest.fixture
def harness(runtime: VirtualRuntime, world: tuple[str, str]) -> Iterator[Harness]:
    harness = Harness(runtime, world[1])
    yield harness
    harness.close()


@pytest.fixture
def gate(runtime: VirtualRuntime) -> Gate:
    return runtime.gate()


def greenlets_named(start: str) -> list[Any]:
    everything = gc.get_objects()  # asked for their type: `isinstance` would follow a proxy whose object is gone
    living = [g for g in everything if issubclass(type(g), greenlet) and not g.dead]
    return [g for g in living if getattr(g, "name", "").startswith(start)]
