"""What a job on an upscaler asks for, and what is refused before anything runs."""

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_api.catalog import BUILT_IN
from mflux_api.errors import InvalidParameter
from mflux_api.images.infotext import infotext
from mflux_api.jobs.request import GenerateRequest, check_fields
from mflux_api.jobs.resolve import ResolvedRequest, Upscaling, resolve
from mflux_api.jobs.upscaling import MAX_PIXELS, check_upscaling, resolve_upscaling, upscaled_size

SEEDVR2 = next(model for model in BUILT_IN if model.alias == "seedvr2")
DEMO = next(model for model in BUILT_IN if model.alias == "demo")
REQUEST = GenerateRequest(model="seedvr2", init_images=("x",))


def resolved(size: tuple[int, int] = (48, 32), **fields: Any) -> ResolvedRequest:
    return resolve_upscaling(attrs.evolve(REQUEST, **fields), SEEDVR2, size)


def test_image_becomes_twice_as_large_by_default() -> None:
    assert resolved().size == (96, 64)
    assert (resolved().upscaling, resolved().steps_run) == (Upscaling(resolution=64, softness=0.0), 1)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"upscale": 4}, (192, 128)),
        ({"upscale": 1.5}, (72, 48)),
        ({"upscale": 0.5}, (24, 16)),
        ({"resolution": 100}, (150, 100)),
        ({"resolution": 33}, (48, 32)),
    ],
)
def test_factor_or_shorter_side_decides_the_size_and_both_sides_are_even(
    fields: dict[str, Any], size: tuple[int, int]
) -> None:
    assert resolved(**fields).size == size


@given(st.integers(16, 4000), st.integers(16, 4000), st.integers(16, 4000))
def test_size_is_the_one_that_mflux_computes(width: int, height: int, resolution: int) -> None:
    # The arithmetic of SeedVR2Util.preprocess_image, which the engine calls.
    scale = resolution / min(width, height)
    expected = ((int(width * scale) // 2) * 2, (int(height * scale) // 2) * 2)
    assert upscaled_size(width, height, resolution) == expected


def test_what_means_nothing_to_an_upscaler_is_ignored() -> None:
    ignored: dict[str, Any] = {
        "steps": 9,
        "guidance": 7.0,
        "width": 512,
        "height": 512,
        "negative_prompt": "a",
        "image_strength": 0.3,
    }
    request = resolved(seed=1, **ignored)
    assert (request.size, request.steps, request.guidance, request.image_strength) == ((96, 64), 1, 1.0, None)


def test_seed_and_number_of_images_count() -> None:
    assert resolved(seed=5, num_images=3).seeds == (5, 6, 7)
    assert resolved(seed=-1).seed in range(2**32)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"init_images": ()}, "init_images"),
        ({"init_images": ("x", "y")}, "init_images"),
        ({"resolution": 64, "upscale": 2.0}, "upscale"),
        ({"lora_files": ("style",)}, "lora_files"),
    ],
)
def test_what_an_upscaler_cannot_do_is_refused(fields: dict[str, Any], field: str) -> None:
    check_upscaling(REQUEST, SEEDVR2)
    with pytest.raises(InvalidParameter) as caught:
        check_upscaling(attrs.evolve(REQUEST, **fields), SEEDVR2)
    assert caught.value.details["field"] == field


@pytest.mark.parametrize(
    ("size", "fields", "field", "limit"),
    [
        ((3000, 2000), {}, "upscale", MAX_PIXELS),
        ((3000, 2000), {"resolution": 4000}, "resolution", MAX_PIXELS),
        ((6000, 4000), {"upscale": 0.1}, "init_images", MAX_PIXELS),
        ((64, 20), {"upscale": 0.5}, "upscale", 16),
    ],
)
def test_size_that_cannot_be_is_refused_with_the_limit(
    size: tuple[int, int], fields: dict[str, Any], field: str, limit: int
) -> None:
    with pytest.raises(InvalidParameter) as caught:
        resolved(size, **fields)
    assert caught.value.details.items() >= {"field": field, "limit": limit}.items()
    assert ("22.4 MP" if limit == MAX_PIXELS else "needs 16") in caught.value.message


def test_largest_image_fits_one_frame() -> None:
    width, height = resolved((1182, 1182), upscale=4).size
    assert MAX_PIXELS * 0.99 < width * height <= MAX_PIXELS
    with pytest.raises(InvalidParameter):
        resolved((1183, 1183), upscale=4)


def test_only_an_upscaler_goes_without_a_prompt() -> None:
    check_fields(REQUEST, max_images=4, needs_prompt=False)
    with pytest.raises(InvalidParameter, match="'prompt' is required"):
        check_fields(REQUEST, max_images=4)


def test_generating_models_ignore_the_upscalers_fields() -> None:
    asked = GenerateRequest(prompt="a", resolution=64, softness=0.5)
    request = resolve(asked, DEMO, default_steps=4)
    assert (request.size, request.upscaling) == ((512, 512), None)


def test_infotext_describes_the_upscaling() -> None:
    text = infotext(resolved(seed=1, softness=0.25), 1, "abc")
    assert text.startswith("Seed: 1, Size: 96x64, Model hash: abc, Model: seedvr2, Postprocess upscale to: 96x64, ")
    assert "Postprocess upscaler: seedvr2, Softness: 0.25, Version" in text
    assert infotext(resolved(seed=1, prompt="a lake"), 1).startswith("a lake\nSeed: 1")
