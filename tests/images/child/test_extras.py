"""Pixels of A1111's extras: plain resizing, blending, and what the file says about itself."""

import base64
from io import BytesIO
from typing import Any

import attrs
import pytest
from PIL import Image

from mflux_api.http.a1111.extras_plan import make_plan
from mflux_api.http.a1111.sdapi_schemas import ExtrasOptions
from mflux_api.images.child.extras import merge, resize
from mflux_api.images.child.protocol import ComposeExtras
from mflux_api.images.png import encode_png
from tests.support.local_decoding import LOCAL
from tests.support.sample_images import to_base64, to_image

SOURCE = Image.linear_gradient("L").resize((48, 32)).convert("RGB")


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
    asked = ExtrasOptions(**fields)
    plan = make_plan(asked, 48, 32)
    image = resize(SOURCE, "lanczos", plan.scaled, plan.wanted)
    assert image.size == size
    nearest = resize(SOURCE, "nearest", plan.scaled, plan.wanted)
    assert nearest.tobytes() != image.tobytes()


def test_second_image_is_blended_in_by_its_visibility() -> None:
    white, black = Image.new("RGB", (10, 10), "white"), Image.new("RGB", (12, 10), "black")
    assert set(merge([white, black], 0.2).tobytes()) == {204}


async def test_small_icon_can_be_upscaled() -> None:
    order = ComposeExtras(layers=("nearest",), scaled=(32, 32), wanted=None, done="")
    made = await LOCAL.compose_extras(order, to_base64(SOURCE.resize((8, 8))), [], "")
    assert to_image(b"".join(made).decode()).size == (32, 32)


async def test_prompt_and_seed_of_the_source_stay_in_the_file() -> None:
    given = encode_png(SOURCE.tobytes(), *SOURCE.size, parameters="a red house\nSteps: 4, Seed: 7")
    order = ComposeExtras(layers=("lanczos",), scaled=(96, 64), wanted=None, done="Postprocess upscale by: 2")
    made = await LOCAL.compose_extras(order, base64.b64encode(given).decode(), [], "")
    info = Image.open(BytesIO(base64.b64decode(b"".join(made)))).info
    assert info["parameters"] == "a red house\nSteps: 4, Seed: 7"
    assert info["postprocessing"] == "Postprocess upscale by: 2"
    silent = attrs.evolve(order, metadata=False)
    made = await LOCAL.compose_extras(silent, base64.b64encode(given).decode(), [], "")
    assert Image.open(BytesIO(base64.b64decode(b"".join(made)))).info == {}
