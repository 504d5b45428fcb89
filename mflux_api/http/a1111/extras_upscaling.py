"""Upscaling the images of a call as A1111's extras do: by resizing, by jobs on models, or both blended."""

import html
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import attrs

from mflux_api.access.keys import Caller
from mflux_api.catalog import Model
from mflux_api.errors import InvalidParameter, JobCancelled, QueueFull, ShuttingDown
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111.extras_plan import MAX_BATCH_PIXELS, PLAIN, Plan, describe, make_plan
from mflux_api.http.a1111.sdapi_schemas import (
    ExtrasOptions,
)
from mflux_api.http.half_close import need_client
from mflux_api.http.slots import Slots
from mflux_api.http.synchronous import run_jobs
from mflux_api.images.child.protocol import ComposeExtras
from mflux_api.jobs.job import Job
from mflux_api.jobs.parse import validate
from mflux_api.jobs.request import GenerateRequest
from mflux_api.jobs.warnings import merge

Upscaler = Model | str
"""A model, or one of :data:`~mflux_api.http.a1111.extras_plan.PLAIN`."""

Pieces = tuple[bytes, ...]
"""A finished image as base64."""

MAX_PLAIN_CALLS = 8
MAX_OF_CALLER = 6
"""Calls without jobs at one time, and of one caller: no queue bounds them."""


class Reserve(Protocol):
    """Takes room for a part of an answer, beside the bytes of other clients."""

    def __call__(self, count: int, *, refuse: bool) -> None:
        """Take it.

        Args:
            count: bytes.
            refuse: whether to refuse where there is no room; else others wait for it.

        Raises:
            ServerBusy: there is no room.
        """


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


@attrs.frozen(kw_only=True)
class Upscaled:
    """What a call made."""

    images: Sequence[Pieces] = attrs.field(repr=False)
    info: str
    """What was done, as HTML."""
    warnings: tuple[str, ...]
    """Sentences about what was asked for and is not done."""


