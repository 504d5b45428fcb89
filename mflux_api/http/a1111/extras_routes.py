"""``/sdapi/v1/extra-single-image``, ``extra-batch-images`` and ``upscalers``: A1111's way of upscaling images."""

import html
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import attrs
import trio
from quart import Blueprint, Response

from mflux_api.catalog import Model
from mflux_api.errors import InvalidParameter, JobCancelled, QueueFull, ShuttingDown
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111 import extras
from mflux_api.http.a1111.extras import ExtraBatchImages, ExtraSingleImage, ExtrasOptions, Plan, Source
from mflux_api.http.a1111.synchronous import all_generated
from mflux_api.http.body import json_object
from mflux_api.http.responses import in_thread, json_bytes, json_response
from mflux_api.http.schemas import ExtraBatchAnswer, ExtraSingleAnswer, UpscalerObject
from mflux_api.jobs.job import Job
from mflux_api.jobs.parse import convert, validate
from mflux_api.jobs.request import GenerateRequest
from mflux_api.jobs.upscaling import DEFAULT_FACTOR

T = TypeVar("T")
Upscaler = Model | str
"""A model, or one of :data:`~mflux_api.http.a1111.extras.PLAIN`."""

THREADS = 2
MOST_PLAIN_CALLS = 8
"""At once: a call holds its body and its results, up to some hundred megabytes."""


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("extras", __name__, url_prefix="/sdapi/v1")
    service = Extras(gateway)

    @routes.get("/upscalers")
    async def upscalers() -> Response:
        return json_response(tuple(_object(upscaler) for upscaler in service.upscalers()))

    @routes.post("/extra-single-image")
    async def single() -> Response:
        options = convert(await json_object(), ExtraSingleImage, strict=False)
        (image,), info = await service.upscale(options, [options.image], "image")
        return json_bytes(await in_thread(ExtraSingleAnswer(html_info=info, image=image)))

    @routes.post("/extra-batch-images")
    async def batch() -> Response:
        options = convert(await json_object(), ExtraBatchImages, strict=False)
        images, info = await service.upscale(options, [file.data for file in options.imageList], "imageList")
        return json_bytes(await in_thread(ExtraBatchAnswer(html_info=info, images=tuple(images))))

    return routes


class Extras:
    """Upscales the images of a call; a model's are jobs like any other."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._threads = trio.CapacityLimiter(THREADS)
        self._plain_calls = 0

    def upscalers(self) -> tuple[Upscaler, ...]:
        """All there are, the plain ones first."""
        return (*extras.PLAIN, *(model for model in self._gateway.catalog if model.upscales))

    async def upscale(self, options: ExtrasOptions, texts: Sequence[str], field: str) -> tuple[list[str], str]:
        """Return the upscaled images as base64 PNG, and what was done as HTML.

        Raises:
            InvalidParameter: there is no such upscaler, or one of the images cannot be used or upscaled.
            QueueFull: too many jobs wait, or too many calls without jobs are at work.
            ShuttingDown: the service is draining.
            JobCancelled: somebody cancelled a job.
            ServiceError: a job failed.
        """
        first = self._find(options.upscaler_1, "upscaler_1")
        second = self._find(options.upscaler_2, "upscaler_2")
        options = attrs.evolve(options, upscaler_1=_name(first), upscaler_2=_name(second))
        layers = (first, second) if options.blends else (first,)
        if any(isinstance(upscaler, Model) for upscaler in layers):
            return await self._upscaled(options, layers, texts, field)
        if (await self._gateway.status()).draining:
            raise ShuttingDown("The service is shutting down; try again in a moment")
        with self._room():
            return await self._upscaled(options, layers, texts, field)

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Bound what is held for calls that no queue bounds."""
        if self._plain_calls >= MOST_PLAIN_CALLS:
            raise QueueFull(f"{MOST_PLAIN_CALLS} calls are resizing images already; try again later")
        self._plain_calls += 1
        try:
            yield
        finally:
            self._plain_calls -= 1

    async def _upscaled(
        self, options: ExtrasOptions, layers: Sequence[Upscaler], texts: Sequence[str], field: str
    ) -> tuple[list[str], str]:
        # All of them are looked at before the first is upscaled.
        plans = [await self._plan(options, text, index, field) for index, text in enumerate(texts)]
        if sum(plan.pixels for plan in plans) > extras.MAX_BATCH_PIXELS:
            most = f"{extras.MAX_BATCH_PIXELS / 1e6:.0f} MP"
            raise InvalidParameter.for_field(
                field,
                f"is invalid: all results together have more than {most}; send fewer images at a time",
                value=len(texts),
                limit=extras.MAX_BATCH_PIXELS,
            )
        models = [layer for layer in layers if isinstance(layer, Model)]
        requests = [_request(options, model, *each) for each in zip(texts, plans, strict=True) for model in models]
        jobs = iter(await all_generated(self._gateway, requests))
        encoded, said = list[str](), list[str]()
        for index, (text, plan) in enumerate(zip(texts, plans, strict=True)):
            own = [next(jobs) for _ in models]
            pngs = iter([await self._png(job) for job in own])
            made = [next(pngs) if isinstance(layer, Model) else layer for layer in layers]
            said.append(extras.description(options, plan, own[0].request.seed if own else None))
            encoded.append(
                await self._in_thread(extras.composed, options, plan, made, Source(text, index, field), said[-1])
            )
        return encoded, f"<p>{html.escape(said[0])}</p>"

    async def _png(self, job: Job) -> bytes:
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

    async def _plan(self, options: ExtrasOptions, text: str, index: int, field: str) -> Plan:
        def planned() -> Plan:
            return extras.plan(options, *Source(text, index, field).decoded().size, field=field)

        return await self._in_thread(planned)

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await trio.to_thread.run_sync(work, *arguments, limiter=self._threads)


def _request(options: ExtrasOptions, model: Model, text: str, plan: Plan) -> GenerateRequest:
    request = GenerateRequest(
        model=model.alias,
        init_images=(text,),
        resolution=plan.resolution,
        softness=options.softness,
        seed=options.seed,
        low_ram=options.low_ram,
    )
    return validate(request)


def _name(upscaler: Upscaler) -> str:
    return upscaler if isinstance(upscaler, str) else upscaler.alias


def _object(upscaler: Upscaler) -> UpscalerObject:
    repo = None if isinstance(upscaler, str) else upscaler.repo or None
    return UpscalerObject(name=_name(upscaler), model_name=repo, model_path=None, model_url=None, scale=DEFAULT_FACTOR)
