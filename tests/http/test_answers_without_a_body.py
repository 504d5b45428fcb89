"""An answer without a body has no type of one; and a job has the images that it has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.scripted_api import Api, scripted_api

pytestmark = pytest.mark.slow


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with scripted_api(tmp_path) as running:
        yield running


async def test_answer_without_a_body_has_no_content_type_of_html(api: Api) -> None:
    path = f"/api/v1/jobs/{(await api.finished()).id}/images/0"
    tag = (await api.http.get(path)).headers["ETag"]
    for method, target, headers, status in (
        ("GET", path, {"If-None-Match": tag}, 304),
        ("HEAD", path, {"If-None-Match": tag}, 304),
        ("OPTIONS", "/api/v1/generate", {}, 200),
        ("OPTIONS", "/api/v1/generate", {"Origin": "http://a.example", "Access-Control-Request-Method": "POST"}, 200),
        ("HEAD", "/", {}, 200),
    ):
        answer = await api.http.request(method, target, headers=headers)
        assert (answer.status_code, answer.content) == (status, b"")
        assert "content-type" not in answer.headers or (method == "HEAD" and target == "/")
        assert "html" not in answer.headers.get("content-type", "")
        assert status != 304 or "content-length" not in answer.headers


async def test_image_that_a_job_has_not_is_not_found_and_the_error_says_how_many_it_has(api: Api) -> None:
    job = await api.finished(num_images=2)
    for number in ("2", "9", "-1", "99999999999999999999", "9" * 3000, "x", "1.0", "%20", "0x1", "%00", "%EF%BC%91"):
        answer = await api.http.get(f"/api/v1/jobs/{job.id}/images/{number}")
        assert (answer.status_code, answer.json()["code"]) == (404, "IMAGE_NOT_FOUND"), number
        assert answer.json()["details"] == {"images": 2}
        assert "it has 2 image(s), numbered from 0" in answer.json()["error"]
        assert len(answer.content) < 400
        assert answer.json()["error"].isprintable()
    assert (await api.http.get(f"/api/v1/jobs/{job.id}/images/01")).status_code == 200


async def test_odd_id_is_a_job_that_is_not_found(api: Api) -> None:
    for job_id in ("0" * 12, "x", "-1", "%00", "a%20b", "9" * 3000, "%F0%9F%90%88", "%ff"):
        for rest in ("", "/stream", "/images/0", "/images/x"):
            answer = await api.http.get(f"/api/v1/jobs/{job_id}{rest}")
            assert (answer.status_code, answer.json()["code"]) == (404, "JOB_NOT_FOUND"), job_id
            assert len(answer.content) < 1000
