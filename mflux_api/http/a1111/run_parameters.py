"""``parameters`` of an answer: what ran, under the names of the request."""

from typing import Any

from mflux_api.catalog import Model
from mflux_api.http.synchronous import RanJob
from mflux_api.jobs.ignored import has_negative_branch
from mflux_api.jobs.resolve import ResolvedRequest


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
