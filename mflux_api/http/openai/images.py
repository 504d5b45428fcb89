"""``/v1/images/generations``, ``edits`` and ``variations``: generate and wait, as OpenAI's clients ask."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import attrs
from quart import Blueprint, Response

from mflux_api.access.keys import Scope
from mflux_api.actors.messages import Accepted
from mflux_api.errors import (
    IdempotencyConflict,
    InvalidParameter,
    JobCancelled,
    JobGone,
    NotYetSupported,
)
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.body import json_object
from mflux_api.http.client_calls import ClientCalls
from mflux_api.http.client_ids import client_id
from mflux_api.http.half_close import need_client
from mflux_api.http.held import held
from mflux_api.http.idempotency_keys import PARAMETER as IDEMPOTENCY_KEY
from mflux_api.http.idempotency_keys import read_idempotency_key
from mflux_api.http.openai.answers import Answers
from mflux_api.http.openai.call import NAMES, Call, normalize, read_call
from mflux_api.http.openai.names import ModelNames
from mflux_api.http.openai.schemas import EditsRequest, ImagesAnswer, ImagesRequest
from mflux_api.http.openai.streaming import StreamedCall, stream
from mflux_api.http.operations import RUN_ERRORS, SUBMIT_ERRORS, Operation
from mflux_api.http.render import Renderer, reserve_partial_images
from mflux_api.http.responses import json_answer
from mflux_api.http.security.guard import caller, still_allowed
from mflux_api.http.synchronous import run_job
from mflux_api.jobs.idempotency import IdempotencyKey
from mflux_api.jobs.job import Job, Status
from mflux_api.jobs.json_fields import Fields
from mflux_api.jobs.parse import convert

OPERATIONS = (
    Operation(
        method="post",
        path="/v1/images/generations",
        summary="Generate images, as OpenAI's clients ask for them",
        scope=Scope.GENERATE,
        body=ImagesRequest,
        response=ImagesAnswer,
        parameters=(IDEMPOTENCY_KEY,),
        errors=(*SUBMIT_ERRORS, *RUN_ERRORS, IdempotencyConflict, JobGone),
    ),
    Operation(
        method="post",
        path="/v1/images/edits",
        summary="Edit images, as OpenAI's clients ask for it",
        scope=Scope.GENERATE,
        body=EditsRequest,
        forms=True,
        response=ImagesAnswer,
        parameters=(IDEMPOTENCY_KEY,),
        errors=(*SUBMIT_ERRORS, *RUN_ERRORS, IdempotencyConflict, JobGone),
    ),
    Operation(
        method="post",
        path="/v1/images/variations",
        summary="Not supported: edit the image with a prompt",
        scope=Scope.GENERATE,
        errors=(NotYetSupported,),
    ),
)

_GENERATIONS, _EDITS = Fields.of(ImagesRequest), Fields.of(EditsRequest)


def blueprint(gateway: Gateway, renderer: Renderer, names: ModelNames, calls: ClientCalls) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("openai_images", __name__, url_prefix="/v1/images")
    answers = Answers(renderer)
    default_steps = gateway.settings.generation.default_steps

    @routes.post("/generations")
    async def generations() -> Response:
        with as_the_client_calls_them():
            return await answer(*await read(_GENERATIONS, ImagesRequest))

    @routes.post("/edits")
    async def edits() -> Response:
        with as_the_client_calls_them():
            return await answer(*await read(_EDITS, EditsRequest))

    @routes.post("/variations")
    async def variations() -> Response:
        raise NotYetSupported(
            "Variations are not made here; POST /v1/images/edits with a prompt that says what to change"
        )

    async def read(fields: Fields, kind: type[ImagesRequest]) -> tuple[Call, IdempotencyKey | None]:
        body = await json_object(fields, forms=True)
        values = normalize(body.values)
        asked = convert(values, kind, strict=not body.texts)
        key = await read_idempotency_key(values)
        call = read_call(asked, names.find(asked.model, gateway.catalog), default_steps=default_steps)
        return attrs.evolve(call, warnings=(*call.warnings, *body.warnings)), key

    async def answer(call: Call, key: IdempotencyKey | None) -> Response:
        if call.stream:
            return await streamed(call, key)
        if key is not None:
            return await rendered(call, await kept(call, key))
        this = held()
        async with (
            calls.call(client_id(), call.prefix) as listed,
            run_job(
                gateway,
                call.request,
                caller=caller(),
                warnings=call.warnings,
                names=NAMES,
                on_accepted=this.body.release,
                on_submitted=partial(calls.add_job, listed),
            ) as ran,
        ):
            return await rendered(call, ran.job)

    async def kept(call: Call, key: IdempotencyKey) -> Job:
        """Return the job of a key, which goes on without its client: a call that comes again gets its images."""
        accepted = await gateway.accepted_before(key) or await submit(call, key)
        held().body.release()
        return await end_of_kept(accepted.job)

    async def end_of_kept(job: Job) -> Job:
        end = job if job.status.terminal else await gateway.finished(job.id)
        if end.failure is not None:
            raise end.failure.to_error()
        return end

    async def submit(call: Call, key: IdempotencyKey | None) -> Accepted:
        return await gateway.submit(
            call.request,
            synchronous=key is None,
            caller=caller(),
            key=key,
            warnings=call.warnings,
            names=NAMES,
        )

    async def streamed(call: Call, key: IdempotencyKey | None) -> Response:
        """Answer as soon as the job is accepted; what is wrong later is an event."""
        this, client = held(), client_id()
        if call.request.init_images:
            # Decoding them may take long.
            need_client()
        accepted = None if key is None else await gateway.accepted_before(key)
        accepted = accepted or await submit(call, key)
        job = accepted.job
        if key is None:
            this.stack.callback(gateway.caller_done, job.id)
            # Of a job that has ended it does nothing.
            this.stack.callback(gateway.abandon, job.id)
        this.body.release()
        need_client()

        @asynccontextmanager
        async def under_way() -> AsyncIterator[None]:
            if key is not None:
                yield
                return
            async with calls.call(client, call.prefix) as listed:
                calls.add_job(listed, job.id)
                yield

        async def end() -> Job:
            if key is not None:
                return await end_of_kept(job)
            ended = (await gateway.awaited_end(job.id)).job
            if ended.failure is not None:
                raise ended.failure.to_error()
            return ended

        reserve = partial(reserve_partial_images, reservation=this.answer)
        return stream(
            StreamedCall(
                call=call,
                under_way=under_way,
                follow=partial(gateway.follow, job.id, partial_images=reserve),
                end=end,
                allowed=still_allowed(),
            ),
            answers,
            this.stack,
        )

    async def rendered(call: Call, job: Job) -> Response:
        if job.status is Status.CANCELLED:
            raise JobCancelled("The job was cancelled", {"job_id": job.id})
        return json_answer(await answers.whole(call, job))

    return routes


@contextmanager
def as_the_client_calls_them() -> Iterator[None]:
    """Have errors name the fields as OpenAI's clients call them."""
    try:
        yield
    except InvalidParameter as error:
        field = str(error.details.get("field"))
        theirs = NAMES.get(field)
        if theirs is None:
            raise
        message = error.message.replace(f"'{field}'", f"'{theirs}'")
        raise InvalidParameter(message, {**error.details, "field": theirs}) from None
