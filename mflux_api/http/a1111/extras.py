"""``/sdapi/v1/extra-single-image``, ``extra-batch-images`` and ``upscalers``: A1111's way of upscaling images."""

import html
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
from quart import Blueprint, Response

from mflux_api.access.keys import Scope
from mflux_api.catalog import Model
from mflux_api.errors import InvalidParameter, JobCancelled, ShuttingDown, TooManyConnections
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111.extras_plan import MAX_BATCH_PIXELS, PLAIN, Plan, describe, make_plan
from mflux_api.http.a1111.sdapi_schemas import (
    ExtraBatchImages,
    ExtraBatchResponse,
    ExtraSingleImage,
    ExtraSingleResponse,
    ExtrasOptions,
    UpscalerItem,
)
from mflux_api.http.body import json_object
from mflux_api.http.held import held
from mflux_api.http.operations import RUN_ERRORS, SUBMIT_ERRORS, Operation
from mflux_api.http.responses import Answer, in_thread, json_answer, json_response
from mflux_api.http.security.guard import caller
from mflux_api.http.slots import Slots
from mflux_api.http.synchronous import run_jobs
from mflux_api.images.child.protocol import ComposeExtras
from mflux_api.jobs.job import Job
from mflux_api.jobs.json_fields import Fields
from mflux_api.jobs.parse import convert, validate
from mflux_api.jobs.request import GenerateRequest
from mflux_api.jobs.upscaling import DEFAULT_FACTOR

Upscaler = Model | str
"""A model, or one of :data:`~mflux_api.http.a1111.extras_plan.PLAIN`."""

MAX_PLAIN_CALLS = 12
"""Calls without jobs at one time: a call holds its body and its results, up to some hundred megabytes."""
PLAIN_CALLS_OF_CALLER = 8

OPERATIONS = (
    Operation(
        method="post",
        path="/sdapi/v1/extra-single-image",
        summary="Upscale an image and wait for the result",
        scope=Scope.GENERATE,
        body=ExtraSingleImage,
        response=ExtraSingleResponse,
        errors=(*SUBMIT_ERRORS, *RUN_ERRORS, TooManyConnections),
    ),
    Operation(
        method="post",
        path="/sdapi/v1/extra-batch-images",
        summary="Upscale several images and wait for the results",
        scope=Scope.GENERATE,
        body=ExtraBatchImages,
        response=ExtraBatchResponse,
        errors=(*SUBMIT_ERRORS, *RUN_ERRORS, TooManyConnections),
    ),
    Operation(
        method="get",
        path="/sdapi/v1/upscalers",
        summary="List what upscaler_1 may name",
        scope=Scope.READ,
        response=UpscalerItem,
        is_list=True,
    ),
)


_SINGLE, _BATCH = Fields.of(ExtraSingleImage), Fields.of(ExtraBatchImages)


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("extras", __name__, url_prefix="/sdapi/v1")
    service = Extras(
        gateway,
        lambda: caller().owner,
        lambda: caller().most_queued,
        metadata=gateway.settings.generation.metadata,
    )

    @routes.post("/extra-single-image")
    async def single() -> Response:
        options = convert((await json_object(_SINGLE)).values, ExtraSingleImage, strict=False)
        (image,), info = await service.upscale(options, [options.image], "image")
        return await answer(ExtraSingleResponse(html_info=info, image=image))

    @routes.post("/extra-batch-images")
    async def batch() -> Response:
        options = convert((await json_object(_BATCH)).values, ExtraBatchImages, strict=False)
        images, info = await service.upscale(options, [file.data for file in options.imageList], "imageList")
        return await answer(ExtraBatchResponse(html_info=info, images=tuple(images)))

    async def answer(value: ExtraSingleResponse | ExtraBatchResponse) -> Response:
        data = await in_thread(value)
        held().answer.grow_anyway(len(data))
        return json_answer(Answer((data,)))

    @routes.get("/upscalers")
    async def upscalers() -> Response:
        return json_response(tuple(_item(upscaler) for upscaler in service.upscalers()))

    return routes


@attrs.frozen
class Source:
    """An image as a client sent it."""

    text: str = attrs.field(repr=False)
    """Base64 or a data URL."""
    index: int
    """Its place in the request."""
    field: str
    """What the client calls it, for errors."""


@attrs.frozen
class Layer:
    """One of the images that a result is blended of: made by plain resizing, or by a job."""

    upscaler: Upscaler
    job: Job | None
    """The job that made it; ``None`` for a plain upscaler."""


