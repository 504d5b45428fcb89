"""How an image was made, over HTTP: A1111's png-info and our own, and the same image again."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tests.support.sample_images import scene, to_base64
from tests.support.scripted_api import scripted_api

pytestmark = pytest.mark.slow


async def test_image_is_made_again_from_what_its_file_says_in_any_format(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        job = await api.finished(seed=41, prompt="ein Haus, 猫")
        path = f"/api/v1/jobs/{job.id}/images/0"
        original = (await api.http.get(path)).content
        for kind in ("png", "jpeg", "webp"):
            file = (await api.http.get(f"{path}?format={kind}")).content
            told = (await api.http.post("/api/v1/images/info", files={"image": ("a", file)})).json()
            assert (told["format"], told["warnings"]) == (kind, [])
            again = await api.http.post("/sdapi/v1/txt2img", json=told["request"])
            assert again.status_code == 200, again.text
            assert base64.b64decode(again.json()["images"][0]) == original


async def test_png_info_has_what_a1111s_clients_read(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        job = await api.finished(seed=41)
        file = (await api.http.get(f"/api/v1/jobs/{job.id}/images/0")).content
        text = base64.b64encode(file).decode()
        for image in (text, f"data:image/png;base64,{text}"):
            told = (await api.http.post("/sdapi/v1/png-info", json={"image": image})).json()
            assert len(told["info"].splitlines()) >= 2
            assert told["parameters"]["Seed"] == "41"
            assert told["parameters"]["Prompt"] == "a red house"
            assert told["items"]["parameters"] == told["info"]
        silent = (await api.http.post("/sdapi/v1/png-info", json={"image": to_base64(scene())})).json()
        assert silent == {"info": "", "items": {}, "parameters": {}}
        bad = await api.http.post("/sdapi/v1/png-info", json={"image": "bm9wZQ=="})
        assert (bad.status_code, bad.json()["details"]["field"]) == (400, "image")
