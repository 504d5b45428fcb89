"""Reference images and image strength, beside stock mflux's edit mode."""

from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
import pytest
from mflux.models.flux2.latent_creator.flux2_latent_creator import Flux2LatentCreator
from mflux.models.flux2.variants import Flux2KleinEdit
from mflux.models.flux2.variants.edit.flux2_klein_edit_helpers import _Flux2KleinEditHelpers
from PIL import Image

from mflux_api.engine.device import Device
from mflux_api.engine.sampling.decoding import decode_mode, to_pixels
from mflux_api.engine.sampling.pipeline import (
    Event,
    ImageEvent,
    Pipeline,
    PipelineRequest,
    StageEvent,
    StepEvent,
    Stopped,
)
from mflux_api.engine.sampling.references import encode_image
from mflux_api.engine.weights.components import Components, load_components
from mflux_api.images.child.resize import as_reference
from mflux_api.images.rgb import RGBImage
from mflux_api.jobs.schedule import steps_to_run
from tests.support.pipeline_runs import consume, distance, generate, never, pixels_of, rgb_image
from tests.support.stock_mflux import generate_stock, klein_config, save_images

REQUEST = PipelineRequest(
    prompt="make it night", seeds=(3,), width=64, height=48, steps=2, references=(rgb_image(48, 32),)
)


@pytest.fixture(scope="module")
def stock(stock_folder: Path) -> Any:
    return Flux2KleinEdit(model_path=str(stock_folder), model_config=klein_config())


@pytest.fixture(scope="module")
def same_as_stock(stock_folder: Path, device: Device) -> Pipeline:
    return Pipeline(load_components(stock_folder), device)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "steps", "guidance", "levels"),
    [
        pytest.param([(64, 64)], 3, 1.0, 0, marks=pytest.mark.thorough),
        ([(96, 48), (32, 80)], 2, 1.0, 0),
        pytest.param([(64, 48), (48, 64), (16, 16), (80, 32)], 1, 1.0, 0, marks=pytest.mark.thorough),
        ([(48, 32), (64, 64)], 2, 4.0, 1),
    ],
)
def test_same_pixels_as_stock_edit(
    stock: Any,
    same_as_stock: Pipeline,
    device: Device,
    tmp_path: Path,
    sizes: list[tuple[int, int]],
    steps: int,
    guidance: float,
    levels: int,
) -> None:
    images = tuple(rgb_image(width, height, seed) for seed, (width, height) in enumerate(sizes))
    request = attrs.evolve(REQUEST, references=images, steps=steps, guidance=guidance, height=64)
    (ours,) = generate(same_as_stock, request)
    assert distance(ours, generate_stock(stock, request, device, save_images(tmp_path, images))) <= levels
    (without,) = generate(same_as_stock, attrs.evolve(request, references=()))
    assert distance(ours, without) > 1  # the levels allowed above


def test_every_reference_and_their_order_matter(pipeline: Pipeline) -> None:
    one, other = rgb_image(48, 32, 1), rgb_image(48, 32, 2)
    choices = [(), (one,), (other,), (one, other), (other, one), (one, one)]
    images = {generate(pipeline, attrs.evolve(REQUEST, references=each))[0].tobytes() for each in choices}
    assert len(images) == len(choices)
    swapped = [generate(pipeline, attrs.evolve(REQUEST, references=each))[0] for each in ((one, other), (other, one))]
    # A sum in another order would round by a level.
    assert distance(*swapped) > 1


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_batch_of_edits_is_the_single_images(pipeline: Pipeline, guidance: float) -> None:
    seeds = (3, 4, 5, 6)
    start = rgb_image(64, 48, 7)
    request = attrs.evolve(REQUEST, guidance=guidance, strength=0.5, start=start)
    batch = generate(pipeline, attrs.evolve(request, seeds=seeds))
    singles = [generate(pipeline, attrs.evolve(request, seeds=(seed,)))[0] for seed in seeds]
    assert [distance(one, other) <= 1 for one, other in zip(batch, singles, strict=True)] == [True] * 4
    assert distance(singles[0], singles[1]) > 10


@pytest.mark.parametrize(
    ("steps", "strength", "run"),
    [(4, 0.75, 3), (4, 1.0, 4), (4, 0.76, 4), (4, 0.0, 0), (4, 0.001, 1), (10, 0.7, 7), (50, 0.28, 14), (1, 0.5, 1)],
)
def test_strength_runs_the_schedules_last_steps(steps: int, strength: float, run: int) -> None:
    assert steps_to_run(steps, strength) == run


