"""A1111's fields without an effect here: what clients send in every call is quiet, and what asks for more is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from mflux_api.http.a1111 import no_effect
from mflux_api.http.a1111.dialect import (
    DIALECT_ALIASES,
    IMG2IMG_FIELDS,
    ONLY_FIELDS,
    TXT2IMG_FIELDS,
    explain_conflicts,
    snap_size,
    speaks_a1111,
    translate,
)
from mflux_api.http.a1111.sdapi_schemas import ExtraSingleImage
from mflux_api.jobs.json_fields import Fields, read_object
from mflux_api.jobs.parse import from_body
from mflux_api.jobs.warnings import MAX_OF_REQUEST
from tests.support.scripted_api import scripted_api

IMAGE = "A" * 5000

# What the clients' own code sends where their users chose nothing: webuiapi 0.9.17, SillyTavern 1.19, Open WebUI,
# LibreChat, AIYA, and the example of A1111's own API page.
WEBUIAPI = {
    "enable_hr": False,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "hr_checkpoint_name": None,
    "hr_sampler_name": None,
    "hr_scheduler": None,
    "hr_prompt": "",
    "hr_negative_prompt": "",
    "denoising_strength": 0.7,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "prompt": "a lake",
    "styles": [],
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0.0,
    "seed_resize_from_h": 0,
    "seed_resize_from_w": 0,
    "batch_size": 1,
    "n_iter": 1,
    "steps": 20,
    "cfg_scale": 7.0,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "tiling": False,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "negative_prompt": "",
    "eta": 1.0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "override_settings": {},
    "override_settings_restore_afterwards": True,
    "sampler_name": "Euler a",
    "scheduler": "automatic",
    "sampler_index": "Euler a",
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {"ADetailer": {"args": [False]}, "ControlNet": {"args": []}},
}
WEBUIAPI_IMG2IMG = {
    **{name: value for name, value in WEBUIAPI.items() if not name.startswith(("hr_", "firstphase", "enable_hr"))},
    "init_images": [IMAGE],
    "resize_mode": 0,
    "image_cfg_scale": 1.5,
    "mask_blur": 4,
    "inpainting_fill": 0,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 0,
    "inpainting_mask_invert": 0,
    "initial_noise_multiplier": 1,
    "include_init_images": False,
}
SILLYTAVERN = {
    "url": "http://localhost:7861",
    "auth": ":",
    "prompt": "a lake",
    "negative_prompt": "",
    "sampler_name": "DDIM",
    "scheduler": "normal",
    "steps": 20,
    "cfg_scale": 7,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 1.0,
    "hr_additional_modules": [],
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "seed": "-1",
    "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic", "forge_additional_modules": []},
    "override_settings_restore_afterwards": True,
    "clip_skip": 1,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}
OPEN_WEBUI = {"prompt": "a lake", "batch_size": 1, "width": 512, "height": 512, "steps": 50, "negative_prompt": ""}
LIBRECHAT = {"prompt": "a lake", "negative_prompt": "", "cfg_scale": 4.5, "steps": 22, "width": 1024, "height": 1024}
AIYA = {
    "prompt": "a lake",
    "negative_prompt": "",
    "steps": 30,
    "width": 512,
    "height": 512,
    "cfg_scale": 7.0,
    "sampler_index": "Euler a",
    "seed": 5,
    "n_iter": 1,
    "styles": [""],
    "override_settings": {"CLIP_stop_at_last_layers": 1},
}
A1111_PAGE = {
    "prompt": "",
    "styles": ["string"][:0],
    "subseed": 0,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": -1,
    "sampler_name": "",
    "scheduler": "",
    "eta": 0,
    "s_min_uncond": 0,
    "s_tmax": 0,
    "s_noise": 0,
    "refiner_checkpoint": "",
    "refiner_switch_at": 0,
    "disable_extra_networks": False,
    "firstpass_image": "",
    "comments": {},
    "force_task_id": "",
    "script_name": "None",
    "infotext": "",
    "alwayson_scripts": {},
    "distilled_cfg_scale": 3.5,
    "initial_noise_multiplier": 0,
    "latent_mask": None,
}


def told(body: dict[str, Any], fields: Fields = TXT2IMG_FIELDS) -> tuple[str, ...]:
    read = read_object(json.dumps(body).encode(), fields)
    assert speaks_a1111(read.values)
    return (*no_effect.explain(read.values), *read.warnings)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (WEBUIAPI, TXT2IMG_FIELDS),
        (WEBUIAPI_IMG2IMG, IMG2IMG_FIELDS),
        (SILLYTAVERN, TXT2IMG_FIELDS),
        (OPEN_WEBUI, TXT2IMG_FIELDS),
        (LIBRECHAT, TXT2IMG_FIELDS),
        (AIYA, TXT2IMG_FIELDS),
        (A1111_PAGE, TXT2IMG_FIELDS),
        (dict.fromkeys(ONLY_FIELDS), IMG2IMG_FIELDS),
    ],
    ids=["webuiapi", "webuiapi img2img", "SillyTavern", "Open WebUI", "LibreChat", "AIYA", "A1111's page", "nulls"],
)
def test_what_clients_send_where_nothing_was_chosen_is_quiet(body: dict[str, Any], fields: Fields) -> None:
    assert told(body, fields) == ()


ASKS: dict[str, Any] = {
    "enable_hr": True,
    "tiling": True,
    "restore_faces": "true",
    "script_name": "X/Y/Z plot",
    "subseed_strength": 0.3,
    "seed_resize_from_w": 768,
    "seed_resize_from_h": "768",
    "sampler_name": "DPM++ 2M",
    "sampler_index": "Heun",
    "scheduler": "Karras",
    "eta": 0.67,
    "s_churn": 5,
    "s_min_uncond": 0.5,
    "distilled_cfg_scale": 8,
    "image_cfg_scale": 3,
    "initial_noise_multiplier": 1.2,
    "refiner_checkpoint": "sd_xl_refiner",
    "disable_extra_networks": True,
    "firstpass_image": IMAGE,
    "resize_mode": 2,
    "latent_mask": IMAGE,
    "include_init_images": True,
    "do_not_save_samples": True,
    "clip_skip": 2,
    "alwayson_scripts": {"ControlNet": {"args": [{"enabled": True, "image": IMAGE}]}},
    "override_settings": {"sd_vae": "vae-ft-mse"},
}


@pytest.mark.parametrize("name", ASKS)
def test_field_that_asks_for_something_is_told_by_its_name(name: str) -> None:
    (warning,) = told({"prompt": "a", "cfg_scale": 1, name: ASKS[name]}, IMG2IMG_FIELDS)
    assert warning.startswith(f"'{name}'")
    assert "no effect" in warning


@pytest.mark.parametrize("value", [False, 0, "false", "FALSE", "off", "no", "0", ""])
def test_flag_that_is_off_is_quiet_however_it_is_written(value: object) -> None:
    assert told({"prompt": "a", "enable_hr": value, "tiling": value, "restore_faces": value}) == ()


def test_fields_beside_the_one_that_counts_add_no_sentence() -> None:
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.5, "hr_resize_x": 1024}
    assert len(told({"prompt": "a", **hires, "refiner_switch_at": 0.8, "subseed": 7, "script_args": [1]})) == 1


@pytest.mark.parametrize(
    ("scripts", "says"),
    [
        (
            {"ADetailer": {"args": [True, {"ad_model": "face"}]}, "never": {"args": [False, 3]}},
            "there is no 'ADetailer'",
        ),
        ({"controlnet": {"args": [{"enabled": False, "image": "a"}]}}, None),
        ({"ADetailer": {"args": [{"ad_model": "None"}, {"ad_model": "None"}]}}, None),
        ({"ADetailer": {"args": [True, False, {"ad_model": "None"}]}}, None),
        ({"Seed": {"args": [-1, False, -1, 0, 0, 0]}, "Sampler": {"args": [20, "DPM++ 2M", "Automatic"]}}, None),
        ({"x": {"args": [True]}}, "there is no 'x'"),
        ({"Dynamic Thresholding": {"args": [False, 7, 100]}, "empty": {}, "none": {"args": [None, ""]}}, None),
        ({f"script {number}": {"args": [1]} for number in range(8)}, "'script 4' and 3 more"),
        ({"s" * 500: {"args": ["my secret"]}}, f"'{'s' * 47}…'"),
        ({"large": {"args": ["A" * 20_000]}}, "there are no scripts"),
        ("ControlNet", "there are no scripts"),
    ],
)
def test_scripts_are_told_that_are_switched_on(scripts: object, says: str | None) -> None:
    warnings = told({"prompt": "a", "alwayson_scripts": scripts})
    assert len(warnings) == (says is not None)
    assert says is None or (says in warnings[0] and "secret" not in warnings[0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sd_model_checkpoint": "demo", "samples_save": False, "grid_format": "jpg", "sd_vae": None}, None),
        ({"CLIP_stop_at_last_layers": 2}, "'override_settings': 'CLIP_stop_at_last_layers' has no effect"),
        ({"sd_model_chekpoint": "demo", "sdxl_crop_top": 5}, "'sd_model_chekpoint', 'sdxl_crop_top' have no effect"),
        ({"samples_format": "jpg"}, None),
        ({"samples_format": "avif"}, "'samples_format' has no effect"),
        ({"a": "A" * 20_000, "sd_model_checkpoint": "demo"}, "'override_settings.a' is not known here"),
        ("demo", "'override_settings' has no effect but for its model"),
        ({"SD_Model_Checkpoint": "other"}, "'SD_Model_Checkpoint' has no effect"),
    ],
)
def test_settings_are_told_that_would_change_the_image(settings: object, says: str | None) -> None:
    warnings = told({"prompt": "a", "override_settings": settings})
    assert len(warnings) == (says is not None)
    assert says is None or says in warnings[0]


def test_model_that_is_to_stay_chosen_is_told() -> None:
    body = {"prompt": "a", "override_settings_restore_afterwards": False}
    assert told(body) == ()
    (warning,) = told(body | {"override_settings": {"sd_model_checkpoint": "demo"}})
    assert "the model is that of this request alone" in warning


def test_large_settings_still_choose_the_model() -> None:
    body = {"override_settings": {"a": "A" * 20_000, "sd_model_checkpoint": "demo"}}
    assert read_object(json.dumps(body).encode(), TXT2IMG_FIELDS).values["override_settings"] == {
        "sd_model_checkpoint": "demo"
    }


@pytest.mark.parametrize(
    "value",
    [[[]] * 100_000, json.loads("[" * 500 + "]" * 500), {"a": [{}]}, 10**400, "x" * 400_000],
    ids=lambda value: str(value)[:8],
)
@pytest.mark.parametrize("name", ["tiling", "styles", "alwayson_scripts", "sampler_name", "infotext"])
def test_no_value_of_a_field_without_effect_is_an_error(name: str, value: object) -> None:
    assert len(told({"prompt": "a", name: value})) <= 1


EXTRAS = {
    "image": IMAGE,
    "show_extras_results": True,
    "gfpgan_visibility": 0,
    "codeformer_visibility": 0,
    "codeformer_weight": 0.5,
    "upscale_first": False,
}


@pytest.mark.parametrize(
    ("asks", "names"),
    [
        ({}, []),
        ({"gfpgan_visibility": 0.5, "codeformer_visibility": "1"}, ["gfpgan_visibility", "codeformer_visibility"]),
    ],
)
def test_restored_faces_are_told_of_extras_and_neutral_fields_are_not(asks: dict[str, Any], names: list[str]) -> None:
    read = read_object(
        json.dumps(EXTRAS | asks).encode(), Fields.of(ExtraSingleImage).with_fields(no_effect.EXTRAS_READ)
    )
    warnings = (*no_effect.explain_extras(read.values), *read.warnings)
    assert [warning.partition("' has no effect")[0] for warning in warnings] == [f"'{name}" for name in names]


def test_what_a_client_of_a1111_carries_along_is_unknown_in_a_plain_request() -> None:
    assert no_effect.explain_plain({"prompt": "a", "url": "a"}) == ("'url' is not known here, and was ignored",)


# --- sizes ---


@pytest.mark.parametrize(
    ("asked", "side"),
    [
        (520, 528),
        (519, 512),
        (521, 528),
        ("520", 528),
        (520.0, 528),
        (56, 64),
        (2055, 2048),
        (512, None),
        ("512", None),
    ],
)
def test_size_is_changed_to_the_nearest_multiple_of_16(asked: object, side: int | None) -> None:
    fields: dict[str, Any] = {"width": asked, "height": None}
    warnings = snap_size(fields)
    assert fields == {"width": asked if side is None else side, "height": None}
    expected = (
        () if side is None else (f"'width' {int(float(str(asked)))} was changed to {side}, the nearest multiple of 16",)
    )
    assert warnings == expected


@pytest.mark.parametrize("asked", [0, -520, 55, 3000, 10**30, 520.5, "wide", [520], True, None])
def test_size_far_beyond_the_limits_is_left_for_an_error(asked: object) -> None:
    fields: dict[str, Any] = {"height": asked}
    assert (snap_size(fields), fields) == ((), {"height": asked})


# --- two fields of one meaning ---


@pytest.mark.parametrize(
    ("body", "unused"),
    [
        ({"num_images": 2, "batch_size": 4, "n_iter": 1}, ["batch_size"]),
        ({"num_images": 2, "batch_size": 2}, []),
        ({"batch_size": 4, "n_iter": "1"}, []),
        (
            {"sd_model_checkpoint": "demo", "override_settings": {"sd_model_checkpoint": "flux2-klein-4b"}},
            ["override_settings.sd_model_checkpoint"],
        ),
        ({"sd_model_checkpoint": "demo", "override_settings": {"sd_model_checkpoint": "demo"}}, []),
        ({"override_settings": {"sd_model_checkpoint": "demo"}}, []),
        ({"model": "demo", "sd_model_checkpoint": "flux2-klein-4b", "cfg_scale": 1}, ["sd_model_checkpoint"]),
        (
            {"guidance": 2, "cfg_scale": 3, "denoising_strength": 0.5, "image_strength": 0.4},
            ["denoising_strength", "cfg_scale"],
        ),
    ],
)
def test_field_beside_another_of_its_meaning_is_told(body: dict[str, Any], unused: list[str]) -> None:
    fields = translate({"prompt": "a", **body}, max_images=4)
    asked = from_body(fields, upscales=lambda _: False, strict=False, aliases=DIALECT_ALIASES)
    warnings = (*explain_conflicts(body, fields), *asked.warnings)
    assert [warning.partition(" has no effect beside ")[0] for warning in warnings] == [f"'{name}'" for name in unused]


# --- over HTTP ---


async def test_calls_of_webuiapi_are_told_of_guidance_alone_and_others_of_what_they_ask(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        body = WEBUIAPI | {"steps": 1, "width": 64, "height": 64, "override_settings": {"sd_model_checkpoint": "demo"}}
        answer = (await api.http.post("/sdapi/v1/txt2img", json=body)).json()
        assert answer["warnings"] == ["'cfg_scale' 7 was set to 1: 'demo' is distilled, and always runs at 1"]
        asks = {"cfg_scale": 1, "width": 72, "height": 71, "tiling": True, "stpes": 3, "script_name": "plot"}
        answer = (await api.http.post("/sdapi/v1/txt2img", json=body | asks)).json()
        assert answer["warnings"] == [
            "'width' 72 was changed to 80, the nearest multiple of 16",
            "'height' 71 was changed to 64, the nearest multiple of 16",
            "'tiling' has no effect: images are not made to tile",
            "'script_name' has no effect: there are no scripts",
            "'stpes' is not known: did you mean 'steps'?",
        ]
        assert (answer["parameters"]["width"], answer["parameters"]["height"]) == (80, 64)
        plain = {"prompt": "a", "model": "demo", "steps": 1, "width": 72}
        assert (await api.http.post("/sdapi/v1/txt2img", json=plain)).status_code == 400


async def test_request_that_asks_for_everything_has_few_warnings_and_says_how_many_are_left_out(tmp_path: Path) -> None:
    asks = {name: value for name, value in ASKS.items() if value is not IMAGE}
    body = {"prompt": "a", "model": "demo", "width": 64, "height": 64, "steps": 1, "cfg_scale": 7}
    async with scripted_api(tmp_path) as api:
        answer = (await api.http.post("/sdapi/v1/txt2img", json=body | asks)).json()
    assert len(answer["warnings"]) == MAX_OF_REQUEST
    assert answer["warnings"][-1].endswith(" further warnings are left out")
