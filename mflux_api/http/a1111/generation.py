"""``/sdapi/v1/txt2img`` and ``img2img``: generate and wait, in the plain form or in A1111's dialect."""

from collections.abc import Mapping
from typing import Any

import trio
from quart import Blueprint, Response

from mflux_api.catalog import Model
from mflux_api.errors import InvalidParameter, JobCancelled
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111 import dialect
from mflux_api.http.a1111.sdapi_schemas import ImagesResponse
from mflux_api.http.body import json_object
from mflux_api.http.operations import RUN_ERRORS, SUBMIT_ERRORS, Operation
from mflux_api.http.render import Renderer
from mflux_api.http.responses import in_thread, json_bytes
from mflux_api.http.security import owner
from mflux_api.http.synchronous import run_job
from mflux_api.jobs.job import Job, Status
from mflux_api.jobs.parse import from_body
from mflux_api.jobs.request import GenerateRequest

OPERATIONS = (
    Operation(
        method="post",
        path="/sdapi/v1/txt2img",
        summary="Generate a prompt and wait for the images",
        body=GenerateRequest,
        body_required=("prompt",),
        response=ImagesResponse,
        errors=(*SUBMIT_ERRORS, *RUN_ERRORS),
    ),
    Operation(
        method="post",
        path="/sdapi/v1/img2img",
        summary="Edit images by a prompt and wait for the result",
        body=GenerateRequest,
        body_required=("init_images",),
        response=ImagesResponse,
        errors=(*SUBMIT_ERRORS, *RUN_ERRORS),
    ),
)


def blueprint(gateway: Gateway, renderer: Renderer) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("sdapi", __name__, url_prefix="/sdapi/v1")
    max_images = gateway.settings.generation.max_batch_size

    @routes.post("/txt2img")
    async def txt2img() -> Response:
        body = await json_object()
        # A1111's img2img alone takes images; a stray field must not turn this into an edit.
        return await generate({name: value for name, value in body.items() if name != "init_images"})

    @routes.post("/img2img")
    async def img2img() -> Response:
        body = await json_object()
        if not body.get("init_images"):
            raise InvalidParameter.for_field("init_images", "is required", limit="required")
        return await generate(body)

    async def generate(body: Mapping[str, Any]) -> Response:
        a1111 = dialect.speaks_a1111(body)
        started = trio.current_time()
        request = from_body(
            dialect.translate(body, max_images=max_images) if a1111 else body,
            upscales=gateway.upscales,
            strict=not a1111,
            aliases=dialect.DIALECT_ALIASES if a1111 else dialect.ALIASES,
        )
        async with run_job(gateway, request, owner=owner(gateway.settings.security.api_keys)) as job:
            if job.status is Status.CANCELLED and not a1111:
                raise JobCancelled("The job was cancelled", {"job_id": job.id})
            sentence = f"Generated {len(job.images)} image(s) in {trio.current_time() - started:.1f}s"
            info = dialect.info(job, await gateway.model_hash(job.model)) if a1111 else sentence
            parameters = _parameters(job, gateway.catalog.get(job.model))
            images = await renderer.images(job) if body.get("send_images") is not False else []
        return json_bytes(await in_thread(ImagesResponse(images=tuple(images), parameters=parameters, info=info)))

    return routes


def _parameters(job: Job, model: Model | None) -> dict[str, Any]:
    """Return what ran, which may differ from what was asked: a distilled model always runs at guidance 1.0."""
    request = job.request
    width, height = request.size
    guided = request.guidance > 1.0 and model is not None and model.takes_negative_prompts
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt if guided else None,
        "model": job.model,
        "seed": request.seed,
        "width": width,
        "height": height,
        "steps": request.steps,
        "steps_run": request.steps_run,
        "guidance": request.guidance,
        "num_images": request.num_images,
        "lora_files": list(request.lora_files),
        "lora_scales": list(request.lora_scales),
        "low_ram": request.low_ram,
        "image_strength": request.image_strength,
        "resolution": None if request.upscaling is None else request.upscaling.resolution,
        "softness": None if request.upscaling is None else request.upscaling.softness,
    }
