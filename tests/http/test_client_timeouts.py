"""How long connections wait for their clients, all of them together."""

import math

import trio
from trio.testing import MockClock

from mflux_api.http.client_timeouts import MOST_LINGERING, ClientTimeouts


async def test_of_too_many_clients_that_are_read_after_their_answer_the_first_is_left(
    autojump_clock: MockClock,
) -> None:
    limit, left = ClientTimeouts(30.0, 30.0, 15.0), list[tuple[int, float]]()

    async def linger(number: int) -> None:
        with limit.linger():
            await trio.sleep(math.inf)
        left.append((number, trio.current_time() - began))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(MOST_LINGERING + 2):
            nursery.start_soon(linger, number)
            await trio.testing.wait_all_tasks_blocked()
    assert [(number, round(after)) for number, after in left[:2]] == [(0, 0), (1, 0)]
    assert {round(after) for _, after in left[2:]} == {30}
    assert len(left) == MOST_LINGERING + 2


async def test_end_of_the_server_ends_all_lingering_and_bounds_every_send(autojump_clock: MockClock) -> None:
    limit, began = ClientTimeouts(30.0, 30.0, 15.0), trio.current_time()

    async def linger() -> None:
        with limit.linger():
            await trio.sleep(math.inf)
        assert trio.current_time() == began

    async def send() -> None:
        with limit.shield():
            await trio.sleep(math.inf)
        assert trio.current_time() == began + 2

    async with trio.open_nursery() as nursery:
        nursery.start_soon(linger)
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        limit.finish_by(began + 2)
        # What comes late is bounded, too.
        nursery.start_soon(linger)
        nursery.start_soon(send)
