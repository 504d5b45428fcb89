"""Component offload and ``low_ram``: one component in memory at a time, the same image, and sound after a failure."""

import shutil
from pathlib import Path

import attrs
import mlx.core as mx
import numpy as np
import psutil
import pytest
import trio

from mflux_api.catalog.files import COMPONENTS
from mflux_api.engine import device as memory
from mflux_api.engine import protocol as p
from mflux_api.engine.device import Device
from mflux_api.engine.local import LocalEngine
from mflux_api.engine.sampling.pipeline import Event, ImageEvent, Pipeline, StageEvent, StepEvent, Stopped
from mflux_api.engine.weights.components import CheckpointError, load_components
from tests.support.engine_contract import DEADLINE_SECONDS, RUN, load, run, until
from tests.support.loaded_components import watch_reads
from tests.support.pipeline_runs import REQUEST, consume, distance, generate, never

pytestmark = pytest.mark.slow

LOW = attrs.evolve(REQUEST, low_ram=True)


def test_each_component_is_there_only_while_it_is_needed(tiny_folder: Path, device: Device) -> None:
    pipeline = Pipeline(load_components(tiny_folder, component_offload=True), device)
    components = pipeline.components
    assert components.resident == frozenset()
    seen = [(type(event).__name__, sorted(components.resident)) for event in pipeline.run(LOW, never)]
    assert seen == [
        ("StageEvent", []),
        ("StageEvent", []),
        ("StepEvent", ["transformer"]),
        ("StepEvent", ["transformer"]),
        ("StageEvent", []),
        ("ImageEvent", ["vae"]),
        ("DoneEvent", []),
    ]
    assert components.resident == frozenset()


def test_several_images_read_each_component_once_and_are_their_single_runs(tiny_folder: Path, device: Device) -> None:
    components = load_components(tiny_folder, component_offload=True)
    pipeline = Pipeline(components, device)
    request = attrs.evolve(LOW, seeds=(3, 4, 5), guidance=4.0, negative_prompt="dark")
    read = {name: watch_reads(components, name) for name in COMPONENTS}
    assert pipeline.images_per_pass(attrs.evolve(request, seeds=tuple(range(9)))) == 9
    seen: list[Event] = []
    consume(pipeline.run(request, never), seen)
    images = [event.pixels for event in seen if isinstance(event, ImageEvent)]
    assert {name: len(times) for name, times in read.items()} == dict.fromkeys(COMPONENTS, 1)
    steps = [event for event in seen if isinstance(event, StepEvent)]
    assert steps == [StepEvent(step, 2, image=image) for image in range(3) for step in (1, 2)]
    for seed, image in zip(request.seeds, images, strict=True):
        assert np.array_equal(image, generate(pipeline, attrs.evolve(request, seeds=(seed,)))[0])


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_pixels_are_those_of_a_model_that_is_wholly_in_memory(
    pipeline: Pipeline, tiny_folder: Path, device: Device, guidance: float
) -> None:
    request = attrs.evolve(REQUEST, seeds=(3, 4), guidance=guidance)
    whole = generate(pipeline, request)
    offloading = Pipeline(load_components(tiny_folder, component_offload=True), device)
    for _ in range(2):
        images = generate(offloading, attrs.evolve(request, low_ram=True))
        assert max(distance(one, other) for one, other in zip(whole, images, strict=True)) <= 1
    again = generate(offloading, request)
    assert all(np.array_equal(one, other) for one, other in zip(whole, again, strict=True))


def test_the_peak_is_lower(stock_folder: Path, device: Device) -> None:
    """By at least the smaller of the two large components."""
    peaks = []
    for low_ram in (False, True):
        memory.release()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        pipeline = Pipeline(load_components(stock_folder, component_offload=low_ram), device)
        events = pipeline.run(attrs.evolve(REQUEST, low_ram=low_ram), never)
        while not isinstance(next(events), StepEvent):
            pass
        peaks.append(mx.get_peak_memory() - before)
        del events, pipeline
    assert peaks[1] < 0.75 * peaks[0]


@pytest.mark.parametrize("stage", ["encoding", "denoising", "decoding"])
def test_stopped_run_leaves_a_model_that_generates_the_same(
    pipeline: Pipeline, tiny_folder: Path, device: Device, stage: str
) -> None:
    offloading = Pipeline(load_components(tiny_folder, component_offload=True), device)
    stopping: list[bool] = []
    events = offloading.run(LOW, lambda: bool(stopping))
    seen = []
    while not (isinstance(event := next(events), StageEvent) and event.stage == stage):
        seen.append(event)
    stopping.append(True)
    with pytest.raises(Stopped):
        consume(events, [])
    (image,) = generate(offloading, LOW)
    assert np.array_equal(image, generate(pipeline, REQUEST)[0])


def test_checkpoint_that_is_wrong_is_refused_when_it_is_opened_and_not_when_it_is_used(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="vae holds no safetensors"):
        load_components(folder, component_offload=True)


async def test_checkpoint_that_goes_away_during_component_offload_fails_the_run_and_leaves_the_engine(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    async with trio.open_nursery() as nursery:
        engine = await LocalEngine.start(nursery)
        try:
            await load(engine, p.LoadModel(model="demo", path=str(folder), component_offload=True))
            shutil.rmtree(folder / "transformer")
            failed = (await run(engine, attrs.evolve(RUN, low_ram=True)))[-1].event
            assert isinstance(failed, p.RunFailed)
            assert failed.message == "The folder transformer is missing."
            await load(engine, p.LoadModel(model="other", path=str(tiny_folder)))
            assert isinstance((await run(engine, attrs.evolve(RUN, model="other")))[-1].event, p.RunDone)
        finally:
            with trio.CancelScope(shield=True):
                await engine.aclose()
            nursery.cancel_scope.cancel()


async def test_switching_between_models_does_not_add_up(tiny_folder: Path) -> None:
    """A few switches of small models; benchmarks/model_switches.py measures ten of large ones, with the server."""

    async def switch(engine: LocalEngine, model: str, other: str) -> int:
        await engine.send(p.UnloadModel(model=other))
        await until(engine, p.Unloaded)
        await load(engine, p.LoadModel(model=model, path=str(tiny_folder)))
        await run(engine, attrs.evolve(RUN, model=model))
        info = psutil.Process(engine.pid).memory_full_info()
        return int(getattr(info, "pss", 0) or info.rss)

    async with trio.open_nursery() as nursery:
        engine = await LocalEngine.start(nursery)
        with trio.fail_after(DEADLINE_SECONDS * 2):
            after = [await switch(engine, *("ab" if number % 2 else "ba")) for number in range(10)]
        await engine.aclose()
        nursery.cancel_scope.cancel()
    assert after[-1] <= after[1] * 1.05 + 50e6
