"""``progress``, ``interrupt`` and ``skip``: a client sees and ends its own calls, and never another's."""

from __future__ import annotations

import base64
import json
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import trio
import trio.lowlevel
import trio.testing

from mflux_api.errors import JobGone
from mflux_api.gateway.gateway import Gateway
from mflux_api.gateway.jobs import JobView
from mflux_api.http.client_calls import LEFT_SECONDS, ClientCalls
from mflux_api.jobs.job import Job, Status
from tests.support.harness import RESOLVED, eventually, gateway, images
from tests.support.http_server import connect
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import PREVIEW, Hold, Script

pytestmark = pytest.mark.slow

CALL = {
    "prompt": "a lake",
    "width": 64,
    "height": 64,
    "steps": 2,
    "sd_model_checkpoint": "demo",
    "force_task_id": "task(1)",
}
ALICE = {"Cookie": "mflux_client=" + "a" * 32}
BOB = {"Cookie": "mflux_client=" + "b" * 32}


async def post(api: Api, into: list[httpx.Response], headers: dict[str, str], **fields: Any) -> None:
    into.append(await api.http.post("/sdapi/v1/txt2img", json=CALL | fields, headers=headers))


async def progress_of(api: Api, headers: dict[str, str], query: str = "") -> Any:
    return (await api.http.get(f"/sdapi/v1/progress{query}", headers=headers)).json()


async def test_progress_is_the_clients_own_and_numbers_all_the_way(tmp_path: Path) -> None:
    hold, answers = Hold(), list[httpx.Response]()
    async with scripted_api(tmp_path, Script(at={"step 0/2": hold})) as api, trio.open_nursery() as nursery:
        nursery.start_soon(post, api, answers, ALICE)
        await hold.reached.wait()
        own = await progress_of(api, ALICE)
        assert 0 < own["progress"] < 1
        assert own["state"]["job_count"] == 1
        assert (own["state"]["sampling_step"], own["state"]["sampling_steps"]) == (1, 2)
        assert isinstance(own["eta_relative"], float)
        others = await progress_of(api, BOB)
        assert others["progress"] == 0
        assert others["state"]["job_count"] == 0
        named = await api.http.post("/internal/progress", json={"id_task": "task(1)"}, headers=ALICE)
        assert named.json()["active"] is True
        foreign = await api.http.post("/internal/progress", json={"id_task": "task(1)"}, headers=BOB)
        assert foreign.json() | {"textinfo": ""} == foreign.json() | {"active": False, "completed": False}
        hold.release.set()
        await eventually(lambda: bool(answers))
        idle = await progress_of(api, ALICE)
        assert (idle["progress"], idle["eta_relative"], idle["state"]["job_count"]) == (0, 0, 0)
        done = await api.http.post("/internal/progress", json={"id_task": "task(1)"}, headers=ALICE)
        assert (done.json()["active"], done.json()["completed"]) == (False, True)


async def test_preview_comes_where_it_is_asked_for_and_only_there(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"step 0/1": hold}, step_seconds=0.01)
    async with scripted_api(tmp_path, script) as api, trio.open_nursery() as nursery:
        answers = list[httpx.Response]()
        nursery.start_soon(lambda: post(api, answers, ALICE, steps=150))
        await hold.reached.wait()
        assert (await progress_of(api, ALICE, "?skip_current_image=true"))["current_image"] is None
        assert (await progress_of(api, ALICE))["current_image"] is None
        hold.release.set()
        image = None
        while image is None:
            image = (await progress_of(api, ALICE))["current_image"]
        assert base64.b64decode(image) == PREVIEW
        assert (await progress_of(api, ALICE, "?skip_current_image=True"))["current_image"] is None
        task = await api.http.post("/internal/progress", json={"id_task": "task(1)"}, headers=ALICE)
        assert task.json()["live_preview"] == f"data:image/jpeg;base64,{image}"
        had = {"id_task": "task(1)", "id_live_preview": task.json()["id_live_preview"]}
        assert (await api.http.post("/internal/progress", json=had, headers=ALICE)).json()["live_preview"] is None
        await api.http.post("/sdapi/v1/interrupt", headers=ALICE)


