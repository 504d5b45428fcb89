"""Memory that clients took goes back to the system."""

from __future__ import annotations

import time

import attrs
import pytest
import trio

from mflux_api.cli import tidying
from mflux_api.cli.tidying import GROWN_BYTES, give_back_memory
from tests.support.harness import eventually


@attrs.define
class Memory:
    """What a process has, as the system says it."""

    kept: int = 0
    """What is in use, and not given back by anything."""
    free: int = 0
    given: int = 0
    """How often it was given back."""
    looks: int = 0

    def resident(self) -> int:
        self.looks += 1
        return self.kept + self.free

    def give_back(self) -> None:
        self.free, self.given = 0, self.given + 1

    async def looked(self, times: int) -> None:
        """Wait until it was looked at more often than so many times."""
        before = self.looks
        await eventually(lambda: self.looks > before + times)


async def test_memory_is_given_back_once_after_each_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    # In real time: a test's clock would jump while the thread works.
    monkeypatch.setattr(tidying, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    memory = Memory(kept=10 * GROWN_BYTES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_back_memory, memory.resident, memory.give_back)
        await memory.looked(5)
        assert memory.given == 0
        memory.free = 2 * GROWN_BYTES
        await memory.looked(5)
        assert (memory.free, memory.given) == (0, 1)
        memory.kept += 2 * GROWN_BYTES
        await memory.looked(5)
        assert memory.given == 2  # what is in use now is not looked at again
        memory.kept -= 2 * GROWN_BYTES
        await memory.looked(5)
        memory.free = 2 * GROWN_BYTES
        await memory.looked(5)
        assert memory.given == 3
        nursery.cancel_scope.cancel()


async def test_memory_that_was_in_use_at_the_last_look_is_given_back_when_the_process_is_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tidying, "LOOK_SECONDS", 0.001)
    memory, busy, computed = Memory(), True, 0.0

    def process_time() -> float:
        nonlocal computed
        computed += 0.001 * busy
        return computed

    monkeypatch.setattr(time, "process_time", process_time)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_back_memory, memory.resident, memory.give_back)
        await memory.looked(10)
        memory.kept = 2 * GROWN_BYTES
        await memory.looked(10)
        assert memory.given == 1
        memory.kept, memory.free = 0, 2 * GROWN_BYTES  # its clients have left
        await memory.looked(10)
        assert memory.given == 1
        busy = False
        await memory.looked(10)
        assert (memory.kept + memory.free, memory.given) == (0, 2)
        memory.kept, busy = 2 * GROWN_BYTES, True
        await memory.looked(10)
        busy = False
        await memory.looked(10)
        # What stays in use is looked through a few times, and not for ever.
        assert memory.given == 2 + 1 + tidying.QUIET_LOOKS
        nursery.cancel_scope.cancel()
