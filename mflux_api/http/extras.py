"""``/sdapi/v1/extra-single-image``, ``extra-batch-images`` and ``upscalers``: A1111's way of enlarging pictures."""

import base64
import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import attrs
import trio
from quart import Blueprint, Response

from mflux_api import extras
from mflux_api.actors.gateway import Gateway
from mflux_api.catalog import Model
from mflux_api.errors import InvalidParameter, JobCancelled
from mflux_api.extras import ExtraBatchImages, ExtraSingleImage, ExtrasOptions, Plan
from mflux_api.http.body import json_object
from mflux_api.http.responses import in_thread, json_bytes, json_response
from mflux_api.http.schemas import ExtraBatchAnswer, ExtraSingleAnswer, UpscalerObject
from mflux_api.http.synchronous import painted
from mflux_api.image_decoding import decode_picture
from mflux_api.requests import GenerateRequest, convert
from mflux_api.upscaling import DEFAULT_FACTOR

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
Upscaler = Model | str
"""A model, or one of :data:`~mflux_api.extras.PLAIN`."""

THREADS = 2


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("extras", __name__, url_prefix="/sdapi/v1")
    enlarger = Enlarger(gateway)

    @routes.get("/upscalers")
    async def upscalers() -> Response:
        return json_response(tuple(_object(upscaler) for upscaler in enlarger.upscalers()))

    @routes.post("/extra-single-image")
    async def single() -> Response:
        options = convert(await json_object(), ExtraSingleImage, strict=False)
        (image,), info = await enlarger.enlarge(options, [options.image], "image")
        return json_bytes(
            await in_thread(ExtraSingleAnswer(html_info=info, image=image if options.show_extras_results else None))
        )

    @routes.post("/extra-batch-images")
    async def batch() -> Response:
        options = convert(await json_object(), ExtraBatchImages, strict=False)
        images, info = await enlarger.enlarge(options, [file.data for file in options.imageList], "imageList")
        return json_bytes(
            await in_thread(
                ExtraBatchAnswer(html_info=info, images=tuple(images) if options.show_extras_results else ())
            )
        )

    return routes


class Enlarger:
    """Enlarges the pictures of one call, one after another; a model's are jobs like any other."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._threads = trio.CapacityLimiter(THREADS)

    def upscalers(self) -> tuple[Upscaler, ...]:
        """All there are, the plain ones first."""
        return (*extras.PLAIN, *(model for model in self._gateway.catalog if model.upscales))

    async def enlarge(self, options: ExtrasOptions, texts: Sequence[str], field: str) -> tuple[list[str], str]:
        """Return the enlarged pictures as base64 PNG, and what was done as HTML.

        Raises:
            InvalidParameter: there is no such upscaler, or one of the pictures cannot be used or enlarged.
            JobCancelled: somebody cancelled a job.
            ServiceError: a job failed.
        """
        first = self._find(options.upscaler_1, "upscaler_1")
        second = self._find(options.upscaler_2, "upscaler_2")
        blends = options.extras_upscaler_2_visibility > 0 and second != "None"
        options = attrs.evolve(options, upscaler_1=_name(first), upscaler_2=_name(second))
        # All of them are looked at before the first is enlarged.
        plans = [await self._plan(options, text, index, field) for index, text in enumerate(texts)]
        if sum(plan.pixels for plan in plans) > extras.MAX_BATCH_PIXELS:
            most = f"{extras.MAX_BATCH_PIXELS / 1e6:.0f} MP"
            raise InvalidParameter(
                f"'{field}' is invalid: all results together have more than {most}; send fewer pictures at a time",
                {"field": field, "value": len(texts), "limit": extras.MAX_BATCH_PIXELS},
            )
        encoded = []
        for index, (text, plan) in enumerate(zip(texts, plans, strict=True)):
            image = await self._enlarged(options, first, text, index, field, plan)
            if blends:
                other = await self._enlarged(options, second, text, index, field, plan)
                image = await self._in_thread(extras.blended, image, other, options.extras_upscaler_2_visibility)
            encoded.append(await self._in_thread(_encoded, image, extras.description(options, plan)))
        return encoded, f"<p>{html.escape(extras.description(options, plans[0]))}</p>"

    def _find(self, name: str, field: str) -> Upscaler:
        known = {_name(upscaler).casefold(): upscaler for upscaler in self.upscalers()}
        model = self._gateway.catalog.get(name)
        found = known.get(name.casefold(), model if model is not None and model.upscales else None)
        if found is None:
            names = [_name(upscaler) for upscaler in known.values()]
            raise InvalidParameter(
                f"'{field}' is invalid: expected one of {', '.join(names)}",
                {"field": field, "value": name[:64], "limit": names},
            )
        return found

    async def _plan(self, options: ExtrasOptions, text: str, index: int, field: str) -> Plan:
        def size() -> tuple[int, int]:
            return decode_picture(text, index, field).size

        return extras.plan(options, *await self._in_thread(size))

    async def _enlarged(
        self, options: ExtrasOptions, upscaler: Upscaler, text: str, index: int, field: str, plan: Plan
    ) -> "Image":
        if isinstance(upscaler, str):
            return await self._in_thread(extras.resized, text, index, field, upscaler, plan)
        request = GenerateRequest(
            model=upscaler.alias,
            init_images=(text,),
            resolution=plan.resolution,
            softness=options.softness,
            seed=options.seed,
            low_ram=options.low_ram,
        )
        job = await painted(self._gateway, request)
        if not job.images:
            raise JobCancelled("The job was cancelled", {"job_id": job.id})
        return await self._in_thread(extras.opened, await self._gateway.image_bytes(job.images[0]), plan)

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await trio.to_thread.run_sync(work, *arguments, limiter=self._threads)


def _encoded(image: "Image", parameters: str) -> str:
    return base64.b64encode(extras.as_png(image, parameters)).decode()


def _name(upscaler: Upscaler) -> str:
    return upscaler if isinstance(upscaler, str) else upscaler.alias


def _object(upscaler: Upscaler) -> UpscalerObject:
    repo = None if isinstance(upscaler, str) else upscaler.repo or None
    return UpscalerObject(name=_name(upscaler), model_name=repo, model_path=None, model_url=None, scale=DEFAULT_FACTOR)
