"""Calls of plug-ins and tools, as their sources send them, and what they read of the answers."""

import base64
import json
from typing import Any

import pytest
import requests

from tests.clients.running import SIDE, Running, image, opened
from tests.clients.test_replayed_calls import DATA_URL, SECONDS, Client

DIFY: dict[str, Any] = {
    "prompt": "", "negative_prompt": "", "seed": -1, "subseed": -1, "subseed_strength": 0, "seed_resize_from_h": -1,
    "seed_resize_from_w": -1, "sampler_name": "DPM++ 2M", "batch_size": 1, "n_iter": 1, "steps": 2, "cfg_scale": 7,
    "width": SIDE, "height": SIDE, "do_not_save_samples": False, "do_not_save_grid": False, "override_settings": {},
    "override_settings_restore_afterwards": True, "refiner_checkpoint": "", "refiner_switch_at": 0,
    "disable_extra_networks": False, "enable_hr": False, "firstphase_width": 0, "firstphase_height": 0, "hr_scale": 2,
    "hr_second_pass_steps": 0, "hr_resize_x": 0, "hr_resize_y": 0, "hr_prompt": "", "hr_negative_prompt": "",
    "script_args": [], "send_images": True, "save_images": False, "alwayson_scripts": {},
}  # fmt: skip


@pytest.fixture
def keyless(server: Running) -> Client:
    """A client that has no way to send a key."""
    if server.key is not None:
        pytest.skip("this plug-in has no option for a key")
    return Client(server.url)


@pytest.fixture
def openai(server: Running) -> Client:
    return Client(server.openai, Authorization=f"Bearer {server.any_key}")


def test_dify_sends_json_without_saying_so(keyless: Client) -> None:
    assert "demo" in [model["model_name"] for model in keyless.get("/sdapi/v1/sd-models")]

    def post(path: str, body: dict[str, Any]) -> Any:
        answer = requests.post(keyless.url + path, data=json.dumps(body), timeout=SECONDS)
        assert "Content-Type" not in answer.request.headers
        assert answer.status_code == 200, answer.text
        return answer.json()

    post("/sdapi/v1/options", {"sd_model_checkpoint": "demo"})
    asked = DIFY | {
        "prompt": "a lake",
        "lora": "",
        "model": "demo",
        "override_settings": {"sd_model_checkpoint": "demo"},
    }
    assert opened(post("/sdapi/v1/txt2img", asked)["images"][0]).size == (SIDE, SIDE)


def test_dify_with_dall_e(openai: Client) -> None:
    asked = {
        "prompt": "a lake",
        "model": "dall-e-3",
        "size": "256x256",
        "n": 1,
        "style": "vivid",
        "quality": "standard",
    }
    (made,) = openai.post("/images/generations", asked | {"response_format": "b64_json"})["data"]
    assert opened(made["b64_json"]).size == (256, 256)


def test_stable_studio_generates_edits_upscales_and_reads_an_infotext(keyless: Client, png: bytes) -> None:
    keyless.http.headers.update({"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"})
    plain = base64.b64encode(png).decode()
    assert keyless.get("/sdapi/v1/options")["sd_model_checkpoint"]
    assert all(sampler["name"] for sampler in keyless.get("/sdapi/v1/samplers"))
    assert keyless.post("/sdapi/v1/options", {"sd_model_checkpoint": "demo"}) is not None
    asked = {
        "seed": -1, "cfgScale": 7, "width": SIDE, "height": SIDE, "sampler_name": "", "sampler_index": "",
        "prompt": "a lake", "negative_prompt": "fog", "steps": 2, "batch_size": 2, "save_images": True,
    }  # fmt: skip
    made = keyless.post("/sdapi/v1/txt2img", asked)
    assert len(made["images"]) == 2
    given = {"init_images": [plain], "denoising_strength": 0.5, "mask": plain, "inpainting_mask_invert": 1}
    edited = keyless.post("/sdapi/v1/img2img", asked | given | {"inpainting_fill": 1, "inpaint_full_res": False})
    assert len(edited["images"]) == 2
    larger = {"seed": -1, "cfgScale": 7, "upscaling_resize_w": 128, "upscaling_resize_h": 128, "image": plain}
    upscaled = keyless.post("/sdapi/v1/extra-single-image", larger | {"upscaler_1": "Lanczos"})
    assert opened(upscaled["image"]).size == (128, 128)
    info = keyless.post("/sdapi/v1/png-info", {"image": DATA_URL + made["images"][0]})["info"].split("\n")
    details = info[2 if len(info) == 3 else 1].split(",")
    assert all(len(each.split(":")) > 1 for each in details)


