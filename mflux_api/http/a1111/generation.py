"""``/sdapi/v1/txt2img`` and ``img2img``: generate and wait, in the plain form or in A1111's dialect."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import attrs
import trio
from quart import Blueprint, Response, request

from mflux_api.access.keys import Scope
from mflux_api.errors import InvalidParameter, JobCancelled, ServerBusy, TooManyConnections
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111 import dialect, no_effect
from mflux_api.http.a1111.checkpoints import alias_of
from mflux_api.http.a1111.client_options import ClientOptions
from mflux_api.http.a1111.options import chosen_model
from mflux_api.http.a1111.run_parameters import a1111_parameters, parameters_of
from mflux_api.http.a1111.sdapi_schemas import ImagesResponse
from mflux_api.http.a1111.styles import StyledPrompts
from mflux_api.http.body import json_object
from mflux_api.http.client_calls import ClientCalls
from mflux_api.http.client_ids import client_id
from mflux_api.http.forwarded import external_prefix
from mflux_api.http.held import held
from mflux_api.http.operations import RUN_ERRORS, SUBMIT_ERRORS, Operation
from mflux_api.http.render import ROOM_SECONDS, Renderer, job_response, with_images
from mflux_api.http.responses import json_answer, json_response
from mflux_api.http.schemas import JobResponse
from mflux_api.http.security.guard import caller
from mflux_api.http.synchronous import RanJob, run_job
from mflux_api.http.waits import HEADER as PREFER
from mflux_api.http.waits import NAME as WAIT
from mflux_api.http.waits import PARAMETER as WAIT_PARAMETER
from mflux_api.http.waits import Wait, Waits, read_wait
from mflux_api.jobs.idempotency import HEADER
from mflux_api.jobs.job import Job, Status
from mflux_api.jobs.json_fields import Fields, JSONObject, Object
from mflux_api.jobs.parse import Asked, from_body
from mflux_api.jobs.request import GenerateRequest

OPERATIONS = (
    Operation(
        method="post",
        path="/sdapi/v1/txt2img",
        summary="Generate a prompt and wait for the images",
        scope=Scope.GENERATE,
        body=GenerateRequest,
        forms=True,
        body_required=("prompt",),
        response=ImagesResponse,
        accepted=JobResponse,
        parameters=(PREFER, WAIT_PARAMETER),
        errors=(*SUBMIT_ERRORS, *RUN_ERRORS, TooManyConnections),
    ),
    Operation(
        method="post",
        path="/sdapi/v1/img2img",
        summary="Edit images by a prompt and wait for the result",
        scope=Scope.GENERATE,
        body=GenerateRequest,
        forms=True,
        body_required=("init_images",),
        response=ImagesResponse,
        accepted=JobResponse,
        parameters=(PREFER, WAIT_PARAMETER),
        errors=(*SUBMIT_ERRORS, *RUN_ERRORS, TooManyConnections),
    ),
)


@attrs.frozen
class Call:
    """What a call asks for."""

    asked: Asked
    a1111: bool = attrs.field(kw_only=True)
    """Whether it is in A1111's dialect."""
    sends_images: bool = attrs.field(kw_only=True)
    styles: tuple[str, ...] = attrs.field(kw_only=True)
    """The names of those that are in its prompts."""
    kind: str = attrs.field(kw_only=True)
    """The name of its route."""
    task: str | None = attrs.field(kw_only=True)
    """What its client calls it."""
    warnings: tuple[str, ...] = attrs.field(kw_only=True)


