"""``/sdapi/v1/progress``, ``interrupt`` and ``skip``, and ``/internal/progress``: each client's own calls alone."""

import zlib

from quart import Blueprint, Response, request

from mflux_api.access.keys import Scope
from mflux_api.errors import InvalidParameter, NotYetSupported
from mflux_api.http.a1111.progress_schemas import (
    InterruptAnswer,
    ProgressAnswer,
    ProgressState,
    TaskAnswer,
    TaskRequest,
)
from mflux_api.http.body import json_object
from mflux_api.http.client_calls import CallState, ClientCalls
from mflux_api.http.client_ids import client_id
from mflux_api.http.operations import BODY_ERRORS, Operation, query_parameter
from mflux_api.http.responses import json_response
from mflux_api.jobs.job import Stage, Status
from mflux_api.jobs.json_fields import Fields
from mflux_api.jobs.parse import convert

_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_TASK = Fields.of(TaskRequest)

OPERATIONS = (
    Operation(
        method="get",
        path="/sdapi/v1/progress",
        summary="How far this client's newest waiting call is; zeros when there is none",
        scope=Scope.READ,
        response=ProgressAnswer,
        parameters=(query_parameter("skip_current_image", {"type": "boolean"}, "Leave current_image out"),),
        errors=(InvalidParameter,),
    ),
    Operation(
        method="post",
        path="/internal/progress",
        summary="How far the call is that this client named by force_task_id",
        scope=Scope.READ,
        body=TaskRequest,
        response=TaskAnswer,
        errors=BODY_ERRORS,
    ),
    Operation(
        method="post",
        path="/sdapi/v1/interrupt",
        summary="End this client's newest running call; it answers with the images so far",
        scope=Scope.GENERATE,
        response=InterruptAnswer,
    ),
    Operation(
        method="post",
        path="/sdapi/v1/skip",
        summary="The same as interrupt: images of one call are made together",
        scope=Scope.GENERATE,
        response=InterruptAnswer,
    ),
    Operation(
        method="post",
        path="/sdapi/v1/interrogate",
        summary="Not supported: no model here describes images",
        scope=Scope.GENERATE,
        errors=(NotYetSupported,),
    ),
)


def blueprint(calls: ClientCalls) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("progress", __name__)

    @routes.get("/sdapi/v1/progress")
    async def progress() -> Response:
        wants_image = not _flag("skip_current_image")
        state = await calls.newest(client_id())
        return json_response(_idle() if state is None else _answer(state, wants_image=wants_image))

    @routes.post("/internal/progress")
    async def task() -> Response:
        asked = convert((await json_object(_TASK)).values, TaskRequest)
        found = await calls.task(client_id(), asked.id_task)
        if isinstance(found, CallState):
            return json_response(_task_answer(found, asked))
        return json_response(
            TaskAnswer(
                active=False,
                queued=found == "waiting",
                completed=found == "finished",
                progress=None,
                eta=None,
                live_preview=None,
                id_live_preview=-1,
                textinfo="Waiting..." if found == "waiting" else "",
            )
        )

    @routes.post("/sdapi/v1/interrupt")
    async def interrupt() -> Response:
        ended = await calls.interrupt(client_id())
        return json_response(InterruptAnswer(interrupted=ended is not None))

    @routes.post("/sdapi/v1/skip")
    async def skip() -> Response:
        ended = await calls.interrupt(client_id())
        told = () if ended is None else ("'skip' ended the whole call: its images are made together",)
        return json_response(InterruptAnswer(interrupted=ended is not None, warnings=told))

    @routes.post("/sdapi/v1/interrogate")
    async def interrogate() -> Response:
        raise NotYetSupported("No model here describes images; write the prompt yourself")

    return routes


def _idle() -> ProgressAnswer:
    return ProgressAnswer(progress=0.0, eta_relative=0.0, state=ProgressState(), current_image=None, textinfo=None)


def _answer(state: CallState, *, wants_image: bool) -> ProgressAnswer:
    call, job, progress = state.call, state.view.job, state.progress
    if wants_image:
        call.previews_wanted.set()
    return ProgressAnswer(
        progress=_highest(state),
        eta_relative=_eta(state) or 0.0,
        state=ProgressState(
            interrupted=call.interrupted,
            stopping_generation=call.interrupted,
            job=call.kind,
            job_count=max(1, job.request.num_images),
            job_timestamp=f"{job.created_at:%Y%m%d%H%M%S}",
            job_no=0 if progress is None else min(progress.image, job.request.num_images - 1),
            sampling_step=0 if progress is None else progress.step,
            sampling_steps=job.request.steps_run if progress is None else progress.steps,
        ),
        current_image=call.preview if wants_image else None,
        textinfo=_text(state),
    )


def _task_answer(state: CallState, asked: TaskRequest) -> TaskAnswer:
    active = state.view.job.status is Status.GENERATING
    preview, number = state.call.preview, -1
    if asked.live_preview:
        state.call.previews_wanted.set()
    if preview is not None:
        # The same number for the same image in each answer.
        number = zlib.crc32(preview.encode())
    new = asked.live_preview and preview is not None and number != asked.id_live_preview
    return TaskAnswer(
        active=active,
        queued=not active,
        completed=False,
        progress=_highest(state),
        eta=_eta(state),
        live_preview=f"data:image/jpeg;base64,{preview}" if new else None,
        id_live_preview=number,
        textinfo=_text(state),
    )


def _highest(state: CallState) -> float:
    """Return how far a call is: it never decreases, also where its job begins again."""
    now = 0.0 if state.progress is None else state.progress.progress
    state.call.highest = max(state.call.highest, min(now, 0.999))
    return round(state.call.highest, 4)


def _eta(state: CallState) -> float | None:
    seconds = None if state.progress is None else state.progress.eta_seconds
    return None if seconds is None else round(seconds, 1)


_TEXTS = {Stage.QUEUED: "In queue", Stage.DOWNLOADING: "Downloading the model", Stage.LOADING: "Loading the model"}


def _text(state: CallState) -> str:
    progress = state.progress
    if progress is None:
        return ""
    live = state.view.live
    if progress.stage is Stage.QUEUED and live is not None and live.position:
        return f"In queue: {live.position}"
    return _TEXTS.get(progress.stage, progress.stage.value.capitalize())


def _flag(name: str) -> bool:
    text = request.args.get(name, "false")
    if text.lower() not in _FLAGS:
        raise InvalidParameter.for_field(name, "is invalid: expected true or false", value=text[:64], limit="bool")
    return _FLAGS[text.lower()]
