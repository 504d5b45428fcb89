"""Whole images on the CPU's fast path beside those without it: at most one level apart, whatever a pass does."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import attrs
import mlx.core as mx
import pytest

from mflux_api.engine import demo
from mflux_api.engine.device import Device
from mflux_api.engine.kernels.cpu_transformer import CPUTransformer
from mflux_api.engine.lora.applying import Lora
from mflux_api.engine.sampling.passes import PipelineRequest, PreviewEvent, StepEvent
from mflux_api.engine.sampling.pipeline import Event, ImageEvent, PartialImageEvent, Pipeline, Stopped
from mflux_api.engine.weights.components import Components, load_components
from mflux_api.engine.weights.quantized_cache import load_quantized
from tests.support.adapter_files import peft
from tests.support.checkpoint_shapes import TINY
from tests.support.pipeline_runs import (
    REQUEST,
    consume,
    distance,
    generate,
    inpaint_right_half,
    keeps_left_half,
    never,
    rgb_image,
)

SOURCE = rgb_image(64, 48, 7)
REQUESTS = {
    "plain": REQUEST,
    "odd size": attrs.evolve(REQUEST, width=80, height=176, steps=3),
    "guidance": attrs.evolve(REQUEST, guidance=4.0, negative_prompt="dog"),
    "batch": attrs.evolve(REQUEST, seeds=(3, 4, 5)),
    "references": attrs.evolve(REQUEST, references=(rgb_image(96, 48), rgb_image(32, 80, 1))),
    "image strength": attrs.evolve(REQUEST, start=SOURCE, strength=0.5, steps=4),
    "inpainting": attrs.evolve(REQUEST, references=(SOURCE,), start=SOURCE, inpainting=inpaint_right_half(SOURCE)),
    "low_ram": attrs.evolve(REQUEST, low_ram=True, seeds=(3, 4)),
}


@pytest.fixture(scope="module")
def fast_device(device: Device) -> Device:
    if device.kind != "cpu":
        pytest.skip("a GPU has another fast path")
    return attrs.evolve(device, fast_path=True)


@pytest.fixture
def fast(tiny: Components, fast_device: Device) -> Pipeline:
    return Pipeline(tiny, fast_device)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=list(REQUESTS))
def test_images_are_within_one_level(
    tiny_folder: Path, device: Device, fast_device: Device, request_: PipelineRequest
) -> None:
    exact, fast = (Pipeline(load_components(tiny_folder), each) for each in (device, fast_device))
    assert isinstance(fast._transformer.plain, CPUTransformer)
    pairs = list(zip(generate(exact, request_), generate(fast, request_), strict=True))
    assert max(distance(one, other) for one, other in pairs) <= 1
    assert min(one.std() for one, _ in pairs) > 10
    if request_.inpainting is not None:
        assert keeps_left_half(pairs[0][1], SOURCE)


def test_library_use_and_other_devices_are_exact(tiny: Components, device: Device) -> None:
    assert Pipeline(tiny, device)._threads is None
    assert not isinstance(Pipeline(tiny, device)._transformer.plain, CPUTransformer)


@pytest.mark.parametrize("scales", [(0.8,), (0.8, -0.5)])
def test_loras_are_within_one_level(
    tiny: Components, device: Device, fast: Pipeline, tmp_path: Path, scales: tuple[float, ...]
) -> None:
    loras = tuple(Lora(peft(tmp_path / f"{n}.safetensors", TINY, n), scale) for n, scale in enumerate(scales))
    request = attrs.evolve(REQUEST, loras=loras)
    (plain,) = generate(fast, REQUEST)
    (adapted,) = generate(fast, request)
    assert distance(adapted, generate(Pipeline(tiny, device), request)[0]) <= 1
    assert distance(adapted, plain) > 5
    assert generate(fast, REQUEST)[0].tobytes() == plain.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_models_are_within_one_level(
    tiny_folder: Path, device: Device, fast_device: Device, tmp_path: Path, bits: int
) -> None:
    components = load_quantized(tiny_folder, bits, tmp_path / "entry")
    exact, fast = (generate(Pipeline(components, each), REQUEST)[0] for each in (device, fast_device))
    assert distance(exact, fast) <= 1


def test_models_that_cache_references_are_within_one_level(
    tiny_folder: Path, device: Device, fast_device: Device, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model", copy_function=os.link)
    index = folder / "model_index.json"
    values = json.loads(index.read_text("utf-8"))
    index.unlink()
    index.write_text(json.dumps(values | {"_class_name": "Flux2KleinKVPipeline"}), encoding="utf-8")
    components = load_components(folder)
    assert components.info.caches_references
    request = attrs.evolve(REQUEST, references=(SOURCE,))
    exact, fast = (generate(Pipeline(components, each), request)[0] for each in (device, fast_device))
    assert distance(exact, fast) <= 1


@pytest.mark.slow
def test_demo_images_are_within_one_level(device: Device, fast_device: Device) -> None:
    components = load_components(Path(demo.__file__).parent / "weights")
    request = PipelineRequest(prompt="a red house at night", seeds=(1, 2), width=128, height=128, steps=4)
    exact, fast = (generate(Pipeline(components, each), request) for each in (device, fast_device))
    assert max(distance(one, other) for one, other in zip(exact, fast, strict=True)) <= 1


def test_same_request_gives_the_same_bytes_alone_and_in_a_batch(fast: Pipeline, fast_device: Device) -> None:
    batch = generate(fast, attrs.evolve(REQUEST, seeds=(3, 4)))
    alone = [generate(fast, attrs.evolve(REQUEST, seeds=(seed,)))[0] for seed in (3, 4)]
    assert [one.tobytes() for one in batch] == [one.tobytes() for one in alone]


def test_events_are_those_without_it(tiny: Components, device: Device, fast: Pipeline) -> None:
    request = attrs.evolve(REQUEST, steps=3, previews=True, partial_images=1)

    def kinds(pipeline: Pipeline) -> Sequence[object]:
        images = (ImageEvent, PreviewEvent, PartialImageEvent)
        events = pipeline.run(request, never)
        return [type(event) if isinstance(event, images) else event for event in events][:-1]

    assert kinds(fast) == kinds(Pipeline(tiny, device))


def test_run_stops_within_one_step(fast: Pipeline) -> None:
    seen: list[Event] = []
    with pytest.raises(Stopped):
        consume(fast.run(attrs.evolve(REQUEST, steps=4), lambda: any(isinstance(e, StepEvent) for e in seen)), seen)
    assert sum(isinstance(event, StepEvent) for event in seen) == 1


@pytest.mark.parametrize("part", ["decoding", "encoding"])
def test_run_stops_between_the_vaes_blocks(fast: Pipeline, part: str) -> None:
    # Asked 8 times at least: the demo's shapes have as many blocks.
    request = attrs.evolve(REQUEST, references=(SOURCE,)) if part == "encoding" else REQUEST
    events: list[Event] = []
    asked = 0

    def stop() -> bool:
        nonlocal asked
        stage = getattr(events[-1], "stage", None) if events else None
        asked += stage == part
        return asked >= 6

    with pytest.raises(Stopped):
        consume(fast.run(request, stop), events)
    assert asked == 6
    assert not any(isinstance(event, ImageEvent) for event in events)


def test_weights_can_be_freed(tiny_folder: Path, fast_device: Device) -> None:
    pipeline = Pipeline(load_components(tiny_folder), fast_device)
    generate(pipeline, REQUEST)
    before = mx.get_active_memory()
    pipeline._unload("transformer")
    pipeline._unload("vae")
    assert mx.get_active_memory() < before - 1_000_000
