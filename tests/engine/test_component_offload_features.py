"""Edits, adapters and previews with component offload and on quantized weights: same image, nothing kept too long."""

from pathlib import Path

import attrs
import numpy as np
import pytest

from mflux_api.catalog.files import ComponentName
from mflux_api.engine.device import Device
from mflux_api.engine.lora.applying import Lora
from mflux_api.engine.sampling.pipeline import ImageEvent, LoraError, Pipeline
from mflux_api.engine.weights.components import load_components
from mflux_api.engine.weights.quantized_cache import load_quantized
from tests.support.adapter_files import peft
from tests.support.checkpoint_shapes import TINY
from tests.support.loaded_components import watch_reads
from tests.support.pipeline_runs import REQUEST, distance, generate, never, rgb_image

pytestmark = pytest.mark.slow


@pytest.fixture
def lora(tmp_path: Path) -> Lora:
    return Lora(peft(tmp_path / "ink.safetensors", TINY), 0.5)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_edit_with_an_adapter_and_previews_is_the_same_image_under_low_ram(
    pipeline: Pipeline, tiny_folder: Path, device: Device, lora: Lora, strength: float
) -> None:
    request = attrs.evolve(
        REQUEST,
        references=(rgb_image(48, 64, 1), rgb_image(32, 32, 2)),
        start=rgb_image(REQUEST.width, REQUEST.height, 3),
        strength=strength,
        loras=(lora,),
        previews=True,
    )
    (whole,) = generate(pipeline, request)
    assert distance(whole, generate(pipeline, attrs.evolve(request, loras=()))[0]) > 1
    assert distance(whole, generate(pipeline, attrs.evolve(request, references=()))[0]) > 1

    components = load_components(tiny_folder, component_offload=True)
    offloading = Pipeline(components, device)
    transformers, vaes = watch_reads(components, "transformer"), watch_reads(components, "vae")
    low = attrs.evolve(request, low_ram=True)
    for _ in range(2):
        seen = []
        for event in offloading.run(low, never):
            alive = [[each() is not None for each in group].count(True) for group in (transformers, vaes)]
            seen.append((type(event).__name__, set(components.resident), *alive))
            if isinstance(event, ImageEvent):
                assert distance(event.pixels, whole) <= 1
        # Each stage begins with nothing in memory; the VAE that encoded the references is gone too.
        none: set[ComponentName] = set()
        stage = ("StageEvent", none, 0, 0)
        step = [("StepEvent", {"transformer"}, 1, 0), ("PreviewEvent", {"transformer"}, 1, 0)]
        image, done = ("ImageEvent", {"vae"}, 0, 1), ("DoneEvent", none, 0, 0)
        assert seen == [stage, stage, *step * request.steps_run, stage, image, done]
    assert np.array_equal(generate(offloading, request)[0], whole)


def test_adapter_that_does_not_fit_is_refused_under_low_ram_too(
    pipeline: Pipeline, tiny_folder: Path, device: Device, tmp_path: Path
) -> None:
    offloading = Pipeline(load_components(tiny_folder, component_offload=True), device)
    foreign = Lora(peft(tmp_path / "foreign.safetensors", attrs.evolve(TINY, heads=3)))
    low = attrs.evolve(REQUEST, low_ram=True)
    # At strength 0 no step runs; the adapter is wrong all the same.
    untouched = attrs.evolve(low, start=rgb_image(REQUEST.width, REQUEST.height), strength=0.0)
    for request in (low, untouched):
        with pytest.raises(LoraError, match="another kind or size"):
            generate(offloading, attrs.evolve(request, loras=(foreign,)))
    assert distance(generate(offloading, low)[0], generate(pipeline, REQUEST)[0]) <= 1


@pytest.mark.parametrize(
    "bits", [pytest.param(3, marks=pytest.mark.thorough), 4, pytest.param(6, marks=pytest.mark.thorough), 8]
)
def test_quantized_weights_take_adapters_and_give_them_back(
    tiny_folder: Path, device: Device, lora: Lora, tmp_path: Path, bits: int
) -> None:
    quantized = Pipeline(load_quantized(tiny_folder, bits, tmp_path / "kept"), device)
    (before,) = generate(quantized, REQUEST)
    adapted = attrs.evolve(REQUEST, loras=(lora,))
    (image,) = generate(quantized, adapted)
    assert distance(image, before) > 1
    assert np.array_equal(generate(quantized, REQUEST)[0], before)
    # A scale of 0 changes no bit, and component offload gives the same image.
    assert np.array_equal(generate(quantized, attrs.evolve(adapted, loras=(attrs.evolve(lora, scale=0.0),)))[0], before)
    assert distance(generate(quantized, attrs.evolve(adapted, low_ram=True))[0], image) <= 1


def test_adapter_does_to_eight_bit_weights_what_it_does_to_whole_ones(
    pipeline: Pipeline, tiny_folder: Path, device: Device, lora: Lora, tmp_path: Path
) -> None:
    quantized = Pipeline(load_quantized(tiny_folder, 8, tmp_path / "kept"), device)
    adapted = attrs.evolve(REQUEST, loras=(lora,))
    generated = {
        (name, request is adapted): generate(each, request)[0].astype(np.int16)
        for name, each in (("whole", pipeline), ("eight", quantized))
        for request in (REQUEST, adapted)
    }
    rounding = np.abs(generated["eight", True] - generated["whole", True]).mean()
    effect = np.abs(generated["whole", True] - generated["whole", False]).mean()
    assert rounding < 0.25 * effect
