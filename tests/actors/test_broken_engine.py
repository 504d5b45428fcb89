"""An engine that sends what no working one does: that costs its child, and never the actor that listens to it."""

from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mflux_api.actors.generator.options import GeneratorOptions
from mflux_api.engine import protocol as p
from mflux_api.engine.interface import EngineDied
from mflux_api.jobs.job import Status
from tests.support.harness import ended, generator, request, scripted_service
from tests.support.scripted_engine import Hang, Hold, Script

STAGE = p.StageChanged(run_id=1, stage="denoising")
PREVIEW = p.PreviewMade(run_id=1, index=0, step=1, width=8, height=8)
STEP = p.StepDone(run_id=1, image=0, step=1, steps=2)
WARNING = p.RunWarning(run_id=1, message="the same again")
IMAGE = p.ImageDone(run_id=1, index=0, seed=5, width=2, height=2)
DONE = p.RunDone(run_id=1, encode_seconds=0, denoise_seconds=0, decode_seconds=0)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([(STAGE, ())] * 5000, "more frames"),
        ([(STEP, ())] * 5000, "more frames"),
        ([(PREVIEW, (b"jpeg",))] * 5000, "more frames"),
        ([(WARNING, ())] * 5000, "more frames"),
        ([(PREVIEW, ())], "without its image"),
        ([(attrs.evolve(PREVIEW, index=1), (b"jpeg",))], "does not have"),
        ([(attrs.evolve(STEP, image=1), ())], "does not have"),
        ([(attrs.evolve(STEP, step=3), ())], "does not have"),
        ([(IMAGE, (bytes(12),)), (IMAGE, (bytes(12),))], "twice"),
        ([(attrs.evolve(IMAGE, index=7), (bytes(12),))], "does not have"),
        ([(IMAGE, (bytes(11),))], "without its pixels"),
        ([(DONE, ())], "without all of its images"),
    ],
)
async def test_engine_that_sends_what_a_run_does_not_have_is_replaced_and_its_actor_lives(
    autojump_clock: MockClock, frames: list[tuple[p.Event, tuple[bytes, ...]]], reason: str
) -> None:
    hold = Hold()
    script = Script(at={"encoding": hold})
    async with generator(script) as bench:

        async def flood() -> None:
            await hold.reached.wait()
            for event, blobs in frames:
                script.current.say(event, blobs)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            with pytest.raises(EngineDied, match=reason):
                await bench.generate()
        await bench.generate()
    assert len(script.engines) == 2


async def test_engine_that_sends_too_many_frames_costs_its_job_one_attempt(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"encoding": hold})
    async with scripted_service(tmp_path, script) as service:
        job = await service.submit(request())
        await hold.reached.wait()
        (run,) = [command for command in script.current.received if isinstance(command, p.Run)]
        for _ in range(5000):
            script.current.say(attrs.evolve(STAGE, run_id=run.run_id))
        done = await ended(service, job.id)
    assert (done.status, done.engine_deaths, done.service_deaths) == (Status.COMPLETED, 1, 0)


async def test_frames_of_other_work_are_not_a_sign_of_life(autojump_clock: MockClock) -> None:
    script = Script(at={"encoding": Hang()})
    async with generator(script, GeneratorOptions(step_timeout=60)) as bench, trio.open_nursery() as nursery:

        async def chatter() -> None:
            while True:
                await trio.sleep(0.1)
                script.engines[0].say(attrs.evolve(STAGE, run_id=99))

        await wait_all_tasks_blocked()
        nursery.start_soon(chatter)
        with trio.fail_after(70), pytest.raises(EngineDied, match="no step for 60 s"):
            await bench.generate()
        nursery.cancel_scope.cancel()


async def test_death_of_an_engine_that_chatters_without_work_is_seen(autojump_clock: MockClock) -> None:
    script = Script()
    async with generator(script) as bench:
        await wait_all_tasks_blocked()
        for _ in range(5000):
            script.current.say(STAGE)
        script.current.die()
        await wait_all_tasks_blocked()
        assert (await bench.state()).incarnation == 2
