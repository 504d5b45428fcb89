"""``/api/v1/generate`` and ``/api/v1/jobs``."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import trio
from quart import Blueprint, Response, request

from mflux_api.errors import InvalidParameter, NotFound
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111.dialect import ALIASES
from mflux_api.http.body import json_object
from mflux_api.http.render import Renderer, job_object
from mflux_api.http.responses import json_bytes, json_response
from mflux_api.http.schemas import CancelAnswer, GenerateAnswer, JobList
from mflux_api.http.security import offered_key
from mflux_api.http.sse import stream_response
from mflux_api.images.encode import MEDIA_TYPES, ImageFormat
from mflux_api.jobs.idempotency import HEADER, IdempotencyKey, idempotency_key
from mflux_api.jobs.job import Status
from mflux_api.jobs.parse import from_body

DEFAULT_LIMIT = 50
MAX_LIMIT = 500
MAX_DIGITS = 9


def blueprint(gateway: Gateway, renderer: Renderer) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("jobs", __name__, url_prefix="/api/v1")

    @routes.post("/generate")
    async def generate() -> Response:
        body = await json_object()
        wanted = from_body(body, upscales=gateway.upscales, aliases=ALIASES)
        accepted = await gateway.submit(wanted, key=await _idempotency_key(body))
        return json_response(
            GenerateAnswer(job_id=accepted.job.id, status=accepted.job.status.value, position=accepted.position)
        )

    @routes.get("/jobs")
    async def list_jobs() -> Response:
        views, cursor = await gateway.jobs(
            limit=_limit(request.args.get("limit")),
            cursor=request.args.get("cursor"),
            status=_status(request.args.get("status")),
        )
        return json_response(JobList(jobs=tuple(job_object(view) for view in views), next_cursor=cursor))

    @routes.get("/jobs/<job_id>")
    async def get_job(job_id: str) -> Response:
        return json_bytes(await renderer.job(await gateway.job(job_id), urls=_urls()))

    @routes.get("/jobs/<job_id>/stream")
    async def stream(job_id: str) -> Response:
        last_event_id = request.headers.get("Last-Event-ID") or None
        urls, previews = _urls(), _previews()
        return stream_response(await gateway.follow(job_id, last_event_id, previews=previews), renderer, urls=urls)

    @routes.delete("/jobs/<job_id>")
    async def cancel(job_id: str) -> Response:
        job = await gateway.cancel(job_id)
        return json_response(CancelAnswer(status=job.status.value))

    @routes.get("/jobs/<job_id>/images/<int:index>")
    async def image(job_id: str, index: int) -> Response:
        job = (await gateway.job(job_id)).job
        if not 0 <= index < len(job.images):
            raise NotFound("The job has no such image (yet)", {"images": len(job.images)})
        wanted = _format(request.args.get("format"))
        etag = f"{job.images[index].sha256[:32]}-{wanted}"
        if etag in request.if_none_match:
            response = Response(b"", status=304)
        else:
            response = Response(await gateway.image_as(job.images[index], wanted), content_type=MEDIA_TYPES[wanted])
        response.set_etag(etag)
        response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
        return response

    async def _idempotency_key(body: Mapping[str, Any]) -> IdempotencyKey | None:
        text = request.headers.get(HEADER)
        if text is None:
            return None
        caller = offered_key(gateway.settings.security.api_keys) or ""
        # In a thread: a body may hold megabytes of images.
        return await trio.to_thread.run_sync(partial(idempotency_key, text, body, caller=caller))

    return routes


def _format(text: str | None) -> ImageFormat:
    for known in MEDIA_TYPES:
        if (text or "png") == known:
            return known
    raise _invalid("format", text or "", ", ".join(MEDIA_TYPES))


def _urls() -> bool:
    value = request.args.get("images", "base64")
    if value not in ("base64", "url"):
        raise _invalid("images", value, "base64 or url")
    return value == "url"


def _previews() -> bool:
    value = request.args.get("previews", "none")
    if value not in ("none", "jpeg"):
        raise _invalid("previews", value, "none or jpeg")
    return value == "jpeg"


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    # Measured first: int() itself refuses thousands of digits, with an error of its own.
    limit = int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else 0
    if not 1 <= limit <= MAX_LIMIT:
        raise _invalid("limit", text, f"1 to {MAX_LIMIT}")
    return limit


def _status(text: str | None) -> Status | None:
    if text is None:
        return None
    try:
        return Status(text)
    except ValueError:
        raise _invalid("status", text, ", ".join(Status)) from None


def _invalid(field: str, value: str, limit: str) -> InvalidParameter:
    return InvalidParameter.for_field(field, f"is invalid: expected {limit}", value=value[:64], limit=limit)
