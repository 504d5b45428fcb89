"""Images as bytes."""

from io import BytesIO

import pytest
from PIL import Image

from mflux_api.images.encode import ImageFormat, convert_png, encode_png
from mflux_api.images.infotext import infotext
from tests.support.requests import resolved_request

PIXELS = bytes(range(256)) * 12


@pytest.mark.parametrize("parameters", ["plain", "Grüße\nSteps: 4", "世界 " * 1000])
def test_png_keeps_pixels_and_infotext(parameters: str) -> None:
    with Image.open(BytesIO(encode_png(PIXELS, 32, 32, parameters=parameters))) as image:
        assert image.tobytes() == PIXELS
        assert image.info["parameters"] == parameters


@pytest.mark.parametrize("target", ["jpeg", "webp"])
def test_other_formats_keep_size_and_infotext(target: ImageFormat) -> None:
    data = convert_png(encode_png(PIXELS, 32, 32, parameters="Grüße"), target)
    with Image.open(BytesIO(data)) as image:
        assert (image.format, image.size) == (target.upper(), (32, 32))
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be") == "Grüße"


def test_png_as_png_is_the_same_file() -> None:
    data = encode_png(PIXELS, 32, 32, parameters="a")
    assert convert_png(data, "png") is data


def test_infotext_has_a1111s_form() -> None:
    request = resolved_request(
        prompt="a lake", negative_prompt="fog", model="demo", seed=7, width=512, height=512, steps=4, guidance=1.0
    )
    lines = infotext(request, 8).splitlines()
    assert lines[:2] == ["a lake", "Negative prompt: fog"]
    assert lines[2].startswith(
        "Steps: 4, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Seed: 8, Size: 512x512, Model: demo, Version: "
    )
