"""OpenAI's images API over a scripted engine: what its SDKs send, and read."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio
from PIL import Image

from mflux_api.config import OpenAISettings, SecuritySettings
from mflux_api.jobs.job import Status
from tests.support.harness import eventually, gateway, runs, settings
from tests.support.lora_files import lora_bytes
from tests.support.sample_images import scene, to_base64
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Fail, Hold, Script

pytestmark = pytest.mark.slow

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
CALL: dict[str, Any] = {"prompt": "a lake", "model": "demo", "size": "64x64", "steps": 1, "seed": 7}
PNG = base64.b64decode(to_base64(scene((64, 64))))


def small(folder: Path, **changes: Any) -> Any:
    before = settings(folder)
    return attrs.evolve(before, models=attrs.evolve(before.models, default="demo"), **changes)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with scripted_api(tmp_path, changed=small(tmp_path)) as running:
        yield running


async def made(api: Api, path: str = GENERATIONS, **fields: Any) -> Any:
    answer = await api.http.post(path, json=CALL | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(api: Api, path: str = GENERATIONS, **fields: Any) -> tuple[int, dict[str, Any]]:
    answer = await api.http.post(path, json=CALL | fields)
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code", "details"}
    return answer.status_code, error


def opened(item: Any) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(item["b64_json"])))


async def test_answer_has_what_the_sdks_read(api: Api) -> None:
    answer = await made(api, n=2, size="70x64")
    assert [opened(item).size for item in answer["data"]] == [(64, 64), (64, 64)]
    assert [item["seed"] for item in answer["data"]] == [7, 8]
    assert [item.keys() for item in answer["data"]] == [{"b64_json", "seed"}] * 2
    assert (answer["size"], answer["output_format"], answer["background"]) == ("64x64", "png", "opaque")
    assert answer["usage"] == {
        "input_tokens": 2,
        "output_tokens": 32,
        "total_tokens": 34,
        "input_tokens_details": {"text_tokens": 2, "image_tokens": 0},
    }
    assert answer["warnings"] == ["'size' 70x64 was changed to 64x64: sides are multiples of 16"]


async def test_no_answer_has_a_null_which_clients_with_a_schema_refuse(api: Api) -> None:
    answers = [await made(api, response_format=form) for form in ("b64_json", "url", None)]
    answers.append(await made(api, EDITS, image=base64.b64encode(PNG).decode(), size="auto"))
    answers.append((await api.http.get("/v1/models")).json())
    streamed = await api.http.post(GENERATIONS, json=CALL | {"stream": True, "partial_images": 0})
    answers += [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert len(answers) == 6
    assert [answer for answer in answers if "null" in json.dumps(answer)] == []


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_images_have_the_format_that_is_asked_for(api: Api, kind: str) -> None:
    answer = await made(api, output_format=kind, output_compression=30)
    assert opened(answer["data"][0]).format == kind.upper()
    assert answer["output_format"] == kind
    assert [text for text in answer["warnings"] if "output_compression" in text] == answer["warnings"]
    assert bool(answer["warnings"]) is (kind == "png")


@pytest.mark.parametrize(
    ("quality", "steps", "told"),
    [(None, 4, "medium"), ("auto", 4, "medium"), ("standard", 4, "medium"), ("low", 2, "low"), ("high", 8, "high"),
     ("hd", 8, "high"), ("max", 12, "max")],
)  # fmt: skip
async def test_quality_is_how_many_steps(tmp_path: Path, quality: str | None, steps: int, told: str) -> None:
    script = Script()
    async with scripted_api(tmp_path, script, changed=small(tmp_path)) as api:
        answer = await made(api, quality=quality, steps=None)
        assert answer["quality"] == told
        assert runs(script)[0][0].steps == steps
        assert "beside 'steps'" in "".join((await made(api, quality="hd", steps=3))["warnings"])
        assert runs(script)[1][0].steps == 3


@pytest.mark.parametrize(("size", "result"), [(None, "256x256"), ("auto", "256x256"), ("128X64", "128x64")])
async def test_size_may_be_left_to_the_model(api: Api, size: str | None, result: str) -> None:
    assert (await made(api, size=size))["size"] == result


async def test_what_does_nothing_is_told_and_what_clients_always_send_is_not(api: Api) -> None:
    assert (await made(api, style="vivid", foo=1))["warnings"] == [
        "'style' has no effect: say it in the prompt",
        "'foo' is not known here, and was ignored",
    ]
    quiet: dict[str, Any] = {
        "background": "auto",
        "moderation": "low",
        "user": "me",
        "response_format": None,
        "style": None,
    }
    assert (await made(api, **quiet))["warnings"] == []


async def test_additions_are_ours(tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "ink.safetensors").write_bytes(lora_bytes(1))
    script = Script()
    async with scripted_api(tmp_path, script, changed=small(tmp_path)) as api:
        await made(api, lora=["ink:0.5"], negative_prompt="rain", guidance=2.0, model="demo-base")
        run = runs(script)[0][0]
        assert (run.negative_prompt, run.guidance, run.lora_scales) == ("rain", 2.0, (0.5,))
        await made(api, lora="ink")
        assert runs(script)[1][0].lora_scales == (1.0,)


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "nope"}, 404, "model_not_found", "model"),
        ({"model": "seedvr2-3b"}, 404, "model_not_found", "model"),
        ({"prompt": ""}, 400, "invalid_parameter", "prompt"),
        ({"prompt": None}, 400, "invalid_parameter", "prompt"),
        ({"n": 99}, 400, "invalid_parameter", "n"),
        ({"n": "2"}, 400, "invalid_parameter", "n"),
        ({"size": "9x9"}, 400, "invalid_parameter", "size"),
        ({"size": "4096x64"}, 400, "invalid_parameter", "size"),
        ({"size": "large"}, 400, "invalid_parameter", "size"),
        ({"background": "transparent"}, 400, "invalid_parameter", "background"),
        ({"output_format": "gif"}, 400, "invalid_parameter", "output_format"),
        ({"quality": "ultra"}, 400, "invalid_parameter", "quality"),
        ({"partial_images": 4}, 400, "invalid_parameter", "partial_images"),
        ({"lora": "no such lora"}, 400, "invalid_parameter", "lora"),
    ],
)
async def test_errors_have_openais_shape_and_its_names(
    api: Api, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    found, error = await refused(api, **fields)
    assert (found, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"


async def test_every_other_failure_under_v1_has_that_shape_too(tmp_path: Path) -> None:
    async with scripted_api(tmp_path, changed=small(tmp_path)) as api:
        for method, path, status, code in (
            ("GET", "/v1/nothing", 404, "not_found"),
            ("GET", GENERATIONS, 405, "method_not_allowed"),
            ("GET", "/v1/models/nope", 404, "model_not_found"),
            ("POST", "/v1/images/variations", 501, "not_yet_supported"),
        ):
            answer = await api.http.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        broken = await api.http.post(GENERATIONS, content=b"{")
        assert broken.json()["error"]["code"] == "invalid_json"
        strange = await api.http.get("/v1/models", headers={"Host": "evil.example"})
        assert (strange.status_code, strange.json()["error"]["type"]) == (403, "invalid_request_error")
        for path in (GENERATIONS, "/v1/models"):
            assert (await api.http.options(path)).status_code == 200


async def test_failures_that_would_be_the_same_again_are_not_tried_again_by_the_sdks(tmp_path: Path) -> None:
    script = Script(at={"encoding": Fail("GENERATION_FAILED")})
    async with scripted_api(tmp_path, script, changed=small(tmp_path)) as api:
        answer = await api.http.post(GENERATIONS, json=CALL)
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert answer.headers["x-should-retry"] == "false"


async def test_keys_are_asked_for_in_openais_words(tmp_path: Path) -> None:
    keys = SecuritySettings(api_keys=("a key of nineteen letters",))
    async with scripted_api(tmp_path, changed=small(tmp_path, security=keys)) as api:
        answer = await api.http.post(GENERATIONS, json=CALL)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_url_is_readable_without_a_key_for_a_while_and_no_other_path_is(tmp_path: Path) -> None:
    keys = SecuritySettings(api_keys=("a key of nineteen letters",))
    header = {"Authorization": "Bearer a key of nineteen letters"}
    async with scripted_api(tmp_path, changed=small(tmp_path, security=keys)) as api:
        body = CALL | {"response_format": "url", "output_format": "webp"}
        answer = await api.http.post(GENERATIONS, json=body, headers=header)
        (item,) = answer.json()["data"]
        assert item.keys() == {"url", "seed"}
        url = item["url"]
        assert url.startswith(f"http://127.0.0.1:{api.port}/api/v1/jobs/")
        image = await api.http.get(url)
        assert (image.status_code, image.headers["content-type"]) == (200, "image/webp")
        for other in (url.replace("webp", "png"), url.replace("/images/0", "/images/1"), url + "&size=64", url[:-1]):
            assert (await api.http.get(other)).status_code == 401
        assert (await api.http.delete(url)).status_code == 401


@pytest.mark.parametrize(
    ("asked", "base64_too", "url_too"),
    [({"model": "dall-e-3"}, True, True), ({"model": None}, True, True), ({"model": "gpt-image-1"}, True, False),
     ({"model": "dall-e-2", "response_format": "b64_json"}, True, False),
     ({"model": "dall-e-2", "response_format": "url"}, False, True)],
)  # fmt: skip
async def test_clients_of_dall_e_find_the_url_that_they_do_not_ask_for(
    api: Api, asked: Any, base64_too: bool, url_too: bool
) -> None:
    answer = await made(api, **asked, n=2)
    forms = [("b64_json" in item, "url" in item) for item in answer["data"]]
    assert forms == [(base64_too, url_too)] * 2
    for index, item in enumerate(answer["data"]):
        if url_too:
            assert item["url"].endswith(f"/images/{index}")
            assert Image.open(BytesIO((await api.http.get(item["url"])).content)).size == (64, 64)


async def test_what_is_left_empty_is_not_there(api: Api) -> None:
    empty = dict.fromkeys(("quality", "response_format", "style", "background", "output_format", "lora", "size"), "")
    assert (await made(api, **empty))["warnings"] == []


async def test_choice_that_is_none_is_told_those_that_there_are(api: Api) -> None:
    status, error = await refused(api, quality="superb")
    assert (status, error["param"]) == (400, "quality")
    choices = "auto, standard, low, medium, high, hd, xhigh, max"
    assert error["message"] == f"'quality' is invalid: expected one of {choices}"
    assert error["details"]["limit"] == f"one of {choices}"


async def test_pages_may_send_what_the_sdk_says_of_itself_and_nothing_else(api: Api) -> None:
    sdk = ["x-stainless-lang", "x-stainless-retry-count"]
    asked = ", ".join([*sdk, "authorization", "x-forwarded-for", "x-stainless-\t", "x-stainless-" + "a" * 41])
    headers = {"Origin": "http://page.example", "Access-Control-Request-Headers": asked}
    answer = await api.http.options(GENERATIONS, headers=headers)
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert allowed[-2:] == sdk
    assert "authorization" in allowed
    assert not {"x-forwarded-for", "x-stainless-", "x-stainless-" + "a" * 41} & {*allowed}
    many = {"Origin": "http://page.example", "Access-Control-Request-Headers": "x-stainless-os," * 500}
    answer = await api.http.options(GENERATIONS, headers=many)
    assert answer.headers["access-control-allow-headers"].count("x-stainless-os") == 32


async def test_edits_take_files_as_the_sdks_send_them(tmp_path: Path) -> None:
    script = Script()
    fields = {"prompt": "in ink", "model": "demo", "size": "64x64", "steps": "1", "n": "1", "partial_images": "0"}
    async with scripted_api(tmp_path, script, changed=small(tmp_path)) as api:
        for names in (["image"], ["image[]"], ["image", "image"], ["image[]", "image[]"]):
            files = [(name, ("a.png", PNG, "image/png")) for name in names]
            answer = await api.http.post(EDITS, data=fields, files=files)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["input_tokens_details"]["image_tokens"] == 16 * len(names)
            run = runs(script)[-1][0]
            assert (len(run.references), run.image_strength) == (len(names), 1.0)
        text = base64.b64encode(PNG).decode()
        # What Open WebUI sends of what was left empty.
        empty = fields | {"model": "None", "size": "None", "background": "None", "quality": "None"}
        answer = await api.http.post(EDITS, data=empty, files=[("image", ("a.png", PNG, "image/png"))])
        assert (answer.status_code, answer.json()["warnings"]) == (200, [])
        for body in ({"image": text}, {"image": [text]}, {"images": [{"image_url": f"data:image/png;base64,{text}"}]}):
            assert (await api.http.post(EDITS, json=CALL | body)).status_code == 200
        assert (await refused(api, EDITS))[1]["param"] == "image"
        assert (await refused(api, EDITS, images=[{}]))[1]["param"] == "images[0]"


async def test_of_a_mask_what_is_transparent_is_inpainted(api: Api) -> None:
    mask, buffer = Image.new("RGBA", (64, 64), (0, 0, 0, 255)), BytesIO()
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    mask.save(buffer, "PNG")
    files = [("image", ("a.png", PNG, "image/png")), ("mask", ("m.png", buffer.getvalue(), "image/png"))]
    answer = await api.http.post(EDITS, data={"prompt": "x", "model": "demo", "steps": "1"}, files=files)
    result, source = opened(answer.json()["data"][0]).convert("RGB"), Image.open(BytesIO(PNG)).convert("RGB")
    assert result.crop((48, 0, 64, 64)).tobytes() == source.crop((48, 0, 64, 64)).tobytes()
    assert result.crop((0, 0, 16, 64)).tobytes() != source.crop((0, 0, 16, 64)).tobytes()
    # The same as JSON: as a text, and as OpenAI's own form has it.
    text, image = base64.b64encode(buffer.getvalue()).decode(), base64.b64encode(PNG).decode()
    for given in (text, {"image_url": f"data:image/png;base64,{text}"}, {"b64_json": text}):
        answer = await api.http.post(EDITS, json=CALL | {"image": image, "mask": given, "size": "auto"})
        again = opened(answer.json()["data"][0]).convert("RGB")
        assert again.crop((48, 0, 64, 64)).tobytes() == source.crop((48, 0, 64, 64)).tobytes()
    assert (await refused(api, EDITS, image=image, mask={"file_id": "file-1"}))[1]["param"] == "mask"
    text_in_a_form = {"prompt": "x", "model": "demo", "steps": "1", "mask": text}
    answer = await api.http.post(EDITS, data=text_in_a_form, files=files[:1])
    assert (answer.status_code, answer.json()["warnings"]) == (200, [])


async def test_names_that_clients_have_built_in_are_the_default_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with scripted_api(tmp_path, changed=small(tmp_path)) as api:
        for name in ("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-2.5-flare", None, ""):
            await made(api, model=name)
        assert (await api.http.get("/v1/models/dall-e-2")).json()["id"] == "dall-e-2"
        listed = (await api.http.get("/v1/models")).json()
        assert listed["data"][0]["id"] == "demo"
        assert {each["object"] for each in listed["data"]} == {"model"}
    assert caplog.text.count("openai.aliases") == 1
    strict = small(tmp_path / "strict", openai=OpenAISettings(aliases=False))
    async with scripted_api(tmp_path / "strict", changed=strict) as api:
        assert (await refused(api, model="dall-e-3"))[0] == 404
        assert (await api.http.get("/v1/models/dall-e-2")).status_code == 404


async def test_job_of_a_client_that_leaves_is_cancelled(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"step 0/1": hold}), changed=small(tmp_path)) as api:
        with trio.move_on_after(5) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(post, api, CALL, {}, list[httpx.Response]())
                await hold.reached.wait()
                scope.cancel()
        await eventually(lambda: idle(api))
        (job,) = (await gateway(api.service).jobs())[0]
        assert job.job.status is Status.CANCELLED


async def test_key_makes_one_job_however_often_it_is_sent(tmp_path: Path) -> None:
    hold, script_answers, headers = Hold(), list[httpx.Response](), {"Idempotency-Key": "once"}
    script = Script(at={"step 0/1": hold})
    async with scripted_api(tmp_path, script, changed=small(tmp_path)) as api:
        with trio.move_on_after(5) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(post, api, CALL, headers, script_answers)
                await hold.reached.wait()
                scope.cancel()
        # Its answer was lost; the job goes on, and the call that comes again gets its image.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, api, CALL, headers, script_answers)
            hold.release.set()
        await post(api, CALL, headers, script_answers)
        first, second = script_answers
        assert first.status_code == 200
        assert first.json() == second.json()
        assert len(runs(script)) == 1
        await post(api, CALL | {"seed": 8}, headers, script_answers)
        assert script_answers[-1].status_code == 409


async def post(api: Api, body: Any, headers: dict[str, str], into: list[httpx.Response]) -> None:
    into.append(await api.http.post(GENERATIONS, json=body, headers=headers))


async def idle(api: Api) -> bool:
    load = await gateway(api.service).status()
    return load.active == load.queued == 0
