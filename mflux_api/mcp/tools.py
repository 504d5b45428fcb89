"""The tools: what each does with the service."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import mcp_types as types
import trio

from mflux_api.errors import InvalidParameter, JobCancelled, ServerBusy, ServiceError
from mflux_api.jobs.parse import convert
from mflux_api.mcp import arguments as a
from mflux_api.mcp.answers import JobAnswer, ModelsAnswer, error_result, job_result, models_result, schema_of_answer
from mflux_api.mcp.backend import Backend, JobState, Unreachable
from mflux_api.mcp.error_text import describe
from mflux_api.mcp.files import InputFiles, Links
from mflux_api.mcp.meter import Meter

MAX_CALLS: Final = 32
"""Calls at one time."""
MAX_IMAGES_TEXT: Final = 63 * 2**20
"""Images of one call, as base64: what a body of the REST API has room for."""
_CANCEL_SECONDS: Final = 5.0
"""What telling the service of a cancel may take."""

_ANSWER_OPTIONS: Final = tuple(field.name for field in attrs.fields(a.Answering))


class Caller(Protocol):
    """Who calls a tool."""

    async def report(self, progress: float, total: float, message: str) -> None:
        """Tell how far the call is."""
        ...

    async def folders(self) -> Sequence[Path]:
        """Return the folders that the client has opened."""
        ...


@attrs.frozen(kw_only=True)
class _Tool:
    description: str
    title: str
    schema: dict[str, Any]
    answer: type[Any]
    run: Callable[[dict[str, Any], Caller], Awaitable[types.CallToolResult]]
    reads: bool = False
    """Whether it changes nothing."""


class Tools:
    """Those of one client."""

    def __init__(self, backend: Backend, files: InputFiles, links: Links) -> None:
        """Take what the tools work on.

        Args:
            backend: the service.
            files: the images that requests may name.
            links: the images that the client can read.
        """
        self._backend = backend
        self._files = files
        self._links = links
        self._calls = trio.CapacityLimiter(MAX_CALLS)
        most = backend.max_images
        self._tools: Mapping[str, _Tool] = {
            "generate": _Tool(
                title="Generate an image",
                description="Generate images from a text prompt. Answers with the images and their PNG files. A model "
                "that is not on disk is downloaded first, which can take long; list_models tells which are.",
                schema=a.request_schema(a.GENERATE, ("prompt",), most),
                answer=JobAnswer,
                run=partial(self._make, required=("prompt",)),
            ),
            "edit": _Tool(
                title="Edit an image",
                description="Change an image as a prompt says, or only the masked part of it (inpainting), or add to "
                "its sides (extend). Up to three more images can be referred to.",
                schema=a.request_schema(a.EDIT, ("prompt", "init_images"), most),
                answer=JobAnswer,
                run=partial(self._make, required=("prompt", "init_images")),
            ),
            "upscale": _Tool(
                title="Upscale an image",
                description="Make one image larger, with detail. Without a model the first upscaler is taken.",
                schema=a.request_schema(a.UPSCALE, ("init_images",), most),
                answer=JobAnswer,
                run=self._upscale,
            ),
            "list_models": _Tool(
                title="List the models",
                description="List the models: what each is for, its size, its licence, and whether it is on disk.",
                schema={"type": "object", "properties": {}, "additionalProperties": False},
                answer=ModelsAnswer,
                run=self._list_models,
                reads=True,
            ),
            "job_status": _Tool(
                title="Look at a job",
                description="Tell how far a job is, and give its images once it is completed.",
                schema=a.schema_of(a.StatusArguments),
                answer=JobAnswer,
                run=self._job_status,
                reads=True,
            ),
            "cancel_job": _Tool(
                title="Cancel a job",
                description="Cancel a job that is not finished; the computation stops at its next step.",
                schema=a.schema_of(a.JobArguments),
                answer=JobAnswer,
                run=self._cancel_job,
            ),
        }

    def listing(self) -> list[types.Tool]:
        """Return what a client is told of the tools."""
        return [
            types.Tool(
                name=name,
                title=tool.title,
                description=tool.description,
                input_schema=tool.schema,
                output_schema=schema_of_answer(tool.answer),
                annotations=types.ToolAnnotations(
                    read_only_hint=tool.reads, destructive_hint=name == "cancel_job", open_world_hint=False
                ),
            )
            for name, tool in self._tools.items()
        ]

    def __contains__(self, name: str) -> bool:
        return name in self._tools

    async def call(self, name: str, arguments: Mapping[str, Any], caller: Caller) -> types.CallToolResult:
        """Call one of the tools; what goes wrong is a result, too.

        Args:
            name: the tool.
            arguments: what the client sent.
            caller: who calls.
        """
        tool, place = self._tools[name], object()
        try:
            given = a.check_names(name, arguments, tool.schema["properties"])
            try:
                self._calls.acquire_on_behalf_of_nowait(place)
            except trio.WouldBlock:
                raise ServerBusy(f"{MAX_CALLS} calls are under way; wait for one of them to end") from None
            try:
                return await tool.run(given, caller)
            finally:
                self._calls.release_on_behalf_of(place)
        except ServiceError as error:
            return error_result(describe(error))
        except Unreachable as error:
            return error_result(str(error))

    async def _upscale(self, given: dict[str, Any], caller: Caller) -> types.CallToolResult:
        _require(given, ("init_images",))
        models = await self._backend.models()
        upscalers = [model for model in models if model.kind == "upscaler"]
        names, named = [model.name for model in upscalers], given.get("model")
        if named is None and upscalers:
            # One that is on disk needs no download.
            given["model"] = max(upscalers, key=lambda model: model.downloaded).name
        elif named not in names and any(model.name == named for model in models):
            raise InvalidParameter.for_field(
                "model", f"is not an upscaler; expected one of {', '.join(names)}", limit=names
            )
        return await self._make(given, caller)

    async def _make(
        self, given: dict[str, Any], caller: Caller, *, required: Sequence[str] = ()
    ) -> types.CallToolResult:
        _require(given, required)
        options = {name: given.pop(name) for name in _ANSWER_OPTIONS if name in given}
        answering = convert(options, a.Answering)
        body = await self._with_images(given, caller)
        began = trio.current_time()
        with trio.CancelScope(shield=True):
            # A job whose id is not known could not be cancelled.
            job_id = await self._backend.submit(body, waits=not answering.background)
        if answering.background:
            job = await self._backend.job(job_id)
            if "image_content" in options:
                told = "'image_content' has no effect beside 'background'; give it to job_status"
                job = attrs.evolve(job, warnings=(*job.warnings, told))
            return await job_result(self._backend, self._links, job, "none")
        job = await self._end_of(job_id, caller)
        if job.error is not None:
            raise job.error
        if job.status == "cancelled":
            raise JobCancelled(f"Job '{job.id}' was cancelled", {"job_id": job.id})
        seconds = trio.current_time() - began
        return await job_result(self._backend, self._links, job, answering.image_content, seconds=seconds)

    async def _with_images(self, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        named = {name: given[name] for name in ("init_images", "mask") if name in given}
        inputs = convert(named, a.ImageInputs)
        body = dict(given)
        if inputs.init_images:
            body["init_images"] = [
                await self._files.as_text(text, "init_images", caller.folders) for text in inputs.init_images
            ]
        if inputs.mask is not None:
            body["mask"] = await self._files.as_text(inputs.mask, "mask", caller.folders)
        if sum(map(len, (*body.get("init_images", ()), body.get("mask", "")))) > MAX_IMAGES_TEXT:
            most = MAX_IMAGES_TEXT * 3 // 4 // 2**20
            problem = f"is invalid: all images of a call have more than {most} MB together; send smaller ones"
            raise InvalidParameter.for_field("init_images", problem, limit=f"{most} MB together")
        return body

    async def _end_of(self, job_id: str, caller: Caller) -> JobState:
        """Return a job when it has ended; a cancelled caller takes it along."""
        meter = Meter(caller.report)
        try:
            async with self._backend.follow(job_id) as events:
                async for progress in events:
                    await meter.show(progress)
            return await self._backend.job(job_id)
        except Unreachable as error:
            raise Unreachable(f"{error}. Job '{job_id}' may go on: job_status tells") from None
        except BaseException:
            # What it raises must not take the place of what ended the call.
            with trio.move_on_after(_CANCEL_SECONDS, shield=True), suppress(ServiceError, Unreachable):
                await self._backend.cancel(job_id)
            raise

    async def _list_models(self, given: dict[str, Any], caller: Caller) -> types.CallToolResult:
        return models_result(await self._backend.models())

    async def _job_status(self, given: dict[str, Any], caller: Caller) -> types.CallToolResult:
        asked = convert(given, a.StatusArguments)
        job = await self._backend.job(asked.job_id)
        if asked.wait_seconds and not job.ended:
            meter = Meter(caller.report)
            with trio.move_on_after(asked.wait_seconds):
                async with self._backend.follow(job.id) as events:
                    async for progress in events:
                        await meter.show(progress)
            job = await self._backend.job(asked.job_id)
        return await job_result(self._backend, self._links, job, asked.image_content)

    async def _cancel_job(self, given: dict[str, Any], caller: Caller) -> types.CallToolResult:
        job = await self._backend.cancel(convert(given, a.JobArguments).job_id)
        return await job_result(self._backend, self._links, job, "none")


def _require(given: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if not given.get(name):
            raise InvalidParameter.for_field(name, "is required", limit="required")
