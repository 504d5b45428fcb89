"""Named for what the tree above would see if `supervisor.py` did not keep its word."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from mflux_api.actors.mailbox import Address, Ask, Mailbox
from mflux_api.supervisor import (
    Backoff,
    ChildSpec,
    DidNotStop,
    Ended,
    Escalated,
    Intensity,
    Isolation,
    Started,
    StartFailed,
    Strategy,
    Supervisor,
)
from mflux_api.system.threads import run_in_thread
from tests.support.crew import Crew, checkpoints, family, run_mocked, running, specs

ROUNDS = 200


class _Broke(Exception):
    pass


async def _never_ready(_status: Started) -> None:
    await trio.sleep_forever()


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


class _HungThread:
    """A child that saves to a dead disk: its thread does not come back before :attr:`back` is set."""

    def __init__(self) -> None:
        self.back = threading.Event()
        self.hung: list[str] = []
        self.begun = 0

    def spec(self, name: str, stop_seconds: float) -> ChildSpec:
        async def run(status: Started) -> None:
            self.begun += 1
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._save)
                status.started()
                await trio.sleep_forever()

        return ChildSpec(name=name, run=run, stop_seconds=stop_seconds)

    async def _save(self) -> None:
        await run_in_thread(self.back.wait)

    def on_hung(self) -> None:
        self.hung.append("hung")


@pytest.fixture
def disk() -> Iterator[_HungThread]:
    disk = _HungThread()
    yield disk
    disk.back.set()


async def test_restart_does_not_wait_for_ever_for_a_thread_that_does_not_come_back(disk: _HungThread) -> None:
    crew = Crew()
    inner = Supervisor(
        "inner",
        [crew.spec("a"), disk.spec("saver", 0.05), crew.spec("b")],
        strategy=Strategy.ONE_FOR_ALL,
        on_hung=disk.on_hung,
    )
    isolation = Isolation(on_failed=lambda _: crew.log.append("isolated"))
    outer = Supervisor(
        "outer", [crew.spec("c"), ChildSpec(name="inner", run=inner.run, isolation=isolation, stop_seconds=math.inf)]
    )

    async def fail_one() -> None:
        async with running(outer.run):
            crew.fail("a")
            await trio.sleep_forever()

    with pytest.RaisesGroup(pytest.RaisesExc(DidNotStop, match="inner: 'saver' did not stop within")):
        await fail_one()
    assert disk.hung == ["hung"]
    assert disk.begun == 1, "a second one would write beside the abandoned thread"
    assert crew.alive == []
    assert "isolated" not in crew.log


async def test_shutdown_does_not_wait_for_ever_for_a_thread_that_does_not_come_back(
    disk: _HungThread, caplog: pytest.LogCaptureFixture
) -> None:
    crew = Crew()
    supervisor = Supervisor("top", [crew.spec("a"), disk.spec("saver", 0.05), crew.spec("b")], on_hung=disk.on_hung)
    with pytest.RaisesGroup(DidNotStop):
        async with running(supervisor.run):
            pass
    assert crew.said("end") == ["end b", "end a"]
    assert disk.hung == ["hung"]
    assert [line for line in caplog.messages if "saver" in line] == [
        "top: 'saver' did not stop within 0.05 s and was abandoned; "
        "check the disks that the service uses, and start it again"
    ]


async def test_child_that_stops_late_and_holds_no_thread_is_no_failure() -> None:
    crew, late = Crew(), trio.Event()

    async def slow(status: Started) -> None:
        status.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await late.wait()

    supervisor = Supervisor("top", [crew.spec("a"), ChildSpec(name="slow", run=slow, stop_seconds=0.01)])
    async with trio.open_nursery() as nursery:
        status = Started()
        nursery.start_soon(supervisor.run, status)
        await status.event.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(threading.Event().wait, 0.1)
        assert crew.alive == ["a"]
        late.set()
    assert crew.alive == []


async def test_an_outer_cancel_stops_all_children_in_reverse_order() -> None:
    for cleanup in range(ROUNDS):
        crew = Crew()
        supervisor, order = family(crew, cleanup=cleanup % 7)
        async with running(supervisor.run):
            assert [entry.split()[1] for entry in crew.said("ready")] == list(order)
        assert [entry.split()[1] for entry in crew.said("end")] == list(reversed(order))


@pytest.mark.slow
async def test_a_cancel_in_the_middle_of_starting_stops_what_there_is_in_reverse_order() -> None:
    for turns in range(ROUNDS):
        crew = Crew()
        supervisor, order = family(crew, startup=turns % 4, cleanup=turns % 5)
        await _cancelled_after(turns % 67, supervisor, crew, "".join(order))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", Strategy)
async def test_a_cancel_in_the_middle_of_a_restart_keeps_the_order(strategy: Strategy) -> None:
    for turns in range(ROUNDS):
        crew = Crew()
        supervisor, order = family(crew, startup=turns % 3, strategy=strategy, backoff=Backoff(first=0.0))
        await _cancelled_after(turns % 53, supervisor, crew, "".join(order), failing="af"[: 1 + turns % 2])


@pytest.mark.parametrize("strategy", Strategy)
async def test_a_cancel_during_the_backoff_starts_no_child_again(strategy: Strategy, mock_clock: MockClock) -> None:
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


async def test_an_error_that_is_not_an_exception_passes_through_and_still_stops_the_others_in_order() -> None:
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
        started = crew.said("begin", "ready", since=before)
        assert started == [f"{word} {n}" for n in begun for word in ("begin", "ready")]


async def test_two_that_fail_at_the_same_moment_are_both_restarted_and_both_count(autojump_clock: MockClock) -> None:
    crew = Crew()
    supervisor = Supervisor("s", specs(crew, "abc"), backoff=Backoff(first=1.0), intensity=Intensity(restarts=2))
    with pytest.RaisesGroup(Escalated):
        async with running(supervisor.run):
            crew.fail("a")
            crew.fail("c")
            await trio.sleep(5)
            assert sorted(crew.alive) == ["a", "b", "c"]
            assert sorted(crew.begun["a"] + crew.begun["c"]) == [0.0, 0.0, 1.0, 2.0]
            crew.fail("b")
            await trio.sleep_forever()


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
    doomed, lives = trio.Event(), itertools.count()
    mailbox: Mailbox[Ask[int]] = Mailbox("store")
    store = Address(mailbox, sender="scheduler", asks={"scheduler": frozenset({"store"})})

    async def answering(status: Started) -> None:
        status.started()
        life = next(lives)
        if life == 0:
            await doomed.wait()
            raise _Broke
        while True:
            (await mailbox.receive()).reply.ok(life)

    async def needy(status: Started) -> None:
        doomed.set()
        status.started(await store.ask(Ask[int]()))
        await trio.sleep_forever()

    children = [ChildSpec(name="store", run=answering), ChildSpec(name="scheduler", run=needy)]
    with trio.fail_after(10):
        async with running(Supervisor("s", children, strategy=strategy).run):
            assert next(lives) == 2


async def test_whatever_comes_meanwhile_a_child_starts_only_when_the_one_before_it_is_ready() -> None:
    crew = Crew()
    supervisor = Supervisor("s", specs(crew, "abc", startup=10))
    async with running(supervisor.run), trio.open_nursery() as nursery:
        for child in specs(crew, "de", startup=10):
            nursery.start_soon(supervisor.add, child)
    began = crew.said("begin", "ready")
    assert began[::2] == [entry.replace("ready", "begin") for entry in began[1::2]]

    status = Started()
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor("s", [crew.spec("f"), ChildSpec(name="slow", run=_never_ready), *specs(crew, "gh")])
        nursery.start_soon(supervisor.run, status)
        await supervisor.remove("h")
        assert crew.alive == ["f"]
        assert not status.event.is_set()
        await supervisor.remove("slow")
        await status.event.wait()
        assert crew.alive == ["f", "g"]
        nursery.cancel_scope.cancel()


async def test_a_child_is_cleaned_up_after_before_its_supervisor_learns_of_its_end(autojump_clock: MockClock) -> None:
    crew = Crew()
    async with running(Supervisor("s", specs(crew, "ab", cleanup=1), strategy=Strategy.ONE_FOR_ALL).run):
        crew.fail("a")
        await trio.sleep(1)
    lives = [entry for entry in crew.log if not entry.startswith("ready")]
    once = ["begin a", "begin b", "end a", "exit a", "end b", "exit b"]
    assert lives == [*once, "begin a", "begin b", "end b", "exit b", "end a", "exit a"]


async def test_a_clean_up_that_raises_is_a_failure_of_the_child_and_hangs_nothing(autojump_clock: MockClock) -> None:
    def explode() -> None:
        raise _Broke

    async def run(status: Started) -> None:
        status.started()

    with pytest.raises(Escalated, match="_Broke"):
        await Supervisor("s", [ChildSpec(name="a", run=run, on_exit=explode)]).run(Started())


# --- children that may give up alone ---


class _Isolated:
    """An isolated child whose lives a test writes down: how long it is up, and how it ends."""

    def __init__(self, *lives: tuple[float | None, Exception | None]) -> None:
        self.began: list[float] = []
        self.log: list[str] = []
        self._lives = iter(lives)
        isolation = Isolation(
            on_start=lambda: self.log.append("start"), on_failed=lambda error: self.log.append(type(error).__name__)
        )
        self.spec = ChildSpec(name="isolated", run=self._run, isolation=isolation)

    async def _run(self, status: Started) -> None:
        self.began.append(trio.current_time())
        seconds, error = next(self._lives, (math.inf, None))
        if seconds is not None:
            status.started()
            await trio.sleep(seconds)
        if error is not None:
            raise error


_GAVE_UP = Escalated("inner", "a", 3, None)
_NEVER_UP = StartFailed("a", None)


@pytest.mark.parametrize(
    ("lives", "began"),
    [
        ([(0.0, _GAVE_UP)] * 9, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]),
        ([(None, _NEVER_UP)] * 3, [0, 1, 3, 7]),
        ([(5.0, _GAVE_UP)] * 3, [0, 6, 13, 22]),
        # One that was ready for a minute begins with the first wait again; one that came close does not.
        ([(0.0, _GAVE_UP), (0.0, _GAVE_UP), (60.0, _GAVE_UP), (0.0, _GAVE_UP)], [0, 1, 3, 64, 66]),
        ([(0.0, _GAVE_UP), (0.0, _GAVE_UP), (59.0, _GAVE_UP)], [0, 1, 3, 66]),
    ],
)
async def test_child_that_gives_up_alone_is_not_counted_and_starts_again_after_a_growing_wait(
    lives: list[tuple[float | None, Exception | None]], began: list[float], autojump_clock: MockClock
) -> None:
    crew, isolated = Crew(), _Isolated(*lives)
    supervisor = Supervisor("s", [*specs(crew, "a"), isolated.spec, *specs(crew, "b")], intensity=Intensity(restarts=0))
    async with running(supervisor.run):
        await trio.sleep(300)
        assert isolated.began == pytest.approx(began)
        ends = [type(error).__name__ for _, error in lives]
        assert isolated.log == [entry for end in ends for entry in ("start", end)] + ["start"]
        assert crew.begun == {"a": [0.0], "b": [0.0]}
        assert supervisor.is_running("isolated")


@pytest.mark.parametrize("error", [_Broke(), None, ExceptionGroup("group", [_GAVE_UP])])
async def test_any_other_end_of_such_a_child_is_counted(error: Exception | None, autojump_clock: MockClock) -> None:
    isolated = _Isolated((1.0, error), (1.0, error))
    with pytest.raises(Escalated) as raised:
        await Supervisor("s", [isolated.spec], intensity=Intensity(restarts=1)).run(Started())
    assert raised.value.child == "isolated"
    assert isolated.log == ["start", "start"]


async def test_everything_below_has_stopped_when_it_is_called_failed(autojump_clock: MockClock) -> None:
    crew = Crew()
    alive: list[list[str]] = []
    inner = Supervisor("inner", specs(crew, "ab", cleanup=3), intensity=Intensity(restarts=0))
    isolation = Isolation(on_failed=lambda _: alive.append(list(crew.alive)))
    async with running(Supervisor("s", [ChildSpec(name="i", run=inner.run, isolation=isolation)]).run):
        crew.fail("a", _Broke())
        await trio.sleep(2)
        assert alive == [[]]
        assert sorted(crew.alive) == ["a", "b"]


async def test_supervisor_is_ready_without_such_a_child_and_stops_while_it_waits(autojump_clock: MockClock) -> None:
    crew, isolated = Crew(), _Isolated((None, _NEVER_UP))
    async with running(Supervisor("s", [isolated.spec, *specs(crew, "b")]).run):
        assert crew.alive == ["b"]
        assert trio.current_time() == 0.0
    assert isolated.began == [0.0]


# --- children that come and go ---


async def test_add_returns_what_the_child_reported_and_supervises_it_from_then_on(autojump_clock: MockClock) -> None:
    crew = Crew()
    supervisor = Supervisor("s", specs(crew, "a"))
    async with running(supervisor.run):
        assert await supervisor.add(crew.spec("b", startup=3, cleanup=2)) == "b 1"
        assert supervisor.is_running("b")
        crew.fail("b")
        await wait_all_tasks_blocked()
        assert not supervisor.is_running("b")
        await trio.sleep(1)
        assert supervisor.is_running("b")
    assert crew.said("end") == ["end b", "end b", "end a"]


async def test_add_raises_the_childs_own_error_and_keeps_nothing(autojump_clock: MockClock) -> None:
    crew, error = Crew(), _Broke()
    supervisor = Supervisor("s", specs(crew, "a"), intensity=Intensity(restarts=0))
    async with running(supervisor.run):
        with pytest.raises(_Broke) as raised:
            await supervisor.add(crew.spec("b", error=error, fails_at_start=lambda _: True))
        assert raised.value is error

        async def returns(status: Started) -> None:
            pass

        with pytest.raises(StartFailed, match="it returned"):
            await supervisor.add(ChildSpec(name="b", run=returns))
        await trio.sleep(100)
        assert crew.begun == {"a": [0.0], "b": [0.0]}
        assert await supervisor.add(crew.spec("b")) == "b 2"


async def test_a_name_is_taken_until_its_child_is_removed() -> None:
    crew = Crew()
    supervisor = Supervisor("s", specs(crew, "a"))
    async with running(supervisor.run):
        with pytest.raises(ValueError, match="'a' is running already"):
            await supervisor.add(crew.spec("a"))
        await supervisor.remove("a")
        assert crew.alive == []
        assert await supervisor.add(crew.spec("a")) == "a 2"


async def test_remove_of_an_unknown_a_starting_or_a_waiting_child_leaves_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    crew = Crew()
    supervisor = Supervisor("s", specs(crew, "a"), backoff=Backoff(first=10.0, maximum=10.0))
    async with running(supervisor.run) as _, trio.open_nursery() as nursery:
        await supervisor.remove("unknown")
        crew.fail("a")
        await trio.sleep(5)
        await supervisor.remove("a")
        await trio.sleep(100)
        assert crew.begun == {"a": [0.0]}

        async def add_forever() -> None:
            with pytest.raises(Ended):
                await supervisor.add(ChildSpec(name="b", run=_never_ready))

        nursery.start_soon(add_forever)
        await wait_all_tasks_blocked()
        await supervisor.remove("b")
        assert await supervisor.add(crew.spec("b")) == "b 1"


async def test_a_child_that_takes_long_to_start_does_not_delay_the_restart_of_another(
    autojump_clock: MockClock,
) -> None:
    crew = Crew()
    supervisor = Supervisor("s", specs(crew, "a"), backoff=Backoff(first=1.0))
    async with running(supervisor.run), trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.add, ChildSpec(name="slow", run=_never_ready))
        await wait_all_tasks_blocked()
        crew.fail("a")
        await trio.sleep(2)
        assert crew.begun["a"] == [0.0, 1.0]
        nursery.cancel_scope.cancel()


async def test_a_caller_that_is_cancelled_while_its_child_starts_leaves_no_child() -> None:
    crew = Crew()
    supervisor = Supervisor("s", specs(crew, "a"))
    async with running(supervisor.run):
        for turns in range(30):
            added = False
            async with trio.open_nursery() as nursery:

                async def add() -> None:
                    nonlocal added
                    await supervisor.add(crew.spec("b", startup=10, cleanup=2))
                    added = True

                nursery.start_soon(add)
                await checkpoints(turns)
                nursery.cancel_scope.cancel()
            await wait_all_tasks_blocked()
            assert ("b" in crew.alive) is added
            await supervisor.remove("b")
        assert added


async def test_no_caller_of_an_ending_supervisor_is_left_hanging() -> None:
    """Also not when the request had been taken and the child is just being started or stopped."""
    for turns in range(60):
        crew = Crew()
        answers: list[object] = []
        supervisor = Supervisor("s", [*specs(crew, "ab", cleanup=10)])

        async def request(call: Callable[[], Awaitable[object]], answers: list[object] = answers) -> None:
            try:
                answers.append(await call())
            except Ended:
                answers.append(Ended)

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery, running(supervisor.run):
                nursery.start_soon(request, partial(supervisor.remove, "a"))
                nursery.start_soon(request, partial(supervisor.add, crew.spec("c", startup=10)))
                nursery.start_soon(request, partial(supervisor.remove, "c"))
                await checkpoints(turns)
        assert len(answers) == 3
        assert crew.alive == []
        with pytest.raises(Ended):
            await supervisor.add(crew.spec("d"))
        with pytest.raises(Ended):
            await supervisor.remove("b")


async def test_a_supervisor_that_is_restarted_begins_as_new(autojump_clock: MockClock) -> None:
    crew = Crew()
    inner = Supervisor("inner", specs(crew, "ab"), intensity=Intensity(restarts=1), backoff=Backoff(first=1.0))
    async with running(Supervisor("outer", [ChildSpec(name="inner", run=inner.run)]).run):
        for _ in range(3):
            await inner.add(crew.spec("c"))
            crew.fail("a")
            await trio.sleep(1.5)
            crew.fail("a")
            await wait_all_tasks_blocked()
            with pytest.raises(Ended):
                await inner.remove("c")
            await trio.sleep(1)
            # Its own children only, and no failure of the run before counts.
            assert sorted(crew.alive) == ["a", "b"]
    assert crew.alive == []


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(Strategy),
    st.lists(st.tuples(st.sampled_from(["fail", "add", "remove", "wait", "turns"]), st.integers(0, 5)), max_size=25),
)
def test_whatever_happens_every_child_that_should_run_runs_in_the_end(
    strategy: Strategy, steps: list[tuple[str, int]]
) -> None:
    async def main() -> None:
        crew, wanted = Crew(), set("abc")
        supervisor = Supervisor(
            "s", specs(crew, "abc", startup=2, cleanup=2), strategy=strategy, intensity=Intensity(restarts=1000)
        )
        async with running(supervisor.run):
            for kind, number in steps:
                name = "abcdef"[number]
                match kind:
                    case "fail" if name in crew.alive:
                        crew.fail(name, _Broke())
                    case "add" if name not in wanted:
                        await supervisor.add(crew.spec(name, startup=2, cleanup=2))
                        wanted.add(name)
                    case "remove":
                        await supervisor.remove(name)
                        wanted.discard(name)
                        assert name not in crew.alive
                    case "wait":
                        await trio.sleep(number / 50)
                    case "turns":
                        await checkpoints(number)
                assert len(crew.alive) == len(set(crew.alive))
            await trio.sleep(60)
            assert sorted(crew.alive) == sorted(wanted)
            assert all(supervisor.is_running(name) for name in wanted)
        assert crew.alive == []

    run_mocked(main)
