"""``parameters`` of an answer: what ran, under the names of the request."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mflux_api.catalog import Model
from mflux_api.http.synchronous import RanJob
from mflux_api.images.infotext import SAMPLER, SCHEDULE
from mflux_api.jobs.ignored import has_negative_branch
from mflux_api.jobs.inpainting import DEFAULT_BLUR
from mflux_api.jobs.job import Job
from mflux_api.jobs.resolve import ResolvedRequest

_WITHOUT_EFFECT: Final[Mapping[str, Any]] = {
    "alwayson_scripts": {},
    "comments": None,
    "disable_extra_networks": False,
    "do_not_save_grid": True,
    "do_not_save_samples": False,
    "eta": None,
    "force_task_id": None,
    "infotext": None,
    "n_iter": 1,
    "override_settings": {},
    "override_settings_restore_afterwards": True,
    "refiner_checkpoint": None,
    "refiner_switch_at": None,
    "restore_faces": False,
    "s_churn": None,
    "s_min_uncond": None,
    "s_noise": None,
    "s_tmax": None,
    "s_tmin": None,
    "save_images": False,
    "script_args": [],
    "script_name": None,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": -1,
    "subseed": -1,
    "subseed_strength": 0,
    "tiling": False,
}
_OF_SECOND_PASSES: Final[Mapping[str, Any]] = {
    "enable_hr": False,
    "firstpass_image": None,
    "firstphase_height": 0,
    "firstphase_width": 0,
    "hr_checkpoint_name": None,
    "hr_negative_prompt": "",
    "hr_prompt": "",
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "hr_sampler_name": None,
    "hr_scale": 2.0,
    "hr_scheduler": None,
    "hr_second_pass_steps": 0,
    "hr_upscaler": None,
}
_WITHOUT_EFFECT_ON_EDITS: Final[Mapping[str, Any]] = {
    "image_cfg_scale": None,
    "include_init_images": False,
    "init_images": None,
    "initial_noise_multiplier": None,
    "latent_mask": None,
    "mask": None,
    "mask_round": True,
    "resize_mode": 1,
}


def parameters_of(ran: RanJob, model: Model | None) -> dict[str, Any]:
    """Return what ran, which may differ from what was asked: a distilled model always runs at guidance 1.0.

    Of a job that was cancelled it is what had run until then.
    """
    job = ran.job
    request = job.request
    width, height = request.size
    guided = model is not None and has_negative_branch(model, request)
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt if guided else None,
        "model": job.model,
        "seed": request.seed,
        "width": width,
        "height": height,
        "steps": request.steps,
        "steps_run": ran.steps_run,
        "guidance": request.guidance,
        "num_images": len(job.images),
        "lora_files": list(request.lora_files),
        "lora_scales": list(request.lora_scales),
        "low_ram": request.low_ram,
        "image_strength": request.image_strength,
        **_inpainting_parameters(request),
        "resolution": None if request.upscaling is None else request.upscaling.resolution,
        "softness": None if request.upscaling is None else request.upscaling.softness,
    }


def _inpainting_parameters(request: ResolvedRequest) -> dict[str, Any]:
    """Return what was inpainted and how, under the names of the request; null where nothing was."""
    names = ("mask_blur", "inpainting_mask_invert", "inpainting_fill", "inpaint_full_res", "inpaint_full_res_padding")
    inpainting = request.inpainting
    if inpainting is None:
        return dict.fromkeys((*names, "extend", "result_size"))
    across, down = inpainting.blur
    values = (
        across if across == down else [across, down],
        inpainting.invert,
        inpainting.fill,
        inpainting.padding is not None,
        inpainting.padding,
    )
    return {
        **dict(zip(names, values, strict=True)),
        "extend": inpainting.margins,
        "result_size": list(inpainting.result),
    }


def a1111_parameters(job: Job, styles: Sequence[str], *, edits: bool, sends_images: bool) -> dict[str, Any]:
    """Return what A1111's ``parameters`` have beside ours, as it ran: clients in typed languages need every name.

    Args:
        job: the job.
        styles: the names of those in its prompts.
        edits: whether it is an img2img.
        sends_images: whether the answer has the images.
    """
    request = job.request
    return {
        **_WITHOUT_EFFECT,
        **(_of_edits(request) if edits else _OF_SECOND_PASSES),
        "styles": list(styles),
        "sampler_name": SAMPLER,
        "sampler_index": SAMPLER,
        "scheduler": SCHEDULE,
        "cfg_scale": request.guidance,
        "batch_size": max(1, request.num_images),
        "denoising_strength": request.image_strength,
        "send_images": sends_images,
    }


def _of_edits(request: ResolvedRequest) -> dict[str, Any]:
    inpainting = request.inpainting
    across, down = (DEFAULT_BLUR, DEFAULT_BLUR) if inpainting is None else inpainting.blur
    return {**_WITHOUT_EFFECT_ON_EDITS, "mask_blur_x": across, "mask_blur_y": down}
