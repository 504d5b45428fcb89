"""A1111's clients for Python, as their users write: discover, set the model, generate, watch, stop, edit, upscale."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import easyai.main
import pytest
import requests
import webuiapi
from aaa1111 import AAA1111

from tests.clients.running import OTHER_KEY, SIDE, Running, image, opened, right_half

SMALL: dict[str, Any] = {"prompt": "a lake at dawn", "width": SIDE, "height": SIDE, "steps": 2, "seed": 7}
LONG: dict[str, Any] = SMALL | {"steps": 200, "width": 512, "height": 512}


@pytest.fixture
def api(server: Running) -> webuiapi.WebUIApi:
    user, password = server.basic or (None, None)
    return webuiapi.WebUIApi(host="127.0.0.1", port=server.port, username=user, password=password)


def aaa(server: Running) -> AAA1111:
    user, password = server.basic or (None, None)
    return AAA1111(port=server.port, username=user, password=password)


class InBackground:
    """A call that another thread makes, and what it gave."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self._thread = threading.Thread(target=lambda: setattr(self, "result", call()))
        self._thread.start()

    def wait(self) -> Any:
        self._thread.join(60)
        assert not self._thread.is_alive(), "the call did not end"
        return self.result


def watch(look: Callable[[], Any]) -> Any:
    """Look until a step is told; every look has numbers where clients calculate."""
    for _ in range(10_000):
        seen = look()
        assert isinstance(seen["progress"], float)
        assert isinstance(seen["eta_relative"], float)
        if seen["state"]["sampling_step"] > 0:
            return seen
    raise AssertionError("no step was told")


def test_webuiapi_discovers_everything_it_has_methods_for(api: webuiapi.WebUIApi) -> None:
    assert api.util_get_sampler_names()[0].startswith("Euler")
    assert api.get_upscalers()[0]["name"] == "None"
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_cmd_flags()["api"] is True
    assert api.get_memory()["ram"]["total"] > 0
    assert api.refresh_checkpoints() is not None
    assert [item["name"] for item in api.get_schedulers()] == api.util_get_scheduler_names()
    lists = (
        api.get_sd_vae, api.get_latent_upscale_modes, api.get_loras, api.get_hypernetworks, api.get_face_restorers,
        api.get_realesrgan_models, api.get_prompt_styles,
    )  # fmt: skip
    assert all(isinstance(each(), list) for each in lists)


def test_webuiapi_sets_the_model_that_it_then_generates_with(api: webuiapi.WebUIApi) -> None:
    for name in ("demo-base", "demo"):
        api.util_set_model(name)
        api.util_wait_for_ready(check_interval=0.1)
        assert api.util_get_current_model() == name
        assert api.txt2img(**SMALL).info["sd_model_name"] == name


def test_webuiapi_generates_several_images_that_tell_how_they_were_made(api: webuiapi.WebUIApi) -> None:
    made = api.txt2img(**SMALL, negative_prompt="fog", batch_size=2, n_iter=1, sampler_name="DPM++ 2M", styles=[])
    assert [each.size for each in made.images] == [(SIDE, SIDE)] * 2
    assert made.info["all_seeds"] == [7, 8]
    told = api.png_info(made.images[1])
    assert "Seed: 8" in told.info
    assert told.parameters["Size-1"] in (SIDE, str(SIDE))


