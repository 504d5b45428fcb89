"""Bodies over HTTP: what is not known is a warning, and what no route expects is not kept."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mflux_api.config import LoraSettings
from mflux_api.http.app import create_app
from mflux_api.http.body import MAX_BODY_BYTES
from mflux_api.http.body_limits import LIMITS, SMALL_BODY_BYTES, BodyLimit
from tests.support.harness import ended, eventually, gateway
from tests.support.http_server import connect
from tests.support.scripted_api import Api, scripted_api
from tests.support.server import ROOT

BODY = {"prompt": "a red house", "model": "demo", "width": 64, "height": 64, "steps": 1}
UNKNOWN = {"callback": "http://localhost", "userdata": {"user": ["a"]}}
WARNING = "'callback', 'userdata' are not known here, and were ignored"


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


@pytest.mark.parametrize("fields", [{}, {"cfg_scale": 1, "styles": [], "alwayson_scripts": {"a": {"args": []}}}])
async def test_synchronous_answer_names_unknown_fields_and_no_field_of_a1111(
    api: Api, fields: dict[str, object]
) -> None:
    known = await api.http.post("/sdapi/v1/txt2img", json=BODY | fields)
    assert (known.status_code, known.json()["warnings"]) == (200, [])
    answer = await api.http.post("/sdapi/v1/txt2img", json=BODY | fields | UNKNOWN)
    assert (answer.status_code, answer.json()["warnings"]) == (200, [WARNING])


async def test_guidance_that_was_forced_is_a_warning_by_the_clients_name_for_it(api: Api) -> None:
    answer = (await api.http.post("/sdapi/v1/txt2img", json=BODY | {"cfg_scale": "7.0"})).json()
    assert answer["warnings"] == ["'cfg_scale' 7 was set to 1: 'demo' is distilled, and always runs at 1"]
    answer = (await api.http.post("/api/v1/generate", json=BODY | {"guidance": 7, "softness": 1})).json()
    assert answer["warnings"] == [
        "'guidance' 7 was set to 1: 'demo' is distilled, and always runs at 1",
        "'softness' has no effect: the model is not an upscaler",
    ]


@pytest.mark.parametrize("path", ["/api/v1/generate", "/sdapi/v1/txt2img"])
async def test_what_stands_in_the_address_in_place_of_the_body_is_a_warning(api: Api, path: str) -> None:
    answer = await api.http.post(f"{path}?steps=4&seed=7", json=BODY)
    assert answer.json()["warnings"] == ["'steps', 'seed' in the address have no effect: use the body"]


async def test_parameters_that_a_list_of_jobs_or_a_job_does_not_know_are_a_warning(api: Api) -> None:
    job = await api.finished()
    meant = "'imges' is not known: did you mean 'images'?"
    assert (await api.http.get(f"/api/v1/jobs/{job.id}?imges=url")).json()["warnings"] == [meant]
    answer = (await api.http.get("/api/v1/jobs?statuz=failed&limit=1")).json()
    assert answer["warnings"] == ["'statuz' is not known: did you mean 'status'?"]
    assert (await api.http.get(f"/api/v1/jobs/{job.id}?images=url")).json()["warnings"] == []
    assert (await api.http.get("/api/v1/jobs?status=failed")).json() == {
        "jobs": [],
        "next_cursor": None,
        "warnings": [],
    }


async def test_idempotency_key_of_a_call_that_waits_is_a_warning(api: Api) -> None:
    answer = await api.http.post("/sdapi/v1/txt2img", json=BODY, headers={"Idempotency-Key": "a"})
    assert answer.json()["warnings"] == ["'Idempotency-Key' has no effect here: only POST /api/v1/generate keeps keys"]


async def test_misspelled_dry_run_is_told_by_what_removes_records(api: Api) -> None:
    answer = await api.http.post("/api/v1/jobs/prune", json={"older_than_hours": 1, "dryrun": True})
    assert answer.json()["warnings"] == ["'dryrun' is not known: did you mean 'dry_run'?"]


@pytest.mark.parametrize("name", ["styles", "send_images", "save_images", "soft_inpainting", "hires_fix"])
async def test_field_of_another_program_is_not_called_a_misspelled_one(api: Api, name: str) -> None:
    answer = await api.http.post("/api/v1/generate", json=BODY | {name: True})
    assert answer.json()["warnings"] == [f"'{name}' is not known here, and was ignored"]


@pytest.mark.parametrize("fields", [{"init_images": []}, {"init_images": [None]}, {"mask": ""}, {"extend": {}}])
async def test_fields_of_edits_without_an_image_are_quiet_in_txt2img(api: Api, fields: dict[str, Any]) -> None:
    answer = await api.http.post("/sdapi/v1/txt2img", json=BODY | fields)
    assert (answer.status_code, answer.json()["warnings"]) == (200, [])


@pytest.mark.parametrize("images", ["base64", "url"])
async def test_parameter_that_an_event_stream_does_not_know_is_a_warning_of_its_end(api: Api, images: str) -> None:
    job = await api.finished()
    events = (await api.http.get(f"/api/v1/jobs/{job.id}/stream?images={images}&preview=jpeg")).text
    _, _, end = events.partition("event: complete\ndata: ")
    assert json.loads(end)["warnings"] == ["'preview' is not known: did you mean 'previews'?"]


@pytest.mark.parametrize(("field", "value"), [("older_than_hours", "5"), ("older_than_hours", -1), ("dry_run", "true")])
async def test_error_of_prune_shows_the_value_that_was_sent(api: Api, field: str, value: object) -> None:
    answer = await api.http.post("/api/v1/jobs/prune", json={"older_than_hours": 1, field: value})
    details = answer.json()["details"]
    assert (answer.status_code, details["field"], details["value"]) == (400, field, value)


async def test_init_images_that_txt2img_does_not_take_are_a_warning(api: Api) -> None:
    answer = await api.http.post("/sdapi/v1/txt2img", json=BODY | {"init_images": ["a"]})
    assert (answer.status_code, len(answer.json()["warnings"])) == (200, 1)
    assert "'init_images' has no effect here: send it to /sdapi/v1/img2img" in answer.json()["warnings"][0]


def test_bodies_are_decoded_in_one_place_by_the_fields_that_are_known() -> None:
    other_ways = re.compile(r"get_json|get_data|request\.json|json\.loads|json\.decode|json\.Decoder")
    found = [path.name for path in (ROOT / "mflux_api" / "http").rglob("*.py") if other_ways.search(path.read_text())]
    # Gradio's login is no JSON and has a size of its own.
    assert set(found) <= {"body.py", "login.py"}


# --- how large ---

UPLOAD = BodyLimit(LoraSettings().max_upload_mb * 2**20, streams=True)
ROUTES = {
    ("POST", "/api/v1/loras"): UPLOAD,
    ("POST", "/api/v1/loras/"): UPLOAD,
    ("POST", "/api/v1/generate"): BodyLimit(MAX_BODY_BYTES),
    ("POST", "/sdapi/v1/txt2img/"): BodyLimit(MAX_BODY_BYTES),
    ("POST", "/sdapi/v1/img2img"): BodyLimit(MAX_BODY_BYTES),
    ("POST", "/sdapi/v1/extra-batch-images/"): BodyLimit(MAX_BODY_BYTES),
    ("POST", "/api/v1/models/demo/load"): BodyLimit(SMALL_BODY_BYTES),
    ("POST", "/api/v1/models/demo/download/"): BodyLimit(SMALL_BODY_BYTES),
    ("POST", "/api/v1/jobs/prune"): BodyLimit(SMALL_BODY_BYTES),
    ("POST", "/api/v1/jobs/cancel"): BodyLimit(SMALL_BODY_BYTES),
    ("POST", "/nothing"): BodyLimit(SMALL_BODY_BYTES),
    ("PUT", "/api/v1/loras"): BodyLimit(SMALL_BODY_BYTES),
    ("GET", "/api/v1/loras"): BodyLimit(0),
    ("DELETE", "/api/v1/jobs/0123456789ab"): BodyLimit(0),
    ("OPTIONS", "/api/v1/generate"): BodyLimit(0),
}


async def test_limit_is_that_of_the_route_however_its_path_is_spelled(api: Api) -> None:
    limits = create_app(gateway(api.service)).config[LIMITS]
    assert {route: limits.of(*route) for route in ROUTES} == ROUTES


@pytest.mark.parametrize("path", ["/api/v1/jobs/prune", "/api/v1/models/demo/load/", "/api/v1/models/demo/download"])
async def test_large_body_where_no_image_is_expected_is_413(api: Api, path: str) -> None:
    answer = await api.http.post(path, content=b" " * (SMALL_BODY_BYTES + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "BODY_TOO_LARGE")
    assert answer.json()["error"] == "The request's body is over 256 KB"
    assert answer.json()["details"] == {"limit_bytes": SMALL_BODY_BYTES}


async def test_path_that_is_not_there_is_404_whatever_is_sent(api: Api) -> None:
    answer = await api.http.post("/nothing", content=b" " * (SMALL_BODY_BYTES + 1))
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS", "HEAD"])
async def test_body_of_a_request_that_has_none_is_not_kept(api: Api, method: str) -> None:
    in_flight = gateway(api.service).in_flight
    async with connect(api.port) as client:
        head = f"{method} /api/v1/jobs/0123456789ab HTTP/1.1\r\nHost: test\r\nContent-Length: 10000000\r\n\r\n"
        await client.stream.send_all(head.encode() + bytes(1_000_000))
        assert (await client.stream.receive_some()).startswith((b"HTTP/1.1 404", b"HTTP/1.1 200"))
        assert in_flight.used == 0
    await eventually(lambda: in_flight.used == 0)
