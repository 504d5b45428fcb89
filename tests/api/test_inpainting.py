"""Inpainting and outpainting over HTTP with the demo model: what is protected, what is shown, and its size."""

import base64
import json
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.support.api_jobs import wait_for_end
from tests.support.sample_images import scene, to_base64, to_image
from tests.support.server import ROOT
from training.demo.measures import color_mask

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"prompt": "green hills", "model": "demo", "seed": 1, "steps": 1, "denoising_strength": 1}
SOURCE = Image.merge("RGB", [Image.effect_noise((100, 66), 40) for _ in range(3)])


def right_half(size: tuple[int, int] = SOURCE.size) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, (size[0] // 2, 0, *size))
    return mask


def inpaint(client: httpx.Client, source: Image.Image = SOURCE, **fields: Any) -> dict[str, Any]:
    asked = {**SMALL, "init_images": [to_base64(source)], "mask": to_base64(right_half(source.size)), **fields}
    answer = client.post("/sdapi/v1/img2img", json=asked)
    assert answer.status_code == 200, answer.text[:300]
    body: dict[str, Any] = answer.json()
    return body


def changed(result: Image.Image, source: Image.Image, protected: Image.Image) -> tuple[int, float]:
    """How many protected pixels differ, and the share of the others that does."""
    assert result.size == source.size
    differs = (np.asarray(result) != np.asarray(source)).any(axis=2)
    kept = np.asarray(protected) == 0
    return int(differs[kept].sum()), float(differs[~kept].mean())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_images": 2, "denoising_strength": 0.5},
        {"low_ram": True, "inpainting_fill": 0},
        {"inpainting_fill": 2, "mask_blur": 0, "model": "demo-base", "cfg_scale": 2},
        {"inpainting_fill": 3, "lora_files": ["one"]},
        {"inpaint_full_res": True, "inpaint_full_res_padding": 4, "width": 128, "height": 64},
        {"denoising_strength": 0},
    ],
    ids=lambda fields: ", ".join(fields) or "as usual",
)
def test_protected_bytes_are_those_that_were_sent(client: httpx.Client, fields: dict[str, Any]) -> None:
    answer = inpaint(client, **fields)
    blurred = right_half().filter(ImageFilter.GaussianBlur(fields.get("mask_blur", 4)))
    assert answer["warnings"] == []
    assert len(answer["images"]) == fields.get("num_images", 1)
    for text in answer["images"]:
        differing, share = changed(to_image(text), SOURCE, blurred)
        assert differing == 0
        assert share > 0.8


def test_mask_may_be_inverted(client: httpx.Client) -> None:
    result = to_image(inpaint(client, inpainting_mask_invert=1, mask_blur=0)["images"][0])
    inverted = right_half().point([255] + [0] * 255)
    differing, share = changed(result, SOURCE, inverted)
    assert (differing, share > 0.8) == (0, True)


def test_in_another_size_the_protected_bytes_are_those_of_the_resized_image(client: httpx.Client) -> None:
    source = Image.merge("RGB", [Image.effect_noise((160, 128), 40) for _ in range(3)])
    result = to_image(inpaint(client, source, width=80, height=64, mask_blur=2)["images"][0])
    blurred = right_half((80, 64)).filter(ImageFilter.GaussianBlur(2))
    differing, _ = changed(result, source.resize((80, 64), Image.Resampling.LANCZOS), blurred)
    assert differing == 0


def test_orientation_and_transparency_are_those_of_the_decoded_image(client: httpx.Client) -> None:
    buffer, exif = BytesIO(), Image.Exif()
    exif[0x0112] = 6
    SOURCE.save(buffer, "JPEG", exif=exif, quality=95)
    decoded = Image.open(buffer).convert("RGB").transpose(Image.Transpose.ROTATE_270)
    text = base64.b64encode(buffer.getvalue()).decode()
    mask = right_half(decoded.size)
    result = to_image(inpaint(client, init_images=[text], mask=to_base64(mask))["images"][0])
    differing, _ = changed(result, decoded, mask.filter(ImageFilter.GaussianBlur(4)))
    assert differing == 0


def test_extended_image_has_its_own_bytes_in_its_place(client: httpx.Client) -> None:
    answer = inpaint(client, mask=None, extend={"left": 20, "bottom": 7}, mask_blur=0)
    result = to_image(answer["images"][0])
    assert result.size == (120, 73)
    assert result.crop((20, 0, 120, 66)).tobytes() == SOURCE.tobytes()
    assert answer["parameters"]["result_size"] == [120, 73]
    assert answer["parameters"]["extend"] == {"left": 20, "top": 0, "right": 0, "bottom": 7}


def test_job_does_the_same_and_its_previews_come(client: httpx.Client) -> None:
    body = {**SMALL, "init_images": [to_base64(SOURCE)], "mask": to_base64(right_half())}
    job_id = client.post("/api/v1/generate", json=body).json()["job_id"]
    with client.stream("GET", f"/api/v1/jobs/{job_id}/stream", params={"images": "url", "previews": "jpeg"}) as stream:
        events = [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]
    job = wait_for_end(client, job_id)
    assert job["warnings"] == []
    assert job["result"]["images"] == inpaint(client)["images"]
    assert events[-1]["status"] == "completed"


def coloured(image: Image.Image, colour: str) -> float:
    """The share of a colour in the lower left."""
    return float(color_mask(np.asarray(image.crop((0, 64, 64, 128))), colour).mean())


def test_what_is_inpainted_shows_what_the_prompt_says(client: httpx.Client) -> None:
    house = Image.open(ROOT / "docs" / "images" / "demo" / "house.png").convert("RGB").resize((128, 128))
    mask = Image.new("L", house.size)
    mask.paste(255, (0, 56, 64, 128))
    asked = {"mask": to_base64(mask), "steps": 4, "prompt": "a blue house on the left, green hills"}
    blue = to_image(inpaint(client, house, **asked)["images"][0])
    differing, _ = changed(blue, house, mask.filter(ImageFilter.GaussianBlur(4)))
    assert differing == 0
    assert coloured(blue, "blue") > 0.1 > 0.02 > coloured(blue, "red")
    assert coloured(house, "red") > 0.1
    gone = to_image(inpaint(client, house, **{**asked, "prompt": "green hills", "inpainting_fill": 0})["images"][0])
    assert coloured(gone, "red") < 0.01


def test_large_photo_comes_back_in_its_own_size(client: httpx.Client) -> None:
    photo = scene((2300, 1700))
    mask = Image.new("L", (230, 170))
    mask.paste(255, (100, 80, 110, 90))
    size = {"width": 64, "height": 64, "inpaint_full_res": True, "steps": 1}
    result = to_image(inpaint(client, photo, mask=to_base64(mask), **size)["images"][0])
    outside = Image.new("L", photo.size)
    outside.paste(255, (960, 760, 1140, 940))
    differing, share = changed(result, photo, outside)
    assert differing == 0
    assert share > 0