def test_webuiapi_edits_where_its_mask_is_white(api: webuiapi.WebUIApi, png: bytes) -> None:
    before = opened(png)
    white_left = before.convert("L").point(lambda _: 0)
    white_left.paste(255, (0, 0, SIDE // 2, SIDE))
    made = api.img2img(
        images=[before], mask_image=white_left, mask_blur=0, inpainting_fill=1, inpaint_full_res=False,
        denoising_strength=1.0, **SMALL,
    )  # fmt: skip
    assert right_half(made.image) == right_half(before)
    assert made.image.convert("RGB").tobytes() != before.tobytes()


def test_webuiapi_upscales(api: webuiapi.WebUIApi, png: bytes) -> None:
    assert api.extra_single_image(opened(png), upscaler_1="Lanczos", upscaling_resize=2).image.size == (128, 128)
    both = api.extra_batch_images([opened(png)] * 2, upscaler_1="Nearest", upscaling_resize=2)
    assert [each.size for each in both.images] == [(128, 128)] * 2


def test_webuiapi_watches_and_interrupts_its_own_call(api: webuiapi.WebUIApi) -> None:
    call = InBackground(lambda: api.txt2img(**LONG))
    seen = watch(api.get_progress)
    assert 0 < seen["progress"] < 1
    assert (seen["state"]["sampling_steps"], seen["state"]["job_count"]) == (200, 1)
    api.interrupt()
    assert call.wait().images == []
    api.util_wait_for_ready(check_interval=0.1)


def test_webuiapi_is_told_what_is_wrong(api: webuiapi.WebUIApi, server: Running) -> None:
    with pytest.raises(RuntimeError, match="width"):
        api.txt2img(**SMALL | {"width": 9999})
    with pytest.raises(RuntimeError, match="write the prompt yourself"):
        api.interrogate(opened(image()))
    if server.key is not None:
        with pytest.raises(RuntimeError, match="401"):
            webuiapi.WebUIApi(port=server.port, username="user", password="wrong" * 5).txt2img(**SMALL)


def test_aaa1111_reads_every_answer_with_its_own_types(server: Running) -> None:
    api = aaa(server)
    api.set_options(sd_model_checkpoint="demo")
    assert api.get_options()["sd_model_checkpoint"] == "demo"
    assert "demo" in [model.title for model in api.sd_models()]
    asked = (
        api.samplers, api.upscalers, api.latent_upscale_modes, api.sd_vae, api.hypernetworks, api.face_restorers,
        api.realesrgan_models, api.prompt_styles, api.script_info, api.loras,
    )  # fmt: skip
    assert all(isinstance(each(), list) for each in asked)
    assert api.memory().ram
    assert api.embeddings().loaded == {}
    assert api.scripts().txt2img == []
    for act in (api.refresh_checkpoints, api.refresh_loras, api.interrupt, api.skip):
        act()
    made = api.txt2img({**SMALL, "cfg_scale": 1.0})
    assert made.images[0].size == (SIDE, SIDE)
    assert made.info["seed"] == 7
    assert api.progress(skip_current_image=True).progress == 0


def test_easyai_generates_and_edits(server: Running, png: bytes) -> None:
    """Its synchronous calls fail on any server: they read an attribute that answers of requests do not have."""
    user, password = server.basic or (None, None)
    api = easyai.main.EasyAPI(port=server.port, username=user, password=password)
    assert "demo" in api.util_get_model_names()

    async def both() -> tuple[Any, Any]:
        return (
            await api.txt2img(**SMALL, use_async=True),
            await api.img2img(images=[opened(png)], **SMALL, use_async=True),
        )

    made, edited = asyncio.run(both())
    assert (made.image.size, edited.image.size) == ((SIDE, SIDE), (SIDE, SIDE))


def test_interrupt_ends_no_call_of_another_client(server: Running, api: webuiapi.WebUIApi) -> None:
    """Without keys an address is one client, and the cookie that comes with a choice of a model makes another."""
    call = InBackground(lambda: api.txt2img(**SMALL | {"steps": 40, "width": 128, "height": 128}))
    watch(api.get_progress)
    other = requests.Session()
    if server.key is not None:
        other.headers["Authorization"] = f"Bearer {OTHER_KEY}"
    other.post(f"{server.url}/sdapi/v1/options", json={"sd_model_checkpoint": "demo"}, timeout=9).raise_for_status()
    assert other.post(f"{server.url}/sdapi/v1/interrupt", timeout=9).json()["interrupted"] is False
    assert len(call.wait().images) == 1
