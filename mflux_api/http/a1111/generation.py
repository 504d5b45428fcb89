"""``/sdapi/v1``: the synchronous, SD-WebUI-compatible section."""

from collections.abc import Mapping
from typing import Any

import trio
from quart import Blueprint, Response

from mflux_api.catalog import Model
from mflux_api.errors import InvalidParameter, JobCancelled
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111 import dialect as a1111
from mflux_api.http.a1111.synchronous import generated
from mflux_api.http.body import json_object
from mflux_api.http.render import Renderer
from mflux_api.http.responses import in_thread, json_bytes
from mflux_api.http.schemas import ImagesAnswer
from mflux_api.jobs.job import Job, Status
from mflux_api.jobs.parse import from_body


def blueprint(gateway: Gateway, renderer: Renderer) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("sdapi", __name__, url_prefix="/sdapi/v1")

    @routes.post("/txt2img")
    async def txt2img() -> Response:
        body = await json_object()
        # A1111's img2img alone takes images; a stray field must not turn this into an edit.
        return await answer({name: value for name, value in body.items() if name != "init_images"})

    @routes.post("/img2img")
    async def img2img() -> Response:
        body = await json_object()
        if not body.get("init_images"):
            raise InvalidParameter.for_field("init_images", "is required", limit="required")
        return await answer(body)

    async def answer(body: Mapping[str, Any]) -> Response:
        dialect = a1111.speaks_a1111(body)
        fields = (
            a1111.translated(body, max_images=gateway.settings.generation.max_batch_size) if dialect else dict(body)
        )
        started = trio.current_time()
        aliases = a1111.DIALECT_ALIASES if dialect else a1111.ALIASES
        request = from_body(fields, upscales=gateway.upscales, strict=not dialect, aliases=aliases)
        job = await generated(gateway, request)
        if job.status is Status.CANCELLED and not dialect:
            raise JobCancelled("The job was cancelled", {"job_id": job.id})
        sentence = f"Generated {len(job.images)} image(s) in {trio.current_time() - started:.1f}s"
        info = a1111.info(job, await gateway.model_hash(job.model)) if dialect else sentence
        parameters = _parameters(job, gateway.catalog.get(job.model))
        images = await renderer.images(job) if body.get("send_images") is not False else []
        return json_bytes(await in_thread(ImagesAnswer(images=tuple(images), parameters=parameters, info=info)))

    return routes


def _parameters(job: Job, model: Model | None) -> dict[str, Any]:
    """What ran, which may differ from what was asked: a distilled model always runs at guidance 1.0."""
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
