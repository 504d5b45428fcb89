"""OpenAI's event streams over a scripted engine: images on the way, then each finished one, or an error as the last."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio
from PIL import Image

from mflux_api.http.openai import streaming
from mflux_api.jobs.job import Status
from tests.support.harness import eventually, gateway, settings
from tests.support.sample_images import scene, to_base64
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Fail, Hold, Script

pytestmark = pytest.mark.slow

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
CALL: dict[str, Any] = {"prompt": "a lake", "size": "64x64", "steps": 4, "seed": 7, "stream": True}
IMAGE = to_base64(scene((64, 64)))


def small(folder: Path) -> Any:
    before = settings(folder)
    return attrs.evolve(before, models=attrs.evolve(before.models, default="demo"))


@asynccontextmanager
async def an_api(folder: Path, **moments: Any) -> AsyncIterator[Api]:
    async with scripted_api(folder, Script(at={**moments}), changed=small(folder)) as api:
        yield api


@asynccontextmanager
async def opened(api: Api, path: str = GENERATIONS, **fields: Any) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Open a stream; its events come as they are sent."""
    headers = fields.pop("headers", {})
    async with api.http.stream("POST", path, json=CALL | fields, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()

        async def events() -> AsyncIterator[dict[str, Any]]:
            name = ""
            async for line in lines:
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: "))
                    assert data["type"] == name
                    yield data

        yield events()


async def every(api: Api, path: str = GENERATIONS, **fields: Any) -> list[dict[str, Any]]:
    async with opened(api, path, **fields) as events:
        return [event async for event in events]


def image_of(event: dict[str, Any]) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(event["b64_json"])))


@pytest.mark.parametrize(
    ("path", "fields", "prefix"), [(GENERATIONS, {}, "image_generation"), (EDITS, {"image": IMAGE}, "image_edit")]
)
async def test_partial_images_come_before_the_image(
    tmp_path: Path, path: str, fields: dict[str, Any], prefix: str
) -> None:
    middle, end = Hold(), Hold()
    async with an_api(tmp_path, **{"step 0/3": middle, "image 0": end}) as api:
        seen = list[dict[str, Any]]()
        async with opened(api, path, partial_images=2, output_format="jpeg", **fields) as events:
            async for event in events:
                seen.append(event)
                (middle if len(seen) == 1 else end).release.set()
    assert [event["type"] for event in seen] == [f"{prefix}.partial_image"] * 2 + [f"{prefix}.completed"]
    assert [event["partial_image_index"] for event in seen[:2]] == [0, 1]
    for event in seen:
        assert (image_of(event).format, image_of(event).size) == ("JPEG", (64, 64))
        assert (event["size"], event["output_format"], event["background"]) == ("64x64", "jpeg", "opaque")
        assert event["created_at"] > 0
    assert seen[-1]["usage"]["total_tokens"] > 0
    assert seen[-1]["warnings"] == []


async def test_stream_without_partial_images_is_one_completed_event_for_each_image(tmp_path: Path) -> None:
    async with an_api(tmp_path) as api:
        seen = await every(api, n=2, partial_images=0)
    assert [event["type"] for event in seen] == ["image_generation.completed"] * 2
    assert [(event["image_index"], event["seed"]) for event in seen] == [(0, 7), (1, 8)]


async def test_more_partial_images_than_steps_before_the_last_are_told(tmp_path: Path) -> None:
    async with an_api(tmp_path) as api:
        *_, end = await every(api, steps=2, partial_images=3)
        assert len(end["warnings"]) == 1
        assert "'partial_images' 3 was changed to 1" in end["warnings"][0]
        *_, end = await every(api, response_format="url")
        assert end["warnings"] == ["'response_format' url has no effect with 'stream': its events hold the images"]
        answer = await api.http.post(GENERATIONS, json=CALL | {"stream": False, "partial_images": 2})
        assert answer.json()["warnings"] == ["'partial_images' has no effect without 'stream'"]


