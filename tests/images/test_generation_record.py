"""What an image says of itself is enough to make it again; other programs' words are read as far as they go."""

import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_api.images.generation_record import ImageMetadata, generation_record, recipe_of
from mflux_api.images.infotext import infotext, parse_infotext
from mflux_api.jobs.inpainting import Inpainting
from mflux_api.jobs.parse import convert
from mflux_api.jobs.request import GenerateRequest
from mflux_api.jobs.resolve import Upscaling
from tests.support.requests import resolved_request

A1111 = """a (cat:1.2), night
second line
Negative prompt: blurry,
low quality
Steps: 20, Sampler: DPM++ 2M, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 31e35c80fc, Model: sd_xl, Hires prompt: "a, b: c", Version: v1.9"""  # noqa: E501


def found(**fields: Any) -> ImageMetadata:
    return ImageMetadata(width=64, height=64, format="png", **fields)


def test_record_is_a_request_that_resolves_to_the_same() -> None:
    asked = resolved_request(
        prompt="ein Haus, 猫",
        seed=9,
        steps=3,
        guidance=1.5,
        negative_prompt="rain",
        lora_files=("ink.safetensors",),
        lora_scales=(0.5,),
        low_ram=True,
        image_strength=0.25,
        init_images=("", ""),
    )
    recipe = recipe_of(found(record=generation_record(asked, 11)))
    request = convert(recipe.request, GenerateRequest)
    for name in ("prompt", "model", "steps", "guidance", "negative_prompt", "lora_files", "lora_scales", "low_ram"):
        assert getattr(request, name) == getattr(asked, name), name
    assert (request.seed, request.width, request.height, request.image_strength) == (
        11,
        asked.width,
        asked.height,
        0.25,
    )
    assert "2 init image(s)" in recipe.warnings[0]


def test_record_of_inpainting_has_every_parameter_and_says_that_the_mask_is_missing() -> None:
    inpainting = Inpainting(
        result=(80, 64),
        masked=True,
        transparent=True,
        invert=True,
        blur=(2, 5),
        fill=2,
        padding=8,
        extend=(0, 16, 0, 0),
    )
    asked = resolved_request(init_images=("",), mask="", inpainting=inpainting)
    recipe = recipe_of(found(record=generation_record(asked, 1)))
    request = convert(recipe.request, GenerateRequest)
    assert (request.mask_blur_x, request.mask_blur_y, request.inpainting_fill) == (2, 5, 2)
    assert (request.inpaint_full_res, request.inpaint_full_res_padding, request.mask_alpha) == (True, 8, "transparent")
    assert request.extend is not None
    assert attrs.astuple(request.extend) == (0, 16, 0, 0)
    assert "mask" in recipe.warnings[1]


def test_record_of_an_upscaled_image_has_what_upscalers_take() -> None:
    asked = resolved_request(upscaling=Upscaling(resolution=128, softness=0.5), init_images=("",))
    request = recipe_of(found(record=generation_record(asked, 1))).request
    assert (request["resolution"], request["softness"]) == (128, 0.5)
    assert "steps" not in request


def test_infotext_of_another_program_is_read_as_far_as_it_goes() -> None:
    pairs = parse_infotext(A1111)
    assert pairs["Prompt"] == "a (cat:1.2), night\nsecond line"
    assert pairs["Negative prompt"] == "blurry,\nlow quality"
    assert (pairs["Size-1"], pairs["Size-2"], pairs["Hires prompt"]) == ("512", "768", "a, b: c")
    recipe = recipe_of(found(infotext=A1111))
    assert recipe.request == {
        "prompt": pairs["Prompt"],
        "negative_prompt": pairs["Negative prompt"],
        "steps": 20,
        "guidance": 7.0,
        "seed": 965400086,
        "width": 512,
        "height": 768,
    }
    assert "sd_xl" in recipe.warnings[0]


def test_own_infotext_is_read_back() -> None:
    pairs = parse_infotext(infotext(resolved_request(prompt="a: b, c", seed=3, steps=2), 3))
    assert (pairs["Prompt"], pairs["Seed"], pairs["Steps"]) == ("a: b, c", "3", "2")


@pytest.mark.parametrize("record", ["", "{", "[]", '{"request": 5}', "[" * 20_000])
def test_record_that_is_none_counts_for_nothing(record: str) -> None:
    assert recipe_of(found(record=record)).request == {}
    assert recipe_of(found(record=record, infotext="a cat")).request == {"prompt": "a cat"}


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    assert isinstance(parse_infotext(text)["Prompt"], str)
    assert json.dumps(recipe_of(found(infotext=text, record=text)).request)
