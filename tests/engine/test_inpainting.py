"""Inpainting: the loop of diffusers' pipeline, the exact bytes of the protected part, and all that it goes with."""

from typing import Any

import attrs
import mlx.core as mx
import numpy as np
import pytest
from mflux.models.common.schedulers.flow_match_euler_discrete_scheduler import FlowMatchEulerDiscreteScheduler
from mflux.models.flux2.latent_creator.flux2_latent_creator import Flux2LatentCreator

from mflux_api.engine.device import Device
from mflux_api.engine.sampling.compositing import composite
from mflux_api.engine.sampling.inpainting import pack_mask
from mflux_api.engine.sampling.latents import draw_noise
from mflux_api.engine.sampling.passes import Event, ImageEvent, PipelineRequest, PreviewEvent, StepEvent, Stopped
from mflux_api.engine.sampling.pipeline import Pipeline
from mflux_api.engine.sampling.preview import PreviewDecoder
from mflux_api.engine.sampling.references import encode_image
from mflux_api.engine.weights.components import Components
from mflux_api.images.inpainting import Fill
from mflux_api.images.rgb import RGBImage
from tests.support.pipeline_runs import (
    consume,
    distance,
    generate,
    inpaint_right_half,
    keeps_left_half,
    never,
    pixels_of,
    rgb_image,
)

WIDTH, HEIGHT = 64, 48
SOURCE = rgb_image(WIDTH, HEIGHT, 7)


REQUEST = PipelineRequest(
    prompt="a red cat",
    seeds=(3,),
    width=WIDTH,
    height=HEIGHT,
    steps=4,
    references=(SOURCE,),
    start=SOURCE,
    strength=0.75,
    inpainting=inpaint_right_half(SOURCE),
)


TOKENS = np.array([0, 0, 1, 1] * 3).reshape(1, 12, 1)
"""The packed mask."""


@attrs.define
class Watch:
    """What the transformer was asked at each step."""

    latents: list[Any] = attrs.field(factory=list)
    timesteps: list[float] = attrs.field(factory=list)


