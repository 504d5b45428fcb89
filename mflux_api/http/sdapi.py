"""``/sdapi/v1``: the synchronous, SD-WebUI-compatible section."""

from typing import Any

import trio
from quart import Blueprint, Response

from mflux_api.actors.gateway import Gateway
from mflux_api.errors import JobCancelled, by_code
from mflux_api.http.body import json_object
from mflux_api.http.render import Renderer
from mflux_api.http.responses import json_response
from mflux_api.jobs import Job, Status
from mflux_api.requests import GenerateRequest, convert


def blueprint(gateway: Gateway, renderer: Renderer) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("sdapi", __name__, url_prefix="/sdapi/v1")

    @routes.post("/txt2img")
    async def txt2img() -> Response:
        body = await json_object()
        # SD-WebUI's name for the same thing; the service's own field wins.
        body["model"] = body.get("model") or body.get("sd_model_checkpoint")
        started = trio.current_time()
        job = await _painted(gateway, convert(body, GenerateRequest))
        return json_response(
            {
                "images": await renderer.images(job),
                "parameters": _parameters(job),
                "info": f"Generated {len(job.images)} image(s) in {trio.current_time() - started:.1f}s",
            }
        )

    return routes


async def _painted(gateway: Gateway, request: GenerateRequest) -> Job:
    """Run a job to its end; a caller that leaves takes its job with it.

    Raises:
        ServiceError: the request was refused, or the job failed.
        JobCancelled: somebody else cancelled it.
    """
    accepted = await gateway.submit(request, synchronous=True)
    try:
        job = await gateway.finished(accepted.job.id)
    except trio.Cancelled:
        gateway.abandon(accepted.job.id)
        raise
    if job.failure is not None:
        raise by_code(job.failure.code)(job.failure.message, job.failure.details)
    if job.status is Status.CANCELLED:
        raise JobCancelled("The job was cancelled", {"job_id": job.id})
    return job


def _parameters(job: Job) -> dict[str, Any]:
    """What ran, which may differ from what was asked: a distilled model always runs at guidance 1.0."""
    request = job.request
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "model": job.model,
        "seed": request.seed,
        "width": request.width,
        "height": request.height,
        "steps": request.steps,
        "guidance": request.guidance,
        "num_images": request.num_images,
        "lora_files": list(request.lora_files),
        "lora_scales": list(request.lora_scales),
        "low_ram": request.low_ram,
    }
