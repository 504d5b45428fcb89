"""What is wrong with a given image and does not keep it from being used stands in every answer about it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.support import icc_profiles
from tests.support.harness import ended
from tests.support.hostile_images import as_text, saved
from tests.support.scripted_api import Api, scripted_api

pytestmark = pytest.mark.slow

IMAGE = Image.new("RGB", (64, 64), (200, 60, 30))
SOUND = as_text(saved(IMAGE, "PNG", icc_profile=icc_profiles.swapped()))
BROKEN = as_text(saved(IMAGE, "PNG", icc_profile=b"broken"))
BODY = {"prompt": "a red house", "model": "demo", "steps": 1, "init_images": [SOUND, BROKEN]}


def sentence(place: int, field: str) -> str:
    return f"Image {place} of '{field}': its colour profile is damaged; it was ignored"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with scripted_api(tmp_path) as running:
        yield running


async def test_broken_colour_profile_is_a_warning_of_every_answer(api: Api) -> None:
    expected = [sentence(2, "init_images")]
    assert (await api.http.post("/sdapi/v1/img2img", json=BODY)).json()["warnings"] == expected
    unknown = (await api.http.post("/sdapi/v1/img2img", json=BODY | {"cfg_scale": 1, "stpes": 1})).json()["warnings"]
    assert (len(unknown), unknown[-1:]) == (2, expected)
    accepted = (await api.http.post("/api/v1/generate", json=BODY)).json()
    assert accepted["warnings"] == expected
    await ended(api.service, accepted["job_id"])
    job = (await api.http.get(f"/api/v1/jobs/{accepted['job_id']}")).json()
    assert (job["status"], job["warnings"]) == ("completed", expected)


async def test_extras_follow_profiles_and_have_the_warnings_too(api: Api) -> None:
    single = {"image": BROKEN, "upscaler_1": "Nearest", "upscaling_resize": 1}
    assert (await api.http.post("/sdapi/v1/extra-single-image", json=single)).json()["warnings"] == [
        sentence(1, "image")
    ]
    files = [{"data": SOUND, "name": "a"}, {"data": BROKEN, "name": "b"}]
    batch = {"imageList": files, "upscaler_1": "Nearest", "upscaling_resize": 1, "stpes": 1}
    answer = (await api.http.post("/sdapi/v1/extra-batch-images", json=batch)).json()
    assert answer["warnings"][1:] == [sentence(2, "imageList")]
    assert "stpes" in answer["warnings"][0]
    followed, taken = (Image.open(BytesIO(base64.b64decode(text))).getpixel((9, 9)) for text in answer["images"])
    assert (followed, taken) == ((24, 57, 201), (200, 60, 30))