class Extras:
    """Upscales the images of a call; what a model makes of one is a job like any other."""

    def __init__(
        self, gateway: Gateway, caller: Callable[[], Caller], reserve: Reserve, *, metadata: bool = True
    ) -> None:
        """Take what the calls need.

        Args:
            gateway: the way to the actors.
            caller: returns who sends the current call.
            reserve: takes room for bytes of the current call's answer.
            metadata: whether an image says how it was made.
        """
        self._gateway = gateway
        self._caller = caller
        self._reserve = reserve
        self._metadata = metadata
        self._plain_calls = Slots(
            "calls that resize images", total=MAX_PLAIN_CALLS, per_caller=MAX_OF_CALLER, full=QueueFull
        )

    def upscalers(self) -> tuple[Upscaler, ...]:
        """Return all upscalers, the plain ones first."""
        return (*PLAIN, *(model for model in self._gateway.catalog if model.upscales))

    def runs_jobs(self, options: ExtrasOptions) -> bool:
        """Return whether one of the upscalers is a model.

        Raises:
            InvalidParameter: an upscaler is unknown.
        """
        return any(isinstance(upscaler, Model) for upscaler in self._chosen(options))

    def _chosen(self, options: ExtrasOptions) -> tuple[Upscaler, ...]:
        first, second = self._both(options)
        return (first, second) if attrs.evolve(options, upscaler_2=name_of(second)).blends else (first,)

    def _both(self, options: ExtrasOptions) -> tuple[Upscaler, Upscaler]:
        return self._find(options.upscaler_1, "upscaler_1"), self._find(options.upscaler_2, "upscaler_2")

    async def upscale(
        self,
        options: ExtrasOptions,
        texts: Sequence[str],
        field: str,
        warnings: tuple[str, ...] = (),
        *,
        on_submitted: Callable[[str], None] = lambda _: None,
    ) -> Upscaled:
        """Upscale images.

        Args:
            options: how they are upscaled.
            texts: the images, as base64 or data URLs.
            field: what the client calls them, for errors.
            warnings: about what was asked for and is not done; the answer has them, and the jobs keep them.
            on_submitted: is given the id of each job when it is accepted.

        Raises:
            InvalidParameter: an upscaler is unknown, or one of the images cannot be used or upscaled.
            QueueFull: too many jobs wait, or too many calls without jobs are at work.
            TooManyConnections: too many of the caller's calls without jobs are at work.
            ServerBusy: there is no room for the results of a call without jobs.
            ShuttingDown: the service is draining.
            JobCancelled: another caller cancelled a job.
            ServiceError: a job failed.
        """
        first, second = self._both(options)
        options = attrs.evolve(options, upscaler_1=name_of(first), upscaler_2=name_of(second))
        upscalers = self._chosen(options)
        if self.runs_jobs(options):
            return await self._upscale(options, upscalers, texts, field, warnings, on_submitted)
        if (await self._gateway.status()).draining:
            raise ShuttingDown("The service is shutting down; try again in a moment")
        with self._plain_calls.slot(self._caller().owner):
            told = (*_only_of_models(options), *warnings)
            return await self._upscale(options, upscalers, texts, field, told, on_submitted)

    async def _upscale(
        self,
        options: ExtrasOptions,
        upscalers: Sequence[Upscaler],
        texts: Sequence[str],
        field: str,
        warnings: tuple[str, ...],
        on_submitted: Callable[[str], None],
    ) -> Upscaled:
        need_client()
        # Every image is checked before the first is upscaled.
        checked = await self._gateway.decoding.check_images(
            texts, field=field, reference=False, caller=self._caller().owner
        )
        warnings = (*warnings, *checked.warnings)
        sources = [Source(text, index, field) for index, text in enumerate(checked.texts)]
        plans = [make_plan(options, *size, field=field) for size in checked.sizes]
        _check_batch(plans, field)
        images = list[Pieces]()
        async with self._run(options, upscalers, sources, plans, warnings, on_submitted) as layers_of:
            for source, plan, layers in zip(sources, plans, layers_of, strict=True):
                image = await self._compose(options, plan, source, layers)
                # What a job has made is not thrown away for want of room.
                self._reserve(sum(map(len, image)), refuse=all(layer.job is None for layer in layers))
                images.append(image)
        info = f"<p>{html.escape(_describe(options, plans[0], layers_of[0]))}</p>"
        jobs = [layer.job for layers in layers_of for layer in layers if layer.job is not None]
        return Upscaled(images=images, info=info, warnings=merge(warnings, *(job.warnings for job in jobs)))

    @asynccontextmanager
    async def _run(
        self,
        options: ExtrasOptions,
        upscalers: Sequence[Upscaler],
        sources: Sequence[Source],
        plans: Sequence[Plan],
        warnings: tuple[str, ...],
        on_submitted: Callable[[str], None],
    ) -> AsyncIterator[list[list[Layer]]]:
        """Run the models' jobs and yield the layers of each image."""
        requests = {
            (source.index, place): _request(options, upscaler, source, plan)
            for source, plan in zip(sources, plans, strict=True)
            for place, upscaler in enumerate(upscalers)
            if isinstance(upscaler, Model)
        }
        async with run_jobs(
            self._gateway,
            list(requests.values()),
            caller=self._caller(),
            warnings=warnings,
            on_submitted=on_submitted,
        ) as ran:
            jobs = {place: each.job for place, each in zip(requests, ran, strict=True)}
            yield [
                [Layer(upscaler, jobs.get((source.index, place))) for place, upscaler in enumerate(upscalers)]
                for source in sources
            ]

    async def _compose(self, options: ExtrasOptions, plan: Plan, source: Source, layers: Sequence[Layer]) -> Pieces:
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
        return await self._gateway.decoding.compose_extras(order, source.text, pngs, self._caller().owner)

    async def _png(self, job: Job) -> bytes:
        """Return what a layer's job left."""
        if not job.images:
            raise JobCancelled("The job was cancelled", {"job_id": job.id})
        return await self._gateway.image_bytes(job.images[0])

    def _find(self, name: str, field: str) -> Upscaler:
        known = {name_of(upscaler).casefold(): upscaler for upscaler in self.upscalers()}
        model = self._gateway.catalog.get(name)
        found = known.get(name.casefold(), model if model is not None and model.upscales else None)
        if found is None:
            names = [name_of(upscaler) for upscaler in known.values()]
            raise InvalidParameter.for_field(
                field, f"is invalid: expected one of {', '.join(names)}", value=name[:64], limit=names
            )
        return found


def _only_of_models(options: ExtrasOptions) -> tuple[str, ...]:
    """Return what is said of options that plain resizing does not have."""
    names = [name for name in ("softness", "seed", "low_ram") if getattr(options, name)]
    listed = ", ".join(f"'{name}'" for name in names)
    why = "no upscaler that is a model is chosen"
    return (f"{listed} {'has' if len(names) == 1 else 'have'} no effect: {why}",) if names else ()


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
        low_ram=bool(options.low_ram),
    )
    return validate(request)


def _describe(options: ExtrasOptions, plan: Plan, layers: Sequence[Layer]) -> str:
    seeds = [layer.job.request.seed for layer in layers if layer.job is not None]
    return describe(options, plan, seeds[0] if seeds else None)


def name_of(upscaler: Upscaler) -> str:
    """Return an upscaler's name, as clients choose it."""
    return upscaler if isinstance(upscaler, str) else upscaler.alias
