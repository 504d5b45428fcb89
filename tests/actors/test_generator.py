"""The generator over scripted engines, in virtual time: running, hanging, cancelling."""

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mflux_api.actors import messages as m
from mflux_api.actors.generator.options import GeneratorOptions
from mflux_api.actors.mailbox import ActorGone
from mflux_api.engine import protocol as p
from mflux_api.engine.interface import EngineDied
from mflux_api.errors import GenerationFailed, OutOfMemory
from mflux_api.ipc import frames
from mflux_api.ipc.child_process import SILENCE_GRACE_SECONDS
from mflux_api.jobs.job import Timings
from tests.support.harness import RESOLVED, Bench, generator
from tests.support.scripted_engine import Fail, Hang, Hold, Script, pixels


def steps_of(bench: Bench) -> list[int]:
    return [received.event.step for received in bench.events if isinstance(received.event, p.StepDone)]


# --- generating ------------------------------------------------------------------------------------------------------


async def test_run_passes_everything_on_in_order(autojump_clock: MockClock) -> None:
    async with generator(Script()) as bench:
        timings = await bench.generate(previews=True)
    assert timings == Timings(load=0.5, encode=0.1, denoise=0.2, decode=0.3)
    steps: list[type[p.Event]] = [p.StepDone, p.PreviewMade] * 2
    kinds = [type(received.event) for received in bench.events]
    assert kinds == [p.StageChanged, p.StageChanged, *steps, p.StageChanged, p.ImageDone]
    image, blobs = bench.events[-1].event, bench.events[-1].blobs
    assert isinstance(image, p.ImageDone)
    assert (image.index, image.seed, blobs) == (0, 5, (pixels(5, 64, 64),))


def previews_of(bench: Bench) -> list[int]:
    return [received.event.step for received in bench.events if isinstance(received.event, p.PreviewMade)]


async def test_previews_are_made_when_someone_follows_them_and_not_before(autojump_clock: MockClock) -> None:
    second = Hold()
    script = Script(at={"step 0/2": second})
    async with generator(script) as bench, trio.open_nursery() as nursery:
        lease = await bench.lease()
        nursery.start_soon(bench.generate, lease)
        await second.reached.wait()
        bench.to.tell_latest(m.ShowPreviews(run_id=99), key=99)
        bench.to.tell_latest(m.ShowPreviews(run_id=1), key=1)
        await wait_all_tasks_blocked()
        assert script.current.previewed == {1}
        second.release.set()
    assert previews_of(bench) == [2]


async def test_run_whose_followers_came_before_it_makes_previews(autojump_clock: MockClock) -> None:
    held = Hold()
    async with generator(Script(at={"run": held})) as bench, trio.open_nursery() as nursery:
        lease = await bench.lease()
        nursery.start_soon(bench.generate, lease)
        await held.reached.wait()
        # It waits behind the first.
        nursery.start_soon(bench.generate, lease)
        await wait_all_tasks_blocked()
        bench.to.tell_latest(m.ShowPreviews(run_id=2), key=2)
        await wait_all_tasks_blocked()
        held.release.set()
    assert previews_of(bench) == [1, 2]


async def test_no_one_can_have_previews_that_the_program_does_not_want(autojump_clock: MockClock) -> None:
    async with generator(Script(), GeneratorOptions(previews=False)) as bench:
        await bench.generate(previews=True)
    assert previews_of(bench) == []


async def test_frames_of_another_run_are_dropped(autojump_clock: MockClock) -> None:
    async with generator(Script(stale_frames=True)) as bench:
        await bench.generate()
        assert steps_of(bench) == [1, 2]
        assert sum(isinstance(received.event, p.ImageDone) for received in bench.events) == 1


async def test_late_frames_of_an_ended_run_do_not_disturb_the_next(autojump_clock: MockClock) -> None:
    script = Script()
    async with generator(script) as bench:
        lease = await bench.lease()
        await bench.generate(lease)
        script.current.say(p.StepDone(run_id=1, image=0, step=9, steps=9))
        script.current.say(p.RunDone(run_id=1, encode_seconds=9, denoise_seconds=9, decode_seconds=9))
        assert (await bench.generate(lease)).encode == 0.1
        assert steps_of(bench) == [1, 2]


async def test_load_that_waits_for_the_child_is_told_how_much_memory_is_left(autojump_clock: MockClock) -> None:
    script = Script(free_bytes=7)
    async with generator(script) as bench:
        assert (await bench.to.ask(m.AwaitEngine())).free_bytes == 7


