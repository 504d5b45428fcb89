"""``/api/v1/events``: one stream of everything that is the caller's, over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from mflux_api.access.keys import Scope
from mflux_api.access.keys_file import append, new_entry
from mflux_api.config import SecuritySettings
from mflux_api.http import event_feed
from tests.support.feed_follower import Follower
from tests.support.harness import ended, settings
from tests.support.http_server import connect
from tests.support.scripted_api import Api, Event, scripted_api

pytestmark = pytest.mark.slow

JOB = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 2}
ANA, BOB = ({"X-API-Key": f"the key that belongs to {name}"} for name in ("ana", "bob"))


async def submit(api: Api, headers: dict[str, str] | None = None) -> str:
    answer = await api.http.post("/api/v1/generate", json=JOB, headers=headers)
    job_id: str = answer.json()["job_id"]
    await ended(api.service, job_id)
    return job_id


def names(events: list[Event], job_id: str) -> list[str]:
    return [each.name for each in events if json.loads(each.data).get("id") == job_id]


async def test_follower_sees_jobs_that_come_later_and_their_ends_with_paths(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api, trio.open_nursery() as nursery:
        follower = Follower(api)
        await nursery.start(follower.read, 2)
        first, second = await submit(api), await submit(api)
        with trio.fail_after(10):
            while len([each for each in follower.events if each.name == "complete"]) < 2:
                await trio.lowlevel.checkpoint()
        assert follower.events[0].name == "begin"
        for job in (first, second):
            assert names(follower.events, job)[-1] == "complete"
            assert "progress" in names(follower.events, job)
        end = json.loads(follower.events[-1].data)
        assert end["result"]["images"] == [f"/api/v1/jobs/{second}/images/0"]


async def test_keys_see_their_own_jobs_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    append(path, new_entry("ana", ANA["X-API-Key"], [Scope.GENERATE], None))
    append(path, new_entry("bob", BOB["X-API-Key"], [Scope.GENERATE], None))
    changed = attrs.evolve(settings(tmp_path), security=SecuritySettings(keys_file=path))
    async with scripted_api(tmp_path, changed=changed) as api, trio.open_nursery() as nursery:
        assert (await api.http.get("/api/v1/events")).status_code == 401
        ana = Follower(api, ANA)
        await nursery.start(ana.read, 1)
        foreign, own = await submit(api, BOB), await submit(api, ANA)
        with trio.fail_after(10):
            while not names(ana.events, own) or names(ana.events, own)[-1] != "complete":
                await trio.lowlevel.checkpoint()
        assert names(ana.events, foreign) == []


async def test_follower_that_comes_back_misses_nothing_or_is_told(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api, trio.open_nursery() as nursery:
        follower = Follower(api)
        await nursery.start(follower.read, 1)
        await submit(api)
        with trio.fail_after(10):
            while follower.events[-1].name != "complete":
                await trio.lowlevel.checkpoint()
        missed = await submit(api)
        back = Follower(api, last=follower.events[-1].id)
        with trio.fail_after(10):
            await back.read(1)
        assert names(back.events, missed)[-1] == "complete"
        assert {each.name for each in back.events} == {"progress", "complete"}
        lost = Follower(api, last="from-another-start-7")
        await nursery.start(lost.read, 1)
        await submit(api)
        with trio.fail_after(10):
            while not lost.events or lost.events[-1].name != "complete":
                await trio.lowlevel.checkpoint()
        assert lost.events[0].name == "resync"


async def test_stream_has_heartbeats_and_ends_with_the_service(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(event_feed, "KEEP_ALIVE_SECONDS", 0.01)
    async with scripted_api(tmp_path) as api:
        async with connect(api.port) as client:
            await client.stream.send_all(b"GET /api/v1/events HTTP/1.0\r\nHost: localhost\r\n\r\n")
            text = b""
            with trio.fail_after(10):
                while b": keep-alive\n" not in text:
                    text += await client.stream.receive_some(65536)
                await api.service.drain()
                text += await client.end_of_file()
        assert b"event: begin" in text
        assert (await api.http.get("/api/v1/events")).status_code == 503
        head = await api.http.head("/api/v1/events")
        assert (head.status_code, head.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