def watch(pipeline: Pipeline, tokens: int = WIDTH * HEIGHT // 256) -> Watch:
    predict, seen = pipeline._transformer.plain, Watch()

    def watched(rows: mx.array, *rest: Any) -> mx.array:
        seen.latents.append(np.array(rows[:, :tokens]))
        seen.timesteps.append(rest[3].item())
        return predict(rows, *rest)

    pipeline._transformer.plain = watched
    return seen


@pytest.fixture
def clean(tiny: Components) -> Any:
    """The source's packed latents."""
    return np.array(Flux2LatentCreator.pack_latents(encode_image(tiny.vae, SOURCE, lambda: None)))


@pytest.fixture(scope="module")
def drawn() -> Any:
    """The noise of the request's seed."""
    return np.array(draw_noise((3,), WIDTH, HEIGHT).latents)


@pytest.mark.parametrize("strength", [0.25, 0.75, 1.0])
def test_protected_tokens_are_the_source_at_the_noise_of_every_step(
    tiny: Components, device: Device, clean: Any, drawn: Any, strength: float
) -> None:
    pipeline = Pipeline(tiny, device)
    seen = watch(pipeline)
    generate(pipeline, attrs.evolve(REQUEST, strength=strength))
    assert len(seen.latents) == 4 * strength
    left = TOKENS[0, :, 0] == 0
    for latents, timestep in zip(seen.latents, seen.timesteps, strict=True):
        sigma = timestep / 1000
        noised = (1 - sigma) * clean + sigma * drawn
        np.testing.assert_allclose(latents[:, left], noised[:, left], atol=1e-5)


def test_strength_1_starts_from_the_noise_that_a_run_without_a_mask_has(
    tiny: Components, device: Device, drawn: Any
) -> None:
    pipeline = Pipeline(tiny, device)
    seen = watch(pipeline)
    generate(pipeline, attrs.evolve(REQUEST, strength=1.0))
    generate(pipeline, attrs.evolve(REQUEST, strength=1.0, inpainting=None))
    assert seen.timesteps[0] == seen.timesteps[4] == 1000
    np.testing.assert_array_equal(seen.latents[0], drawn)
    np.testing.assert_array_equal(seen.latents[0], seen.latents[4])


@pytest.mark.parametrize("fill", ["original", "noise", "nothing"])
def test_inpainted_tokens_start_from_what_the_fill_says(
    tiny: Components, device: Device, clean: Any, drawn: Any, fill: Fill
) -> None:
    pipeline = Pipeline(tiny, device)
    seen = watch(pipeline)
    generate(pipeline, attrs.evolve(REQUEST, inpainting=inpaint_right_half(SOURCE, fill)))
    sigma = seen.timesteps[0] / 1000
    assert 0 < sigma < 1
    content = {"original": clean, "noise": drawn, "nothing": 0 * clean}[fill]
    image = (1 - TOKENS) * clean + TOKENS * content
    np.testing.assert_allclose(seen.latents[0], (1 - sigma) * image + sigma * drawn, atol=1e-5)


def test_every_fill_gives_another_image_and_protects_the_same(pipeline: Pipeline) -> None:
    images = [
        generate(pipeline, attrs.evolve(REQUEST, inpainting=inpaint_right_half(SOURCE, fill)))[0]
        for fill in ("original", "noise", "nothing")
    ]
    assert len({image.tobytes() for image in images}) == 3
    assert all(keeps_left_half(image, SOURCE) for image in images)


@pytest.mark.parametrize("fill", ["original", "noise", "nothing"])
def test_without_a_step_the_result_is_the_round_trip_composited_whatever_the_fill(
    pipeline: Pipeline, fill: Fill
) -> None:
    request = attrs.evolve(REQUEST, strength=0.0, inpainting=inpaint_right_half(SOURCE, fill))
    (image,) = generate(pipeline, request)
    (whole,) = generate(pipeline, attrs.evolve(request, inpainting=None))
    np.testing.assert_array_equal(image[:, :32], pixels_of(SOURCE)[:, :32])
    np.testing.assert_array_equal(image[:, 32:], whole[:, 32:])


@pytest.mark.parametrize(
    "change",
    [
        {"strength": 1.0},
        {"guidance": 4.0, "negative_prompt": "night"},
        {"low_ram": True},
        {"alternating_offload": True},
        {"references": (SOURCE, rgb_image(48, 32, 1))},
        {"references": ()},
        {"previews": True},
        {"steps": 1, "strength": 0.5},
    ],
    ids=lambda change: ", ".join(change),
)
def test_protected_half_has_the_sources_bytes_with(pipeline: Pipeline, change: dict[str, Any]) -> None:
    (image,) = generate(pipeline, attrs.evolve(REQUEST, **change))
    assert keeps_left_half(image, SOURCE)


def test_low_ram_gives_the_same_image(pipeline: Pipeline) -> None:
    seeds = (3, 4)
    usual, saving = (
        generate(pipeline, attrs.evolve(REQUEST, seeds=seeds, low_ram=low_ram)) for low_ram in (False, True)
    )
    assert [distance(one, other) <= 1 for one, other in zip(usual, saving, strict=True)] == [True, True]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_batch_is_the_single_images_each_with_its_own_noise(pipeline: Pipeline, guidance: float) -> None:
    request = attrs.evolve(REQUEST, guidance=guidance, inpainting=inpaint_right_half(SOURCE, "noise"))
    batch = generate(pipeline, attrs.evolve(request, seeds=(3, 4, 5)))
    singles = [generate(pipeline, attrs.evolve(request, seeds=(seed,)))[0] for seed in (3, 4, 5)]
    assert [distance(one, other) <= 1 for one, other in zip(batch, singles, strict=True)] == [True] * 3
    assert all(keeps_left_half(image, SOURCE) for image in batch)
    assert len({image.tobytes() for image in batch}) == 3


def test_source_that_is_the_first_reference_is_encoded_once(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[RGBImage] = []

    def counted(vae: Any, image: RGBImage, *others: Any) -> mx.array:
        encoded.append(image)
        return encode_image(vae, image, *others)

    monkeypatch.setattr("mflux_api.engine.sampling.inpainting.encode_image", counted)
    generate(pipeline, REQUEST)
    assert not encoded
    other = rgb_image(WIDTH, HEIGHT, 9)
    generate(pipeline, attrs.evolve(REQUEST, references=(other, SOURCE)))
    assert encoded == [SOURCE]


def test_source_that_is_no_reference_is_encoded_with_the_same_bits(pipeline: Pipeline) -> None:
    class Same(RGBImage):
        """Equal pixels that do not compare equal."""

    start = Same(WIDTH, HEIGHT, SOURCE.rgb)
    assert start != SOURCE
    apart, together = (generate(pipeline, attrs.evolve(REQUEST, start=each))[0] for each in (start, SOURCE))
    assert apart.tobytes() == together.tobytes()


def test_crop_comes_back_in_the_overlays_size_with_its_bytes_around_the_box(pipeline: Pipeline) -> None:
    overlay, box = rgb_image(150, 110, 5), (30, 40, 80, 60)
    shares = np.zeros((110, 150), np.uint8)
    shares[50:90, 40:100] = 255
    assert REQUEST.inpainting is not None
    crop = attrs.evolve(REQUEST.inpainting, overlay=overlay, blurred_mask=shares.tobytes(), box=box)
    (image,) = generate(pipeline, attrs.evolve(REQUEST, inpainting=crop))
    assert image.shape == (110, 150, 3)
    source = pixels_of(overlay)
    np.testing.assert_array_equal(image[shares == 0], source[shares == 0])
    assert distance(image[50:90, 40:100], source[50:90, 40:100]) > 10


def test_previews_show_the_protected_part_as_it_will_be(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    pixels = PreviewDecoder.pixels

    def watched(self: PreviewDecoder, packed: Any) -> Any:
        seen.append(pixels(self, packed))
        return seen[-1]

    monkeypatch.setattr(PreviewDecoder, "pixels", watched)
    events = list(pipeline.run(attrs.evolve(REQUEST, previews=True), never))
    assert [event.step for event in events if isinstance(event, PreviewEvent)] == [1, 2, 3]
    assert distance(seen[0][:, :4], seen[-1][:, :4]) == 0
    assert distance(seen[0][:, 4:], seen[-1][:, 4:]) > 1


def test_run_can_be_stopped_before_its_images_are_composited(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = False

    def stopping(*arguments: Any) -> Any:
        nonlocal stop
        stop = True
        return composite(*arguments)

    monkeypatch.setattr("mflux_api.engine.sampling.pipeline.composite", stopping)
    seen: list[Event] = []
    with pytest.raises(Stopped):
        consume(pipeline.run(REQUEST, lambda: stop), seen)
    assert [event.step for event in seen if isinstance(event, StepEvent)] == [1, 2, 3]
    assert not any(isinstance(event, ImageEvent) for event in seen)


def test_token_of_a_mask_is_the_mean_of_its_middle_and_128_is_white() -> None:
    levels = np.zeros((HEIGHT, WIDTH), np.uint8)
    levels[7, 7] = 128
    levels[16:32, 16:24] = 255
    levels[:16, 32:48] = 127
    levels[:16, 48:64] = 128
    expected = np.zeros((3, 4))
    expected[0, 0], expected[1, 1], expected[0, 3] = 0.25, 0.5, 1.0
    np.testing.assert_array_equal(np.array(pack_mask(levels.tobytes(), WIDTH, HEIGHT)), expected.reshape(1, 12, 1))


@pytest.mark.parametrize("beside", [False, True])
def test_line_too_thin_for_the_grid_inpaints_the_tokens_that_it_touches(beside: bool) -> None:
    levels = np.zeros((HEIGHT, 96), np.uint8)
    levels[16:18, 16:40] = 255
    # Another part of the mask that has middles changes nothing for the line.
    levels[:, 72:] = 255 * beside
    packed = np.array(pack_mask(levels.tobytes(), 96, HEIGHT)).reshape(3, 6)
    expected = np.zeros((3, 6))
    expected[1, 1:3] = 1
    expected[:, 4], expected[:, 5] = 0.5 * beside, beside
    np.testing.assert_array_equal(packed, expected)


def test_edge_that_misses_a_middle_inpaints_no_token_more_than_diffusers() -> None:
    levels = np.zeros((HEIGHT, 96), np.uint8)
    levels[13:35, 3:70] = 255
    packed = np.array(pack_mask(levels.tobytes(), 96, HEIGHT)).reshape(3, 6)
    np.testing.assert_array_equal(packed, [[0] * 6, [1, 1, 1, 1, 0, 0], [0] * 6])


def test_white_mask_changes_no_bit_of_an_edit(pipeline: Pipeline) -> None:
    white = b"\xff" * (WIDTH * HEIGHT)
    whole = attrs.evolve(inpaint_right_half(SOURCE), mask=white, blurred_mask=white)
    inpainted, edited = (generate(pipeline, attrs.evolve(REQUEST, inpainting=each))[0] for each in (whole, None))
    assert inpainted.tobytes() == edited.tobytes()


def test_run_can_be_stopped_wherever_it_looks_and_the_next_has_the_same_bits(pipeline: Pipeline) -> None:
    asked = 0

    def counted() -> bool:
        nonlocal asked
        asked += 1
        return False

    (image,) = [event.pixels for event in pipeline.run(REQUEST, counted) if isinstance(event, ImageEvent)]
    assert asked > 20
    for budget in range(0, asked, 7):
        left = iter(range(budget))
        with pytest.raises(Stopped):
            consume(pipeline.run(REQUEST, lambda left=left: next(left, None) is None), [])  # type: ignore[misc]
    assert generate(pipeline, REQUEST)[0].tobytes() == image.tobytes()


def test_mask_without_white_protects_everything(pipeline: Pipeline) -> None:
    black = bytes(WIDTH * HEIGHT)
    whole = attrs.evolve(inpaint_right_half(SOURCE), mask=black, blurred_mask=black)
    (image,) = generate(pipeline, attrs.evolve(REQUEST, inpainting=whole))
    assert image.tobytes() == SOURCE.rgb


@pytest.mark.parametrize("start", [None, rgb_image(HEIGHT, WIDTH)])
def test_inpainting_needs_a_start_image_in_the_runs_size(start: RGBImage | None) -> None:
    with pytest.raises(ValueError, match="needs a start image"):
        attrs.evolve(REQUEST, start=start, strength=1.0)


def test_mask_has_a_byte_for_each_pixel_of_the_run() -> None:
    with pytest.raises(ValueError, match="one byte for each pixel"):
        attrs.evolve(REQUEST, inpainting=attrs.evolve(inpaint_right_half(SOURCE), mask=bytes(HEIGHT)))


def test_schedule_ends_without_noise_so_the_last_step_gives_the_clean_image_back() -> None:
    _, sigmas = FlowMatchEulerDiscreteScheduler.get_timesteps_and_sigmas(image_seq_len=12, num_inference_steps=4)
    assert (sigmas[0].item(), sigmas[-1].item()) == (1.0, 0.0)
