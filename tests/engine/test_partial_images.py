"""Partial images: from the VAE itself, nearer to the image than before, and without any effect on it."""

from typing import Any

import attrs
import numpy as np
import pytest

from mflux_api.engine.device import Device
from mflux_api.engine.sampling.decoding import NotFiniteError, decode_mode, decode_packed, to_pixels
from mflux_api.engine.sampling.pipeline import (
    DoneEvent,
    Event,
    ImageEvent,
    PartialImageEvent,
    Pipeline,
    PipelineRequest,
    StepEvent,
    Stopped,
)
from mflux_api.engine.weights.components import Components
from mflux_api.jobs.schedule import partial_steps
from tests.support.pipeline_runs import (
    Pixels,
    consume,
    generate,
    inpaint_right_half,
    keeps_left_half,
    never,
    rgb_image,
)

REQUEST = PipelineRequest(prompt="a red cat", seeds=(3, 4), width=64, height=48, steps=4, partial_images=3)


def partials(pipeline: Pipeline, request: PipelineRequest) -> list[PartialImageEvent]:
    return [event for event in pipeline.run(request, never) if isinstance(event, PartialImageEvent)]


@pytest.mark.parametrize(
    ("steps", "count", "expected"),
    [
        (4, 0, ()),
        (4, 1, (2,)),
        (4, 2, (1, 3)),
        (4, 3, (1, 2, 3)),
        (2, 3, (1,)),
        (1, 3, ()),
        (0, 3, ()),
        (50, 3, (12, 25, 38)),
    ],
)
def test_they_are_spread_over_the_steps_and_none_is_of_the_last(
    steps: int, count: int, expected: tuple[int, ...]
) -> None:
    assert partial_steps(steps, count) == expected


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_step_has_one_at_most(count: int) -> None:
    for steps in range(201):
        chosen = partial_steps(steps, count)
        assert list(chosen) == sorted(set(chosen))
        assert all(0 < step < steps for step in chosen)
        assert len(chosen) == max(0, min(count, steps - 1))


def test_every_image_of_a_batch_has_them_after_their_step(pipeline: Pipeline) -> None:
    events = list(pipeline.run(REQUEST, never))
    made = [event for event in events if isinstance(event, PartialImageEvent)]
    assert [(event.step, event.number, event.index) for event in made] == [
        (step, step - 1, index) for step in (1, 2, 3) for index in (0, 1)
    ]
    assert {event.pixels.shape for event in made} == {(48, 64, 3)}
    assert events[events.index(made[0]) - 1] == StepEvent(1, 4, images=2)


def test_they_change_no_pixel_and_come_nearer_to_the_image(pipeline: Pipeline) -> None:
    plain = generate(pipeline, attrs.evolve(REQUEST, partial_images=0))
    with_partials = generate(pipeline, REQUEST)
    assert [one.tobytes() for one in with_partials] == [one.tobytes() for one in plain]
    of_first = [event.pixels for event in partials(pipeline, REQUEST) if event.index == 0]
    distances = [float(np.abs(each.astype(int) - plain[0]).mean()) for each in of_first]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] > 0


def test_one_is_the_decoded_clean_estimate(
    pipeline: Pipeline, tiny: Components, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every latent that goes into the VAE comes out as the partial image or the image, in this order."""
    grids: list[Any] = []

    def watch(vae: Any, grid: Any, *rest: Any) -> Any:
        grids.append(grid)
        return decode_packed(vae, grid, *rest)

    monkeypatch.setattr("mflux_api.engine.sampling.pipeline.decode_packed", watch)
    request = attrs.evolve(REQUEST, seeds=(3,), partial_images=1)
    shown = [event for event in pipeline.run(request, never) if isinstance(event, PartialImageEvent | ImageEvent)]
    mode = decode_mode(device, 64, 48, low_ram=False)
    assert len(grids) == len(shown) == 2
    for event, grid in zip(shown, grids, strict=True):
        assert event.pixels.tobytes() == to_pixels(decode_packed(tiny.vae, grid, mode, lambda: None)).tobytes()


def test_one_that_is_not_finite_is_left_out_and_the_image_comes(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def fail_first(decoded: Any) -> Pixels:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise NotFiniteError
        return to_pixels(decoded)

    monkeypatch.setattr("mflux_api.engine.sampling.pipeline.to_pixels", fail_first)
    events = list(pipeline.run(attrs.evolve(REQUEST, seeds=(3,)), never))
    assert [event.number for event in events if isinstance(event, PartialImageEvent)] == [1, 2]
    assert sum(isinstance(event, ImageEvent) for event in events) == 1


def test_those_of_an_inpainting_keep_what_is_not_masked(pipeline: Pipeline) -> None:
    source = rgb_image(64, 48)
    request = attrs.evolve(REQUEST, seeds=(3,), start=source, inpainting=inpaint_right_half(source))
    made = partials(pipeline, request)
    assert len(made) == 3
    assert all(keeps_left_half(event.pixels, source) for event in made)


def test_little_memory_has_no_place_for_them(tiny: Components, device: Device) -> None:
    events = list(Pipeline(tiny, device).run(attrs.evolve(REQUEST, low_ram=True), never))
    assert not any(isinstance(event, PartialImageEvent) for event in events)
    assert isinstance(events[-1], DoneEvent)


def test_stopping_between_two_decodes_nothing_more(pipeline: Pipeline) -> None:
    seen: list[Event] = []
    with pytest.raises(Stopped):
        consume(pipeline.run(REQUEST, lambda: any(isinstance(event, PartialImageEvent) for event in seen)), seen)
    assert sum(isinstance(event, PartialImageEvent) for event in seen) == 1