def test_auto_photoshop_looks_around_and_inpaints(keyless: Client, png: bytes) -> None:
    """It takes any JSON at /user for a running server, and null options for an API that is switched off."""
    for path in ("/user", "/config", "/controlnet/version"):
        assert isinstance(requests.get(keyless.url + path, timeout=SECONDS).json(), dict)
    assert keyless.get("/sdapi/v1/options") is not None
    assert isinstance(keyless.get("/sdapi/v1/scripts")["txt2img"], list)
    keyless.post("/sdapi/v1/options", {"inpainting_mask_weight": 1})
    plain = base64.b64encode(png).decode()
    asked = {
        "prompt": "a red house", "negative_prompt": "", "steps": 2, "width": SIDE, "height": SIDE, "cfg_scale": "7",
        "batch_size": 1, "n_iter": 1, "seed": "-1", "mask_blur": 4, "inpainting_fill": 1, "inpaint_full_res": 0,
        "inpaint_full_res_padding": 0, "inpainting_mask_invert": 0, "denoising_strength": 0.7, "mask_expansion": 4,
        "sampler_index": "Euler a", "restore_faces": False, "init_images": [plain], "mask": plain,
        "use_prompt_shortcut": True, "prompt_shortcut_ui_dict": {}, "uniqueDocumentId": "1", "mode": "inpaint",
        "use_sharp_mask": False, "init_image_name": "a.png", "init_image_mask_name": "b.png", "alwayson_scripts": {},
    }  # fmt: skip
    made = keyless.post("/sdapi/v1/img2img", asked)
    assert opened(made["images"][0].split(",", 1)[0]).size == (SIDE, SIDE)
    told = keyless.get("/sdapi/v1/progress?skip_current_image=false")
    assert told["progress"] == 0
    assert keyless.post("/sdapi/v1/interrupt") is not None


def test_n8n_generates_files_and_urls(openai: Client) -> None:
    assert openai.get("/models")["data"]
    for asked in (
        {"prompt": "a lake", "model": "dall-e-2", "response_format": "b64_json", "n": 2, "size": "256x256"},
        {"prompt": "a lake", "model": "gpt-image-1", "size": "256x256"},
    ):
        made = openai.post("/images/generations", asked)["data"]
        assert {opened(item["b64_json"]).size for item in made} == {(256, 256)}
    asked = {"prompt": "a lake", "model": "dall-e-3", "response_format": "url", "style": "vivid", "size": "256x256"}
    (made,) = openai.post("/images/generations", asked | {"quality": "hd"})["data"]
    assert requests.get(made["url"], timeout=SECONDS).headers["Content-Type"] == "image/png"


def test_home_assistants_generate_image_has_a_url_and_no_base64(openai: Client) -> None:
    asked = {"model": "dall-e-3", "prompt": "a lake", "size": "256x256", "quality": "standard", "style": "vivid"}
    (made,) = openai.post("/images/generations", asked | {"response_format": "url", "n": 1})["data"]
    assert requests.get(made["url"], timeout=SECONDS).ok
    assert "b64_json" not in made


def test_lobe_chat_edits_with_high_fidelity(openai: Client, png: bytes) -> None:
    fields = {"model": "demo", "n": "1", "input_fidelity": "high", "prompt": "in ink"}
    made = openai.post("/images/edits", data=fields, files=[("image", ("a.png", png, "image/png"))])
    assert opened(made["data"][0]["b64_json"]).size == (SIDE, SIDE)
    assert made["warnings"] == []
    counted = made["usage"]["input_tokens_details"]
    assert counted["image_tokens"] + counted["text_tokens"] == made["usage"]["input_tokens"]


def test_big_agis_schema_takes_an_absent_text_and_no_null(openai: Client) -> None:
    for form in ("url", "b64_json"):
        asked = {"prompt": "a lake", "model": "dall-e-3", "n": 1, "quality": "standard", "size": "256x256"}
        made = openai.post("/images/generations", asked | {"style": "natural", "response_format": form})
        assert isinstance(made["created"], int)
        assert all(isinstance(item[form], str) for item in made["data"])
        assert all(value is not None for item in made["data"] for value in item.values())


def test_image_that_a_tool_names_by_its_url_is_refused_with_a_reason(openai: Client) -> None:
    """OpenAI's JSON form of an edit takes https addresses, too; this server opens no address for a stranger."""
    body = {"model": "demo", "prompt": "in ink", "images": [{"image_url": "https://example.com/a.png"}]}
    answer = openai.http.post(f"{openai.url}/images/edits", json=body, timeout=SECONDS)
    assert answer.status_code == 400
    assert "image" in answer.json()["error"]["message"]
    body["images"] = [{"image_url": DATA_URL + base64.b64encode(image()).decode()}]
    assert openai.post("/images/edits", body)["data"]
