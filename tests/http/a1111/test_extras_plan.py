"""How large A1111's extras make an image, and how they tell it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_api.errors import InvalidParameter
from mflux_api.http.a1111.extras_plan import describe, make_plan
from mflux_api.http.a1111.sdapi_schemas import ExtraSingleImage, ExtrasOptions
from mflux_api.images.child.extras import open_png
from mflux_api.images.png import encode_png
from mflux_api.jobs.parse import convert
from mflux_api.jobs.upscaling import MAX_PIXELS, upscaled_size


def options(**fields: Any) -> ExtrasOptions:
    return convert({"image": "base64", **fields}, ExtraSingleImage, strict=False)


def test_defaults_are_a1111s() -> None:
    given = options(resize_mode="0", gfpgan_visibility=1, upscaler_1=None)
    assert given == ExtraSingleImage(image="base64")
    assert (given.upscaling_resize, given.upscaling_crop, given.upscaler_1) == (2.0, True, "None")


@given(st.integers(16, 300), st.integers(16, 300), st.integers(16, 300), st.integers(16, 300), st.booleans())
def test_what_a_model_is_asked_for_covers_what_is_wanted_and_little_more(
    width: int, height: int, wide: int, high: int, crop: bool
) -> None:
    asked = options(resize_mode=1, upscaling_resize_w=wide, upscaling_resize_h=high, upscaling_crop=crop)
    planned = make_plan(asked, width, height)
    made = upscaled_size(width, height, planned.resolution)
    assert all(0 <= more - least <= 0.15 * least + 4 for more, least in zip(made, planned.scaled, strict=True))
    png = encode_png(bytes(3 * made[0] * made[1]), *made, parameters="")
    assert open_png(png, planned.wanted).size == ((wide, high) if crop else planned.scaled)


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
        make_plan(options(**fields), *size)
    assert caught.value.details["limit"] == limit


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
        make_plan(options(**fields), *size, field="imageList")
    assert caught.value.details["field"] == field


def test_description_is_a1111s() -> None:
    asked = options(resize_mode=1, upscaler_1="seedvr2", upscaler_2="Nearest", extras_upscaler_2_visibility=0.5)
    text = describe(asked, make_plan(asked, 48, 32))
    assert text == (
        "Postprocess upscale to: 512x512, Postprocess crop to: 512x512, Postprocess upscaler: seedvr2, "
        "Postprocess upscaler 2: Nearest"
    )
    assert describe(asked, make_plan(asked, 48, 32), 7) == f"{text}, Seed: 7, Softness: 0"
    assert describe(options(), make_plan(options(), 48, 32)) == "Postprocess upscale by: 2, Postprocess upscaler: None"