async def test_lease_of_a_dead_incarnation_is_refused_and_nothing_is_sent(autojump_clock: MockClock) -> None:
    script = Script()
    async with generator(script) as bench:
        lease = await bench.lease()
        script.current.die()
        await wait_all_tasks_blocked()
        with pytest.raises(m.StaleLease):
            await bench.generate(lease)
        assert script.current.received == []
        assert (await bench.lease()).incarnation == lease.incarnation + 1


async def test_lease_of_another_engine_is_refused_and_nothing_is_sent(autojump_clock: MockClock) -> None:
    script = Script()
    async with generator(script) as bench:
        lease = await bench.lease()
        sent = list(script.current.received)
        for wrong in ({"engine": "1"}, {"incarnation": lease.incarnation + 1}):
            with pytest.raises(m.StaleLease):
                await bench.generate(attrs.evolve(lease, **wrong))
        assert script.current.received == sent
        await bench.generate(lease)


@pytest.mark.parametrize(("code", "error"), [("OOM_ERROR", OutOfMemory), ("GENERATION_FAILED", GenerationFailed)])
async def test_failed_run_is_a_typed_error_and_the_engine_stays(
    autojump_clock: MockClock, code: str, error: type[Exception]
) -> None:
    script = Script(at={"step 0/2": Fail(code)})
    async with generator(script) as bench:
        with pytest.raises(error):
            await bench.generate()
        await bench.generate()
    assert len(script.engines) == 1


async def test_failed_load_is_a_typed_error_with_the_model(autojump_clock: MockClock) -> None:
    async with generator(Script(at={"load": Fail("OOM_ERROR")})) as bench:
        with pytest.raises(OutOfMemory) as caught:
            await bench.load()
        assert caught.value.details == {"model": "demo"}
        await bench.load()


async def test_request_that_no_frame_can_hold_fails_alone(autojump_clock: MockClock) -> None:
    class Strict(Script):
        async def start(self, nursery: trio.Nursery):  # type: ignore[no-untyped-def]
            engine = await Script.start(self, nursery)
            send = engine.send

            async def checked(command: p.Command, blobs: Sequence[bytes] = ()) -> None:
                frames.encode(command, blobs)
                await send(command, blobs)

            engine.send = checked  # type: ignore[method-assign]
            return engine

    script = Strict()
    async with generator(script) as bench:
        with pytest.raises(GenerationFailed):
            await bench.generate(request=attrs.evolve(RESOLVED, prompt="\ud800"))
        await bench.generate()
    assert len(script.engines) == 1


async def test_image_without_its_pixels_is_the_engines_death_not_the_actors(autojump_clock: MockClock) -> None:
    script = Script(tamper=lambda event, blobs: (event, tuple(blob[:-1] for blob in blobs)))
    async with generator(script) as bench:
        with pytest.raises(EngineDied, match="without its pixels"):
            await bench.generate()
        assert (await bench.state()).incarnation >= 1


# --- hangs and cancels ---------------------------------------------------------------------------------------------


async def test_step_that_was_done_while_the_server_was_stopped_counts(mock_clock: MockClock) -> None:
    """A process that wakes up finds the deadline over and the frame on its way in the same turn."""
    hold = Hold()
    script = Script(at={"step 0/2": hold})
    async with generator(script, GeneratorOptions(step_timeout=60)) as bench, trio.open_nursery() as nursery:
        nursery.start_soon(bench.generate)
        await hold.reached.wait()
        await wait_all_tasks_blocked()
        mock_clock.jump(300)
        hold.release.set()
    assert len(script.engines) == 1


async def test_step_that_takes_too_long_kills_the_engine(autojump_clock: MockClock) -> None:
    script = Script(at={"step 0/2": Hang()}, step_seconds=10)
    async with generator(script, GeneratorOptions(step_timeout=60)) as bench:
        with pytest.raises(EngineDied, match="no step for 60 s"):
            await bench.generate()
        assert trio.current_time() - script.starts[0] == 70 + SILENCE_GRACE_SECONDS
        assert script.engines[0].closed == "by force"


async def test_slow_run_whose_steps_come_in_time_is_left_alone(autojump_clock: MockClock) -> None:
    async with generator(Script(step_seconds=59), GeneratorOptions(step_timeout=60)) as bench:
        await bench.generate(request=attrs.evolve(RESOLVED, steps=50))
    assert len(bench.script.engines) == 1


UNSAYABLE = {"long": {"prompt": "x" * frames.MAX_HEADER}, "text": {"prompt": "\ud800"}, "number": {"seed": 2**64}}


