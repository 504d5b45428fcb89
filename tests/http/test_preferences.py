"""``Prefer`` and ``?wait=``: clients that need not keep a connection open for their images, or do so for a while."""

from __future__ import annotations

import base64
import json
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from mflux_api.http.client_calls import MOST_KEPT, ClientCalls
from mflux_api.http.open_connections import connection_limits
from mflux_api.http.preferences import MAX_WAIT_SECONDS, Preferences, parse_preferences
from mflux_api.jobs.job import Status
from tests.support.harness import ended, gateway, settings
from tests.support.http_server import connect
from tests.support.scripted_api import scripted_api
from tests.support.scripted_engine import Fail, Hold, Script

CALL = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 2}


@pytest.mark.parametrize(
    ("values", "respond_async", "wait"),
    [
        ([], False, None),
        (["respond-async"], True, None),
        (["Respond-Async, wait=10"], True, 10.0),
        (["return=minimal", "wait=5"], False, 5.0),
        (['wait="7"; foo=1, wait=9'], False, 7.0),
        (["wait=0"], False, 0.0),
        (["wait=99999999"], False, MAX_WAIT_SECONDS),
        (["wait=-1, wait=x, wait=1.5, wait=, wait"], False, None),
        (["wait=\u0661"], False, None),
        (["respond-async=no"], False, None),
        (["handling=lenient, " * 20 + "respond-async"], False, None),
        (['foo="a, wait=3", wait=5'], False, 5.0),
        (['foo="a\\", wait=3", wait=5'], False, 5.0),
        (['foo="not closed, wait=5'], False, 5.0),
    ],
)
def test_preferences_are_read_and_nonsense_is_none(values: list[str], respond_async: bool, wait: float | None) -> None:
    assert parse_preferences(values) == Preferences(respond_async=respond_async, wait=wait)


@given(st.lists(st.text(max_size=60), max_size=5))
def test_any_header_is_read(values: list[str]) -> None:
    assert (parse_preferences(values).wait or 0) >= 0


@pytest.mark.slow
async def test_answer_comes_at_once_and_the_job_goes_on(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"step 0/1": hold})) as api:
        answer = await api.http.post("/sdapi/v1/txt2img", json=CALL, headers={"Prefer": "respond-async"})
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == "respond-async"
        job = answer.json()
        assert job["status"] in ("queued", "generating")
        assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
        hold.release.set()
        assert (await ended(api.service, job["id"])).status is Status.COMPLETED
        done = (await api.http.get(answer.headers["location"])).json()
        assert base64.b64decode(done["result"]["images"][0]).startswith(b"\x89PNG")


@pytest.mark.slow
async def test_answer_is_the_usual_one_where_the_work_is_done_in_time(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        usual = (await api.http.post("/sdapi/v1/txt2img", json=CALL | {"seed": 3})).json()
        answer = await api.http.post("/sdapi/v1/txt2img", json=CALL | {"seed": 3}, headers={"Prefer": "wait=60"})
        assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=60")
        assert answer.json()["images"] == usual["images"]
        assert answer.json()["parameters"] == usual["parameters"]
        dialect = CALL | {"cfg_scale": 1, "seed": 3}
        a1111 = await api.http.post("/sdapi/v1/txt2img", json=dialect, headers={"Prefer": "respond-async, wait=60"})
        assert json.loads(a1111.json()["info"])["seed"] == 3


@pytest.mark.slow
async def test_job_that_takes_longer_is_answered_when_the_wait_is_over(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"step 0/1": hold})) as api:
        answer = await api.http.post("/sdapi/v1/txt2img", json=CALL, headers={"Prefer": "wait=1"})
        assert (answer.status_code, answer.json()["status"]) == (202, "generating")
        hold.release.set()
        assert (await ended(api.service, answer.json()["id"])).status is Status.COMPLETED


@pytest.mark.slow
async def test_failure_within_the_wait_is_that_of_the_usual_call(tmp_path: Path) -> None:
    async with scripted_api(tmp_path, Script(at={"encoding": Fail("GENERATION_FAILED")})) as api:
        answer = await api.http.post("/sdapi/v1/txt2img", json=CALL, headers={"Prefer": "wait=60"})
        assert (answer.status_code, answer.json()["code"]) == (500, "GENERATION_FAILED")


@pytest.mark.slow
async def test_job_of_a_client_that_leaves_while_it_prefers_not_to_wait_goes_on(tmp_path: Path) -> None:
    hold, body = Hold(), json.dumps(CALL).encode()
    head = "POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\n"
    async with scripted_api(tmp_path, Script(at={"step 0/1": hold})) as api:
        async with connect(api.port) as client:
            await client.stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await hold.reached.wait()
        (view,) = (await gateway(api.service).jobs())[0]
        hold.release.set()
        with trio.fail_after(10):
            assert (await ended(api.service, view.job.id)).status is Status.COMPLETED


@pytest.mark.slow
@pytest.mark.parametrize("way", ["header", "parameter"])
async def test_generate_waits_where_it_is_asked_to_and_answers_with_the_job(tmp_path: Path, way: str) -> None:
    headers, query = ({"Prefer": "wait=60"}, "") if way == "header" else ({}, "?wait=60")
    async with scripted_api(tmp_path) as api:
        answer = await api.http.post(f"/api/v1/generate{query}", json=CALL, headers=headers)
        job = answer.json()
        assert (answer.status_code, job["status"]) == (200, "completed")
        assert base64.b64decode(job["result"]["images"][0]).startswith(b"\x89PNG")
        assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
        assert answer.headers.get("preference-applied") == ("wait=60" if way == "header" else None)
        paths = (await api.http.post("/api/v1/generate?wait=60&images=url", json=CALL)).json()
        assert paths["result"]["images"] == [f"/api/v1/jobs/{paths['id']}/images/0"]
        assert paths["warnings"] == []


