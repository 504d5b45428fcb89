"""Conversions of finished images: once for all who ask, one at a time, callers by turns, within a number of bytes."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from mflux_api.gateway.conversions import Conversions
from mflux_api.images.encode import ImageTarget

WEBP, SMALL = ImageTarget(format="webp"), ImageTarget(format="webp", side=64)


class Maker:
    """Makes what it is asked for when it is let, and notes in which order."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.running = 0
        self.most = 0

    async def make(self, name: str, size: int = 1) -> bytes:
        self.running += 1
        self.most = max(self.most, self.running)
        await trio.sleep(1)
        self.running -= 1
        self.made.append(name)
        return bytes(size)


async def test_the_same_conversion_is_made_once_for_all_who_ask(autojump_clock: trio.testing.MockClock) -> None:
    conversions, maker = Conversions(), Maker()

    async def ask(target: ImageTarget) -> None:
        await conversions.get("a", target, lambda: maker.make(str(target)))

    async with trio.open_nursery() as nursery:
        for target in (WEBP, WEBP, SMALL, WEBP):
            nursery.start_soon(ask, target)
    await ask(WEBP)
    assert sorted(maker.made) == sorted([str(WEBP), str(SMALL)])
    assert maker.most == 1


async def test_callers_take_turns(autojump_clock: trio.testing.MockClock) -> None:
    conversions, maker = Conversions(), Maker()

    async def ask(caller: str, digest: str) -> None:
        await conversions.get(digest, WEBP, lambda: maker.make(digest), caller=caller)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(ask, "crowd", f"crowd {number}")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, "other", "other")
    assert maker.made.index("other") <= 1


async def test_what_fails_is_tried_again_by_the_next_who_ask(autojump_clock: trio.testing.MockClock) -> None:
    conversions, maker = Conversions(), Maker()

    async def fail() -> bytes:
        await trio.sleep(1)
        raise OSError("no disk")

    async def ask_in_vain() -> None:
        with pytest.raises(OSError, match="no disk"):
            await conversions.get("a", WEBP, fail)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_in_vain)
        await trio.testing.wait_all_tasks_blocked()
        assert await conversions.get("a", WEBP, lambda: maker.make("a")) == b"\0"
    assert maker.made == ["a"]


async def test_caller_that_leaves_leaves_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    conversions, maker = Conversions(), Maker()
    with trio.move_on_after(0.5):
        await conversions.get("a", WEBP, lambda: maker.make("a"))
    await conversions.get("a", WEBP, lambda: maker.make("a"))
    assert maker.made == ["a"]


async def test_least_recent_ones_go_when_there_are_too_many(autojump_clock: trio.testing.MockClock) -> None:
    conversions, maker = Conversions(most_bytes=100), Maker()
    for name in ("a", "b", "a", "c", "a", "b"):
        await conversions.get(name, WEBP, lambda name=name: maker.make(name, 45))  # type: ignore[misc]
    assert maker.made == ["a", "b", "c", "b"]
