"""Masks over HTTP: on A1111's routes and the others, and what is told of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.harness import ended
from tests.support.sample_images import scene, to_base64, to_image
from tests.support.scripted_api import scripted_api

SOURCE = to_base64(scene((100, 66)))
WHITE = to_base64(Image.new("L", (10, 7), 255))
BODY: dict[str, Any] = {"prompt": "a red house", "model": "demo", "steps": 2, "seed": 5, "init_images": [SOURCE]}

NEUTRAL = {
    "mask_blur": 4,
    "mask_blur_x": 4,
    "mask_blur_y": 4,
    "inpainting_fill": 0,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 0,
    "inpainting_mask_invert": 0,
    "latent_mask": None,
    "mask": None,
}
"""What A1111's clients send with every edit."""


async def test_answer_tells_what_was_inpainted_and_how(tmp_path: Path) -> None:
    masked = {"mask": WHITE, "mask_blur": "3", "inpaint_full_res": "1", "inpaint_full_res_padding": 8}
    size = {"width": 64, "height": 64}
    async with scripted_api(tmp_path) as api:
        answer = (
            await api.http.post("/sdapi/v1/img2img", json={**BODY, **size, **masked, "inpainting_fill": 2})
        ).json()
    assert answer["warnings"] == []
    assert to_image(answer["images"][0]).size == (100, 66)
    expected = {
        **size,
        "mask_blur": 3.0,
        "inpainting_fill": 2,
        "inpaint_full_res": True,
        "inpaint_full_res_padding": 8,
        "inpainting_mask_invert": False,
        "extend": None,
        "result_size": [100, 66],
    }
    assert answer["parameters"].items() >= expected.items()
    info = json.loads(answer["info"])
    pairs = "Mask blur: 3, Masked content: latent noise, Inpaint area: Only masked, Masked area padding: 8"
    assert f"Denoising strength: 0.75, {pairs}," in info["infotexts"][0]
    assert info["extra_generation_params"]["Inpaint area"] == "Only masked"


async def test_fields_of_masks_without_a_mask_are_what_a1111s_clients_always_send(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        answer = (await api.http.post("/sdapi/v1/img2img", json={**BODY, **NEUTRAL})).json()
    assert answer["warnings"] == []
    assert answer["parameters"]["mask_blur"] is answer["parameters"]["result_size"] is None
    assert to_image(answer["images"][0]).size == (96, 64)


async def test_txt2img_has_no_image_to_mask_and_says_so(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        answer = (
            await api.http.post("/sdapi/v1/txt2img", json={**BODY, "mask": WHITE, "width": 64, "height": 64})
        ).json()
    assert "'mask'" in " ".join(answer["warnings"])
    assert len(answer["images"]) == 1


@pytest.mark.parametrize("path", ["/sdapi/v1/img2img", "/api/v1/generate"])
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mask": "nothing of an image"}, "mask"),
        ({"mask": to_base64(Image.new("L", (10, 7)))}, "mask"),
        ({"mask": WHITE, "inpainting_fill": 7}, "inpainting_fill"),
        ({"extend": {"left": "far"}}, "extend"),
        ({"extend": [1, 2, 3, 4]}, "extend"),
    ],
)
async def test_what_cannot_be_inpainted_is_a_400_with_the_fields_name(
    tmp_path: Path, path: str, fields: dict[str, Any], named: str
) -> None:
    async with scripted_api(tmp_path) as api:
        answer = await api.http.post(path, json={**BODY, **fields})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER")
    assert answer.json()["details"]["field"] == named


async def test_a_job_may_have_a_mask_and_an_idempotency_key_counts_it(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        key = {"Idempotency-Key": "one"}
        asked = {**BODY, "mask": WHITE, "extend": {"right": 12}}
        first = await api.http.post("/api/v1/generate", json=asked, headers=key)
        again = await api.http.post("/api/v1/generate", json=asked, headers=key)
        other = {**asked, "mask": to_base64(Image.new("L", (20, 14), 255))}
        conflict = await api.http.post("/api/v1/generate", json=other, headers=key)
        job = await ended(api.service, first.json()["job_id"])
    assert (first.status_code, first.json()["warnings"]) == (200, [])
    assert again.json()["job_id"] == first.json()["job_id"]
    assert conflict.json()["code"] == "IDEMPOTENCY_CONFLICT"
    assert [(image.width, image.height) for image in job.images] == [(112, 66)]
