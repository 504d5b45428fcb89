"""``POST /api/v1/jobs/cancel``: many jobs with one call, and only the caller's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

from mflux_api.access.keys import Scope
from mflux_api.access.keys_file import append, new_entry
from mflux_api.config import SecuritySettings
from mflux_api.jobs.job import Status
from tests.support.harness import ended, settings
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Hold, Script

pytestmark = pytest.mark.slow

ANA, BOSS = ({"X-API-Key": f"the key that belongs to {name}"} for name in ("ana", "boss"))
UNKNOWN = "0123456789ab"


@pytest.fixture
def hold() -> Hold:
    return Hold()


@pytest.fixture
async def api(tmp_path: Path, hold: Hold) -> AsyncIterator[Api]:
    """A server whose engine is held at its first job."""
    path = tmp_path / "keys.toml"
    append(path, new_entry("ana", ANA["X-API-Key"], [Scope.GENERATE], None))
    append(path, new_entry("boss", BOSS["X-API-Key"], [Scope.MANAGE], None))
    changed = attrs.evolve(settings(tmp_path), security=SecuritySettings(keys_file=path, shared_jobs=True))
    async with scripted_api(tmp_path, Script(at={"step 0/1": hold}), changed=changed) as running:
        yield running


async def submit(api: Api, key: dict[str, str], prompt: str) -> str:
    body = {"prompt": prompt, "model": "demo", "width": 64, "height": 64, "steps": 1}
    answer = await api.http.post("/api/v1/generate", json=body, headers=key)
    return str(answer.json()["job_id"])


async def cancel(api: Api, key: dict[str, str], **body: Any) -> httpx.Response:
    return await api.http.post("/api/v1/jobs/cancel", json=body, headers=key)


async def test_named_jobs_are_cancelled_and_each_is_told(api: Api, hold: Hold) -> None:
    running, first, second = [await submit(api, ANA, "a cat") for _ in range(3)]
    # One that is cancelled before would leave the hold to the next.
    await hold.reached.wait()
    answer = (await cancel(api, ANA, ids=[running, UNKNOWN, first, first])).json()
    assert [(job["id"], job["status"], job["code"]) for job in answer["jobs"]] == [
        (running, "cancelled", None),
        (UNKNOWN, None, "JOB_NOT_FOUND"),
        (first, "cancelled", None),
    ]
    assert (answer["cancelled"], answer["more"], answer["warnings"]) == (2, False, [])
    assert (await ended(api.service, second)).status is Status.COMPLETED


async def test_conditions_find_a_keys_own_unfinished_jobs_and_all_for_one_who_manages(api: Api) -> None:
    theirs = await submit(api, BOSS, "a red cat")
    mine = [await submit(api, ANA, prompt) for prompt in ("a cat", "a red cat", "a dog")]
    answer = (await cancel(api, ANA, q="RED cat", status="queued")).json()
    assert [job["id"] for job in answer["jobs"]] == [mine[1]]
    answer = (await cancel(api, ANA, all=True)).json()
    assert [job["id"] for job in answer["jobs"]] == [mine[2], mine[0]]
    assert answer["cancelled"] == 2
    answer = (await cancel(api, BOSS, all=True)).json()
    assert [job["id"] for job in answer["jobs"]] == [theirs]
    assert (await cancel(api, BOSS, all=True)).json() == {"jobs": [], "cancelled": 0, "more": False, "warnings": []}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "ids"),
        ({"all": False}, "ids"),
        ({"ids": []}, "ids"),
        ({"ids": ["a"], "all": True}, "ids"),
        ({"ids": ["a"], "model": "demo"}, "ids"),
        ({"ids": "a"}, "ids"),
        ({"ids": ["a" * 65]}, "ids"),
        ({"status": "completed"}, "status"),
        ({"q": " "}, "q"),
        ({"edit": "maybe"}, "edit"),
        ({"all": 1}, "all"),
    ],
)
async def test_what_names_no_jobs_is_refused(api: Api, body: dict[str, Any], field: str) -> None:
    job = await submit(api, ANA, "a cat")
    answer = await cancel(api, ANA, **body)
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER")
    assert answer.json()["details"]["field"] == field
    assert (await api.http.get(f"/api/v1/jobs/{job}", headers=ANA)).json()["status"] != "cancelled"


async def test_pages_of_other_origins_cancel_nothing(tmp_path: Path) -> None:
    async with scripted_api(tmp_path, Script(at={"step 0/1": Hold()})) as api:
        job = await submit(api, {}, "a cat")
        for page in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            answer = await cancel(api, page, all=True)
            assert (answer.status_code, answer.json()["code"]) == (403, "ORIGIN_NOT_ALLOWED")
        answer = await cancel(api, {"Origin": f"http://127.0.0.1:{api.port}"}, all=True)
        assert [each["id"] for each in answer.json()["jobs"]] == [job]
