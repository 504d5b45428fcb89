"""SeedVR2 in a real engine child, frames in and frames out, on the device of this machine."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import trio

from mflux_api.engine import control_thread, reporting, worker
from mflux_api.engine import protocol as p
from mflux_api.engine.device import Device
from mflux_api.engine.interface import Engine, Received
from mflux_api.engine.local import LocalEngine
from mflux_api.engine.protocol import ENGINE_TYPES
from mflux_api.engine.upscaling.seedvr2_components import UpscalerComponents
from mflux_api.engine.upscaling.upscaler import Upscaler
from mflux_api.ipc.child_pipe import ChildPipe
from tests.support.engine_contract import RUN, load, run, until
from tests.support.pipeline_runs import rgb_image
from tests.support.upscaler_checkpoint import write_upscaler

pytestmark = pytest.mark.slow

UPSCALE = p.Upscale(run_id=1, model="seedvr2", seeds=(1, 2), width=48, height=32, resolution=64)
RGB = rgb_image(48, 32).rgb


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    folder = write_upscaler(tmp_path / "seedvr2")
    async with trio.open_nursery() as nursery:
        started = await LocalEngine.start(nursery)
        assert isinstance(await load(started, p.LoadModel(model="seedvr2", path=str(folder))), p.Loaded)
        yield started
        with trio.CancelScope(shield=True):
            await started.aclose()
        nursery.cancel_scope.cancel()


async def _upscale(engine: Engine, command: p.Upscale, *blobs: bytes) -> list[Received]:
    await engine.send(command, blobs)
    return await until(engine, p.RunDone, p.RunFailed, p.RunStopped)


async def test_upscaled_images_come_as_those_of_a_run(engine: Engine) -> None:
    frames = await _upscale(engine, UPSCALE, RGB)
    assert [type(frame.event).__name__ for frame in frames] == [
        *(["StageChanged", "StageChanged", "StepDone", "StageChanged", "ImageDone"] * 2),
        "RunDone",
    ]
    images = [frame for frame in frames if isinstance(frame.event, p.ImageDone)]
    assert [(f.event.index, f.event.seed, f.event.width, f.event.height) for f in images] == [  # type: ignore[union-attr]
        (0, 1, 96, 64),
        (1, 2, 96, 64),
    ]
    assert all(len(frame.blobs[0]) == 96 * 64 * 3 for frame in images)
    assert images[0].blobs != images[1].blobs


async def test_cancelled_upscaling_leaves_a_sound_engine(engine: Engine) -> None:
    await engine.send(attrs.evolve(UPSCALE, run_id=2, seeds=tuple(range(200))), [RGB])
    await until(engine, p.StageChanged)
    await engine.send(p.Cancel(run_id=2))
    assert isinstance((await until(engine, p.RunStopped, p.RunDone))[-1].event, p.RunStopped)
    frames = await _upscale(engine, attrs.evolve(UPSCALE, run_id=3, seeds=(1,), low_ram=True), RGB)
    assert isinstance(frames[-1].event, p.RunDone)


def test_worker_reports_that_a_long_stage_goes_on(
    tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "STILL_RUNNING_SECONDS", 0.0)
    incoming, outgoing = os.pipe()
    frames: list[type[object]] = []
    pipe = ChildPipe(incoming, outgoing, ENGINE_TYPES)
    monkeypatch.setattr(pipe, "write", lambda event, blobs=(): frames.append(type(event)))
    child = worker.Worker(pipe, control_thread.ControlThread(pipe), device)
    child._resident["seedvr2"] = Upscaler(UpscalerComponents(write_upscaler(tmp_path / "seedvr2")))
    child._run(attrs.evolve(UPSCALE, seeds=(1,)), (RGB,))
    os.close(incoming)
    os.close(outgoing)
    in_the_step = frames[frames.index(p.StageChanged, 1) : frames.index(p.StepDone)]
    assert in_the_step.count(p.StillRunning) > 2
    assert frames[-1] is p.RunDone


async def test_what_does_not_go_together_fails_and_the_engine_goes_on(engine: Engine, tiny_folder: Path) -> None:
    assert isinstance((await run(engine, attrs.evolve(RUN, model="seedvr2")))[-1].event, p.RunFailed)
    await load(engine, p.LoadModel(model="demo", path=str(tiny_folder), component_offload=True))
    for command, blobs in (
        (attrs.evolve(UPSCALE, model="demo"), [RGB]),
        (UPSCALE, [RGB[:-1]]),
        (UPSCALE, []),
        (attrs.evolve(UPSCALE, softness=2.0), [RGB]),
    ):
        failed = (await _upscale(engine, command, *blobs))[-1].event
        assert isinstance(failed, p.RunFailed)
        assert failed.code == "GENERATION_FAILED"
    assert isinstance((await _upscale(engine, attrs.evolve(UPSCALE, seeds=(5,)), RGB))[-1].event, p.RunDone)
