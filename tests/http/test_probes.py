"""What supervisors and load balancers ask, without a key: whether a server is there, and whether it takes work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.harness import eventually
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Crash, Script

pytestmark = pytest.mark.slow


async def probe(api: Api, path: str) -> tuple[int, str]:
    answer = await api.http.get(path)
    body = answer.json()
    return answer.status_code, body.get("code") or body["status"]


async def test_server_that_drains_is_alive_and_not_ready(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        assert [await probe(api, path) for path in ("/livez", "/readyz")] == [(200, "ok"), (200, "ok")]
        head = await api.http.head("/")
        assert (head.status_code, head.content) == (200, b"")
        assert (await api.http.get("/")).headers["allow"] in ("HEAD, OPTIONS", "OPTIONS, HEAD")
        await api.service.drain()
        assert [await probe(api, path) for path in ("/livez", "/readyz")] == [(200, "ok"), (503, "SHUTTING_DOWN")]
        assert "retry-after" in (await api.http.get("/readyz")).headers


async def test_server_whose_only_engine_does_not_start_is_alive_and_not_ready(tmp_path: Path) -> None:
    async with scripted_api(tmp_path, Script(at={"start": Crash(times=100)})) as api:

        async def degraded() -> bool:
            health: str = (await api.http.get("/api/v1/health")).json()["status"]
            return health == "degraded"

        await eventually(degraded)
        assert [await probe(api, path) for path in ("/livez", "/readyz")] == [(200, "ok"), (503, "ENGINE_UNAVAILABLE")]