async def test_interrupt_ends_the_clients_own_call_with_the_images_so_far(tmp_path: Path) -> None:
    hold, alice, bob = Hold(), list[httpx.Response](), list[httpx.Response]()
    async with scripted_api(tmp_path, Script(at={"step 1/1": hold})) as api, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: post(api, alice, ALICE, batch_size=2))
        await hold.reached.wait()
        await eventually(lambda: len(images(tmp_path)) == 1)
        nursery.start_soon(post, api, bob, BOB)
        for path in ("interrupt", "skip"):
            nothing = await api.http.post(f"/sdapi/v1/{path}", headers={"Cookie": "mflux_client=" + "c" * 32})
            assert nothing.json()["interrupted"] is False
        ended = await api.http.post("/sdapi/v1/interrupt", headers=ALICE)
        assert ended.json() == {"interrupted": True, "warnings": []}
        await eventually(lambda: bool(alice and bob))
        assert alice[0].status_code == 200
        assert len(alice[0].json()["images"]) == 1
        assert len(bob[0].json()["images"]) == 1


async def test_skip_says_that_it_ends_the_whole_call(tmp_path: Path) -> None:
    hold, answers = Hold(), list[httpx.Response]()
    async with scripted_api(tmp_path, Script(at={"step 0/2": hold})) as api, trio.open_nursery() as nursery:
        nursery.start_soon(post, api, answers, ALICE)
        await hold.reached.wait()
        ended = (await api.http.post("/sdapi/v1/skip", headers=ALICE)).json()
        assert ended["interrupted"] is True
        assert "whole call" in ended["warnings"][0]
        await eventually(lambda: bool(answers))
        assert answers[0].json()["images"] == []


async def test_waiting_call_ends_where_none_of_the_clients_runs(tmp_path: Path) -> None:
    hold, alice, bob = Hold(), list[httpx.Response](), list[httpx.Response]()
    async with scripted_api(tmp_path, Script(at={"step 0/2": hold})) as api, trio.open_nursery() as nursery:
        nursery.start_soon(post, api, alice, ALICE)
        await hold.reached.wait()
        nursery.start_soon(post, api, bob, BOB)
        with trio.fail_after(5):
            while (await progress_of(api, BOB))["textinfo"] != "In queue: 1":
                pass
        assert (await api.http.post("/sdapi/v1/interrupt", headers=BOB)).json()["interrupted"] is True
        await eventually(lambda: bool(bob))
        assert bob[0].json()["images"] == []
        hold.release.set()


async def drop_a_call(api: Api) -> None:
    """Begin a call without a cookie on a connection of its own, and hang up when this is cancelled."""
    body = json.dumps(CALL).encode()
    head = f"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    async with connect(api.port) as client:
        await client.stream.send_all(head.encode() + body)
        await trio.sleep_forever()


async def test_interrupt_behind_a_hang_up_does_not_end_the_next_callers_job(tmp_path: Path) -> None:
    # SillyTavern's Stop does both; another of the same address waits behind.
    first, second = Hold(), Hold()
    answers = list[httpx.Response]()
    script = Script(at={"step 0/1": first, "step 0/2": second})
    async with scripted_api(tmp_path, script) as api, trio.open_nursery() as nursery:
        with trio.CancelScope() as dropped:
            async with trio.open_nursery() as caller:
                caller.start_soon(drop_a_call, api)
                await first.reached.wait()
                nursery.start_soon(post, api, answers, {})
                await eventually(lambda: _waits(api))
                dropped.cancel()
        await second.reached.wait()
        assert (await api.http.post("/sdapi/v1/interrupt")).json()["interrupted"] is False
        second.release.set()
        await eventually(lambda: bool(answers))
        assert len(answers[0].json()["images"]) == 1


