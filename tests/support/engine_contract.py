"""What every engine guarantees, of any kind. A module that tests one subclasses :class:`EngineContract`."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import attrs
import pytest
import trio

from mflux_api.engine.interface import Engine, EngineDied, EngineStarter, Received
from mflux_api.engine.protocol import (
    Cancel,
    CancelLoad,
    Event,
    Heartbeat,
    ImageDone,
    Inpainting,
    Loaded,
    LoadFailed,
    LoadModel,
    LoadProgress,
    PreviewMade,
    Run,
    RunDone,
    RunFailed,
    RunStopped,
    SharedRun,
    StageChanged,
    StepDone,
    StillRunning,
    Unloaded,
    UnloadModel,
)

DEADLINE_SECONDS = 30.0
RUN = Run(
    run_id=1,
    model="demo",
    prompt="a red house",
    negative_prompt=None,
    seeds=(7,),
    width=64,
    height=64,
    steps=2,
    guidance=1.0,
)


async def until(engine: Engine, *kinds: type[Event]) -> list[Received]:
    """Return everything but heartbeats, up to and including the first event of one of the kinds."""
    seen: list[Received] = []
    with trio.fail_after(DEADLINE_SECONDS):
        while not seen or not isinstance(seen[-1].event, kinds):
            received = await engine.receive()
            if not isinstance(received.event, Heartbeat):
                seen.append(received)
    return seen


async def load(engine: Engine, command: LoadModel) -> Event:
    """Send the command and return the answer."""
    await engine.send(command)
    return (await until(engine, Loaded, LoadFailed))[-1].event


async def run(engine: Engine, command: Run, blobs: Sequence[bytes] = ()) -> list[Received]:
    """Send the command and return every frame of the run."""
    await engine.send(command, blobs)
    return await until(engine, RunDone, RunFailed, RunStopped)


def rgb_images(frames: list[Received]) -> list[bytes]:
    """Return the pixels in a run's frames."""
    return [frame.blobs[0] for frame in frames if isinstance(frame.event, ImageDone)]