@pytest.mark.slow
async def test_generate_without_a_wait_answers_as_ever(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        plain = await api.http.post("/api/v1/generate", json=CALL)
        assert plain.json().keys() == {"job_id", "status", "position", "warnings"}
        answer = await api.http.post("/api/v1/generate?images=url", json=CALL, headers={"Prefer": "respond-async"})
        assert answer.json()["warnings"] == ["'images' in the address has no effect: use the body"]
        assert answer.headers["preference-applied"] == "respond-async"


@pytest.mark.slow
async def test_failed_job_of_generate_is_answered_as_a_job(tmp_path: Path) -> None:
    async with scripted_api(tmp_path, Script(at={"encoding": Fail("GENERATION_FAILED")})) as api:
        answer = await api.http.post("/api/v1/generate?wait=60", json=CALL)
        assert (answer.status_code, answer.json()["code"]) == (200, "GENERATION_FAILED")


@pytest.mark.slow
async def test_look_at_a_job_waits_for_its_end(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"step 0/1": hold})) as api:
        accepted = await api.http.post("/api/v1/generate?wait=1", json=CALL)
        assert (accepted.status_code, accepted.json()["status"]) == (202, "generating")
        path = accepted.headers["location"]
        looked = await api.http.get(path, headers={"Prefer": "respond-async, wait=1"})
        assert (looked.json()["status"], looked.headers["preference-applied"]) == ("generating", "wait=1")
        async with trio.open_nursery() as nursery:
            seen = list[str]()

            async def look() -> None:
                seen.append((await api.http.get(f"{path}?wait=60&images=url")).json()["status"])

            nursery.start_soon(look)
            hold.release.set()
        assert seen == ["completed"]
        assert (await api.http.get(f"{path}?wait=0")).json()["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("value", ["-1", "x", "1.5", "", "3601", "9" * 5000])
async def test_parameter_that_is_no_number_of_seconds_is_refused_before_there_is_a_job(
    tmp_path: Path, value: str
) -> None:
    async with scripted_api(tmp_path) as api:
        for path in ("/api/v1/generate", "/sdapi/v1/txt2img"):
            answer = await api.http.post(f"{path}?wait={value}", json=CALL)
            assert (answer.status_code, answer.json()["details"]["field"]) == (400, "wait")
        assert (await gateway(api.service).jobs())[0] == ()


@pytest.mark.slow
async def test_waits_of_a_caller_are_bounded_and_a_preference_is_given_up_first(tmp_path: Path) -> None:
    hold = Hold()
    before = settings(tmp_path)
    few = attrs.evolve(before, server=attrs.evolve(before.server, max_connections=16))
    async with scripted_api(tmp_path, Script(at={"step 0/1": hold}), changed=few) as api:
        job = (await api.http.post("/api/v1/generate", json=CALL)).json()["job_id"]
        await hold.reached.wait()
        path = f"/api/v1/jobs/{job}"
        async with trio.open_nursery() as nursery:
            for _ in range(connection_limits(few.server).per_address * 3 // 4):
                nursery.start_soon(partial(api.http.get, f"{path}?wait=60"))
            # Server and clients are in one loop.
            await wait_all_tasks_blocked(0.05)
            assert (await api.http.get(f"{path}?wait=60")).status_code == 429
            answer = await api.http.post("/sdapi/v1/txt2img", json=CALL, headers={"Prefer": "wait=60"})
            assert (answer.status_code, answer.headers.get("preference-applied")) == (202, None)
            assert (await api.http.get(path)).status_code == 200
            hold.release.set()


@pytest.mark.slow
@pytest.mark.parametrize("wait", ["respond-async", "wait=60"])
async def test_job_that_goes_on_without_its_client_is_its_own_in_progress_and_interrupt(
    tmp_path: Path, wait: str
) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"step 0/2": hold})) as api:
        call = partial(api.http.post, "/sdapi/v1/txt2img", json=CALL, headers={"Prefer": wait})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await hold.reached.wait()
            shown = (await api.http.get("/sdapi/v1/progress")).json()
            assert (shown["state"]["job"], shown["state"]["sampling_step"]) == ("txt2img", 1)
            assert (await api.http.post("/sdapi/v1/interrupt")).json()["interrupted"] is True
        (view,) = (await gateway(api.service).jobs())[0]
        assert (await ended(api.service, view.job.id)).status is Status.CANCELLED
        idle = (await api.http.get("/sdapi/v1/progress")).json()
        assert (idle["progress"], idle["state"]["job_count"]) == (0, 0)
        assert (await api.http.post("/sdapi/v1/interrupt")).json()["interrupted"] is False


@pytest.mark.slow
async def test_task_of_a_job_that_went_on_without_its_client_is_finished(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"step 0/1": hold})) as api:
        call = CALL | {"force_task_id": "mine"}
        answer = await api.http.post("/sdapi/v1/txt2img", json=call, headers={"Prefer": "respond-async"})
        task = partial(api.http.post, "/internal/progress", json={"id_task": "mine"})
        assert (await task()).json()["completed"] is False
        hold.release.set()
        await ended(api.service, answer.json()["id"])
        assert [(await task()).json()["completed"] for _ in range(2)] == [True, True]


@pytest.mark.slow
async def test_calls_of_jobs_that_have_ended_are_not_kept(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        calls = ClientCalls(gateway(api.service))
        for seed in range(20):
            job = await api.finished(seed)
            await calls.keep(f"client {seed}", "txt2img", None, job.id)
        assert len(calls._calls) <= 3
        for _ in range(MOST_KEPT + 5):
            await calls.keep("one", "txt2img", None, job.id)
        assert len(calls._calls["one"]) <= MOST_KEPT
