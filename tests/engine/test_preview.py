"""Previews: fitted on the checkpoint's own VAE, near the image, and without any effect on it."""

from io import BytesIO
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mflux_api.engine.device import Device
from mflux_api.engine.sampling.decoding import Pixels, decode_mode, decode_packed, to_pixels
from mflux_api.engine.sampling.passes import every_image
from mflux_api.engine.sampling.pipeline import (
    Event,
    ImageEvent,
    Pipeline,
    PipelineRequest,
    PreviewEvent,
    StepEvent,
    Stopped,
)
from mflux_api.engine.sampling.preview import SAMPLE_SIDE, fit
from mflux_api.engine.sampling.references import encode_image
from mflux_api.engine.weights.components import Components
from tests.support.pipeline_runs import consume, generate, never, rgb_image

REQUEST = PipelineRequest(prompt="a red cat", seeds=(3, 4), width=64, height=48, steps=3, previews=True)


def small(pixels: Pixels) -> Pixels:
    """Shrink an image to an eighth of its size, each pixel the mean of 8 x 8."""
    height, width, _ = pixels.shape
    means: Pixels = pixels.reshape(height // 8, 8, width // 8, 8, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    return means


def likeness(one: Pixels, other: Pixels) -> float:
    """Return the correlation of two images."""
    return float(np.corrcoef(one.ravel().astype(float), other.ravel().astype(float))[0, 1])


def test_every_step_has_a_preview_of_every_image(pipeline: Pipeline) -> None:
    events = list(pipeline.run(REQUEST, never))
    previews = [event for event in events if isinstance(event, PreviewEvent)]
    assert [(event.step, event.index) for event in previews] == [
        (step, index) for step in (1, 2, 3) for index in (0, 1)
    ]
    for event in previews:
        image = Image.open(BytesIO(event.jpeg))
        assert (image.format, image.size, (event.width, event.height)) == ("JPEG", (8, 6), (8, 6))
    first = events.index(previews[0])
    assert events[first - 1] == StepEvent(1, 3, images=2)


def test_previews_change_no_pixel(pipeline: Pipeline) -> None:
    with_previews, without = generate(pipeline, REQUEST), generate(pipeline, attrs.evolve(REQUEST, previews=False))
    assert [one.tobytes() for one in with_previews] == [one.tobytes() for one in without]


def test_map_approximates_the_decoder(tiny: Components, device: Device) -> None:
    mode = decode_mode(device, SAMPLE_SIDE, SAMPLE_SIDE, low_ram=False)
    decoder = fit(tiny.vae, mode, lambda: None)
    grids = [encode_image(tiny.vae, rgb_image(96, 64, seed), lambda: None) for seed in range(6)]
    previews = [decoder.pixels(np.array(packed[0])) for packed in grids]
    wholes = [small(to_pixels(decode_packed(tiny.vae, packed, mode, lambda: None))) for packed in grids]
    assert {preview.shape for preview in previews} == {(8, 12, 3)}
    own = np.mean([likeness(one, other) for one, other in zip(previews, wholes, strict=True)])
    foreign = np.mean([likeness(one, other) for one, other in zip(previews, wholes[1:] + wholes[:1], strict=True)])
    # A random VAE is hardly linear, a trained one comes to 0.99; a map that mixed up cells would not tell them apart.
    assert own > 0.2
    assert own > foreign + 0.15


def test_fit_is_always_the_same_and_made_once(
    tiny: Components, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = [fit(tiny.vae, "low_memory", lambda: None).factors for _ in range(2)]
    assert factors[0].tobytes() == factors[1].tobytes()
    assert np.isfinite(factors[0]).all()
    pipeline = Pipeline(tiny, device)
    generate(pipeline, attrs.evolve(REQUEST, previews=False))
    assert pipeline._preview_decoder is None
    generate(pipeline, REQUEST)
    fitted = pipeline._preview_decoder
    generate(pipeline, REQUEST)
    assert pipeline._preview_decoder is fitted


def test_previews_begin_at_the_step_at_which_someone_wants_them(pipeline: Pipeline) -> None:
    seen: list[Event] = []
    request = attrs.evolve(REQUEST, previews=False)

    def wanted(index: int) -> bool:
        return StepEvent(2, 3, images=2) in seen

    consume(pipeline.run(request, never, wanted), seen)
    previews = [(event.step, event.index) for event in seen if isinstance(event, PreviewEvent)]
    assert previews == [(2, 0), (2, 1), (3, 0), (3, 1)]


def test_with_little_memory_previews_that_were_not_wanted_at_the_start_are_left_out(
    tiny: Components, device: Device
) -> None:
    pipeline, request = Pipeline(tiny, device), attrs.evolve(REQUEST, previews=False, low_ram=True)
    begun: list[Event] = []

    def has_begun(index: int) -> bool:
        return any(isinstance(each, StepEvent) for each in begun)

    consume(pipeline.run(request, never, has_begun), begun)
    assert not any(isinstance(event, PreviewEvent) for event in begun)
    assert any(isinstance(event, PreviewEvent) for event in pipeline.run(request, never, every_image))


def test_previews_are_made_of_the_images_that_someone_wants(pipeline: Pipeline) -> None:
    seen: list[Event] = []
    consume(pipeline.run(attrs.evolve(REQUEST, previews=False), never, lambda index: index == 1), seen)
    assert [(event.step, event.index) for event in seen if isinstance(event, PreviewEvent)] == [(1, 1), (2, 1), (3, 1)]


def test_last_preview_is_the_map_of_the_final_latents(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the last step the clean estimate and the Euler step are the same thing."""
    seen: list[Pixels] = []
    grids: list[mx.array] = []

    def keep(pixels: Pixels) -> bytes:
        seen.append(pixels)
        return b""

    def watch(vae: Any, grid: mx.array, *rest: Any) -> mx.array:
        grids.append(grid)
        return decode_packed(vae, grid, *rest)

    monkeypatch.setattr("mflux_api.engine.sampling.pipeline.as_jpeg", keep)
    monkeypatch.setattr("mflux_api.engine.sampling.pipeline.decode_packed", watch)
    generate(pipeline, attrs.evolve(REQUEST, seeds=(3,)))
    assert pipeline._preview_decoder is not None
    expected = pipeline._preview_decoder.pixels(np.array(grids[-1][0]))
    assert int(np.abs(seen[-1].astype(int) - expected).max()) <= 1
    assert int(np.abs(seen[0].astype(int) - expected).max()) > 1


def test_stopping_between_previews_stops_before_the_next_step(pipeline: Pipeline) -> None:
    seen: list[Event] = []
    with pytest.raises(Stopped):
        consume(pipeline.run(REQUEST, lambda: any(isinstance(event, PreviewEvent) for event in seen)), seen)
    assert [event for event in seen if isinstance(event, StepEvent)] == [StepEvent(1, 3, images=2)]
    assert not any(isinstance(event, ImageEvent) for event in seen)
