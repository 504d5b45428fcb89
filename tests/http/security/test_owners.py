"""One key does not see another's jobs, and cannot tell them from jobs that never were."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio

from mflux_api.access.keys import Caller, Scope
from mflux_api.access.keys_file import append, new_entry
from mflux_api.access.visibility import ALL_JOBS
from mflux_api.config import SecuritySettings
from mflux_api.http import sse
from mflux_api.service import Service, open_service
from tests.support.harness import ended, gateway, request, settings
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Hold, Script

pytestmark = pytest.mark.slow

ANA, BOB, BOSS = ({"X-API-Key": f"the key that belongs to {name}"} for name in ("ana", "bob", "boss"))
UNKNOWN = "0123456789ab"


@asynccontextmanager
async def keyed_api(folder: Path, script: Script | None = None, **security: Any) -> AsyncIterator[Api]:
    path = folder / "keys.toml"
    for name, key, scope in (
        ("ana", ANA, Scope.GENERATE),
        ("bob", BOB, Scope.GENERATE),
        ("boss", BOSS, Scope.MANAGE),
    ):
        append(path, new_entry(name, key["X-API-Key"], [scope], None))
    changed = attrs.evolve(settings(folder), security=SecuritySettings(keys_file=path, **security))
    async with scripted_api(folder, script, changed=changed) as api:
        yield api


async def submit(api: Api, key: dict[str, str], **headers: str) -> str:
    body = {"prompt": "a red house", "model": "demo", "width": 64, "height": 64, "steps": 1}
    answer = await api.http.post("/api/v1/generate", json=body, headers={**key, **headers})
    answer.raise_for_status()
    job_id: str = answer.json()["job_id"]
    return job_id


def without_id(answer: httpx.Response, job_id: str) -> tuple[int, str]:
    return answer.status_code, answer.text.replace(job_id, "")


async def listed(api: Api, key: dict[str, str], **query: Any) -> list[str]:
    """Follow the cursors through all pages, which are full but for the last."""
    found: list[str] = []
    params = {"limit": 2, **query}
    while True:
        page = (await api.http.get("/api/v1/jobs", headers=key, params=params)).json()
        found += [job["id"] for job in page["jobs"]]
        if page["next_cursor"] is None:
            return found
        assert len(page["jobs"]) == 2
        params["cursor"] = page["next_cursor"]


async def test_job_of_another_key_is_answered_like_one_that_never_was(tmp_path: Path) -> None:
    async with keyed_api(tmp_path) as api:
        job_id = await submit(api, ANA)
        await ended(api.service, job_id)
        for method, rest in (
            ("GET", ""),
            ("DELETE", ""),
            ("GET", "/stream"),
            ("GET", "/images/0"),
            ("HEAD", "/stream"),
        ):
            others = await api.http.request(method, f"/api/v1/jobs/{job_id}{rest}", headers=BOB)
            nothing = await api.http.request(method, f"/api/v1/jobs/{UNKNOWN}{rest}", headers=BOB)
            assert without_id(others, job_id) == without_id(nothing, UNKNOWN)
            assert others.status_code == 404
            for own in (ANA, BOSS):
                assert (await api.http.request(method, f"/api/v1/jobs/{job_id}{rest}", headers=own)).status_code == 200


async def test_list_has_whole_pages_of_a_keys_own_jobs(tmp_path: Path) -> None:
    async with keyed_api(tmp_path) as api:
        mine, others = [], [(await api.finished()).id]
        for _ in range(5):
            mine.append(await submit(api, ANA))
            others += [await submit(api, BOB), await submit(api, BOB)]
        for job_id in (*mine, *others):
            await ended(api.service, job_id)
        assert await listed(api, ANA) == mine[::-1]
        assert await listed(api, ANA, status="completed") == mine[::-1]
        assert set(await listed(api, BOSS)) == {*mine, *others}


async def test_queue_shows_only_the_places_of_other_keys_jobs(tmp_path: Path) -> None:
    hold = Hold()
    async with keyed_api(tmp_path, Script(at={"run": hold})) as api:
        ids = [await submit(api, key) for key in (ANA, BOB, ANA)]
        await hold.reached.wait()
        queue = (await api.http.get("/api/v1/queue", headers=BOB)).json()
        shown = [queue["active"], *queue["queued"]]
        assert [(each["job_id"], each["prompt"]) for each in shown] == [
            (None, None),
            (ids[1], "a red house"),
            (None, None),
        ]
        assert [each["position"] for each in queue["queued"]] == [1, 2]
        everything = (await api.http.get("/api/v1/queue", headers=BOSS)).json()
        assert [each["job_id"] for each in (everything["active"], *everything["queued"])] == ids
        assert (await api.http.delete(f"/api/v1/jobs/{ids[2]}", headers=BOB)).status_code == 404
        for job_id in ids:
            await api.http.delete(f"/api/v1/jobs/{job_id}", headers=BOSS)


async def test_jobs_are_shared_where_the_settings_say_so(tmp_path: Path) -> None:
    async with keyed_api(tmp_path, shared_jobs=True) as api:
        job_id = await submit(api, ANA)
        assert await listed(api, BOB) == [job_id]
        assert (await api.http.delete(f"/api/v1/jobs/{job_id}", headers=BOB)).status_code == 200


async def test_removed_job_is_gone_for_its_owner_and_never_was_for_others(tmp_path: Path) -> None:
    async with keyed_api(tmp_path) as api:
        job_id = await submit(api, ANA)
        await ended(api.service, job_id)
        body = {"older_than_hours": 0}
        removed = await api.http.post("/api/v1/jobs/prune", json=body, headers=BOSS)
        assert removed.json()["removed"] == [job_id]
        statuses = [(await api.http.get(f"/api/v1/jobs/{job_id}", headers=key)).status_code for key in (ANA, BOB, BOSS)]
        assert statuses == [410, 404, 410]


async def test_idempotency_keys_belong_to_their_owner(tmp_path: Path) -> None:
    async with keyed_api(tmp_path) as api:
        name = {"Idempotency-Key": "one"}
        first = await submit(api, ANA, **name)
        assert await submit(api, ANA, **name) == first
        assert await submit(api, BOB, **name) != first


async def test_jobs_of_a_time_without_keys_belong_to_those_who_manage(tmp_path: Path) -> None:
    async with keyed_api(tmp_path) as api:
        embedded = await api.service.submit(request())
        addressed = await gateway(api.service).submit(request(), caller=Caller(owner="127.0.0.1", sees=ALL_JOBS))
        for job_id in (embedded.id, addressed.job.id):
            statuses = [(await api.http.get(f"/api/v1/jobs/{job_id}", headers=key)).status_code for key in (ANA, BOSS)]
            assert statuses == [404, 200]
            await ended(api.service, job_id)


async def test_stream_of_a_key_that_is_removed_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
    async with keyed_api(tmp_path, Script(at={"run": Hold()})) as api:
        job_id = await submit(api, ANA)
        async with api.http.stream("GET", f"/api/v1/jobs/{job_id}/stream", headers=ANA) as stream:
            lines = stream.aiter_lines()
            assert await anext(lines)
            path = tmp_path / "keys.toml"
            entries = path.read_text("utf-8").split("[[keys]]")
            path.write_text("[[keys]]".join(["", *entries[2:]]), "utf-8")
            assert await api.service.reload_keys() == 2
            assert not [line async for line in lines if line.startswith("event: complete")]
        assert (await api.http.get(f"/api/v1/jobs/{job_id}", headers=ANA)).status_code == 401
        await api.http.delete(f"/api/v1/jobs/{job_id}", headers=BOSS)


async def test_key_that_is_removed_stops_working_at_every_address_that_is_served(tmp_path: Path) -> None:
    ana, boss = "the key of ana, 24 letters", "the key of the boss, 24 letters"
    changed = attrs.evolve(settings(tmp_path), security=SecuritySettings(api_keys=(ana, boss)))
    fronts = list[str]()

    async def serve(service: Service) -> None:
        fronts.extend(await nursery.start(service.serve_http, ["127.0.0.1:0"]))

    async with open_service(changed, start_engine=Script().start) as service, trio.open_nursery() as nursery:
        async with trio.open_nursery() as starting:
            for _ in range(3):
                starting.start_soon(serve, service)
        await service.reload_keys(SecuritySettings(api_keys=(boss,)))
        async with httpx.AsyncClient(headers={"X-API-Key": ana}) as http:
            assert [(await http.get(f"{url}/api/v1/jobs")).status_code for url in fronts] == [401] * 3
        nursery.cancel_scope.cancel()


async def test_keys_of_the_configuration_see_jobs_without_a_key_and_not_one_anothers(tmp_path: Path) -> None:
    keys = [{"X-API-Key": "the first of two keys"}, {"X-API-Key": "the second of two keys"}]
    security = SecuritySettings(api_keys=tuple(key["X-API-Key"] for key in keys))
    async with scripted_api(tmp_path, changed=attrs.evolve(settings(tmp_path), security=security)) as api:
        old = (await api.finished()).id
        ids = [await submit(api, key) for key in keys]
        for job_id in ids:
            await ended(api.service, job_id)
        assert [await listed(api, key) for key in keys] == [[ids[0], old], [ids[1], old]]
        for path in (f"/api/v1/jobs/{ids[1]}", f"/api/v1/jobs/{ids[1]}/images/0"):
            assert [(await api.http.get(path, headers=key)).status_code for key in keys] == [404, 200]
        assert (await api.http.delete(f"/api/v1/jobs/{ids[1]}", headers=keys[0])).status_code == 404
