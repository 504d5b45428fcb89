"""What an edit, an adapter and previews need stays in memory no longer than that, and works on quantized weights."""

import weakref
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from mflux_api.catalog.files import ComponentName
from mflux_api.engine.device import Device
from mflux_api.engine.lora.lora import Lora
from mflux_api.engine.sampling.pipeline import ImageEvent, LoraError, Pipeline
from mflux_api.engine.weights.components import Components, load_components
from mflux_api.engine.weights.quantization import load_quantized
from tests.engine.test_pipeline import REQUEST
from tests.support.adapter_files import peft
from tests.support.klein import distance, generate, never, rgb_image
from tests.support.shapes import TINY


@pytest.fixture
def lora(tmp_path: Path) -> Lora:
    return Lora(peft(tmp_path / "ink.safetensors", TINY), 0.5)


def watched(components: Components, name: ComponentName) -> "list[weakref.ref[Any]]":
    """References, one for each time that the component is read, which keep nothing alive."""
    seen: list[weakref.ref[Any]] = []
    read = components._readers[name]

    def watch() -> Any:
        module = read()
        seen.append(weakref.ref(module))
        return module

    components._readers = {**components._readers, name: watch}
    return seen


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_edit_with_an_adapter_and_previews_is_the_same_image_in_stages(
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
    component_offload = Pipeline(components, device)
    transformers, vaes = watched(components, "transformer"), watched(components, "vae")
    low = attrs.evolve(request, low_ram=True)
    for _ in range(2):
        seen = []
        for event in component_offload.run(low, never):
            alive = [[each() is not None for each in group].count(True) for group in (transformers, vaes)]
            seen.append((type(event).__name__, set(components.resident), *alive))
            if isinstance(event, ImageEvent):
                assert distance(event.pixels, whole) <= 1
        # Each stage begins with nothing, the references' VAE being gone as well.
        none: set[ComponentName] = set()
        stage = ("StageEvent", none, 0, 0)
        step = [("StepEvent", {"transformer"}, 1, 0), ("PreviewEvent", {"transformer"}, 1, 0)]
        image, done = ("ImageEvent", {"vae"}, 0, 1), ("DoneEvent", none, 0, 0)
        assert seen == [stage, stage, *step * request.steps_run, stage, image, done]
    assert np.array_equal(generate(component_offload, request)[0], whole)


def test_adapter_that_does_not_fit_is_refused_in_stages_too(
    pipeline: Pipeline, tiny_folder: Path, device: Device, tmp_path: Path
) -> None:
    component_offload = Pipeline(load_components(tiny_folder, component_offload=True), device)
    foreign = Lora(peft(tmp_path / "foreign.safetensors", attrs.evolve(TINY, heads=3)))
    low = attrs.evolve(REQUEST, low_ram=True)
    # At strength 0 no step runs; the adapter is as wrong.
    untouched = attrs.evolve(low, start=rgb_image(REQUEST.width, REQUEST.height), strength=0.0)
    for request in (low, untouched):
        with pytest.raises(LoraError, match="another size"):
            generate(component_offload, attrs.evolve(request, loras=(foreign,)))
    assert distance(generate(component_offload, low)[0], generate(pipeline, REQUEST)[0]) <= 1


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_quantized_weights_take_adapters_and_give_them_back(
    tiny_folder: Path, device: Device, lora: Lora, tmp_path: Path, bits: int
) -> None:
    quantized = Pipeline(load_quantized(tiny_folder, bits, tmp_path / "kept"), device)
    (before,) = generate(quantized, REQUEST)
    worn = attrs.evolve(REQUEST, loras=(lora,))
    (rgb_image,) = generate(quantized, worn)
    assert distance(rgb_image, before) > 1
    assert np.array_equal(generate(quantized, REQUEST)[0], before)
    # What has no effect changes no bit, and what is staged is the same.
    assert np.array_equal(generate(quantized, attrs.evolve(worn, loras=(attrs.evolve(lora, scale=0.0),)))[0], before)
    assert distance(generate(quantized, attrs.evolve(worn, low_ram=True))[0], rgb_image) <= 1


def test_adapter_does_to_eight_bit_weights_what_it_does_to_whole_ones(
    pipeline: Pipeline, tiny_folder: Path, device: Device, lora: Lora, tmp_path: Path
) -> None:
    quantized = Pipeline(load_quantized(tiny_folder, 8, tmp_path / "kept"), device)
    worn = attrs.evolve(REQUEST, loras=(lora,))
    generated = {
        (name, request is worn): generate(each, request)[0].astype(np.int16)
        for name, each in (("whole", pipeline), ("eight", quantized))
        for request in (REQUEST, worn)
    }
    rounding = np.abs(generated["eight", True] - generated["whole", True]).mean()
    effect = np.abs(generated["whole", True] - generated["whole", False]).mean()
    assert rounding < 0.25 * effect
