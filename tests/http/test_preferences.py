"""``Prefer: respond-async`` and ``wait=``: clients that need not keep a connection open for their images."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mflux_api.http.preferences import MAX_WAIT_SECONDS, Preferences, parse_preferences
from mflux_api.jobs.job import Status
from tests.support.harness import ended, gateway
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
    ],
)
def test_preferences_are_read_and_nonsense_is_none(values: list[str], respond_async: bool, wait: float | None) -> None:
    assert parse_preferences(values) == Preferences(respond_async=respond_async, wait=wait)


@given(st.lists(st.text(max_size=60), max_size=5))
def test_any_header_is_read(values: list[str]) -> None:
    assert parse_preferences(values).seconds >= 0


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