def blueprint(
    gateway: Gateway,
    renderer: Renderer,
    options: ClientOptions,
    calls: ClientCalls,
    waits: Waits,
    styled: StyledPrompts,
) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("sdapi", __name__, url_prefix="/sdapi/v1")
    max_images = gateway.settings.generation.max_batch_size

    # No frame keeps the body: its images are the job's, and only as long as the job needs them.

    @routes.post("/txt2img")
    async def txt2img() -> Response:
        return await generate(await read_call(await body_of(dialect.TXT2IMG_FIELDS), edits=False))

    @routes.post("/img2img")
    async def img2img() -> Response:
        return await generate(await read_call(await body_of(dialect.IMG2IMG_FIELDS), edits=True))

    async def body_of(fields: Fields) -> JSONObject:
        return await json_object(fields, forms=True, parameters=(WAIT,))

    async def read_call(read: JSONObject, *, edits: bool) -> Call:
        body = read.values
        if edits and not body.get("init_images"):
            raise InvalidParameter.for_field("init_images", "is required", limit="required")
        a1111 = dialect.speaks_a1111(body)
        styles: tuple[str, ...] = ()
        if a1111:
            fields, styles, told = await read_dialect(body)
        else:
            fields, told = await read_plain(body)
        asked = from_body(
            fields,
            upscales=gateway.upscales,
            strict=not a1111 and not read.texts,
            aliases=dialect.DIALECT_ALIASES if a1111 else dialect.ALIASES,
        )
        if a1111 and not edits and "image_strength" in asked.names:
            # What A1111's clients send with every txt2img is the strength of its second pass.
            asked = attrs.evolve(asked, request=attrs.evolve(asked.request, image_strength=None))
        sends_images = dialect.sends_images(body)
        warnings = (*asked.warnings, *told, *read.warnings, *_of_headers())
        kind, task = "img2img" if edits else "txt2img", dialect.task_of(body)
        return Call(
            asked,
            a1111=a1111,
            sends_images=sends_images,
            styles=styles,
            kind=kind,
            task=task,
            warnings=warnings,
        )

    async def read_plain(body: Object) -> tuple[dict[str, Any], tuple[str, ...]]:
        fields = dict(body)
        # 'model' is the document's own, and takes an alias as it is.
        await name_model(fields, "sd_model_checkpoint")
        return fields, no_effect.explain_plain(body)

    async def read_dialect(body: Object) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
        fields = dialect.translate(body, max_images=max_images)
        filled_in = dialect.fill_in(fields)
        unnamed = await name_by_infotext(fields, filled_in.models)
        styles, unknown = await styled.apply(fields)
        await name_model(fields, "model", "sd_model_checkpoint")
        upscales = gateway.upscales(fields.get("model") or fields.get("sd_model_checkpoint"))
        snapped = () if upscales else dialect.snap_size(fields)
        of_infotext = (*filled_in.warnings, *unnamed)
        of_fields = (*dialect.explain_conflicts(body, fields), *no_effect.explain(body))
        told = (*snapped, *unknown, *of_infotext, *of_fields)
        return fields, styles, told

    async def name_model(fields: dict[str, Any], *titled: str) -> None:
        """Put an alias in the place of a title or hash, and the client's own choice where there is neither."""
        for name in titled:
            if isinstance(fields.get(name), str) and fields[name]:
                fields[name] = await alias_of(gateway, fields[name])
        if not fields.get("model") and not fields.get("sd_model_checkpoint"):
            fields["sd_model_checkpoint"] = chosen_model(options)

    async def name_by_infotext(fields: dict[str, Any], names: Sequence[str]) -> tuple[str, ...]:
        """Put the alias of the model that an infotext names into the fields; say where it is none of those here."""
        for name in names:
            alias = await alias_of(gateway, name)
            if gateway.catalog.get(alias) is not None:
                fields["sd_model_checkpoint"] = alias
                return ()
        return ("The model that 'infotext' names is not one of this server",) if names else ()

    async def generate(call: Call) -> Response:
        asked = read_wait()
        if asked.asynchronous:
            with waits.place(asked) as followed:
                return followed.apply(await generate_without_client(call, followed))
        call = _without_partial_images(call)
        started = trio.current_time()
        async with (
            calls.call(client_id(), call.kind, call.task) as listed,
            run_job(
                gateway,
                call.asked.request,
                caller=caller(),
                warnings=call.warnings,
                names=call.asked.names,
                on_accepted=held().body.release,
                on_submitted=partial(calls.add_job, listed),
            ) as ran,
        ):
            return await answer(call, ran, started)

    async def generate_without_client(call: Call, wait: Wait) -> Response:
        """Submit a job that goes on when its client leaves, and wait for its end only so long."""
        started = trio.current_time()
        accepted = await gateway.submit(
            call.asked.request,
            caller=caller(),
            warnings=call.warnings,
            names=call.asked.names,
        )
        held().body.release()
        await calls.keep(client_id(), call.kind, call.task, accepted.job.id)
        job = await waits.end(accepted.job, wait)
        if job is None:
            response = json_response(job_response(await gateway.job(accepted.job.id)), 202)
            response.headers["Location"] = f"{external_prefix()}/api/v1/jobs/{accepted.job.id}"
            return response
        if job.failure is not None:
            raise job.failure.to_error()
        return await answer(call, RanJob(job, None), started)

    async def answer(call: Call, ran: RanJob, started: float) -> Response:
        job = ran.job
        if job.status is Status.CANCELLED and not call.a1111:
            raise JobCancelled("The job was cancelled", {"job_id": job.id})
        sentence = f"Generated {len(job.images)} image(s) in {trio.current_time() - started:.1f}s"
        info = dialect.info(job, await gateway.model_hash(job.model), call.styles) if call.a1111 else sentence
        parameters = parameters_of(ran, gateway.catalog.get(job.model))
        if call.a1111:
            parameters |= a1111_parameters(
                job, call.styles, edits=call.kind == "img2img", sends_images=call.sends_images
            )
            # A text there, always.
            parameters["negative_prompt"] = parameters["negative_prompt"] or ""
        images = await _images(renderer, job, held().stack) if call.sends_images else []
        build = partial(ImagesResponse, parameters=parameters, info=info, warnings=job.warnings)
        return json_answer(with_images(lambda marks: build(images=tuple(marks)), images))

    return routes


def _without_partial_images(call: Call) -> Call:
    """Return a call that waits without what it could not be sent."""
    if not call.asked.request.partial_images:
        return call
    told = "'partial_images' has no effect here: they are in a job's stream; use POST /api/v1/generate"
    asked = attrs.evolve(call.asked, request=attrs.evolve(call.asked.request, partial_images=0))
    return attrs.evolve(call, asked=asked, warnings=(*call.warnings, told))


def _of_headers() -> tuple[str, ...]:
    """Return what is said of a header that asks for what a call that waits does not have."""
    if HEADER not in request.headers:
        return ()
    return (f"'{HEADER}' has no effect here: only POST /api/v1/generate keeps keys",)


async def _images(renderer: Renderer, job: Job, held: ExitStack) -> list[bytearray]:
    """The job's images, once there is room for them: it would be a pity to refuse what has been generated."""
    try:
        return await renderer.images(job, held, wait_seconds=ROOM_SECONDS)
    except ServerBusy:
        raise ServerBusy(
            f"Job '{job.id}' is done and its answer finds no room; get it with GET /api/v1/jobs/{job.id}",
            {"job_id": job.id},
        ) from None
