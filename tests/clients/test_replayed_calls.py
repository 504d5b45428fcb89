"""Calls of applications that are too large to run here, as their sources send them, and what they read of the answers.

docs/clients.md says which release each was read from.
"""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import aiohttp
import pytest
import requests

from tests.clients.running import SIDE, Running, image, opened

SECONDS = 60
DATA_URL = "data:image/png;base64,"


class Client:
    """What an application does with one connection pool and one kind of credentials."""

    def __init__(self, url: str, **headers: str) -> None:
        self.url = url
        self.http = requests.Session()
        self.http.headers.update(headers)

    def get(self, path: str) -> Any:
        answer = self.http.get(self.url + path, timeout=SECONDS)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        answer = self.http.post(self.url + path, json=body, timeout=SECONDS, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.fixture
def a1111(server: Running) -> Client:
    """Open WebUI, SillyTavern: the user's own text behind Basic, an empty one where there is none."""
    return Client(server.url, Authorization=basic("" if server.key is None else f"user:{server.key}"))


@pytest.fixture
def openai(server: Running) -> Client:
    return Client(server.openai, Authorization=f"Bearer {server.any_key}")


def test_open_webui_sets_the_model_and_generates(a1111: Client) -> None:
    options = a1111.get("/sdapi/v1/options")
    titles = {model["title"] for model in a1111.get("/sdapi/v1/sd-models")}
    assert options["sd_model_checkpoint"] in titles
    assert all(model["model_name"] for model in a1111.get("/sdapi/v1/sd-models"))
    for name in ("demo-base", "demo"):
        a1111.post("/sdapi/v1/options", options | {"sd_model_checkpoint": name})
        assert a1111.get("/sdapi/v1/options")["sd_model_checkpoint"] == name
    asked = {"prompt": "a lake", "batch_size": 2, "width": SIDE, "height": SIDE, "steps": 2, "negative_prompt": "fog"}
    made = a1111.post("/sdapi/v1/txt2img", asked)
    assert [opened(text).size for text in made["images"]] == [(SIDE, SIDE)] * 2
    assert json.loads(made["info"])["sd_model_name"] == "demo"


def test_open_webui_generates_by_openais_routes(openai: Client) -> None:
    asked = {"model": "dall-e-2", "prompt": "a lake", "n": 1, "size": "256x256", "response_format": "b64_json"}
    made = openai.post("/images/generations?api-version=2025-04-01", asked)
    # It takes the URL where there is one, and may not be allowed to open a private address.
    assert [item.get("url") for item in made["data"]] == [None]
    assert "b64_json" in made["data"][0]


def test_open_webui_edits_by_a_form_of_aiohttp(server: Running, png: bytes) -> None:
    async def edit(names: list[str]) -> Any:
        form = aiohttp.FormData()
        fields = {"model": "gpt-image-1", "prompt": "in ink", "n": "1", "size": "64x64", "background": "auto"}
        for name, value in fields.items():
            form.add_field(name, value)
        for name in names:
            form.add_field(name, BytesIO(png), filename="a.png", content_type="image/png")
        headers = {"Authorization": f"Bearer {server.any_key}"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{server.openai}/images/edits", headers=headers, data=form) as answer,
        ):
            answer.raise_for_status()
            return await answer.json(content_type=None)

    for names in (["image"], ["image[]", "image[]"]):
        (edited,) = asyncio.run(edit(names))["data"]
        assert opened(edited["b64_json"]).size == (SIDE, SIDE)
        assert not edited.get("url")


SILLY_TAVERN: dict[str, Any] = {
    "prompt": "a lake", "negative_prompt": "fog", "sampler_name": "Euler", "scheduler": "simple", "steps": 2,
    "cfg_scale": 1, "width": SIDE, "height": SIDE, "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent",
    "hr_scale": 1, "denoising_strength": 0.7, "hr_second_pass_steps": 0, "override_settings":
    {"CLIP_stop_at_last_layers": 1}, "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True,
    "send_images": True, "do_not_save_grid": False, "do_not_save_samples": False,
}  # fmt: skip


def test_sillytavern_stop_ends_its_image_and_not_the_next(a1111: Client, server: Running) -> None:
    """Its server drops the call and sends an interrupt, in either order."""
    dropped = Client(server.url, **{str(name): str(value) for name, value in a1111.http.headers.items()})
    for _ in range(3):
        body = SILLY_TAVERN | {"steps": 200, "width": 512, "height": 512}
        with pytest.raises(requests.ReadTimeout):
            dropped.http.post(f"{server.url}/sdapi/v1/txt2img", json=body, timeout=0.5)
        a1111.post("/sdapi/v1/interrupt")
        assert server.eventually_newest("cancelled")
        assert len(a1111.post("/sdapi/v1/txt2img", SILLY_TAVERN)["images"]) == 1


def test_librechat_makes_an_image_and_reads_its_metadata(a1111: Client) -> None:
    asked = {"prompt": "a lake", "negative_prompt": "fog", "cfg_scale": 4.5, "steps": 2, "width": SIDE, "height": SIDE}
    made = a1111.post("/sdapi/v1/txt2img", asked)
    info = json.loads(made["info"])
    assert opened(made["images"][0].split(",", 1)[0]).size == (info["width"], info["height"])
    assert "Steps: 2" in info["infotexts"][0].split("\n").pop()
    assert isinstance(info["seed"], int)


def test_librechat_edits_with_a_body_of_unknown_length(openai: Client, png: bytes) -> None:
    """Its axios sends the form as a stream, in chunks."""
    fields = {"model": "gpt-image-1", "prompt": "in ink", "quality": "auto", "size": "auto"}
    whole = requests.Request(
        "POST", openai.url, data=fields, files=[("image[]", ("a.png", png, "image/png"))]
    ).prepare()
    assert isinstance(whole.body, bytes)

    def chunks(body: bytes = whole.body) -> Iterator[bytes]:
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    headers = {"Content-Type": whole.headers["Content-Type"]}
    answer = openai.http.post(f"{openai.url}/images/edits", data=chunks(), headers=headers, timeout=SECONDS)
    assert answer.status_code == 200, answer.text
    assert opened(answer.json()["data"][0]["b64_json"]).size == (SIDE, SIDE)


def test_librechat_dall_e_tool_has_a_url(openai: Client) -> None:
    asked = {
        "model": "dall-e-3",
        "quality": "standard",
        "style": "vivid",
        "size": "256x256",
        "prompt": "a lake",
        "n": 1,
    }
    url = openai.post("/images/generations", asked)["data"][0]["url"]
    assert opened(requests.get(url, timeout=SECONDS).content).size == (256, 256)


def test_aiya_starts_and_serves_a_command(server: Running, png: bytes) -> None:
    """It looks for keys by the status of routes that it asks without one."""
    flags = requests.get(f"{server.url}/sdapi/v1/cmd-flags", timeout=SECONDS)
    assert flags.status_code == (200 if server.key is None else 401)
    assert requests.head(server.url, timeout=SECONDS).status_code in (200, 401)
    client = Client(server.url, **({} if server.key is None else {"Authorization": basic(f"user:{server.key}")}))
    version = client.http.get(f"{server.url}/sdapi/v1/version", timeout=SECONDS)
    assert version.json().get("app") != "sd.next"
    config = client.http.get(f"{server.url}/config", timeout=SECONDS)
    assert config.status_code == 200
    client.http.post(f"{server.url}/login", timeout=SECONDS)
    assert all(isinstance(part["props"], dict) for part in config.json()["components"])
    assert all(item["name"] for item in client.get("/sdapi/v1/samplers"))
    assert all(item["prompt"] is not None for item in client.get("/sdapi/v1/prompt-styles"))
    assert client.get("/sdapi/v1/embeddings") == {"loaded": {}, "skipped": {}}
    for path in ("face-restorers", "hypernetworks", "upscalers", "loras"):
        assert isinstance(client.get(f"/sdapi/v1/{path}"), list)
    assert all(model["filename"] and model["title"] for model in client.get("/sdapi/v1/sd-models"))

    asked = {
        "prompt": "a lake", "negative_prompt": "", "steps": 2, "width": SIDE, "height": SIDE, "cfg_scale": "1.0",
        "sampler_index": "Euler", "seed": 7, "seed_resize_from_h": -1, "seed_resize_from_w": -1,
        "denoising_strength": None, "n_iter": 1, "batch_size": 2, "styles": ["None"],
        "override_settings": {"CLIP_stop_at_last_layers": 1},
    }  # fmt: skip
    made = client.post("/sdapi/v1/txt2img", asked)
    for text, seed in zip(made["images"], (7, 8), strict=True):
        info = client.post("/sdapi/v1/png-info", {"image": DATA_URL + text})["info"]
        assert f"Seed: {seed}" in info.split("\n")[1]
    given = {"init_images": [DATA_URL + base64.b64encode(png).decode()], "denoising_strength": 0.75}
    assert len(client.post("/sdapi/v1/img2img", asked | given | {"batch_size": 1})["images"]) == 1
    larger = {
        "upscaling_resize": "2", "upscaler_1": "Lanczos", "image": DATA_URL + base64.b64encode(png).decode(),
        "gfpgan_visibility": 0.0, "codeformer_visibility": 0.0, "upscale_first": False, "upscaler_2": "Nearest",
        "extras_upscaler_2_visibility": "0.5",
    }  # fmt: skip
    assert opened(client.post("/sdapi/v1/extra-single-image", larger)["image"]).size == (2 * SIDE, 2 * SIDE)


def test_koboldai_lite_connects_from_a_page_elsewhere(server: Running) -> None:
    """It is a page of another origin, with no way to send a key to A1111's routes."""
    if server.key is not None:
        pytest.skip("KoboldAI Lite has no option for a key of A1111's API")
    client = Client(server.url, Origin="https://lite.koboldai.net", **{"Sec-Fetch-Site": "cross-site"})
    assert client.get("/sdapi/v1/sd-models")
    assert client.get("/sdapi/v1/options")["samples_format"] is not None
    asked = {
        "prompt": "a lake", "seed": 7, "sampler_name": "Euler a", "batch_size": 1, "n_iter": 1, "steps": 2,
        "cfg_scale": 5, "width": SIDE, "height": SIDE, "negative_prompt": "", "do_not_save_samples": True,
        "do_not_save_grid": True, "enable_hr": False, "eta": 0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1,
        "override_settings": {
            "sd_model_checkpoint": "demo", "eta_noise_seed_delta": 0.0, "CLIP_stop_at_last_layers": 1.0,
            "ddim_discretize": "uniform", "img2img_fix_steps": False, "sd_hypernetwork": "None",
            "inpainting_mask_weight": 1.0, "initial_noise_multiplier": 1.0, "comma_padding_backtrack": 20.0,
        },
    }  # fmt: skip
    assert opened(client.post("/sdapi/v1/txt2img", asked)["images"][0]).size == (SIDE, SIDE)
    given = {"init_images": [base64.b64encode(image()).decode()], "denoising_strength": 0.6}
    assert opened(client.post("/sdapi/v1/img2img", asked | given)["images"][0]).size == (SIDE, SIDE)
    assert client.http.head(server.url, timeout=SECONDS).headers["Access-Control-Allow-Origin"] == "*"


def test_koboldai_lite_sends_a_key_to_openais_routes_from_a_page_elsewhere(server: Running) -> None:
    page = {"Origin": "https://lite.koboldai.net", "Sec-Fetch-Site": "cross-site"}
    preflight = page | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = requests.options(f"{server.openai}/images/generations", headers=preflight, timeout=SECONDS)
    assert "authorization" in allowed.headers["Access-Control-Allow-Headers"].lower()
    client = Client(server.openai, **page, Authorization=f"Bearer {server.any_key}")
    asked = {"model": "demo", "prompt": "a lake", "n": 1, "size": "64x64", "response_format": "b64_json"}
    assert opened(client.post("/images/generations", asked)["data"][0]["b64_json"]).size == (SIDE, SIDE)


def test_two_clients_set_two_models_and_each_gets_its_own(server: Running) -> None:
    """Where no key tells them apart, the cookie of the answer to the choice does."""
    seen: dict[str, str] = {}

    def use(name: str) -> None:
        client = Client(server.url, **server.headers)
        client.post("/sdapi/v1/options", {"sd_model_checkpoint": name})
        asked = {"prompt": "a lake", "width": SIDE, "height": SIDE, "steps": 2, "cfg_scale": 1}
        seen[name] = json.loads(client.post("/sdapi/v1/txt2img", asked)["info"])["sd_model_name"]

    if server.key is not None:
        pytest.skip("one key is one client")
    threads = [threading.Thread(target=use, args=[name]) for name in ("demo", "demo-base")]
    for each in threads:
        each.start()
    for each in threads:
        each.join(SECONDS)
    assert seen == {"demo": "demo", "demo-base": "demo-base"}