async def _waits(api: Api) -> bool:
    return (await gateway(api.service).status()).queued == 1


async def test_interrupt_before_the_hang_up_ends_that_call_and_the_next_interrupt_counts(tmp_path: Path) -> None:
    first, second = Hold(), Hold()
    answers = list[httpx.Response]()
    script = Script(at={"step 0/1": first, "step 0/2": second})
    async with scripted_api(tmp_path, script) as api, trio.open_nursery() as nursery:
        with trio.CancelScope() as dropped:
            async with trio.open_nursery() as caller:
                caller.start_soon(drop_a_call, api)
                await first.reached.wait()
                assert (await api.http.post("/sdapi/v1/interrupt")).json()["interrupted"] is True
                dropped.cancel()
        nursery.start_soon(post, api, answers, {})
        await second.reached.wait()
        assert (await api.http.post("/sdapi/v1/interrupt")).json()["interrupted"] is True
        await eventually(lambda: bool(answers))
        assert answers[0].json()["images"] == []


class OneJob:
    """As much of a gateway as an interrupt needs: every job runs but one."""

    async def job(self, job_id: str) -> JobView:
        if job_id == "goes":
            await self.gone.wait()
            raise JobGone("It is gone")
        job = Job(id=job_id, request=RESOLVED, created_at=datetime.now(UTC), status=Status.GENERATING)
        return JobView(job=job, live=None)

    def __init__(self) -> None:
        self.abandoned = list[str]()
        self.gone = trio.Event()

    async def cancel(self, job_id: str) -> None:
        await trio.lowlevel.checkpoint()

    def abandon(self, job_id: str) -> None:
        self.abandoned.append(job_id)


@pytest.mark.parametrize(("late", "ends"), [(0.0, False), (LEFT_SECONDS - 0.1, False), (LEFT_SECONDS + 0.1, True)])
async def test_interrupt_means_the_call_that_was_hung_up_only_for_a_while(
    autojump_clock: trio.testing.MockClock, late: float, ends: bool
) -> None:
    calls = ClientCalls(cast("Gateway", OneJob()))
    with trio.CancelScope() as scope:
        async with calls.call("a", "txt2img"):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    await trio.sleep(late)
    async with calls.call("a", "txt2img") as call, calls.call("b", "txt2img") as other:
        call.jobs.append("1")
        other.jobs.append("2")
        assert await calls.interrupt("a") is (call if ends else None)
        # One interrupt is consumed, not all.
        assert await calls.interrupt("a") is call
        assert not other.interrupted


async def test_interrupt_of_a_call_without_a_job_yet_ends_the_job_that_comes() -> None:
    one = OneJob()
    calls = ClientCalls(cast("Gateway", one))
    async with calls.call("a", "img2img") as call, calls.call("b", "img2img") as other:
        assert await calls.interrupt("a") is call
        calls.add_job(other, "1")
        calls.add_job(call, "2")
        assert one.abandoned == ["2"]


async def test_calls_that_end_meanwhile_hide_no_other_call() -> None:
    one = OneJob()
    calls = ClientCalls(cast("Gateway", one))
    found = list[Any]()

    async def ask() -> None:
        found.append(await calls.newest("a"))

    async with calls.call("a", "txt2img") as first:
        first.jobs.append("1")
        async with trio.open_nursery() as nursery:
            async with AsyncExitStack() as stack:
                for _ in range(3):
                    await stack.enter_async_context(calls.call("a", "txt2img"))
                (await stack.enter_async_context(calls.call("a", "txt2img"))).jobs.append("goes")
                nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
            one.gone.set()
        assert [state.call for state in found] == [first]


async def test_images_are_not_described_and_that_is_said(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        answer = await api.http.post("/sdapi/v1/interrogate", json={"image": "", "model": "clip"})
        assert (answer.status_code, answer.json()["code"]) == (501, "NOT_YET_SUPPORTED")
