"""Calls in A1111's dialect whose job is cancelled: the answer tells of what happened, and of no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.support.harness import ended, eventually, runs
from tests.support.sample_images import scene, to_base64
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Hold, Script

BODY = {"prompt": "a red house", "model": "demo", "width": 64, "height": 64, "steps": 8, "seed": 5}


async def _cancelled(api: Api, hold: Hold, progress: float, **fields: Any) -> dict[str, Any]:
    """The answer of a call whose job is cancelled when its engine has come to the hold, and that is known."""
    answers: list[httpx.Response] = []
    async with trio.open_nursery() as nursery:

        async def call() -> None:
            answers.append(await api.http.post("/sdapi/v1/txt2img", json={**BODY, "cfg_scale": 1.0, **fields}))

        async def come_so_far() -> bool:
            (job,) = (await api.http.get("/api/v1/jobs")).json()["jobs"]
            return bool(job["progress"] == pytest.approx(progress))

        nursery.start_soon(call)
        await hold.reached.wait()
        await eventually(come_so_far)
        (job,) = (await api.http.get("/api/v1/jobs")).json()["jobs"]
        await api.http.delete(f"/api/v1/jobs/{job['id']}")
    (answer,) = answers
    assert answer.status_code == 200
    body: dict[str, Any] = answer.json()
    return body | {"info": json.loads(body["info"])}


@pytest.mark.parametrize(("moment", "steps"), [("encoding", 0), ("step 0/1", 0), ("step 0/4", 3), ("decoding", 8)])
async def test_cancelled_call_counts_the_steps_that_were_run(tmp_path: Path, moment: str, steps: int) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={moment: hold})) as api:
        answer = await _cancelled(api, hold, steps / 9)
    assert (answer["parameters"]["steps"], answer["parameters"]["steps_run"]) == (8, steps)


async def test_cancelled_call_without_images_tells_of_none(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"step 0/4": hold})) as api:
        answer = await _cancelled(api, hold, 3 / 18, batch_size=2)
    info = answer["info"]
    assert (answer["images"], answer["parameters"]["num_images"]) == ([], 0)
    assert (info["infotexts"], info["all_seeds"], info["all_prompts"], info["batch_size"]) == ([], [], [], 0)
    # webuiapi reads a number here.
    assert info["seed"] == 5


async def test_cancelled_call_tells_of_the_images_that_are_there(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"step 1/3": hold})) as api:
        answer = await _cancelled(api, hold, 11 / 27, batch_size=3)
    info = answer["info"]
    assert (len(answer["images"]), answer["parameters"]["num_images"], answer["parameters"]["steps_run"]) == (1, 1, 8)
    assert (len(info["infotexts"]), info["all_seeds"], info["batch_size"]) == (1, [5], 1)


async def test_partial_images_are_not_made_for_a_call_that_waits_and_are_for_one_that_does_not(tmp_path: Path) -> None:
    script = Script()
    async with scripted_api(tmp_path, script) as api:
        asked = BODY | {"partial_images": 2}
        answer = (await api.http.post("/sdapi/v1/txt2img", json=asked)).json()
        assert [warning.partition(" has no effect here")[0] for warning in answer["warnings"]] == ["'partial_images'"]
        later = await api.http.post("/sdapi/v1/txt2img", json=asked, headers={"Prefer": "respond-async"})
        assert later.json()["warnings"] == []
        await ended(api.service, later.json()["id"])
    assert [command.partial_images for command, _ in runs(script)] == [0, 2]


_OF_ALL = """
    alwayson_scripts batch_size cfg_scale comments denoising_strength disable_extra_networks do_not_save_grid
    do_not_save_samples eta force_task_id height infotext n_iter negative_prompt override_settings
    override_settings_restore_afterwards prompt refiner_checkpoint refiner_switch_at restore_faces s_churn
    s_min_uncond s_noise s_tmax s_tmin sampler_index sampler_name save_images scheduler script_args script_name seed
    seed_resize_from_h seed_resize_from_w send_images steps styles subseed subseed_strength tiling width
"""
_OF_TXT2IMG = """
    enable_hr firstpass_image firstphase_height firstphase_width hr_checkpoint_name hr_negative_prompt hr_prompt
    hr_resize_x hr_resize_y hr_sampler_name hr_scale hr_scheduler hr_second_pass_steps hr_upscaler
"""
_OF_IMG2IMG = """
    image_cfg_scale include_init_images init_images initial_noise_multiplier inpaint_full_res inpaint_full_res_padding
    inpainting_fill inpainting_mask_invert latent_mask mask mask_blur mask_blur_x mask_blur_y mask_round resize_mode
"""


@pytest.mark.parametrize(("route", "names"), [("txt2img", _OF_TXT2IMG), ("img2img", _OF_IMG2IMG)])
async def test_parameters_have_every_name_that_a1111_echoes(tmp_path: Path, route: str, names: str) -> None:
    async with scripted_api(tmp_path) as api:
        images = {"init_images": [to_base64(scene((64, 64)))]} if route == "img2img" else {}
        answer = await api.http.post(f"/sdapi/v1/{route}", json=BODY | {"cfg_scale": 1.0, **images})
        parameters = answer.json()["parameters"]
    assert set((_OF_ALL + names).split()) - parameters.keys() == set()
    assert (parameters["negative_prompt"], parameters["sampler_name"]) == ("", "Euler")
