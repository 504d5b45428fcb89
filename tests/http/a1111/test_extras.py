"""How large A1111's extras make an image, and the plain ways of doing it."""

import base64
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mflux_api.errors import InvalidParameter
from mflux_api.http.a1111.extras import (
    ExtraSingleImage,
    ExtrasOptions,
    Source,
    blended,
    composed,
    description,
    opened,
    plan,
    resized,
)
from mflux_api.images.encode import encode_png
from mflux_api.jobs.parse import convert
from mflux_api.jobs.upscaling import MAX_PIXELS, upscaled_size
from tests.api.test_img2img import decoded, encoded

SOURCE = Image.linear_gradient("L").resize((48, 32)).convert("RGB")
TEXT = encoded(SOURCE)


def options(**fields: Any) -> ExtrasOptions:
    return convert({"image": TEXT, **fields}, ExtraSingleImage, strict=False)


def test_defaults_are_a1111s() -> None:
    given = options(resize_mode="0", gfpgan_visibility=1, upscaler_1=None)
    assert given == ExtraSingleImage(image=TEXT)
    assert (given.upscaling_resize, given.upscaling_crop, given.upscaler_1) == (2.0, True, "None")


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, (96, 64)),
        ({"upscaling_resize": 1.1}, (53, 35)),
        ({"resize_mode": 1}, (512, 512)),
        ({"resize_mode": 1, "upscaling_crop": False}, (768, 512)),
        ({"resize_mode": 1, "upscaling_resize_w": 64, "upscaling_resize_h": 100}, (64, 100)),
        ({"resize_mode": 1, "upscaling_resize_w": 64, "upscaling_resize_h": 20, "upscaling_crop": False}, (64, 43)),
    ],
)
def test_plain_resizing_gives_exactly_what_is_asked_for(fields: dict[str, Any], size: tuple[int, int]) -> None:
    asked = options(**fields)
    image = resized(SOURCE, "Lanczos", plan(asked, 48, 32))
    assert image.size == size
    nearest = resized(SOURCE, "Nearest", plan(asked, 48, 32))
    assert nearest.tobytes() != image.tobytes()


@given(st.integers(16, 300), st.integers(16, 300), st.integers(16, 300), st.integers(16, 300), st.booleans())
def test_what_a_model_is_asked_for_covers_what_is_wanted_and_little_more(
    width: int, height: int, wide: int, high: int, crop: bool
) -> None:
    asked = options(resize_mode=1, upscaling_resize_w=wide, upscaling_resize_h=high, upscaling_crop=crop)
    planned = plan(asked, width, height)
    made = upscaled_size(width, height, planned.resolution)
    assert all(0 <= more - least <= 0.15 * least + 4 for more, least in zip(made, planned.scaled, strict=True))
    png = encode_png(bytes(3 * made[0] * made[1]), *made, parameters="")
    assert opened(png, planned).size == ((wide, high) if crop else planned.scaled)


@pytest.mark.parametrize(
    ("fields", "size", "limit"),
    [
        ({"upscaling_resize": 8}, (1000, 1000), MAX_PIXELS),
        ({"resize_mode": 1, "upscaling_resize_w": 8000, "upscaling_resize_h": 8000}, (48, 32), MAX_PIXELS),
        ({"upscaling_resize": 0.5}, (6000, 4000), MAX_PIXELS),
        ({"upscaling_resize": 0.1}, (48, 32), 16),
        ({"resize_mode": 1, "upscaling_resize_w": 1, "upscaling_resize_h": 1}, (48, 32), 16),
    ],
)
def test_result_that_is_too_large_or_too_small_is_refused_with_the_limit(
    fields: dict[str, Any], size: tuple[int, int], limit: int
) -> None:
    with pytest.raises(InvalidParameter) as caught:
        plan(options(**fields), *size)
    assert caught.value.details["limit"] == limit


def test_second_image_is_blended_in_by_its_visibility() -> None:
    white, black = Image.new("RGB", (10, 10), "white"), Image.new("RGB", (12, 10), "black")
    assert set(blended(white, black, 0.2).tobytes()) == {204}


@pytest.mark.parametrize(
    ("fields", "size", "field"),
    [
        ({}, (6000, 4000), "imageList"),
        ({"upscaling_resize": 8}, (1000, 1000), "upscaling_resize"),
        ({"resize_mode": 1, "upscaling_resize_h": 8000}, (30, 40), "upscaling_resize_h"),
        ({"resize_mode": 1, "upscaling_resize_w": 8000}, (30, 40), "upscaling_resize_w"),
    ],
)
def test_what_is_too_large_is_named(fields: dict[str, Any], size: tuple[int, int], field: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        plan(options(**fields), *size, field="imageList")
    assert caught.value.details["field"] == field


def test_small_icon_can_be_upscaled() -> None:
    icon = Source(encoded(SOURCE.resize((8, 8))), 0, "image")
    asked = options(upscaling_resize=4)
    made = composed(asked, plan(asked, *icon.decoded().size), ["Nearest"], icon, "")
    assert decoded(made).size == (32, 32)


def test_prompt_and_seed_of_the_source_stay_in_the_file() -> None:
    given = encode_png(SOURCE.tobytes(), *SOURCE.size, parameters="a red house\nSteps: 4, Seed: 7")
    source = Source(base64.b64encode(given).decode(), 0, "image")
    asked = options()
    made = composed(asked, plan(asked, *SOURCE.size), ["Lanczos"], source, "Postprocess upscale by: 2")
    info = Image.open(BytesIO(base64.b64decode(made))).info
    assert info["parameters"] == "a red house\nSteps: 4, Seed: 7"
    assert info["postprocessing"] == "Postprocess upscale by: 2"


def test_description_is_a1111s() -> None:
    asked = options(resize_mode=1, upscaler_1="seedvr2", upscaler_2="Nearest", extras_upscaler_2_visibility=0.5)
    text = description(asked, plan(asked, 48, 32))
    assert text == (
        "Postprocess upscale to: 512x512, Postprocess crop to: 512x512, Postprocess upscaler: seedvr2, "
        "Postprocess upscaler 2: Nearest"
    )
    assert description(asked, plan(asked, 48, 32), 7) == f"{text}, Seed: 7, Softness: 0"
    assert description(options(), plan(options(), 48, 32)) == "Postprocess upscale by: 2, Postprocess upscaler: None"
