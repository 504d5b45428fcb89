"""Loads and unloads in virtual time: followed, bounded by silence, and ended when no question waits for them."""

from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mflux_api.actors import messages as m
from mflux_api.actors.generator.options import GeneratorOptions
from mflux_api.catalog import Model
from mflux_api.engine import protocol as p
from mflux_api.engine.interface import EngineDied
from mflux_api.errors import EngineUnavailable
from mflux_api.ipc.child_process import SILENCE_GRACE_SECONDS
from mflux_api.jobs.job import Stage, Status
from mflux_api.jobs.progress import Progress
from mflux_api.service import Service
from mflux_api.storage.checkpoints import EMBEDDED
from tests.support.harness import (
    condition_of,
    ended,
    eventually,
    gateway,
    generator,
    request,
    run_inline,
    seeds_run,
    service_of,
)
from tests.support.scripted_engine import Hang, Hold, Script

HALF = p.LoadProgress(component="transformer", bytes_done=1, bytes_total=2)
DEMO = p.LoadModel(model="demo", path=str(EMBEDDED))


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)


# --- the generator ---


async def test_load_that_hangs_is_ended_by_its_silence_though_the_heart_beats(autojump_clock: MockClock) -> None:
    script = Script(at={"load": Hang()})
    async with generator(script, GeneratorOptions(silence=120)) as bench, trio.open_nursery() as nursery:

        async def beat() -> None:
            while True:
                await trio.sleep(1)
                script.engines[0].say(p.Heartbeat(active_bytes=1, peak_bytes=1))

        await wait_all_tasks_blocked()
        nursery.start_soon(beat)
        with pytest.raises(EngineDied, match="no word of a load for 120 s"):
            await bench.load()
        assert trio.current_time() - script.starts[0] == pytest.approx(120 + SILENCE_GRACE_SECONDS)
        nursery.cancel_scope.cancel()


async def test_long_load_is_left_alone_while_it_says_how_far_it_is(autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"load": hold})
    async with generator(script, GeneratorOptions(silence=120)) as bench:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.load)
            await hold.reached.wait()
            for _ in range(40):
                await trio.sleep(100)
                script.current.say(HALF)
            hold.release.set()
        assert (await bench.state()).incarnation == 1


async def test_unload_that_hangs_is_ended_by_its_silence(autojump_clock: MockClock) -> None:
    script = Script(at={"unload": Hang()})
    async with generator(script, GeneratorOptions(silence=120)) as bench:
        await bench.load()
        with pytest.raises(EngineDied, match="no unload for 120 s"):
            await bench.to.ask(m.UnloadModel(command=p.UnloadModel(model="demo")))
    assert len(script.engines) == 1


async def test_run_that_reads_a_component_is_bounded_by_silence_and_not_by_the_step_timeout(
    autojump_clock: MockClock,
) -> None:
    hold = Hold()
    script = Script(at={"denoising": hold})
    reading = attrs.evolve(HALF, run_id=1)
    async with generator(script, GeneratorOptions(step_timeout=60, silence=120)) as bench:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.generate)
            await hold.reached.wait()
            for _ in range(10):
                script.current.say(reading)
                await trio.sleep(100)
            hold.release.set()
        assert reading in [received.event for received in bench.events]
        script.at["denoising"] = hold = Hold()

        async def read() -> None:
            await hold.reached.wait()
            script.engines[0].say(attrs.evolve(HALF, run_id=2))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            with pytest.raises(EngineDied, match="no word of a component that is read for 120 s"):
                await bench.generate()


