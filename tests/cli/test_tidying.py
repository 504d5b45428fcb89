"""Memory that clients took goes back to the system."""

from __future__ import annotations

import pytest
import trio

from mflux_api.cli import tidying
from mflux_api.cli.tidying import GROWN_BYTES, give_back_memory
from tests.support.harness import eventually


async def test_memory_is_given_back_once_after_each_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    # In real time: a test's clock would jump while the thread works.
    monkeypatch.setattr(tidying, "LOOK_SECONDS", 0.001)
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