def test_strength_1_ignores_the_start_images_pixels(pipeline: Pipeline) -> None:
    with_start = attrs.evolve(REQUEST, start=rgb_image(64, 48, 7), strength=1.0)
    assert distance(generate(pipeline, REQUEST)[0], generate(pipeline, with_start)[0]) == 0


@pytest.mark.slow
def test_strength_0_is_the_vaes_round_trip(same_as_stock: Pipeline, stock: Any, device: Device) -> None:
    start = rgb_image(64, 48, 7)
    request = attrs.evolve(REQUEST, start=start, strength=0.0)
    events = list(same_as_stock.run(request, never))
    assert [event.stage for event in events if isinstance(event, StageEvent)] == ["encoding", "denoising", "decoding"]
    assert not any(isinstance(event, StepEvent) for event in events)
    (ours,) = [event.pixels for event in events if isinstance(event, ImageEvent)]
    image = 2.0 * mx.array(pixels_of(start)[None].transpose(0, 3, 1, 2).astype(np.float32) / 255.0) - 1.0
    stock.vae.decode_mode = decode_mode(device, 64, 48, low_ram=False)
    assert distance(ours, to_pixels(stock.vae.decode(stock.vae.encode(image)))) <= 1


@pytest.mark.parametrize(("strength", "run"), [(0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_a_run_starts_on_the_straight_line_from_the_start_image_to_its_noise(
    tiny: Components, device: Device, strength: float, run: int
) -> None:
    pipeline, calls = Pipeline(tiny, device), []
    predict = pipeline._transformer.plain

    def watched(latents: mx.array, *rest: mx.array) -> mx.array:
        calls.append((np.array(latents), rest[-1].item()))
        return predict(latents, *rest)

    pipeline._transformer.plain = watched
    start = rgb_image(64, 48, 7)
    generate(pipeline, attrs.evolve(REQUEST, references=(), steps=4, strength=strength, start=start))
    noise = np.array(Flux2LatentCreator.prepare_packed_latents(seed=3, height=48, width=64, batch_size=1)[0])
    clean = np.array(Flux2LatentCreator.pack_latents(encode_image(tiny.vae, start, lambda: None)))
    latents, timestep = calls[0]
    sigma = timestep / 1000
    np.testing.assert_allclose(latents, (1 - sigma) * clean + sigma * noise, atol=1e-5)
    assert len(calls) == run
    assert (sigma == 1.0) == (strength == 1.0)


def test_steps_count_those_that_run(pipeline: Pipeline) -> None:
    request = attrs.evolve(REQUEST, steps=4, strength=0.5, start=rgb_image(64, 48))
    steps = [event for event in pipeline.run(request, never) if isinstance(event, StepEvent)]
    assert steps == [StepEvent(1, 2), StepEvent(2, 2)]


def test_encoding_an_image_can_be_stopped_between_blocks(tiny: Components, pipeline: Pipeline) -> None:
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1

    encode_image(tiny.vae, rgb_image(32, 32), check)
    assert asked >= 10
    budget = iter(range(6))
    seen: list[Event] = []
    with pytest.raises(Stopped):
        consume(pipeline.run(REQUEST, lambda: next(budget, None) is None), seen)
    assert seen == [StageEvent("encoding")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strength": -0.1}, "from 0 to 1"),
        ({"strength": 1.1}, "from 0 to 1"),
        ({"strength": float("nan")}, "from 0 to 1"),
        ({"strength": 0.5}, "needs a start image"),
        ({"strength": 0.5, "start": rgb_image(48, 64)}, "needs a start image"),
    ],
)
def test_strengths_that_cannot_be_computed(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attrs.evolve(REQUEST, **change)


@pytest.mark.parametrize(("width", "height", "size"), [(17, 16, 17 * 16 * 3), (0, 16, 0), (16, 16, 16 * 16 * 4)])
def test_images_are_whole(width: int, height: int, size: int) -> None:
    with pytest.raises(ValueError, match="image"):
        attrs.evolve(REQUEST, references=(RGBImage(width, height, bytes(size)),))


@pytest.mark.parametrize("size", [(70, 50), (1500, 900), (1025, 1024), (300, 4000)])
def test_references_are_prepared_as_mflux_prepares_them(size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 80).convert("RGB")
    ours, theirs = as_reference(image), _Flux2KleinEditHelpers.prepare_reference_image(image)
    assert (ours.width, ours.height, ours.rgb) == (*theirs.size, theirs.tobytes())