@pytest.mark.parametrize("moment", ["encoding", "denoising", "decoding"])
async def test_run_that_compiles_is_bounded_by_silence_and_not_by_the_step_timeout(
    moment: str, autojump_clock: MockClock
) -> None:
    hold = Hold()
    script = Script(at={moment: hold})
    compiling = p.StageChanged(run_id=1, stage="compiling")
    async with generator(script, GeneratorOptions(step_timeout=60, silence=120)) as bench:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.generate)
            await hold.reached.wait()
            script.current.say(compiling)
            for _ in range(10):
                await trio.sleep(100)
                script.current.say(p.StillRunning(run_id=1))
            hold.release.set()
        assert compiling in [received.event for received in bench.events]
        script.at[moment] = hold = Hold()

        async def compile_for_ever() -> None:
            await hold.reached.wait()
            script.engines[0].say(attrs.evolve(compiling, run_id=2))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(compile_for_ever)
            with pytest.raises(EngineDied, match="no word of kernels that are compiled for 120 s"):
                await bench.generate()


async def test_step_after_those_that_compiled_is_bounded_by_the_step_timeout_again(autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"denoising": hold, "step 0/2": Hang()}, step_seconds=1)
    async with (
        generator(script, GeneratorOptions(step_timeout=60, silence=120)) as bench,
        trio.open_nursery() as nursery,
    ):

        async def compile_first_step() -> None:
            await hold.reached.wait()
            script.current.say(p.StageChanged(run_id=1, stage="compiling"))
            hold.release.set()

        nursery.start_soon(compile_first_step)
        with pytest.raises(EngineDied, match="no step for 60 s"):
            await bench.generate()


async def test_first_step_of_a_kind_has_no_less_time_than_any_other(autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"denoising": hold})
    async with (
        generator(script, GeneratorOptions(step_timeout=300, silence=120)) as bench,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(bench.generate)
        await hold.reached.wait()
        script.current.say(p.StageChanged(run_id=1, stage="compiling"))
        await trio.sleep(290)
        hold.release.set()
    assert len(script.engines) == 1


async def test_load_that_is_not_wanted_any_more_is_stopped_and_the_engine_stays(autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"load": hold})
    async with generator(script) as bench:
        updates, news = trio.open_memory_channel[p.LoadProgress](1)

        async def abandon() -> None:
            await hold.reached.wait()
            news.close()
            bench.to.tell_latest(m.LoadAbandoned(), key=m.LoadAbandoned)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(abandon)
            with pytest.raises(m.LoadCancelled):
                await bench.to.ask(m.LoadModel(command=DEMO, updates=updates))
        await bench.generate()
    assert len(script.engines) == 1


async def test_load_that_is_not_wanted_any_more_before_it_began_never_begins(autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"run": hold})
    async with generator(script) as bench, trio.open_nursery() as nursery:
        lease = await bench.lease()
        nursery.start_soon(bench.generate, lease)
        await hold.reached.wait()
        updates, news = trio.open_memory_channel[p.LoadProgress](1)
        news.close()
        bench.to.tell_latest(m.LoadAbandoned(), key=m.LoadAbandoned)
        with pytest.raises(m.LoadCancelled):
            await bench.to.ask(m.LoadModel(command=attrs.evolve(DEMO, model="other"), updates=updates))
        hold.release.set()
    assert [command.model for command in script.current.received if isinstance(command, p.LoadModel)] == ["demo"]


def more_than(script: Script, engines: int) -> bool:
    return len(script.engines) > engines


async def test_engines_that_ignore_a_cancel_are_killed_and_that_makes_no_engine_degraded(
    autojump_clock: MockClock,
) -> None:
    script = Script(at={"load": Hang()}, ignore_cancel=True)
    async with generator(script, GeneratorOptions(cancel_grace=10)) as bench:
        for _ in range(5):
            updates, news = trio.open_memory_channel[p.LoadProgress](1)
            with trio.move_on_after(1):
                await bench.to.ask(m.LoadModel(command=DEMO, updates=updates))
            news.close()
            bench.to.tell_latest(m.LoadAbandoned(), key=m.LoadAbandoned)
            killed = len(script.engines)
            await eventually(partial(more_than, script, killed))
        assert not (await bench.state()).degraded
        assert not any(bench.reported())
    assert [round(start) for start in script.starts] == [0, 11, 22, 33, 44, 55], "at once, and after the grace"


