"""Bodies over HTTP: what is not known is a warning, and costs the other clients nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.harness import ended
from tests.support.scripted_api import Api, scripted_api

BODY = {"prompt": "a red house", "model": "demo", "width": 64, "height": 64, "steps": 1}
UNKNOWN = {"url": "http://localhost", "auth": {"user": ["a"]}}
WARNING = "Fields that this endpoint does not know were ignored: 'url', 'auth'"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with scripted_api(tmp_path) as running:
        yield running


async def test_unknown_fields_are_warnings_of_the_answer_and_of_the_job(api: Api) -> None:
    accepted = (await api.http.post("/api/v1/generate", json=BODY | UNKNOWN)).json()
    assert accepted["warnings"] == [WARNING]
    await ended(api.service, accepted["job_id"])
    job = (await api.http.get(f"/api/v1/jobs/{accepted['job_id']}")).json()
    assert (job["status"], job["warnings"]) == ("completed", [WARNING])
    assert (await api.http.get("/api/v1/jobs")).json()["jobs"][0]["warnings"] == [WARNING]


@pytest.mark.parametrize("fields", [{}, {"cfg_scale": 7, "styles": [], "alwayson_scripts": {"a": {"args": [1]}}}])
async def test_synchronous_answer_names_unknown_fields_and_no_field_of_a1111(
    api: Api, fields: dict[str, object]
) -> None:
    known = await api.http.post("/sdapi/v1/txt2img", json=BODY | fields)
    assert (known.status_code, known.json()["warnings"]) == (200, [])
    answer = await api.http.post("/sdapi/v1/txt2img", json=BODY | fields | UNKNOWN)
    assert (answer.status_code, answer.json()["warnings"]) == (200, [WARNING])
