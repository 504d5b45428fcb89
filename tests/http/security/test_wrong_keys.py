"""Wrong keys: slowed and logged by address, within bounds, on the test's clock."""

import logging
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from mflux_api.errors import TooManyWrongKeys
from mflux_api.http.security import wrong_keys
from mflux_api.http.security.wrong_keys import FREE, MAX_ADDRESSES, MAX_WAITING_OF_ADDRESS, WAIT_SECONDS, WrongKeys

ADDRESS = "203.0.113.5"


async def took(table: WrongKeys, address: str = ADDRESS) -> float:
    began = trio.current_time()
    await table.note(address)
    return trio.current_time() - began


async def test_some_are_answered_at_once_and_further_ones_slowly_until_a_minute_is_over(
    autojump_clock: MockClock,
) -> None:
    table = WrongKeys()
    assert [await took(table) for _ in range(FREE)] == [0.0] * FREE
    assert WAIT_SECONDS / 2 <= await took(table) <= WAIT_SECONDS
    assert await took(table, "203.0.113.6") == 0.0
    await trio.sleep(60)
    assert [await took(table) for _ in range(FREE)] == [0.0] * FREE


async def test_only_so_many_wait_and_further_ones_are_answered_at_once(autojump_clock: MockClock) -> None:
    table, refused = WrongKeys(), 0
    began = trio.current_time()

    async def try_once() -> None:
        nonlocal refused
        try:
            await table.note(ADDRESS)
        except TooManyWrongKeys:
            refused += trio.current_time() == began

    async with trio.open_nursery() as nursery:
        for _ in range(FREE + MAX_WAITING_OF_ADDRESS + 5):
            nursery.start_soon(try_once)
    assert refused == 5
    assert (TooManyWrongKeys.status, TooManyWrongKeys.code, TooManyWrongKeys.retry_after) == (401, "UNAUTHORIZED", 60)
    assert WAIT_SECONDS / 2 <= await took(table) <= WAIT_SECONDS


async def test_crowd_that_comes_together_is_answered_one_by_one(autojump_clock: MockClock) -> None:
    table, answered = WrongKeys(), list[float]()

    async def try_once() -> None:
        await table.note(ADDRESS)
        answered.append(trio.current_time())

    for _ in range(FREE):
        await table.note(ADDRESS)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(try_once)
    gaps = [later - earlier for earlier, later in pairwise(answered)]
    assert min(gaps) > 0
    assert max(gaps) < 0.1


async def test_client_that_leaves_gives_its_place_back(autojump_clock: MockClock) -> None:
    table = WrongKeys()
    for _ in range(FREE):
        await table.note(ADDRESS)
    for _ in range(3 * MAX_WAITING_OF_ADDRESS):
        with trio.move_on_after(0.01) as scope:
            await table.note(ADDRESS)
        assert scope.cancelled_caught
    with trio.fail_after(WAIT_SECONDS + 1):
        await table.note(ADDRESS)
    assert table._waiting == 0


async def test_log_has_a_line_a_minute_with_the_count(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    table = WrongKeys()
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            await table.note(ADDRESS)
        assert [record.getMessage() for record in caplog.records] == [
            f"address {ADDRESS}: 1 request(s) with a wrong API key since its last such line"
        ]
        table.flush()
        assert len(caplog.records) == 1
        await trio.sleep(60)
        table.flush()
        assert "4 request(s)" in caplog.records[-1].getMessage()
        await trio.sleep(120)
        table.flush()
        await table.note(ADDRESS)
        assert "1 request(s)" in caplog.records[-1].getMessage()
        assert len(caplog.records) == 3


async def test_many_addresses_fill_neither_the_table_nor_the_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    table = WrongKeys()
    with caplog.at_level(logging.WARNING):
        for number in range(MAX_ADDRESSES + 100):
            await table.note(f"10.1.{number // 256}.{number % 256}")
    assert len(table._addresses) == MAX_ADDRESSES
    assert len(caplog.records) == wrong_keys.MAX_LINES


async def test_addresses_of_one_ipv6_network_are_one(autojump_clock: MockClock) -> None:
    table = WrongKeys()
    for number in range(FREE):
        await table.note(f"2001:db8::{number:x}")
    assert WAIT_SECONDS / 2 <= await took(table, "2001:db8::ffff") <= WAIT_SECONDS
    assert await took(table, "2001:db8:0:1::1") == 0.0
    assert await took(table, "::ffff:203.0.113.5") == 0.0
    assert await took(table, "not an address") == 0.0
