"""``generation.metadata``: whether image files say how they were made."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import attrs
import pytest
from PIL import Image

from mflux_api.images.png import encode_png
from tests.support.harness import settings
from tests.support.scripted_api import Api, scripted_api

PROMPT = "ünmistakable wörds of a prompt"


async def _files(api: Api) -> list[bytes]:
    """One image in every format, by every way that a client gets it."""
    body = {"prompt": PROMPT, "model": "demo", "width": 64, "height": 64, "steps": 1, "seed": 5}
    answer = (await api.http.post("/sdapi/v1/txt2img", json=body)).json()
    (job,) = (await api.http.get("/api/v1/jobs")).json()["jobs"]
    urls = [f"/api/v1/jobs/{job['id']}/images/0?format={kind}" for kind in ("png", "jpeg", "webp")]
    made = [base64.b64decode(answer["images"][0]), *[(await api.http.get(url)).content for url in urls]]
    source = base64.b64encode(encode_png(b"\0" * 64 * 64 * 3, 64, 64, parameters=PROMPT)).decode()
    upscaled = await api.http.post(
        "/sdapi/v1/extra-single-image", json={"image": source, "upscaler_1": "Lanczos", "upscaling_resize": 1}
    )
    return [*made, base64.b64decode(upscaled.json()["image"])]


def _says(data: bytes) -> bool:
    """Whether a file holds the prompt, as any text, in any encoding that these formats have."""
    with Image.open(BytesIO(data)) as image:
        image.load()
        texts = [str(image.info), str({**image.getexif()}), str({**image.getexif().get_ifd(0x8769)})]
    plain = [data, "".join(texts).encode()]
    needles = [PROMPT.encode(kind) for kind in ("utf-8", "utf-16-le", "utf-16-be", "latin-1")]
    return any(needle in text for needle in needles for text in plain)


@pytest.mark.parametrize("metadata", [True, False])
async def test_images_without_metadata_hold_no_word_of_the_prompt(tmp_path: Path, metadata: bool) -> None:
    default = settings(tmp_path)
    changed = attrs.evolve(default, generation=attrs.evolve(default.generation, metadata=metadata))
    async with scripted_api(tmp_path, changed=changed) as api:
        files = await _files(api)
        kept = [path.read_bytes() for path in changed.generation.output_dir.rglob("*.png")]
    assert len(kept) == 1
    assert [_says(data) for data in files + kept] == [metadata] * 6
