"""Engines that die under a generator, in virtual time."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mflux_api.actors import messages as m
from mflux_api.actors.generator.generator import DEGRADED_AFTER, respawn_delay
from mflux_api.engine import protocol as p
from mflux_api.engine.interface import EngineDied
from mflux_api.errors import EngineUnavailable
from tests.support.harness import generator
from tests.support.scripted_engine import Crash, Hold, Script


async def test_respawn_delays_grow_from_nothing_to_half_a_minute(autojump_clock: MockClock) -> None:
    script = Script(at={"start": Crash(times=10)})
    async with generator(script) as bench:
        await bench.up()
    gaps = [later - earlier for earlier, later in zip(script.starts, script.starts[1:], strict=False)]
    assert gaps == [0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_respawn_delay_stays_at_its_maximum_for_ever() -> None:
    assert respawn_delay(100_000) == 30.0


async def test_finished_step_resets_the_respawn_delay(autojump_clock: MockClock) -> None:
    script = Script(at={"start": Crash(times=4), "step 0/2": Crash()})
    async with generator(script) as bench:
        await bench.up()
        with pytest.raises(EngineDied, match="killed by SIGKILL"):
            await bench.generate()
        died = trio.current_time()
        await bench.up()
    assert script.starts[-1] == died


async def test_death_with_work_inside_is_not_the_engines_and_the_next_one_starts_at_once(
    autojump_clock: MockClock,
) -> None:
    script = Script(at={"start": Crash(times=3), "step 0/1": Crash()})
    async with generator(script) as bench:
        await bench.up()
        with pytest.raises(EngineDied):
            await bench.generate()
        died = trio.current_time()
        assert not (await bench.state()).degraded
        await bench.up()
    assert script.starts[-1] == died


async def test_work_that_waits_survives_a_death_and_the_work_inside_does_not(autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"load": hold})
    outcomes: list[object] = []
    async with generator(script) as bench, trio.open_nursery() as nursery:

        async def load() -> None:
            try:
                outcomes.append(await bench.load())
            except EngineDied as died:
                outcomes.append(died.reason)

        nursery.start_soon(load)
        await hold.reached.wait()
        nursery.start_soon(load)
        await wait_all_tasks_blocked()
        script.current.die("killed by SIGBUS")
    assert outcomes == ["killed by SIGBUS", m.Resident(engine="0", incarnation=2, seconds=0.5)]


async def test_degraded_after_three_failures_until_an_engine_is_up(autojump_clock: MockClock) -> None:
    script = Script(at={"start": Crash(times=DEGRADED_AFTER)})
    async with generator(script) as bench:
        await trio.sleep(0.6)
        assert (await bench.state()).degraded
        assert (await bench.state()).info is None
        assert bench.reported() == [False, False, False, True]
        with pytest.raises(EngineUnavailable, match="killed by SIGKILL"):
            await bench.load()
        await bench.up()
        await bench.load()
        assert not (await bench.state()).degraded
        assert bench.reported()[-1] is False


async def test_memory_is_measured_by_the_next_beat_and_by_none_before(autojump_clock: MockClock) -> None:
    script = Script(free_bytes=5)
    async with generator(script) as bench, trio.open_nursery() as nursery:
        await bench.up()

        async def beat() -> None:
            await trio.sleep(1)
            script.current.say(p.Heartbeat(active_bytes=1, peak_bytes=1, free_bytes=9))

        nursery.start_soon(beat)
        assert (await bench.to.ask(m.MeasureMemory())).free_bytes == 9


async def test_measuring_ends_with_the_engine(autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"start": hold})
    async with generator(script) as bench, trio.open_nursery() as nursery:
        await hold.reached.wait()
        with pytest.raises(EngineDied):
            await bench.to.ask(m.MeasureMemory())
        hold.release.set()
        await bench.up()

        async def die() -> None:
            await trio.sleep(0.5)
            script.current.die()

        nursery.start_soon(die)
        with pytest.raises(EngineDied, match="killed by SIGKILL"):
            await bench.to.ask(m.MeasureMemory())


async def test_memory_of_the_engine_is_known_from_its_beats(autojump_clock: MockClock) -> None:
    script = Script()
    async with generator(script) as bench:
        await bench.load()
        script.current.say(p.Heartbeat(active_bytes=10, peak_bytes=20))
        await wait_all_tasks_blocked()
        state = await bench.state()
        assert (state.active_bytes, state.peak_bytes) == (10, 20)