@pytest.mark.parametrize("spoilt", UNSAYABLE.values(), ids=UNSAYABLE.keys())
async def test_run_that_cannot_be_put_into_a_frame_fails_and_its_engine_goes_on(
    autojump_clock: MockClock, spoilt: dict[str, Any]
) -> None:
    script = Script()
    async with generator(script) as bench:
        with pytest.raises(GenerationFailed, match="cannot be passed to the engine"):
            await bench.generate(request=attrs.evolve(RESOLVED, **spoilt))
        await bench.generate()
    assert len(script.engines) == 1


async def test_load_that_cannot_be_put_into_a_frame_fails_and_its_engine_goes_on(autojump_clock: MockClock) -> None:
    script = Script()
    async with generator(script) as bench:
        with pytest.raises(GenerationFailed, match="cannot be passed to the engine"):
            await bench.to.ask(m.LoadModel(command=p.LoadModel(model="demo", path="\ud800")))
        await bench.generate()
    assert len(script.engines) == 1


async def test_step_of_many_parts_is_left_alone_while_the_engine_says_that_it_goes_on(
    autojump_clock: MockClock,
) -> None:
    hold = Hold()
    script = Script(at={"step 0/2": hold})
    async with generator(script, GeneratorOptions(step_timeout=60)) as bench, trio.open_nursery() as nursery:
        nursery.start_soon(bench.generate)
        await hold.reached.wait()
        for _ in range(3):
            await trio.sleep(50)
            script.current.say(p.StillRunning(run_id=1))
        hold.release.set()
    assert len(script.engines) == 1
    assert any(isinstance(received.event, p.ImageDone) for received in bench.events)


async def cancelled_generate(bench: Bench, hold: Hold, *, tell: bool) -> None:
    """Start to generate, and go away when the engine has come to the hold."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.generate)
        await hold.reached.wait()
        nursery.cancel_scope.cancel()
    if tell:
        await bench.to.tell(m.CancelRun(run_id=bench.runs), control=True)


async def test_stopped_run_frees_the_engine_for_the_next(autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"step 0/1": hold})
    async with generator(script) as bench:
        await cancelled_generate(bench, hold, tell=True)
        assert (await bench.generate()).encode == 0.1
    assert [command for command in script.current.received if isinstance(command, p.Cancel)] == [p.Cancel(run_id=1)]
    assert len(script.engines) == 1


async def test_asker_that_goes_without_a_word_is_noticed_at_the_next_frame(autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"step 0/1": hold}, step_seconds=1)
    async with generator(script) as bench:
        await cancelled_generate(bench, hold, tell=False)
        hold.release.set()
        await bench.load()
        assert p.Cancel(run_id=1) in script.current.received
    assert len(script.engines) == 1


async def test_engine_that_ignores_a_cancel_is_killed_after_the_grace(autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"step 0/1": hold, "step 0/2": Hang()}, ignore_cancel=True)
    async with generator(script, GeneratorOptions(cancel_grace=10)) as bench:
        await cancelled_generate(bench, hold, tell=True)
        told = trio.current_time()
        await bench.load()
    assert script.starts == [0, told + 10]
    assert script.engines[0].closed == "by force"


async def test_stop_for_a_run_that_still_waits_keeps_it_from_the_engine(autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"step 0/1": hold})
    async with generator(script) as bench:
        lease = await bench.lease()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.generate, lease)
            await hold.reached.wait()
            with trio.move_on_after(5):
                await bench.generate(lease)
            await bench.to.tell(m.CancelRun(run_id=2), control=True)
            hold.release.set()
    assert [command.run_id for command in script.current.received if isinstance(command, p.Run)] == [1]


async def test_cancel_of_another_run_stops_nothing(autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"step 0/1": hold})
    async with generator(script) as bench, trio.open_nursery() as nursery:
        nursery.start_soon(bench.generate)
        await hold.reached.wait()
        await bench.to.tell(m.CancelRun(run_id=77), control=True)
        await wait_all_tasks_blocked()
        hold.release.set()
    assert not any(isinstance(command, p.Cancel) for command in script.current.received)


async def test_end_of_the_actor_closes_the_engine_politely_and_the_asker_learns_it(
    autojump_clock: MockClock,
) -> None:
    hold = Hold()
    script = Script(at={"step 0/1": hold})
    async with trio.open_nursery() as nursery:
        async with generator(script) as bench:

            async def generate() -> None:
                with pytest.raises(ActorGone):
                    await bench.generate()

            nursery.start_soon(generate)
            await hold.reached.wait()
        bench.mailbox.close()
    assert script.current.closed == "politely"


async def test_end_of_the_actor_while_an_engine_starts_leaves_none(autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"start": hold})
    async with generator(script):
        await hold.reached.wait()
    assert (len(script.starts), script.alive) == (1, 0)
