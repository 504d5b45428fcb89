"""Memory that clients took goes back to the system."""

from __future__ import annotations

import time

import pytest
import trio

from mflux_api.cli import tidying
from mflux_api.cli.tidying import GROWN_BYTES, give_back_memory
from tests.support.harness import eventually


async def test_memory_is_given_back_once_after_each_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    # In real time: a test's clock would jump while the thread works.
    monkeypatch.setattr(tidying, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    kept = 10 * GROWN_BYTES  # what is in use, and not given back by anything
    free, given, looks = 0, 0, 0

    def resident() -> int:
        nonlocal looks
        looks += 1
        return kept + free

    def give_back() -> None:
        nonlocal free, given
        free, given = 0, given + 1

    async def looked() -> None:
        before = looks
        await eventually(lambda: looks > before + 5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_back_memory, resident, give_back)
        await looked()
        assert given == 0
        free = 2 * GROWN_BYTES
        await looked()
        assert (free, given) == (0, 1)
        kept += 2 * GROWN_BYTES
        await looked()
        assert given == 2  # what is in use now is not looked at again
        kept -= 2 * GROWN_BYTES
        await looked()
        free = 2 * GROWN_BYTES
        await looked()
        assert given == 3
        nursery.cancel_scope.cancel()


async def test_memory_that_was_in_use_at_the_last_look_is_given_back_when_the_process_is_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tidying, "LOOK_SECONDS", 0.001)
    busy = True
    computed, in_use, free, given, looks = 0.0, 0, 0, 0, 0

    def process_time() -> float:
        nonlocal computed
        computed += 0.001 * busy
        return computed

    def resident() -> int:
        nonlocal looks
        looks += 1
        return in_use + free

    def give_back() -> None:
        nonlocal free, given
        free, given = 0, given + 1

    async def looked() -> None:
        before = looks
        await eventually(lambda: looks > before + 10)

    monkeypatch.setattr(time, "process_time", process_time)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_back_memory, resident, give_back)
        await looked()
        in_use = 2 * GROWN_BYTES
        await looked()
        assert given == 1
        in_use, free = 0, 2 * GROWN_BYTES  # its clients have left
        await looked()
        assert given == 1
        busy = False
        await looked()
        assert (in_use + free, given) == (0, 2)
        in_use, busy = 2 * GROWN_BYTES, True
        await looked()
        busy = False
        await looked()
        # What stays in use is looked through a few times, and not for ever.
        assert given == 2 + 1 + tidying.QUIET_LOOKS
        nursery.cancel_scope.cancel()