class Extras:
    """Upscales the images of a call; what a model makes of one is a job like any other."""

    def __init__(
        self,
        gateway: Gateway,
        owner: Callable[[], str],
        most_queued: Callable[[], int | None] = lambda: None,
        *,
        metadata: bool = True,
    ) -> None:
        self._gateway = gateway
        self._owner = owner
        self._metadata = metadata
        self._most_queued = most_queued
        self._plain_calls = Slots("calls that resize", total=MAX_PLAIN_CALLS, per_caller=PLAIN_CALLS_OF_CALLER)

    def upscalers(self) -> tuple[Upscaler, ...]:
        """Return all upscalers, the plain ones first."""
        return (*PLAIN, *(model for model in self._gateway.catalog if model.upscales))

    async def upscale(self, options: ExtrasOptions, texts: Sequence[str], field: str) -> tuple[list[str], str]:
        """Return the upscaled images as base64 PNG, and what was done as HTML.

        Args:
            options: how they are upscaled.
            texts: the images, as base64 or data URLs.
            field: what the client calls them, for errors.

        Raises:
            InvalidParameter: an upscaler is unknown, or one of the images cannot be used or upscaled.
            QueueFull: too many jobs wait.
            TooManyConnections: too many calls of the caller, without jobs, are at work.
            ServerBusy: too many of all callers are.
            ShuttingDown: the service is draining.
            JobCancelled: another caller cancelled a job.
            ServiceError: a job failed.
        """
        first = self._find(options.upscaler_1, "upscaler_1")
        second = self._find(options.upscaler_2, "upscaler_2")
        options = attrs.evolve(options, upscaler_1=_name(first), upscaler_2=_name(second))
        upscalers = (first, second) if options.blends else (first,)
        if any(isinstance(upscaler, Model) for upscaler in upscalers):
            return await self._upscale(options, upscalers, texts, field)
        if (await self._gateway.status()).draining:
            raise ShuttingDown("The service is shutting down; try again in a moment")
        with self._plain_calls.slot(self._owner()):
            return await self._upscale(options, upscalers, texts, field)

    async def _upscale(
        self, options: ExtrasOptions, upscalers: Sequence[Upscaler], texts: Sequence[str], field: str
    ) -> tuple[list[str], str]:
        # Every image is checked before the first is upscaled.
        checked = await self._gateway.decoding.check_images(texts, field=field, reference=False, caller=self._owner())
        sources = [Source(text, index, field) for index, text in enumerate(checked.texts)]
        plans = [make_plan(options, *size, field=field) for size in checked.sizes]
        _check_batch(plans, field)
        images = list[str]()
        async with self._run(options, upscalers, sources, plans) as layers_of:
            for source, plan, layers in zip(sources, plans, layers_of, strict=True):
                images.append(await self._compose(options, plan, source, layers))
        return images, f"<p>{html.escape(_describe(options, plans[0], layers_of[0]))}</p>"

    @asynccontextmanager
    async def _run(
        self, options: ExtrasOptions, upscalers: Sequence[Upscaler], sources: Sequence[Source], plans: Sequence[Plan]
    ) -> AsyncIterator[list[list[Layer]]]:
        """Run the models' jobs and yield the layers of each image."""
        requests = {
            (source.index, place): _request(options, upscaler, source, plan)
            for source, plan in zip(sources, plans, strict=True)
            for place, upscaler in enumerate(upscalers)
            if isinstance(upscaler, Model)
        }
        async with run_jobs(
            self._gateway, list(requests.values()), owner=self._owner(), most_queued=self._most_queued()
        ) as ran:
            jobs = {place: each.job for place, each in zip(requests, ran, strict=True)}
            yield [
                [Layer(upscaler, jobs.get((source.index, place))) for place, upscaler in enumerate(upscalers)]
                for source in sources
            ]

    async def _compose(self, options: ExtrasOptions, plan: Plan, source: Source, layers: Sequence[Layer]) -> str:
        pngs = [await self._png(layer.job) for layer in layers if layer.job is not None]
        order = ComposeExtras(
            field=source.field,
            first=source.index,
            layers=tuple("png" if isinstance(layer.upscaler, Model) else PLAIN[layer.upscaler] for layer in layers),
            scaled=plan.scaled,
            wanted=plan.wanted,
            visibility=options.extras_upscaler_2_visibility,
            done=_describe(options, plan, layers),
            metadata=self._metadata,
        )
        return await self._gateway.decoding.compose_extras(order, source.text, pngs, self._owner())

    async def _png(self, job: Job) -> bytes:
        """Return what a layer's job left."""
        if not job.images:
            raise JobCancelled("The job was cancelled", {"job_id": job.id})
        return await self._gateway.image_bytes(job.images[0])

    def _find(self, name: str, field: str) -> Upscaler:
        known = {_name(upscaler).casefold(): upscaler for upscaler in self.upscalers()}
        model = self._gateway.catalog.get(name)
        found = known.get(name.casefold(), model if model is not None and model.upscales else None)
        if found is None:
            names = [_name(upscaler) for upscaler in known.values()]
            raise InvalidParameter.for_field(
                field, f"is invalid: expected one of {', '.join(names)}", value=name[:64], limit=names
            )
        return found


def _check_batch(plans: Sequence[Plan], field: str) -> None:
    if sum(plan.pixels for plan in plans) > MAX_BATCH_PIXELS:
        most = f"{MAX_BATCH_PIXELS / 1e6:.0f} MP"
        raise InvalidParameter.for_field(
            field,
            f"is invalid: all results together have more than {most}; send fewer images at a time",
            value=len(plans),
            limit=MAX_BATCH_PIXELS,
        )


def _request(options: ExtrasOptions, model: Model, source: Source, plan: Plan) -> GenerateRequest:
    request = GenerateRequest(
        model=model.alias,
        init_images=(source.text,),
        resolution=plan.resolution,
        softness=options.softness,
        seed=options.seed,
        low_ram=options.low_ram,
    )
    return validate(request)


def _describe(options: ExtrasOptions, plan: Plan, layers: Sequence[Layer]) -> str:
    seeds = [layer.job.request.seed for layer in layers if layer.job is not None]
    return describe(options, plan, seeds[0] if seeds else None)


def _name(upscaler: Upscaler) -> str:
    return upscaler if isinstance(upscaler, str) else upscaler.alias


def _item(upscaler: Upscaler) -> UpscalerItem:
    repo = None if isinstance(upscaler, str) else upscaler.repo or None
    return UpscalerItem(name=_name(upscaler), model_name=repo, model_path=None, model_url=None, scale=DEFAULT_FACTOR)
