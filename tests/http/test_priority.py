"""The field ``priority`` over HTTP: whose jobs it orders, and that it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from mflux_api.access.keys import Scope
from mflux_api.access.keys_file import append, new_entry
from mflux_api.config import SecuritySettings
from tests.support.harness import settings
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Hold, Script

pytestmark = pytest.mark.slow

ANA, BOB, BOSS = ({"X-API-Key": f"the key that belongs to {name}"} for name in ("ana", "bob", "boss"))


async def submit(api: Api, key: dict[str, str], **fields: Any) -> str:
    body = {"prompt": "a cat", "model": "demo", "width": 64, "height": 64, "steps": 1, **fields}
    answer = await api.http.post("/api/v1/generate", json=body, headers=key)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["job_id"])


async def queued(api: Api) -> list[tuple[str, int]]:
    listing = (await api.http.get("/api/v1/queue", headers=BOSS)).json()
    return [(job["job_id"], job["priority"]) for job in listing["queued"]]


async def test_priority_counts_among_all_only_with_the_scope(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    append(path, new_entry("ana", ANA["X-API-Key"], [Scope.GENERATE], None))
    append(path, new_entry("bob", BOB["X-API-Key"], [Scope.GENERATE, Scope.PRIORITIZE], None))
    append(path, new_entry("boss", BOSS["X-API-Key"], [Scope.MANAGE], None))
    changed = attrs.evolve(settings(tmp_path), security=SecuritySettings(keys_file=path))
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"step 0/1": hold}), changed=changed) as api:
        await submit(api, BOSS)
        await hold.reached.wait()
        usual = await submit(api, ANA)
        first = await submit(api, ANA, priority=10)
        behind = await submit(api, BOB, priority=-1)
        before = await submit(api, BOB, priority=1)
        assert await queued(api) == [(before, 1), (first, 10), (usual, 0), (behind, -1)]
        # It counts as much in calls that A1111's clients make.
        body = {"prompt": "a cat", "model": "demo", "width": 64, "height": 64, "steps": 1, "priority": 5}
        headers = BOB | {"Prefer": "respond-async"}
        call = (await api.http.post("/sdapi/v1/txt2img", json=body, headers=headers)).json()["id"]
        assert (await queued(api))[0] == (call, 5)


@pytest.mark.parametrize("priority", [11, -11, 0.5, True, "high"])
async def test_a_priority_outside_its_limits_is_refused(tmp_path: Path, priority: object) -> None:
    async with scripted_api(tmp_path) as api:
        answer = await api.http.post("/api/v1/generate", json={"prompt": "a cat", "priority": priority})
        assert (answer.status_code, answer.json()["details"]["field"]) == (400, "priority")