async def test_job_that_fails_is_the_error_that_the_sdks_raise(tmp_path: Path) -> None:
    async with an_api(tmp_path, **{"step 0/2": Fail()}) as api:
        (error,) = await every(api)
    assert error["type"] == "error"
    assert error["error"].keys() == {"message", "type", "param", "code", "details"}
    assert (error["error"]["type"], error["error"]["code"]) == ("server_error", "generation_failed")


async def test_what_is_wrong_with_a_call_is_no_stream(tmp_path: Path) -> None:
    async with an_api(tmp_path) as api:
        answer = await api.http.post(GENERATIONS, json=CALL | {"model": "nope"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_job_of_a_client_that_leaves_its_stream_is_cancelled(tmp_path: Path) -> None:
    hold = Hold()
    async with an_api(tmp_path, **{"step 0/2": hold}) as api:
        async with opened(api, partial_images=1):
            await hold.reached.wait()
        await eventually(lambda: idle(api))
        (view,) = (await gateway(api.service).jobs())[0]
        assert view.job.status is Status.CANCELLED
        assert gateway(api.service).in_flight.used == 0


async def test_job_that_is_cancelled_by_others_ends_its_stream_with_an_error(tmp_path: Path) -> None:
    hold = Hold()
    async with an_api(tmp_path, **{"step 0/2": hold}) as api, opened(api) as events:
        await hold.reached.wait()
        (view,) = (await gateway(api.service).jobs())[0]
        await api.service.cancel(view.job.id)
        assert [event["error"]["code"] async for event in events] == ["job_cancelled"]


async def test_interrupt_ends_a_stream(tmp_path: Path) -> None:
    hold = Hold()
    async with an_api(tmp_path, **{"step 0/2": hold}) as api, opened(api) as events:
        await hold.reached.wait()
        assert (await api.http.post("/sdapi/v1/interrupt")).status_code == 200
        assert [event["type"] async for event in events] == ["error"]


async def test_key_makes_one_job_and_a_stream_that_comes_again_has_its_image(tmp_path: Path) -> None:
    hold, headers = Hold(), {"Idempotency-Key": "once"}
    async with an_api(tmp_path, **{"step 0/2": hold}) as api:
        async with opened(api, headers=headers):
            await hold.reached.wait()
        hold.release.set()
        first = await every(api, headers=headers)
        again = await every(api, headers=headers)
        assert [event["type"] for event in again] == ["image_generation.completed"]
        assert first[-1]["b64_json"] == again[0]["b64_json"]
        assert len((await gateway(api.service).jobs())[0]) == 1


async def test_stream_says_that_it_lives_while_its_job_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.02)
    hold = Hold()
    async with an_api(tmp_path, **{"step 0/2": hold}) as api:
        async with api.http.stream("POST", GENERATIONS, json=CALL) as answer:
            lines = answer.aiter_lines()
            assert [await anext(lines) for _ in range(2)] == [": keep-alive"] * 2
            hold.release.set()
            names = [line async for line in lines if line.startswith("event")]
        assert names == ["event: image_generation.completed"]


async def test_no_room_for_partial_images_costs_only_those(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hold = Hold()
    async with an_api(tmp_path, **{"step 0/1": hold}) as api:
        in_flight = gateway(api.service).in_flight
        with in_flight.open() as others:
            others.grow_anyway(in_flight._limit)
            async with opened(api, partial_images=3) as events:
                await eventually(lambda: "no room for partial images" in caplog.text)
                others.release()
                hold.release.set()
                assert [event["type"] async for event in events] == ["image_generation.completed"]


async def idle(api: Api) -> bool:
    load = await gateway(api.service).status()
    return load.active == load.queued == 0


async def post(api: Api, answers: list[httpx.Response], **fields: Any) -> None:
    answers.append(await api.http.post(GENERATIONS, json=CALL | fields))


async def test_streams_of_one_engine_wait_for_each_other(tmp_path: Path) -> None:
    answers = list[httpx.Response]()
    async with an_api(tmp_path) as api, trio.open_nursery() as nursery:
        for seed in range(4):
            nursery.start_soon(lambda each: post(api, answers, seed=each), seed)
    ends = [json.loads(answer.text.partition("data: ")[2]) for answer in answers]
    assert sorted(end["seed"] for end in ends) == [0, 1, 2, 3]
