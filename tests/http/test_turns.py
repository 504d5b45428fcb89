"""Whose request is worked on next when many ask at one time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mflux_api.http.turns import BUSY_SECONDS, BUSY_SHARE, MOST_AT_WORK, WORK_SECONDS, Turn, Turns


class Crowd:
    """Connections that ask at one time, and the order in which they are worked on."""

    def __init__(self, turns: Turns, nursery: trio.Nursery) -> None:
        self.turns = turns
        self.order: list[str] = []
        self._nursery = nursery

    async def ask(self, name: str, turn: Turn | None = None, *, urgent: bool = False) -> Turn:
        turn = turn or self.turns.turn()

        async def take() -> None:
            await turn.take(urgent=urgent)
            self.order.append(name)

        self._nursery.start_soon(take)
        await wait_all_tasks_blocked()
        return turn


async def test_no_more_than_so_many_requests_are_worked_on_at_one_time(mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(Turns(), nursery)
        turns = [await crowd.ask(str(number)) for number in range(MOST_AT_WORK + 3)]
        assert crowd.order == [str(number) for number in range(MOST_AT_WORK)]
        turns[3].release()
        await wait_all_tasks_blocked()
        assert crowd.order[MOST_AT_WORK:] == [str(MOST_AT_WORK)]
        nursery.cancel_scope.cancel()


async def test_request_that_waits_for_a_job_keeps_no_other_from_its_turn(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(Turns(), nursery)
        began = trio.current_time()
        for number in range(5 * MOST_AT_WORK):
            await crowd.ask(str(number))
        await trio.sleep(4.5 * WORK_SECONDS)
        assert len(crowd.order) == 5 * MOST_AT_WORK
        assert trio.current_time() - began < 5 * WORK_SECONDS


async def test_health_waits_for_no_turn_unless_its_client_asks_all_the_time(mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(Turns(), nursery)
        for number in range(2 * MOST_AT_WORK):
            await crowd.ask(str(number))
        health = await crowd.ask("health", urgent=True)
        assert crowd.order[-1] == "health"
        health.release()
        await crowd.ask("again", health, urgent=True)
        assert crowd.order[-1] == "health"
        nursery.cancel_scope.cancel()


async def test_connection_that_asks_all_the_time_waits_behind_the_others_but_not_for_ever(
    mock_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(Turns(), nursery)
        at_work = [await crowd.ask("") for _ in range(MOST_AT_WORK)]
        hungry = crowd.turns.turn()
        hungry.release()
        await crowd.ask("busy", hungry)
        for _ in range(2 * BUSY_SHARE):
            await crowd.ask("other")
        crowd.order.clear()
        for turn in at_work:
            turn.release()
            await wait_all_tasks_blocked()  # those that are woken together go on in any order
        assert crowd.order[0] == "other"
        assert "busy" in crowd.order[: BUSY_SHARE + 1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("pause", [2 * BUSY_SECONDS, BUSY_SECONDS / 2], ids=["now and then", "fifty times a second"])
async def test_connection_that_asks_for_health_waits_for_no_turn(pause: float, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(Turns(), nursery)
        monitor = crowd.turns.turn()
        monitor.release()
        await trio.sleep(pause)
        for number in range(2 * MOST_AT_WORK):
            await crowd.ask(str(number))
        await crowd.ask("health", monitor, urgent=True)
        assert crowd.order[-1] == "health"
        nursery.cancel_scope.cancel()


async def test_heads_are_read_one_in_each_turn_and_that_of_health_at_once(mock_clock: MockClock) -> None:
    turns = Turns()
    order = list[str]()

    async def read(name: str, turn: Turn, *, urgent: bool = False) -> None:
        await turn.read_head(urgent=urgent)
        order.append(name)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(read, str(number), turns.turn())
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        before = len(order)
        assert before < 5
        await read("health", turns.turn(), urgent=True)
        assert order[before] == "health"
    assert sorted(order) == [*"01234", "health"]


@pytest.mark.parametrize("waiting", [True, False])
async def test_cancelled_request_leaves_no_turn_taken(autojump_clock: MockClock, waiting: bool) -> None:
    turns = Turns()
    async with trio.open_nursery() as nursery:
        crowd = Crowd(turns, nursery)
        for number in range(MOST_AT_WORK + waiting):
            await crowd.ask(str(number))
        nursery.cancel_scope.cancel()
    await trio.sleep(WORK_SECONDS)
    async with trio.open_nursery() as nursery:
        crowd = Crowd(turns, nursery)
        for number in range(MOST_AT_WORK):
            await crowd.ask(str(number))
        assert len(crowd.order) == MOST_AT_WORK


async def test_turn_is_set_aside_while_a_body_comes_and_taken_again_after_it(mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(Turns(), nursery)
        turns = [await crowd.ask(str(number)) for number in range(MOST_AT_WORK)]
        body, done = trio.Event(), trio.Event()

        async def read() -> None:
            async with turns[0].set_aside():
                await body.wait()
            done.set()

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        await crowd.ask("next")
        assert crowd.order[-1] == "next"
        body.set()
        await wait_all_tasks_blocked()
        assert not done.is_set()
        turns[1].release()
        await done.wait()
        nursery.cancel_scope.cancel()


async def test_turn_of_one_that_leaves_as_it_comes_goes_to_the_next_at_once(mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        turns, leaving = Turns(), trio.CancelScope()
        crowd = Crowd(turns, nursery)
        at_work = [await crowd.ask(str(number)) for number in range(MOST_AT_WORK)]

        async def leave() -> None:
            with leaving:
                await turns.turn().take()

        nursery.start_soon(leave)
        await wait_all_tasks_blocked()
        await crowd.ask("next")
        leaving.cancel()
        at_work[0].release()
        await wait_all_tasks_blocked()
        assert crowd.order[-1] == "next"
        nursery.cancel_scope.cancel()
