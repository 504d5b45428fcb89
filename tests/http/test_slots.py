"""How many of one thing callers may have at one time."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import trio
from trio.testing import MockClock

from mflux_api.errors import ServerBusy, TooManyConnections
from mflux_api.http.slots import Slots


def test_caller_with_all_its_slots_keeps_no_other_out() -> None:
    slots = Slots("uploads", total=3, per_caller=2)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(slots.slot("a"))
        with pytest.raises(TooManyConnections, match="2 uploads"):
            stack.enter_context(slots.slot("a"))
        stack.enter_context(slots.slot("b"))
        with pytest.raises(ServerBusy, match="3 uploads"):
            stack.enter_context(slots.slot("c"))
        assert slots.taken == 3
    assert slots.taken == 0


async def test_further_one_waits_for_its_turn_and_no_longer_than_it_is_told(autojump_clock: MockClock) -> None:
    slots = Slots("uploads", total=9, per_caller=1)

    async def hold(task_status: trio.TaskStatus[None]) -> None:
        with slots.slot("a"):
            task_status.started()
            await trio.sleep(5)

    async with trio.open_nursery() as nursery:
        await nursery.start(hold)
        began = trio.current_time()
        await slots.wait("a", 3)
        assert trio.current_time() - began == pytest.approx(3)
        with pytest.raises(TooManyConnections), slots.slot("a"):
            raise AssertionError
        await slots.wait("a", 60)
        assert trio.current_time() - began == pytest.approx(5)
        with slots.slot("a"):
            assert slots.taken == 1