class EngineContract:
    """Subclasses give the fixtures ``start``, an engine starter, and ``good``, the command that loads ``demo``."""

    @pytest.fixture
    async def engine(self, start: EngineStarter, nursery: trio.Nursery) -> AsyncIterator[Engine]:
        """An engine past its handshake."""
        engine = await start(nursery)
        yield engine
        await engine.aclose(force=True)

    async def test_handshake_says_what_the_engine_is(self, engine: Engine) -> None:
        assert engine.info.pid > 0
        assert engine.info.device in {"cpu", "metal", "cuda"}
        assert engine.info.device_name
        assert engine.info.versions

    async def test_run_reports_stages_steps_and_every_image(self, engine: Engine, good: LoadModel) -> None:
        loaded = await load(engine, good)
        assert isinstance(loaded, Loaded)
        assert loaded.model == "demo"

        frames = await run(engine, attrs.evolve(RUN, seeds=(7, 8), steps=3))

        assert all(getattr(frame.event, "run_id", None) == RUN.run_id for frame in frames)
        assert isinstance(frames[-1].event, RunDone)
        steps = [frame.event for frame in frames if isinstance(frame.event, StepDone)]
        passes = {event.image: event.images for event in steps}
        assert passes in ({0: 2}, {0: 1, 1: 1})
        assert [(event.image, event.step, event.steps) for event in steps] == [
            (first, step, 3) for first in passes for step in (1, 2, 3)
        ]
        stages = [frame.event.stage for frame in frames if isinstance(frame.event, StageChanged)]
        # The first pass of its kind on a GPU is compiled.
        assert [stage for stage in stages if stage != "compiling"] == ["encoding", "denoising", "decoding"] * len(
            passes
        )
        images = [frame for frame in frames if isinstance(frame.event, ImageDone)]
        assert [(image.event.index, image.event.seed) for image in images if isinstance(image.event, ImageDone)] == [
            (0, 7),
            (1, 8),
        ]
        assert [len(blob) for image in images for blob in image.blobs] == [64 * 64 * 3] * 2
        assert images[0].blobs != images[1].blobs
        assert not any(frame.blobs for frame in frames if not isinstance(frame.event, ImageDone))

    async def test_runs_that_share_a_pass_have_frames_of_their_own(self, engine: Engine, good: LoadModel) -> None:
        await load(engine, good)
        runs = (attrs.evolve(RUN, seeds=(7, 8)), attrs.evolve(RUN, run_id=2, prompt="a lake", seeds=(9,)))

        await engine.send(SharedRun(runs=runs))
        frames = [frame for _ in runs for frame in await until(engine, RunDone, RunFailed, RunStopped)]

        assert {frame.event.run_id for frame in frames if isinstance(frame.event, RunDone)} == {1, 2}
        for each in runs:
            own = [frame.event for frame in frames if getattr(frame.event, "run_id", None) == each.run_id]
            images = [event for event in own if isinstance(event, ImageDone)]
            assert [(event.index, event.seed) for event in images] == list(enumerate(each.seeds))
            steps = [event for event in own if isinstance(event, StepDone)]
            assert [(event.image, event.images, event.step) for event in steps] == [
                (0, len(each.seeds), step) for step in (1, 2)
            ]
            assert {event.batch for event in steps} == {3}
            assert {event.stage for event in own if isinstance(event, StageChanged)} >= {"encoding", "denoising"}

    async def test_cancel_stops_one_of_the_runs_that_share_a_pass(self, engine: Engine, good: LoadModel) -> None:
        await load(engine, good)
        runs = tuple(attrs.evolve(RUN, run_id=number, steps=12, seeds=(number,)) for number in (1, 2, 3))
        await engine.send(SharedRun(runs=runs))
        await until(engine, StepDone)
        await engine.send(Cancel(run_id=2))
        frames = [frame for _ in runs for frame in await until(engine, RunDone, RunFailed, RunStopped)]
        ends = {frame.event.run_id: type(frame.event) for frame in frames if hasattr(frame.event, "run_id")}
        assert ends == {1: RunDone, 2: RunStopped, 3: RunDone}
        assert {frame.event.seed for frame in frames if isinstance(frame.event, ImageDone)} == {1, 3}

    async def test_previews_follow_each_step_where_they_are_asked_for(self, engine: Engine, good: LoadModel) -> None:
        await load(engine, good)
        plain = await run(engine, attrs.evolve(RUN, seeds=(7, 8)))
        assert not any(isinstance(frame.event, PreviewMade) for frame in plain)

        frames = await run(engine, attrs.evolve(RUN, seeds=(7, 8), previews=True))

        assert rgb_images(frames) == rgb_images(plain)
        made = [frame for frame in frames if isinstance(frame.event, PreviewMade)]
        assert sorted(
            (frame.event.index, frame.event.step) for frame in made if isinstance(frame.event, PreviewMade)
        ) == [(index, step) for index in (0, 1) for step in (1, 2)]
        assert all(len(frame.blobs) == 1 and frame.blobs[0].startswith(b"\xff\xd8") for frame in made)
        assert all(len(frame.blobs[0]) < 20_000 for frame in made)
        # A busy machine says now and then that it still runs.
        rest, expected = (
            [type(frame.event) for frame in seen if not isinstance(frame.event, PreviewMade | StillRunning)]
            for seen in (frames, plain)
        )
        assert rest == expected

    async def test_run_with_images_takes_them_from_its_blobs(self, engine: Engine, good: LoadModel) -> None:
        await load(engine, good)
        edit = attrs.evolve(RUN, steps=4, references=((32, 48), (64, 16)), start=True, image_strength=0.5)
        blobs = [bytes(32 * 48 * 3), bytes(range(256)) * (64 * 16 * 3 // 256), bytes(64 * 64 * 3)]

        frames = await run(engine, edit, blobs)

        assert isinstance(frames[-1].event, RunDone)
        steps = [(frame.event.step, frame.event.steps) for frame in frames if isinstance(frame.event, StepDone)]
        assert steps == [(1, 2), (2, 2)]
        assert [len(pixels) for pixels in rgb_images(frames)] == [64 * 64 * 3]

    async def test_run_without_the_images_it_names_fails_and_leaves_the_engine_free(
        self, engine: Engine, good: LoadModel
    ) -> None:
        await load(engine, good)
        edit = attrs.evolve(RUN, references=((32, 48),))
        whole = Inpainting(result=(64, 64), box=(0, 0, 64, 64))
        inpaint = attrs.evolve(RUN, start=True, inpainting=whole)
        blobs = [bytes(64 * 64 * channels) for channels in (3, 1, 3, 1)]
        one_is_longer = [[*blobs[:wrong], blobs[wrong] + b"x", *blobs[wrong + 1 :]] for wrong in range(4)]
        wrong = [(edit, []), (inpaint, blobs[:1]), *((inpaint, given) for given in one_is_longer)]
        for command, given in wrong:
            frames = await run(engine, command, given)
            assert isinstance(frames[-1].event, RunFailed)
            assert frames[-1].event.code == "GENERATION_FAILED"
        assert isinstance((await run(engine, RUN))[-1].event, RunDone)

    async def test_inpainted_images_have_the_results_size_and_the_overlays_bytes_where_they_are_protected(
        self, engine: Engine, good: LoadModel
    ) -> None:
        await load(engine, good)
        result, box = (80, 70), (10, 6, 60, 64)
        inpaint = attrs.evolve(
            RUN,
            seeds=(7, 8),
            references=((64, 64),),
            start=True,
            inpainting=Inpainting(fill="noise", result=result, box=box),
        )
        source, mask, overlay = bytes(64 * 64 * 3), bytes(32 * 64) + b"\xff" * 32 * 64, bytes(range(240)) * 70
        blurred_mask = bytes(80 * 40) + b"\xff" * 80 * 30

        frames = await run(engine, inpaint, [source, source, mask, overlay, blurred_mask])

        assert isinstance(frames[-1].event, RunDone)
        images = [frame for frame in frames if isinstance(frame.event, ImageDone)]
        assert [(image.event.width, image.event.height) for image in images if isinstance(image.event, ImageDone)] == [
            result
        ] * 2
        for pixels in rgb_images(frames):
            assert len(pixels) == len(overlay)
            rows = [(pixels[first : first + 240], overlay[first : first + 240]) for first in range(0, 80 * 70 * 3, 240)]
            assert all(made == kept for made, kept in rows[:40])
            assert all(made[:30] == kept[:30] and made[210:] == kept[210:] for made, kept in rows)
            assert all(made != kept for made, kept in rows[40:])
        assert len(set(rgb_images(frames))) == 2

    async def test_failed_load_leaves_an_engine_that_can_load(
        self, engine: Engine, good: LoadModel, tmp_path: Path
    ) -> None:
        failed = await load(engine, LoadModel(model="other", path=str(tmp_path / "nowhere")))
        assert isinstance(failed, LoadFailed)
        assert failed.model == "other"
        assert str(tmp_path) not in failed.message

        assert isinstance(await load(engine, good), Loaded)
        assert isinstance((await run(engine, RUN))[-1].event, RunDone)

    async def test_failed_load_leaves_the_others_resident(
        self, engine: Engine, good: LoadModel, tmp_path: Path
    ) -> None:
        await load(engine, good)
        await load(engine, LoadModel(model="other", path=str(tmp_path / "nowhere")))
        assert isinstance((await run(engine, attrs.evolve(RUN, model="other")))[-1].event, RunFailed)
        assert isinstance((await run(engine, RUN))[-1].event, RunDone)

    async def test_load_says_how_far_it_is(self, engine: Engine, good: LoadModel) -> None:
        await engine.send(good)
        *progress, last = [received.event for received in await until(engine, Loaded, LoadFailed)]
        assert isinstance(last, Loaded)
        assert progress
        done = [(each.bytes_done, each.bytes_total) for each in progress if isinstance(each, LoadProgress)]
        assert len(done) == len(progress)
        assert (done[0][0], done[-1][0]) == (0, done[-1][1])

    async def test_cancel_of_a_load_that_is_over_harms_no_other(self, engine: Engine, good: LoadModel) -> None:
        await load(engine, good)
        await engine.send(CancelLoad())
        assert isinstance(await load(engine, attrs.evolve(good, model="second")), Loaded)

    async def test_several_models_are_resident_and_leave_one_by_one(self, engine: Engine, good: LoadModel) -> None:
        await load(engine, good)
        await load(engine, attrs.evolve(good, model="second"))
        # Loading a model again is not an error.
        assert isinstance(await load(engine, good), Loaded)
        first = await run(engine, RUN)
        second = await run(engine, attrs.evolve(RUN, run_id=2, model="second"))
        assert rgb_images(first) == rgb_images(second)

        await engine.send(UnloadModel(model="demo"))
        await until(engine, Unloaded)
        assert isinstance((await run(engine, attrs.evolve(RUN, run_id=3)))[-1].event, RunFailed)
        last = await run(engine, attrs.evolve(RUN, run_id=4, model="second"))
        assert rgb_images(last) == rgb_images(first)

    async def test_model_with_component_offload_generates_the_same(self, engine: Engine, good: LoadModel) -> None:
        await load(engine, good)
        whole = rgb_images(await run(engine, RUN))
        assert whole
        await load(engine, attrs.evolve(good, model="offloading", component_offload=True))
        for run_id, low_ram in enumerate((True, True, False, True), start=2):
            frames = await run(engine, attrs.evolve(RUN, run_id=run_id, model="offloading", low_ram=low_ram))
            assert rgb_images(frames) == whole

    async def test_run_without_the_model_fails_and_leaves_the_engine_free(
        self, engine: Engine, good: LoadModel
    ) -> None:
        frames = await run(engine, RUN)
        assert isinstance(frames[-1].event, RunFailed)
        assert frames[-1].event.code == "GENERATION_FAILED"
        assert RUN.prompt not in frames[-1].event.message

        await load(engine, good)
        await engine.send(UnloadModel(model=good.model))
        await until(engine, Unloaded)
        assert isinstance((await run(engine, RUN))[-1].event, RunFailed)

    async def test_cancel_stops_within_a_step_and_the_next_run_is_undisturbed(
        self, engine: Engine, good: LoadModel
    ) -> None:
        await load(engine, good)
        fresh = rgb_images(await run(engine, RUN))

        await engine.send(attrs.evolve(RUN, run_id=2, steps=200, seeds=(7, 8, 9)))
        await until(engine, StepDone)
        await engine.send(Cancel(run_id=2))
        rest = await until(engine, RunDone, RunFailed, RunStopped)
        assert isinstance(rest[-1].event, RunStopped)
        assert not rgb_images(rest)

        assert rgb_images(await run(engine, attrs.evolve(RUN, run_id=3))) == fresh

    async def test_cancel_of_another_run_changes_nothing(self, engine: Engine, good: LoadModel) -> None:
        await load(engine, good)
        await engine.send(Cancel(run_id=99))
        await engine.send(RUN)
        await engine.send(Cancel(run_id=98))
        assert isinstance((await until(engine, RunDone, RunFailed, RunStopped))[-1].event, RunDone)

    async def test_run_cancelled_before_it_began_is_stopped(self, engine: Engine, good: LoadModel) -> None:
        await load(engine, good)
        await engine.send(Cancel(run_id=1))
        assert isinstance((await run(engine, RUN))[-1].event, RunStopped)

    async def test_closed_engine_is_dead_to_both_sides(self, engine: Engine) -> None:
        await engine.aclose()
        with pytest.raises(EngineDied):
            await engine.send(RUN)
        with pytest.raises(EngineDied):
            await until(engine, RunDone)
        await engine.aclose(force=True)
