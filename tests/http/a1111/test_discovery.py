"""What A1111's clients ask for before they generate: every route answers in the shape that they read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from mflux_api.http.a1111.checkpoints import plain_name
from mflux_api.http.a1111.client_options import ClientOptions
from tests.support.harness import gateway, model_in_memory, settings
from tests.support.http_server import connect
from tests.support.scripted_api import Api, scripted_api

pytestmark = pytest.mark.slow

PLAIN = {"prompt": "a lake", "width": 64, "height": 64, "steps": 1}
CALL = {"prompt": "a lake", "width": 64, "height": 64, "steps": 1, "cfg_scale": 1}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    before = settings(tmp_path)
    changed = attrs.evolve(before, models=attrs.evolve(before.models, default="demo"))
    async with scripted_api(tmp_path, changed=changed) as running:
        yield running


async def got(api: Api, path: str, **headers: str) -> Any:
    answer = await api.http.get(path, headers=headers)
    assert answer.status_code == 200, path
    return answer.json()


async def test_every_list_has_the_shape_that_clients_read(api: Api) -> None:
    sdapi = "/sdapi/v1"
    assert (await got(api, f"{sdapi}/samplers"))[0]["name"].startswith("Euler")
    assert (await got(api, f"{sdapi}/schedulers"))[0]["label"] == "Simple"
    assert (await got(api, f"{sdapi}/upscalers"))[0]["name"] == "None"
    assert await got(api, f"{sdapi}/embeddings") == {"loaded": {}, "skipped": {}}
    assert await got(api, f"{sdapi}/scripts") == {"txt2img": [], "img2img": []}
    assert (await got(api, f"{sdapi}/cmd-flags"))["api"] is True
    choices = {each["props"]["elem_id"]: each["props"]["choices"] for each in (await got(api, "/config"))["components"]}
    assert choices == {"setting_sd_lora": [], "txt2img_hr_upscaler": []}
    assert (await got(api, "/"))["model"] == "demo"
    assert await got(api, f"{sdapi}//samplers/") == await got(api, f"{sdapi}/samplers")
    memory = await got(api, f"{sdapi}/memory")
    assert memory["ram"]["total"] > memory["ram"]["free"] > 0
    empty = ("latent-upscale-modes", "sd-vae", "sd-modules", "hypernetworks", "face-restorers", "realesrgan-models")
    for name in (*empty, "script-info", "extensions"):
        assert await got(api, f"{sdapi}/{name}") == []


async def test_loras_have_names_for_tags_and_no_place_on_the_disk(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "loras" / "styles" / "ink.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    expected = {"name": "styles/ink", "alias": "loras/styles/ink", "path": "styles/ink.safetensors", "metadata": {}}
    assert await got(api, "/sdapi/v1/loras") == [expected]
    components = (await got(api, "/config"))["components"]
    assert [each["props"]["choices"] for each in components] == [["styles/ink"], []]


async def test_checkpoints_are_the_usable_models_the_default_first_and_options_show_a_title_of_them(api: Api) -> None:
    checkpoints = await got(api, "/sdapi/v1/sd-models")
    titles = [each["title"] for each in checkpoints]
    assert titles[0] == "demo"
    assert "seedvr2" not in "".join(titles)
    assert {"title", "model_name", "hash", "sha256", "filename", "config"} == checkpoints[0].keys()
    assert "/" not in checkpoints[0]["filename"]
    options = await got(api, "/sdapi/v1/options")
    assert options["sd_model_checkpoint"] == "demo"
    assert options["sd_checkpoint_hash"].startswith(checkpoints[0]["hash"])
    assert "forge_preset" not in options


async def test_chosen_model_is_that_of_the_clients_calls_and_of_no_other_clients(api: Api) -> None:
    own = {"Cookie": "mflux_client=" + "a" * 32}
    whole = await got(api, "/sdapi/v1/options") | {"sd_model_checkpoint": "demo-base"}
    set_options = await api.http.post("/sdapi/v1/options", json=whole, headers=own)
    assert set_options.json() == {"warnings": []}
    assert "set-cookie" not in set_options.headers
    assert (await got(api, "/sdapi/v1/options", **own))["sd_model_checkpoint"] == "demo-base"
    assert (await got(api, "/sdapi/v1/options"))["sd_model_checkpoint"] == "demo"
    for headers, body, model in (
        (own, CALL, "demo-base"),
        ({}, CALL, "demo"),
        (own, CALL | {"override_settings": {"sd_model_checkpoint": "demo.safetensors [29555887]"}}, "demo"),
        (own, PLAIN, "demo-base"),
        (own, PLAIN | {"model": "demo"}, "demo"),
        (own, PLAIN | {"sd_model_checkpoint": "demo [2955588727]"}, "demo"),
        ({}, PLAIN, "demo"),
    ):
        answer = (await api.http.post("/sdapi/v1/txt2img", json=body, headers=headers)).json()
        assert answer["parameters"]["model"] == model
    progress = await got(api, "/sdapi/v1/progress", **own)
    assert (progress["progress"], progress["state"]["job_count"]) == (0, 0)


async def test_client_without_cookies_chooses_for_its_address_and_gets_a_cookie_of_its_own(api: Api) -> None:
    answer = await api.http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "demo-base [0123456789]"})
    assert "HttpOnly" in answer.headers["set-cookie"]
    api.http.cookies.clear()
    assert (await got(api, "/sdapi/v1/options"))["sd_model_checkpoint"] == "demo-base"
    cookie = {"Cookie": answer.headers["set-cookie"].partition(";")[0]}
    await api.http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "demo"}, headers=cookie)
    assert (await got(api, "/sdapi/v1/options", **cookie))["sd_model_checkpoint"] == "demo"
    assert (await got(api, "/sdapi/v1/options"))["sd_model_checkpoint"] == "demo-base"
    # A page elsewhere has no part in this client's choice.
    elsewhere = await got(api, "/sdapi/v1/options", **cookie, Origin="http://evil.example")
    assert elsewhere["sd_model_checkpoint"] == "demo-base"
    page = {**cookie, "Origin": "http://evil.example"}
    chosen = await api.http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "demo-base"}, headers=page)
    assert (chosen.status_code, "set-cookie" in chosen.headers) == (200, False)
    assert (await got(api, "/sdapi/v1/options", **cookie))["sd_model_checkpoint"] == "demo"


async def test_checkpoint_can_be_chosen_by_its_hash(api: Api) -> None:
    short = (await got(api, "/sdapi/v1/sd-models"))[0]["hash"]
    answer = await api.http.post("/sdapi/v1/txt2img", json=CALL | {"sd_model_checkpoint": short})
    assert answer.json()["parameters"]["model"] == "demo"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"sd_model_checkpoint": "sd_xl_base_1.0"}, 400, "sd-models"),
        ({"sd_model_checkpoint": "schnell"}, 404, "Flux1 models removed"),
        ({"sd_model_checkpoint": "seedvr2-3b"}, 400, "upscale"),
        ({"sd_model_checkpoint": 5}, 400, "title"),
        ({"sd_model_checkpoint": None}, 200, None),
        ({}, 200, None),
        ({"CLIP_stop_at_last_layers": 2}, 200, "CLIP_stop_at_last_layers"),
        ({"samples_format": "webp"}, 200, "samples_format"),
        ({"samples_format": "png", "sd_vae": "Automatic"}, 200, None),
        ({"sd_lora": "x"}, 200, "sd_lora"),
    ],
)
async def test_options_that_cannot_be_are_refused_and_those_without_effect_are_told(
    api: Api, body: dict[str, Any], status: int, said: str | None
) -> None:
    answer = await api.http.post("/sdapi/v1/options", json=body)
    assert answer.status_code == status
    if said is None:
        assert answer.json() == {"warnings": []}
    else:
        assert said in answer.text
    assert (await got(api, "/sdapi/v1/options"))["sd_model_checkpoint"] == "demo"


async def test_model_that_calls_may_not_name_cannot_be_chosen(tmp_path: Path) -> None:
    before = settings(tmp_path)
    changed = attrs.evolve(before, models=attrs.evolve(before.models, default="demo", auto_download=False))
    async with scripted_api(tmp_path, changed=changed) as api:
        titles = [each["title"] for each in await got(api, "/sdapi/v1/sd-models")]
        assert titles == ["demo", "demo-base"]
        refused = await api.http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "flux2-klein-4b"})
        assert (refused.status_code, refused.json()["code"]) == (400, "MODEL_NOT_DOWNLOADED")
        assert (await got(api, "/sdapi/v1/options"))["sd_model_checkpoint"] in titles


async def test_checkpoints_leave_the_memory_and_come_back(api: Api) -> None:
    assert (await api.http.post("/sdapi/v1/reload-checkpoint")).json() == {"models": ["demo"]}
    assert (await api.http.post("/sdapi/v1/refresh-checkpoints")).json() == {"models": ["demo"]}
    assert (await api.http.post("/sdapi/v1/unload-checkpoint")).json() == {"models": []}
    assert await model_in_memory(gateway(api.service)) is None


@pytest.mark.parametrize("value", ["", "Basic ", "Basic", "Basic Og==", "Bearer", "Basic  ", "Bearer "])
async def test_empty_credentials_are_none(api: Api, value: str) -> None:
    async with connect(api.port) as client:
        head = f"GET /sdapi/v1/samplers HTTP/1.1\r\nHost: localhost\r\nAuthorization: {value}\r\n\r\n"
        await client.stream.send_all(head.encode())
        status, _ = await client.answer()
        assert status == 200


def test_names_lose_what_a1111_puts_behind_them_where_that_makes_an_alias() -> None:
    known = ("demo", "flux2-klein-4b")
    for name in ("demo", "demo [0123abcdef]", "demo.safetensors", "Demo.safetensors [0123abcdef]", " demo.ckpt "):
        assert plain_name(name, known) == "demo"
    for name in ("demo2 [0123abcdef]", "other.safetensors", "[0123abcdef]", ""):
        assert plain_name(name, known) == name


def test_options_of_the_least_recent_client_are_forgotten_when_there_are_too_many() -> None:
    options = ClientOptions(most=2)
    options.choose("a", "demo", source="1")
    options.choose("b", "demo", source="2")
    assert options.model_of("a") == "demo"
    options.choose("c", "demo-base", source="3")
    assert [options.model_of(client) for client in ("a", "b", "c")] == ["demo", None, "demo-base"]
    assert options.model_of("b", None, "c") == "demo-base"


def test_client_that_keeps_no_cookies_pushes_out_no_choice_of_another_source() -> None:
    options = ClientOptions(most=4, most_of_one_source=2)
    options.choose("another", "demo", source="elsewhere")
    for number in range(10):
        options.choose("address", "demo-base", source="address")
        options.choose(f"cookie {number}", "demo-base", source="address")
    assert options.model_of("another") == "demo"
    assert options.model_of("address") == options.model_of("cookie 9") == "demo-base"
    assert options.model_of("cookie 8") is None
    assert options.model_of("address", "cookie 8") == "demo-base"
    # The same client elsewhere counts there, and no longer where it was.
    options.choose("another", "demo-base", source="address")
    assert options.model_of("another") == options.model_of("address") == "demo-base"
    assert options.model_of("cookie 9") is None
