"""Named for what the tree above would see if `supervisor.py` did not keep its word."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from mflux_api.supervisor import (
    Backoff,
    ChildSpec,
    Ended,
    Escalated,
    Intensity,
    Started,
    StartFailed,
    Strategy,
    Supervisor,
)
from tests.actors import Crew, checkpoints, family, run_mocked, running, specs

ROUNDS = 200
TOLERANT = Intensity(restarts=1000)


class _Broke(Exception):
    pass


async def _cancelled_after(turns: int, supervisor: Supervisor, crew: Crew, order: str, failing: str = "") -> None:
    """Cancel from outside after some turns; everything that lives then must end in reverse order.

    Except for those that fail: they end when they do.
    """
    status = Started()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run, status)
        if failing:
            await status.event.wait()
            for name in failing:
                crew.fail(name, _Broke())
        await checkpoints(turns)
        before, alive = len(crew.log), set(crew.alive)
        dying = {name for name in failing if name in alive and len(crew.begun[name]) == 1}
        nursery.cancel_scope.cancel()
    ended = [entry.split()[1] for entry in crew.said("end", since=before)]
    assert alive <= set(ended)
    for name in dying:
        ended.remove(name)
    assert ended == sorted(ended, key=order.index, reverse=True)
    assert crew.alive == []


# --- stopping ---


async def test_an_outer_cancel_stops_everybody_in_reverse_order() -> None:
    for cleanup in range(ROUNDS):
        crew = Crew()
        supervisor, order = family(crew, cleanup=cleanup % 7)
        async with running(supervisor.run):
            assert [entry.split()[1] for entry in crew.said("ready")] == list(order)
        assert [entry.split()[1] for entry in crew.said("end")] == list(reversed(order))


async def test_a_cancel_in_the_middle_of_starting_stops_what_there_is_in_reverse_order() -> None:
    for turns in range(ROUNDS):
        crew = Crew()
        supervisor, order = family(crew, startup=turns % 4, cleanup=turns % 5)
        await _cancelled_after(turns % 67, supervisor, crew, "".join(order))


@pytest.mark.parametrize("strategy", Strategy)
async def test_a_cancel_in_the_middle_of_a_restart_keeps_the_order(strategy: Strategy) -> None:
    for turns in range(ROUNDS):
        crew = Crew()
        supervisor, order = family(crew, startup=turns % 3, strategy=strategy, backoff=Backoff(first=0.0))
        await _cancelled_after(turns % 53, supervisor, crew, "".join(order), failing="af"[: 1 + turns % 2])


@pytest.mark.parametrize("strategy", Strategy)
async def test_a_cancel_during_the_backoff_starts_nobody_again(strategy: Strategy, mock_clock: MockClock) -> None:
    for turns in range(30, 60):
        crew = Crew()
        supervisor, order = family(crew, strategy=strategy, backoff=Backoff(first=1000.0, maximum=1000.0))
        await _cancelled_after(turns, supervisor, crew, "".join(order), failing="a")
        assert max(len(times) for times in crew.begun.values()) == 1


async def test_a_child_that_swallows_its_cancellation_slowly_holds_up_those_before_it_and_no_more() -> None:
    crew = Crew()
    slow = trio.Event()

    async def stubborn(status: Started) -> None:
        status.started()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await slow.wait()
            crew.log.append("end stubborn")
            raise _Broke from None

    children = [crew.spec("a"), ChildSpec(name="stubborn", run=stubborn), crew.spec("b")]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Supervisor("s", children).run, Started())
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
        assert crew.said("end") == ["end b"]
        slow.set()
    assert crew.said("end") == ["end b", "end stubborn", "end a"]


async def test_an_error_that_is_no_exception_passes_through_and_still_stops_the_others_in_order() -> None:
    crew = Crew()
    supervisor = Supervisor("s", specs(crew, "abc", cleanup=2))
    with pytest.RaisesGroup(pytest.RaisesGroup(KeyboardInterrupt)):
        async with running(supervisor.run):
            crew.fail("b", KeyboardInterrupt())
            await trio.sleep_forever()
    assert crew.said("end") == ["end b", "end c", "end a"]


# --- backoff, intensity, escalation ---


async def test_the_waits_double_up_to_the_maximum(autojump_clock: MockClock) -> None:
    crew = Crew()
    child = crew.spec("a", life=0.0, error=_Broke())
    backoff, intensity = Backoff(first=1.0, factor=2.0, maximum=5.0), Intensity(restarts=5)
    with pytest.raises(Escalated):
        await Supervisor("s", [child], backoff=backoff, intensity=intensity).run(Started())
    assert crew.begun["a"] == [0.0, 1.0, 3.0, 7.0, 12.0, 17.0]


async def test_the_fourth_failure_within_a_minute_escalates_once_and_typed(autojump_clock: MockClock) -> None:
    crew, cause = Crew(), _Broke("secret prompt")
    with pytest.raises(Escalated) as raised:
        await Supervisor("s", [crew.spec("x"), crew.spec("a", life=1.0, error=cause)]).run(Started())
    assert (raised.value.supervisor, raised.value.child, raised.value.__cause__) == ("s", "a", cause)
    assert "_Broke" in str(raised.value)
    assert "secret" not in str(raised.value)
    assert crew.begun["a"] == pytest.approx([0.0, 1.05, 2.15, 3.35])
    assert crew.said("end")[-1] == "end x"


async def test_failures_older_than_the_window_no_longer_count(autojump_clock: MockClock) -> None:
    crew = Crew()
    lives = iter([60.0, 60.0, 60.0, 59.5])

    async def run(status: Started) -> None:
        crew.begun["a"].append(trio.current_time())
        status.started()
        await trio.sleep(next(lives))

    intensity = Intensity(restarts=1, seconds=60.0)
    with pytest.raises(Escalated, match="it returned"):
        await Supervisor(
            "s", [ChildSpec(name="a", run=run)], intensity=intensity, backoff=Backoff(first=0.0, maximum=0.0)
        ).run(Started())
    # A failure that is exactly as old as the window is forgotten; one a little younger is not.
    assert crew.begun["a"] == [0.0, 60.0, 120.0, 180.0]


@pytest.mark.parametrize("levels", [1, 2])
async def test_escalation_through_supervisors_is_one_typed_error(levels: int, autojump_clock: MockClock) -> None:
    crew = Crew()
    run: Callable[[Started], object] = Supervisor(
        "0", [crew.spec("x"), crew.spec("a", life=0.0, error=ExceptionGroup("two", [_Broke(), ValueError()]))]
    ).run
    for level in range(levels):
        run = Supervisor(f"{level + 1}", [ChildSpec(name=f"{level}", run=run)]).run  # type: ignore[arg-type]
    with pytest.raises(Escalated) as raised:
        await run(Started())  # type: ignore[misc]
    assert raised.value.supervisor == str(levels)
    cause: BaseException | None = raised.value
    for _ in range(levels):
        assert cause is not None
        cause = cause.__cause__
    assert isinstance(cause, Escalated)
    assert "_Broke" in str(cause)
    assert len(crew.begun["a"]) == 4 ** (levels + 1)
    assert crew.alive == []


async def test_a_start_failure_is_one_typed_error_and_stops_the_ones_before(autojump_clock: MockClock) -> None:
    crew = Crew()
    inner = Supervisor("inner", [crew.spec("b"), crew.spec("c", fails_at_start=lambda _: True)])
    with pytest.raises(StartFailed) as raised:
        await Supervisor("s", [crew.spec("a"), ChildSpec(name="inner", run=inner.run)]).run(Started())
    assert raised.value.child == "inner"
    assert isinstance(raised.value.__cause__, StartFailed)
    assert isinstance(raised.value.__cause__.__cause__, OSError)
    assert crew.said("end") == ["end c", "end b", "end a"]


async def test_a_failing_restart_counts_as_a_failure(autojump_clock: MockClock) -> None:
    crew = Crew()
    child = crew.spec("a", fails_at_start=lambda incarnation: 1 < incarnation < 4)
    async with running(Supervisor("s", [child], backoff=Backoff(first=1.0)).run):
        crew.fail("a")
        await trio.sleep(20)
        assert crew.begun["a"] == [0.0, 1.0, 3.0, 7.0]
        assert crew.alive == ["a"]


# --- strategies ---


@pytest.mark.parametrize(
    ("strategy", "ended", "begun"),
    [
        (Strategy.ONE_FOR_ONE, "b", "b"),
        (Strategy.REST_FOR_ONE, "bdc", "bcd"),
        (Strategy.ONE_FOR_ALL, "bdca", "abcd"),
    ],
)
@pytest.mark.parametrize("error", [None, _Broke(), ExceptionGroup("group", [_Broke()])])
async def test_who_is_stopped_and_restarted_and_in_which_order(
    strategy: Strategy, ended: str, begun: str, error: Exception | None, autojump_clock: MockClock
) -> None:
    crew = Crew()
    async with running(Supervisor("s", specs(crew, "abcd", startup=2, cleanup=2), strategy=strategy).run):
        before = len(crew.log)
        crew.fail("b", error)
        await trio.sleep(1)
        assert crew.said("end", since=before) == [f"end {name}" for name in ended]
        # Each only after the one before it is ready.
        assert crew.said("begin", "ready", since=before) == [f"{word} {n}" for n in begun for word in ("begin", "ready")]


async def test_two_that_fail_at_the_same_moment_are_both_restarted_and_both_count(autojump_clock: MockClock) -> None:
    crew = Crew()
    supervisor = Supervisor("s", specs(crew, "abc"), backoff=Backoff(first=1.0), intensity=Intensity(restarts=2))
    with pytest.raises(Escalated):
        async with trio.open_nursery(strict_exception_groups=False) as nursery:
            nursery.start_soon(supervisor.run, Started())
            await wait_all_tasks_blocked()
            crew.fail("a")
            crew.fail("c")
            await trio.sleep(5)
            assert sorted(crew.alive) == ["a", "b", "c"]
            assert sorted(crew.begun["a"] + crew.begun["c"]) == [0.0, 0.0, 1.0, 2.0]
            crew.fail("b")


async def test_under_one_for_all_a_second_death_at_the_same_moment_is_no_second_failure(
    autojump_clock: MockClock,
) -> None:
    crew = Crew()
    supervisor = Supervisor("s", specs(crew, "abc"), strategy=Strategy.ONE_FOR_ALL, intensity=Intensity(restarts=1))
    async with running(supervisor.run):
        crew.fail("a")
        crew.fail("c")
        await trio.sleep(1)
        assert sorted(crew.alive) == ["a", "b", "c"]
        assert [len(times) for times in crew.begun.values()] == [2, 2, 2]


async def test_an_earlier_one_that_fails_while_later_ones_wait_takes_them_along(autojump_clock: MockClock) -> None:
    crew = Crew()
    backoff = Backoff(first=10.0, maximum=100.0)
    async with running(Supervisor("s", specs(crew, "abc"), strategy=Strategy.REST_FOR_ONE, backoff=backoff).run):
        crew.fail("b")
        await trio.sleep(5)
        crew.fail("a")
        await trio.sleep(100)
        assert crew.begun == {"a": [0.0, 25.0], "b": [0.0, 25.0], "c": [0.0, 25.0]}


@pytest.mark.parametrize("strategy", Strategy)
async def test_a_start_that_needs_one_that_just_died_does_not_hang_the_tree(
    strategy: Strategy, autojump_clock: MockClock
) -> None:
    """The scheduler asks the job store before it is ready; the message waits for the store's next incarnation."""
    crew = Crew()
    fate = trio.Event()

    async def needy(status: Started) -> None:
        crew.fail("a", _Broke())
        while len(crew.begun["a"]) < 2:
            await trio.sleep(0.01)
        status.started()
        fate.set()
        await trio.sleep_forever()

    with trio.fail_after(10):
        supervisor = Supervisor("s", [crew.spec("a"), ChildSpec(name="needy", run=needy)], strategy=strategy)
        supervisor._intensity = TOLERANT
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run, Started())
            await fate.wait()
            nursery.cancel_scope.cancel()
    assert len(crew.begun["a"]) >= 2


async def test_a_child_is_cleaned_up_after_before_anybody_learns_of_its_end(autojump_clock: MockClock) -> None:
    crew = Crew()
    async with running(Supervisor("s", specs(crew, "ab", cleanup=1), strategy=Strategy.ONE_FOR_ALL).run):
        crew.fail("a")
        await trio.sleep(1)
    lives = [entry for entry in crew.log if not entry.startswith("ready")]
    once = ["begin a", "begin b", "end a", "exit a", "end b", "exit b"]
    assert lives == [*once, "begin a", "begin b", "end b", "exit b", "end a", "exit a"]


async def test_a_clean_up_that_raises_is_a_failure_of_the_child_and_hangs_nobody(autojump_clock: MockClock) -> None:
    def explode() -> None:
        raise _Broke

    async def run(status: Started) -> None:
        status.started()

    with pytest.raises(Escalated, match="_Broke"):
        await Supervisor("s", [ChildSpec(name="a", run=run, on_exit=explode)]).run(Started())
