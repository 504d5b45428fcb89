"""The least rate of bodies: what a client that trickles gets, and that an honest slow one is never cut off."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from mflux_api.errors import RequestTimeout, ServerBusy
from mflux_api.gateway.bytes_in_flight import BytesInFlight
from mflux_api.http import pace
from mflux_api.http.held import Held, MeteredBody
from mflux_api.http.pace import CREDIT_SECONDS, LEAST_BYTES_PER_SECOND, PacedBody
from mflux_api.http.uploads import UNREAD_BYTES, UploadBody

MEGABYTE = 2**20
STEPS = st.lists(st.tuples(st.floats(0.01, 40.0), st.integers(0, 4 * MEGABYTE)), min_size=1, max_size=20)


async def trickle(body: PacedBody, count: int, seconds: float, size: int) -> None:
    for _ in range(count):
        await trio.sleep(seconds)
        body.append(bytes(size))
    body.set_complete()


async def test_body_of_a_byte_a_second_ends_after_its_credit(autojump_clock: MockClock) -> None:
    body = PacedBody(None, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle, body, 3600, 1.0, 1)
        began = trio.current_time()
        with pytest.raises(RequestTimeout, match="at least 32 KB a second"):
            await body
        assert trio.current_time() - began < CREDIT_SECONDS + 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("whole", [True, False])
async def test_body_that_keeps_the_least_rate_may_take_an_hour(autojump_clock: MockClock, whole: bool) -> None:
    body, read = PacedBody(None, None), 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle, body, 720, 5.0, 5 * LEAST_BYTES_PER_SECOND)
        if whole:
            read = len(await body)
        else:
            async for data in body:
                read += len(data)
    assert read == 3600 * LEAST_BYTES_PER_SECOND


@given(steps=STEPS)
def test_wait_is_never_longer_than_the_credit_plus_the_time_of_the_bytes(steps: list[tuple[float, int]]) -> None:
    async def main() -> None:
        body, fed = PacedBody(None, None), 0
        began = trio.current_time()

        async def feed() -> None:
            nonlocal fed
            for seconds, size in steps:
                await trio.sleep(seconds)
                body.append(bytes(size))
                fed += size

        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed)
            with pytest.raises(RequestTimeout):
                await body
            waited = trio.current_time() - began
            nursery.cancel_scope.cancel()
        assert CREDIT_SECONDS - 0.001 <= waited <= CREDIT_SECONDS + fed / LEAST_BYTES_PER_SECOND + 0.001

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_time_in_which_no_handler_waits_costs_the_client_nothing(autojump_clock: MockClock) -> None:
    body = UploadBody(None, 10 * MEGABYTE)
    body.append(b"first")
    await trio.sleep(10 * CREDIT_SECONDS)
    assert await body.__anext__() == b"first"
    await trio.sleep(10 * CREDIT_SECONDS)
    body.append(b"second")
    assert await body.__anext__() == b"second"


async def test_upload_that_no_handler_reads_yet_keeps_little_of_it(autojump_clock: MockClock) -> None:
    body = UploadBody(None, 10 * MEGABYTE)
    body.append(bytes(UNREAD_BYTES + 1))
    with trio.move_on_after(1) as waiting:
        await body.room()
    assert waiting.cancelled_caught
    await body.__anext__()
    await body.room()


async def test_body_that_is_refused_half_way_is_never_taken_for_a_whole_one(autojump_clock: MockClock) -> None:
    with Held(BytesInFlight(MEGABYTE)) as other, Held(BytesInFlight(MEGABYTE)) as held:
        other.body.grow_anyway(1)
        held.in_flight.open().grow_anyway(MEGABYTE // 2)
        body = MeteredBody(None, None, held)
        body.append(bytes(MEGABYTE))
        with pytest.raises(ServerBusy):
            await body.__anext__()
        with pytest.raises(ServerBusy):
            await body


async def test_announced_bytes_that_never_come_keep_no_room_from_others(autojump_clock: MockClock) -> None:
    in_flight = BytesInFlight(4 * MEGABYTE)
    with Held(in_flight) as one, Held(in_flight) as two, Held(in_flight) as three:
        bodies = [MeteredBody(4 * MEGABYTE, None, held) for held in (one, two)]
        bodies[0].append(bytes(MEGABYTE))
        assert in_flight.used == MEGABYTE
        late = MeteredBody(3 * MEGABYTE, None, three)
        late.append(bytes(3 * MEGABYTE))
        late.set_complete()
        assert len(await late) == 3 * MEGABYTE


async def test_credit_is_for_a_pause_not_for_what_was_sent_before_it(autojump_clock: MockClock) -> None:
    limits = pace.Pace()
    limits.moved(1000 * MEGABYTE)
    began = trio.current_time()
    with limits.waiting() as scope:
        await trio.sleep(10 * CREDIT_SECONDS)
    assert scope.cancelled_caught
    assert trio.current_time() - began == pytest.approx(CREDIT_SECONDS)


async def test_waits_of_one_client_share_its_credit(autojump_clock: MockClock) -> None:
    limits = pace.Pace()
    for used in (0.4, 0.4):
        with limits.waiting() as scope:
            await trio.sleep(used * CREDIT_SECONDS)
        assert not scope.cancelled_caught
    began = trio.current_time()
    with limits.waiting():
        await trio.sleep(10 * CREDIT_SECONDS)
    assert trio.current_time() - began == pytest.approx(0.2 * CREDIT_SECONDS)


async def test_bytes_that_come_in_a_wait_buy_no_longer_pause_than_any(autojump_clock: MockClock) -> None:
    limits = pace.Pace()
    began = trio.current_time()
    with limits.waiting():
        limits.moved(1000 * MEGABYTE)
        await trio.sleep(10 * CREDIT_SECONDS)
    assert trio.current_time() - began == pytest.approx(CREDIT_SECONDS)


def test_body_that_finds_no_room_half_way_gives_back_what_it_had_at_once() -> None:
    in_flight = BytesInFlight(4 * MEGABYTE)
    with Held(in_flight) as other, Held(in_flight) as held:
        other.body.grow(2 * MEGABYTE)
        body = MeteredBody(None, None, held)
        body.append(bytes(2 * MEGABYTE))
        assert in_flight.used == 4 * MEGABYTE
        body.append(bytes(MEGABYTE))
        assert in_flight.used == 2 * MEGABYTE
