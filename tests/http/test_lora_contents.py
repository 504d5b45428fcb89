"""What LoRAs hold: each file is read once, a few at a time, and no look at many of them takes long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from mflux_api.errors import InvalidParameter, ServerBusy, ServiceError
from mflux_api.gateway import lora_contents
from mflux_api.gateway.lora_contents import ORDER_FILES, ORDER_SECONDS, READ_SECONDS, REST_SECONDS, LoraContentsCache
from mflux_api.images.child.protocol import DescribedLora, DescribeLoras
from mflux_api.storage.lora_folders import LoraFile

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
UNREAD = DescribedLora()


def files(count: int) -> tuple[LoraFile, ...]:
    return tuple(
        LoraFile(name=f"{number}", path=Path(f"/loras/{number}"), size=1, modified_at=FIRST) for number in range(count)
    )


@attrs.define
class Reader:
    """Stands in for the decoder: says of each file its own name."""

    seconds: float = 0.0
    """Time that an order takes."""
    most: int = ORDER_FILES
    """Files of an order that it gets to."""
    deadly: frozenset[str] = frozenset()
    trouble: ServiceError | None = None
    orders: list[int] = attrs.field(factory=list)
    reads: list[str] = attrs.field(factory=list)
    callers: set[str] = attrs.field(factory=set)

    async def __call__(self, paths: Sequence[Path], caller: str) -> tuple[DescribedLora, ...]:
        await trio.lowlevel.checkpoint()
        if self.trouble is not None:
            raise self.trouble
        self.orders.append(len(paths))
        self.callers.add(caller)
        for index, path in enumerate(paths):
            if path.name in self.deadly:
                raise DescribeLoras(paths=()).refuse(index, "takes too much memory to decode")
        await trio.sleep(self.seconds)
        names = [path.name for path in paths[: self.most]]
        self.reads += names
        return tuple(DescribedLora(problem=name) for name in names)


def told(described: Sequence[DescribedLora]) -> list[str | None]:
    return [each.problem for each in described]


async def test_second_look_at_2000_files_reads_none_of_them() -> None:
    reader, loras = Reader(), files(2000)
    cache = LoraContentsCache(reader)
    expected = [file.name for file in loras]
    assert told(await cache.describe(loras, "key 1")) == expected
    assert (len(reader.reads), max(reader.orders), reader.callers) == (2000, ORDER_FILES, {"key 1"})
    assert told(await cache.describe(loras)) == expected
    assert len(reader.reads) == 2000


@pytest.mark.parametrize("changes", [{"size": 2}, {"modified_at": FIRST + timedelta(microseconds=1)}])
async def test_file_that_was_changed_is_read_again_alone(changes: dict[str, object]) -> None:
    reader, (one, two) = Reader(), files(2)
    cache = LoraContentsCache(reader)
    await cache.describe((one, two))
    assert told(await cache.describe((attrs.evolve(one, **changes), two))) == ["0", "1"]  # type: ignore[arg-type]
    assert reader.reads == ["0", "1", "0"]


async def test_look_ends_after_some_seconds_and_the_next_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    reader, loras = Reader(seconds=1.0), files(10 * ORDER_FILES)
    cache = LoraContentsCache(reader)
    began = trio.current_time()
    first = await cache.describe(loras)
    assert trio.current_time() - began == READ_SECONDS
    known = sum(each != UNREAD for each in first)
    assert ORDER_FILES < known < len(loras)
    assert list(first[known:]) == [UNREAD] * (len(loras) - known)
    while UNREAD in (last := await cache.describe(loras)):
        known += ORDER_FILES
    assert told(last) == [file.name for file in loras]
    assert len(reader.reads) == len(loras)


async def test_order_that_is_not_answered_holds_up_one_look_and_no_further_child_is_sent_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """On a disk that hangs all children would hang one after the other, and no image would be decoded any more."""
    reader, loras = Reader(seconds=math.inf), files(3)
    cache = LoraContentsCache(reader)
    assert await cache.describe(loras) == (UNREAD,) * 3
    assert trio.current_time() == ORDER_SECONDS
    for _ in range(5):
        assert await cache.describe(loras) == (UNREAD,) * 3
    assert (trio.current_time(), len(reader.orders)) == (ORDER_SECONDS, 1)
    reader.seconds = 0.0
    await trio.sleep(REST_SECONDS)
    assert told(await cache.describe(loras)) == ["0", "1", "2"]


@pytest.mark.parametrize(("seconds", "orders"), [(0.5, 2), (2.0, 1)])
async def test_caller_that_leaves_a_slow_order_sends_no_further_child_there(
    autojump_clock: trio.testing.MockClock, seconds: float, orders: int
) -> None:
    reader, loras = Reader(seconds=3.0), files(3)
    cache = LoraContentsCache(reader)
    with trio.move_on_after(seconds):
        await cache.describe(loras)
    await cache.describe(loras)
    assert len(reader.orders) == orders


async def test_look_waits_some_seconds_for_another_that_reads(autojump_clock: trio.testing.MockClock) -> None:
    reader, loras = Reader(seconds=ORDER_SECONDS - 1), files(3)
    cache = LoraContentsCache(reader)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.describe, loras)
        await trio.testing.wait_all_tasks_blocked()
        assert await cache.describe(loras) == (UNREAD,) * 3
        assert trio.current_time() == READ_SECONDS
    assert told(await cache.describe(loras)) == ["0", "1", "2"]


async def test_two_looks_at_once_read_each_file_once(autojump_clock: trio.testing.MockClock) -> None:
    reader, loras = Reader(seconds=0.1), files(100)
    cache = LoraContentsCache(reader)
    found = list[tuple[DescribedLora, ...]]()

    async def look() -> None:
        found.append(await cache.describe(loras))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(look)
    assert [told(each) for each in found] == [[file.name for file in loras]] * 5
    assert sorted(map(int, reader.reads)) == list(range(100))


async def test_order_that_is_answered_in_part_goes_on_behind_it() -> None:
    reader = Reader(most=1)
    assert told(await LoraContentsCache(reader).describe(files(5))) == ["0", "1", "2", "3", "4"]
    assert reader.orders == [5, 4, 3, 2, 1]


async def test_file_that_a_child_died_of_is_told_so_and_hides_no_other() -> None:
    reader, loras = Reader(deadly=frozenset({"1", "40"})), files(50)
    cache = LoraContentsCache(reader)
    expected: list[str | None] = [file.name for file in loras]
    expected[1] = expected[40] = "its header takes too much memory to decode"
    assert told(await cache.describe(loras)) == expected
    orders = len(reader.orders)
    assert told(await cache.describe(loras)) == expected
    assert len(reader.orders) == orders


@pytest.mark.parametrize("error", [ServerBusy("Too many images wait to be decoded; try again")])
async def test_decoder_that_is_busy_leaves_the_list_without_contents_for_now(error: ServiceError) -> None:
    reader, loras = Reader(trouble=error), files(3)
    cache = LoraContentsCache(reader)
    assert await cache.describe(loras) == (UNREAD,) * 3
    reader.trouble = None
    assert told(await cache.describe(loras)) == ["0", "1", "2"]


async def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_contents, "MAX_KNOWN", 10)
    reader = Reader()
    cache = LoraContentsCache(reader)
    for day in range(5):
        await cache.describe([attrs.evolve(file, modified_at=FIRST + timedelta(days=day)) for file in files(4)])
    assert len(cache._known) == 10


def test_error_of_a_header_says_which_and_why() -> None:
    error = DescribeLoras(paths=("/a", "/b")).refuse(1, "takes too long to decode")
    assert isinstance(error, InvalidParameter)
    assert (error.details["index"], error.details["reason"]) == (1, "its header takes too long to decode")
