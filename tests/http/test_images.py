"""Finished images as files: formats, thumbnails, quality, and tags that tell them apart."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.support.scripted_api import scripted_api

pytestmark = pytest.mark.slow


async def test_image_comes_in_the_format_size_and_quality_that_are_asked_for(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        job = await api.finished(width=256, height=128)
        path, tags = f"/api/v1/jobs/{job.id}/images/0", set()
        for query, kind, size in (
            ("", "PNG", (256, 128)),
            ("?format=webp", "WEBP", (256, 128)),
            ("?format=webp&quality=10", "WEBP", (256, 128)),
            ("?size=64", "PNG", (64, 32)),
            ("?size=64&format=jpeg", "JPEG", (64, 32)),
            ("?size=2048&format=jpeg&quality=100", "JPEG", (256, 128)),
        ):
            answer = await api.http.get(path + query)
            with Image.open(BytesIO(answer.content)) as image:
                assert (image.format, image.size) == (kind, size)
            tags.add(answer.headers["etag"])
            again = await api.http.get(path + query, headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert len(tags) == 6
        # The file's own format has no quality, and its tag says so.
        plain = await api.http.get(path + "?quality=5")
        assert plain.headers["etag"] in tags


@pytest.mark.parametrize(
    "query", ["size=0", "size=15", "size=2049", "size=x", "quality=101", "quality=-1", "format=gif"]
)
async def test_other_values_are_refused_by_name(tmp_path: Path, query: str) -> None:
    async with scripted_api(tmp_path) as api:
        job = await api.finished()
        answer = await api.http.get(f"/api/v1/jobs/{job.id}/images/0?{query}")
        assert (answer.status_code, answer.json()["details"]["field"]) == (400, query.partition("=")[0])


async def test_conversion_of_a_removed_file_is_gone_with_it(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        job = await api.finished()
        path = f"/api/v1/jobs/{job.id}/images/0?format=webp"
        assert (await api.http.get(path)).status_code == 200
        remove(job.images[0].path)
        answer = await api.http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (410, "IMAGE_GONE")


async def test_answers_and_events_of_a_job_have_the_format_that_it_asked_for(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        sizes = list[int]()
        for quality in (100, 5):
            job = await api.finished(num_images=2, output_format="webp", output_compression=quality)
            answer = (await api.http.get(f"/api/v1/jobs/{job.id}")).json()
            end = (await api.stream(job.id))[-1]
            images = answer["result"]["images"]
            assert (end.name, json.loads(end.data)["result"]["images"]) == ("complete", images)
            path = f"/api/v1/jobs/{job.id}/images/1"
            links = (await api.http.get(f"/api/v1/jobs/{job.id}?images=url")).json()["result"]["images"]
            assert links[1] == f"{path}?format=webp&quality={quality}"
            assert (await api.http.get(links[1])).content == base64.b64decode(images[1])
            assert [kind(base64.b64decode(image)) for image in images] == ["WEBP", "WEBP"]
            assert kind((await api.http.get(path)).content) == "PNG"
            sizes.append(len(images[0]))
        assert sizes[1] < sizes[0]


async def test_call_that_waits_answers_in_the_format_that_it_asks_for(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        body = {"prompt": "a tree", "model": "demo", "width": 64, "height": 64}
        for fields, expected in (({}, "PNG"), ({"output_format": "jpeg"}, "JPEG"), ({"output_format": None}, "PNG")):
            answer = (await api.http.post("/sdapi/v1/txt2img", json={**body, **fields})).json()
            assert kind(base64.b64decode(answer["images"][0])) == expected
            assert answer["warnings"] == []


@pytest.mark.parametrize(
    ("field", "value"), [("output_format", "gif"), ("output_compression", 101), ("output_compression", -1)]
)
async def test_formats_that_there_are_not_are_refused_by_name(tmp_path: Path, field: str, value: object) -> None:
    async with scripted_api(tmp_path) as api:
        answer = await api.http.post("/api/v1/generate", json={"prompt": "a tree", "model": "demo", field: value})
        assert (answer.status_code, answer.json()["details"]["field"]) == (400, field)


def kind(data: bytes) -> str | None:
    with Image.open(BytesIO(data)) as image:
        image.load()
        return image.format


def remove(path: str) -> None:
    Path(path).unlink()
