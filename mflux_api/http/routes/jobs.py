"""``/api/v1/generate`` and ``/api/v1/jobs``: submit, look, follow, cancel, prune."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import attrs
import msgspec
from quart import Blueprint, Response, request

from mflux_api.access.keys import Scope
from mflux_api.actors.messages import Accepted
from mflux_api.errors import (
    DiskFull,
    IdempotencyConflict,
    ImageGone,
    InternalError,
    InvalidParameter,
    JobGone,
    JobNotFound,
    ServerBusy,
    ShuttingDown,
    TooManyConnections,
    shorten_value,
)
from mflux_api.gateway.gateway import Gateway
from mflux_api.gateway.jobs import JobView
from mflux_api.http.a1111.dialect import ALIASES, PLAIN_FIELDS
from mflux_api.http.body import json_object
from mflux_api.http.forwarded import external_prefix
from mflux_api.http.half_close import need_client
from mflux_api.http.held import held
from mflux_api.http.idempotency_keys import PARAMETER as IDEMPOTENCY_KEY
from mflux_api.http.idempotency_keys import read_idempotency_key
from mflux_api.http.operations import BODY_ERRORS, SUBMIT_ERRORS, Errors, Operation, path_parameter, query_parameter
from mflux_api.http.query import invalid_parameter, unknown_parameters
from mflux_api.http.render import Renderer, reserve_partial_images
from mflux_api.http.responses import json_answer, json_response
from mflux_api.http.routes.job_schemas import CancelResponse, GenerateResponse, PruneRequest, PruneResponse
from mflux_api.http.schemas import JobResponse, PartialImageResponse
from mflux_api.http.security.guard import caller, still_allowed
from mflux_api.http.slots import Slots
from mflux_api.http.sse import stream_response
from mflux_api.http.waits import HEADER as PREFER
from mflux_api.http.waits import NAME as WAIT
from mflux_api.http.waits import PARAMETER as WAIT_PARAMETER
from mflux_api.http.waits import Waits, read_wait
from mflux_api.jobs.json_fields import Fields
from mflux_api.jobs.parse import from_body
from mflux_api.jobs.progress import Progress
from mflux_api.jobs.request import GenerateRequest

_JOB_ID = path_parameter("job_id")
_IMAGES = query_parameter("images", {"enum": ["base64", "url"]}, "How the result names its images")
_PRUNE_FIELDS = Fields.of(PruneRequest)
_JOB_ERRORS: Errors = (JobNotFound, JobGone)

OPERATIONS = (
    Operation(
        method="post",
        path="/api/v1/generate",
        summary="Submit a job and return at once",
        scope=Scope.GENERATE,
        body=GenerateRequest,
        forms=True,
        response=GenerateResponse,
        awaited=JobResponse,
        accepted=JobResponse,
        parameters=(IDEMPOTENCY_KEY, PREFER, WAIT_PARAMETER, _IMAGES),
        errors=(*SUBMIT_ERRORS, IdempotencyConflict, JobGone, ImageGone, TooManyConnections),
    ),
    Operation(
        method="get",
        path="/api/v1/jobs/{job_id}",
        summary="One job, with its result once it is finished",
        scope=Scope.READ,
        response=JobResponse,
        parameters=(_JOB_ID, _IMAGES, PREFER, WAIT_PARAMETER),
        errors=(*_JOB_ERRORS, ImageGone, InvalidParameter, ServerBusy, TooManyConnections),
    ),
    Operation(
        method="get",
        path="/api/v1/jobs/{job_id}/stream",
        summary="Follow a job: progress events, then one of complete, failed, cancelled",
        scope=Scope.READ,
        parameters=(
            _JOB_ID,
            {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}},
            _IMAGES,
            query_parameter(
                "previews", {"enum": ["none", "jpeg"]}, "jpeg: also events with a small image in `preview`"
            ),
        ),
        # No type: readers of the document differ on whether it is the whole stream's or one event's.
        content={
            "text/event-stream": {
                "schema": {"description": "Events whose data is JSON: Progress, PartialImageResponse, JobResponse"}
            }
        },
        bodiless={"204": "Last-Event-ID is the terminal event's: there is nothing more to follow"},
        also_describes=(Progress, PartialImageResponse),
        errors=(*_JOB_ERRORS, InvalidParameter, TooManyConnections, ShuttingDown),
    ),
    Operation(
        method="post",
        path="/api/v1/jobs/prune",
        summary="Remove the records of jobs that finished long ago",
        scope=Scope.MANAGE,
        body=PruneRequest,
        body_required=("older_than_hours",),
        response=PruneResponse,
        errors=(*BODY_ERRORS, DiskFull),
    ),
    Operation(
        method="delete",
        path="/api/v1/jobs/{job_id}",
        summary="Cancel a job",
        scope=Scope.GENERATE,
        response=CancelResponse,
        parameters=(_JOB_ID,),
        errors=(*_JOB_ERRORS, DiskFull),
    ),
)


def blueprint(gateway: Gateway, renderer: Renderer, streams: Slots, waits: Waits) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("jobs", __name__, url_prefix="/api/v1")

    @routes.post("/generate")
    async def generate() -> Response:
        asked, paths_below = read_wait(), _paths_below()
        with waits.place(asked) as wait:
            # Without a wait the answer holds no images.
            accepted = await submit((WAIT,) if wait.seconds is None else (WAIT, "images"))
            if wait.seconds is None:
                job = accepted.job
                receipt = GenerateResponse(
                    job_id=job.id, status=job.status.value, position=accepted.position, warnings=job.warnings
                )
                return wait.apply(json_response(receipt))
            held().body.release()
            end = await waits.end(accepted.job, wait)
        view = await gateway.job(accepted.job.id) if end is None else JobView(job=end, live=None)
        response = json_answer(await renderer.job(view, held().stack, paths_below=paths_below))
        response.headers["Location"] = f"{external_prefix()}/api/v1/jobs/{accepted.job.id}"
        response.status_code = 200 if view.job.status.terminal else 202
        return wait.apply(response)

    async def submit(parameters: Sequence[str]) -> Accepted:
        read = await json_object(PLAIN_FIELDS, forms=True, parameters=parameters)
        body = read.values
        key = await read_idempotency_key(body)
        accepted = None if key is None else await gateway.accepted_before(key)
        if accepted is None:
            asked = from_body(body, upscales=gateway.upscales, strict=not read.texts, aliases=ALIASES)
            accepted = await gateway.submit(
                asked.request,
                caller=caller(),
                key=key,
                warnings=(*asked.warnings, *read.warnings),
                names=asked.names,
            )
        return accepted

    @routes.get("/jobs/<job_id>")
    async def get_job(job_id: str) -> Response:
        warnings = unknown_parameters("images", WAIT)
        asked, paths_below, who = read_wait(of_a_look=True), _paths_below(), caller()
        view = await gateway.job(job_id, visible=who.sees)
        with waits.place(asked) as wait:
            if wait.seconds and not view.job.status.terminal and request.method != "HEAD":
                need_client()
                await waits.end(view.job, wait)
                view = await gateway.job(job_id)
        view = attrs.evolve(view, viewer=who.owner)
        answer = await renderer.job(view, held().stack, paths_below=paths_below, warnings=warnings)
        return wait.apply(json_answer(answer))

    @routes.get("/jobs/<job_id>/stream")
    async def stream(job_id: str) -> Response:
        last_event_id = request.headers.get("Last-Event-ID") or None
        paths_below, previews = _paths_below(), _previews()
        held().stack.enter_context(streams.slot(caller().owner))
        events = await gateway.follow(
            job_id,
            last_event_id,
            previews=previews,
            partial_images=partial(reserve_partial_images, reservation=held().answer),
            visible=caller().sees,
        )
        if not events.finished and request.method != "HEAD":
            need_client()
        return stream_response(
            events,
            renderer,
            held().stack,
            paths_below=paths_below,
            allowed=still_allowed(),
            warnings=unknown_parameters("images", "previews"),
            head_only=request.method == "HEAD",
        )

    @routes.post("/jobs/prune")
    async def prune() -> Response:
        read = await json_object(_PRUNE_FIELDS)
        asked = _prune_request(read.values)
        removed = await gateway.prune(timedelta(hours=asked.older_than_hours), dry_run=asked.dry_run)
        if removed.stuck is not None:
            raise InternalError(
                "Some images cannot be deleted, and their records stay; check that generation.output_dir is writable",
                {"reason": removed.stuck, "removed": [job.id for job in removed.jobs]},
            )
        ids = tuple(job.id for job in removed.jobs)
        return json_response(PruneResponse(removed=ids, dry_run=asked.dry_run, warnings=read.warnings))

    @routes.delete("/jobs/<job_id>")
    async def cancel(job_id: str) -> Response:
        job = await gateway.cancel(job_id, visible=caller().sees)
        return json_response(CancelResponse(status=job.status.value))

    return routes


def _prune_request(body: Mapping[str, Any]) -> PruneRequest:
    try:
        return msgspec.convert(body, PruneRequest)
    except msgspec.ValidationError as error:
        field = "dry_run" if "$.dry_run" in str(error) else "older_than_hours"
        limit = "true or false" if field == "dry_run" else "hours, 0 to 1000000"
        shown = shorten_value(body.get(field))
        raise InvalidParameter.for_field(field, f"is invalid: expected {limit}", value=shown, limit=limit) from None


def _paths_below() -> str | None:
    """Return what the images' paths begin with; ``None`` where the client wants them as base64."""
    value = request.args.get("images", "base64")
    if value not in ("base64", "url"):
        raise invalid_parameter("images", value, "base64 or url")
    return external_prefix() if value == "url" else None


def _previews() -> bool:
    value = request.args.get("previews", "none")
    if value not in ("none", "jpeg"):
        raise invalid_parameter("previews", value, "none or jpeg")
    return value == "jpeg"