# --- the service ---


def demo(service: Service) -> Model:
    model = gateway(service).catalog.get("demo")
    assert model is not None
    return model


async def loads_in(service: Service, model: str) -> bool:
    (view,) = await gateway(service).engines()
    return view.loading == model


async def test_followers_of_a_job_see_how_far_the_load_is(tmp_path: Path, autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"load": hold})
    async with service_of(tmp_path, {"0": script}) as service:
        first = await service.submit(request(1))
        async with service.events(first.id) as stream:
            await hold.reached.wait()
            script.current.say(HALF)
            seen: list[Progress] = []
            async for event in stream:
                if isinstance(event, Progress):
                    seen.append(event)
                if isinstance(event, Progress) and event.bytes_total == 2:
                    hold.release.set()
        read = [(event.stage, event.bytes_done) for event in seen if event.bytes_total == 2]
        assert read == [(Stage.LOADING, 1)]
        assert {event.bytes_total for event in seen if event.stage is not Stage.LOADING} == {None}


async def test_load_that_hangs_costs_its_job_an_attempt_and_the_service_goes_on(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    script = Script(at={"load": Hang()})
    async with service_of(tmp_path, {"0": script}) as service:
        job = await service.submit(request(1))
        await eventually(lambda: loads_in(service, "demo"))
        script.at.clear()
        done = await ended(service, job.id)
        assert (done.status, done.engine_deaths) == (Status.COMPLETED, 1)


async def test_cancelled_job_takes_its_hanging_load_along_and_the_next_job_runs(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    script = Script(at={"load": Hang()}, ignore_cancel=True)
    async with service_of(tmp_path, {"0": script}) as service:
        job = await service.submit(request(1))
        await eventually(lambda: loads_in(service, "demo"))
        script.at.clear()
        began = trio.current_time()
        assert (await service.cancel(job.id)).status is Status.CANCELLED
        following = await ended(service, (await service.submit(request(2))).id)
        assert (following.status, following.engine_deaths) == (Status.COMPLETED, 0)
        assert trio.current_time() - began < 12, "the grace, and no more"
        assert await condition_of(service) is m.EngineCondition.READY
    assert seeds_run(script) == [2]


async def test_load_that_another_job_waits_for_goes_on_when_the_first_is_cancelled(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    hold = Hold()
    script = Script(at={"load": hold})
    async with service_of(tmp_path, {"0": script}) as service, trio.open_nursery() as nursery:
        job = await service.submit(request(1))
        await hold.reached.wait()
        nursery.start_soon(gateway(service).load_model, demo(service))
        await wait_all_tasks_blocked()
        await service.cancel(job.id)
        await wait_all_tasks_blocked()
        hold.release.set()
    loads = [command for command in script.current.received if isinstance(command, p.LoadModel)]
    assert (len(script.engines), len(loads)) == (1, 1)


async def test_load_route_whose_client_left_ends_the_load(tmp_path: Path, autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"load": hold})
    async with service_of(tmp_path, {"0": script}) as service:
        with trio.move_on_after(5):
            await gateway(service).load_model(demo(service))
        await eventually(lambda: not_loading(service))
        assert p.CancelLoad() in script.current.received
        assert (await ended(service, (await service.submit(request(2))).id)).status is Status.COMPLETED
    assert len(script.engines) == 1


async def not_loading(service: Service) -> bool:
    (view,) = await gateway(service).engines()
    return view.loading is None


async def test_load_route_answers_when_the_load_hangs(tmp_path: Path, autojump_clock: MockClock) -> None:
    script = Script(at={"load": Hang()})
    async with service_of(tmp_path, {"0": script}) as service:
        with trio.fail_after(125), pytest.raises(EngineUnavailable, match="no word of a load"):
            await gateway(service).load_model(demo(service))
