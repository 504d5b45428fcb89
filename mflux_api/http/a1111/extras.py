"""``/sdapi/v1/extra-single-image``, ``extra-batch-images`` and ``upscalers``: A1111's way of upscaling images."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from quart import Blueprint, Response

from mflux_api.access.keys import Scope
from mflux_api.errors import TooManyConnections
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111.extras_upscaling import Extras, Upscaler, name_of
from mflux_api.http.a1111.no_effect import EXTRAS_READ, explain_extras
from mflux_api.http.a1111.sdapi_schemas import (
    ExtraBatchImages,
    ExtraBatchResponse,
    ExtraSingleImage,
    ExtraSingleResponse,
    ExtrasOptions,
    UpscalerItem,
)
from mflux_api.http.body import json_object
from mflux_api.http.client_calls import ClientCalls
from mflux_api.http.client_ids import client_id
from mflux_api.http.held import held
from mflux_api.http.operations import RUN_ERRORS, SUBMIT_ERRORS, Operation
from mflux_api.http.render import with_images
from mflux_api.http.responses import json_answer, json_response
from mflux_api.http.security.guard import caller
from mflux_api.jobs.json_fields import Fields, JSONObject
from mflux_api.jobs.parse import convert
from mflux_api.jobs.upscaling import DEFAULT_FACTOR

OPERATIONS = (
    Operation(
        method="post",
        path="/sdapi/v1/extra-single-image",
        summary="Upscale an image and wait for the result",
        scope=Scope.GENERATE,
        body=ExtraSingleImage,
        forms=True,
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


_KIND = "extras"

_SINGLE, _BATCH = (Fields.of(body).with_fields(EXTRAS_READ) for body in (ExtraSingleImage, ExtraBatchImages))


def blueprint(gateway: Gateway, calls: ClientCalls) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("extras", __name__, url_prefix="/sdapi/v1")

    def reserve(count: int, *, refuse: bool) -> None:
        answer = held().answer
        (answer.grow if refuse else answer.grow_anyway)(count)

    service = Extras(gateway, caller, reserve, metadata=gateway.settings.generation.metadata)

    @asynccontextmanager
    async def listed(options: ExtrasOptions) -> AsyncIterator[Callable[[str], None]]:
        """Have a call in the list of those that can be interrupted, where it has jobs; yield what takes their ids."""
        if not service.runs_jobs(options):
            yield lambda _: None
            return
        async with calls.call(client_id(), _KIND) as call:
            yield partial(calls.add_job, call)

    @routes.post("/extra-single-image")
    async def single() -> Response:
        read = await json_object(_SINGLE, forms=True)
        options = convert(read.values, ExtraSingleImage, strict=False)
        async with listed(options) as add_job:
            done = await service.upscale(options, [options.image], "image", warnings_of(read), on_submitted=add_job)
        respond = partial(ExtraSingleResponse, html_info=done.info, warnings=done.warnings)
        return json_answer(with_images(lambda marks: respond(image=marks[0]), done.images))

    @routes.post("/extra-batch-images")
    async def batch() -> Response:
        read = await json_object(_BATCH)
        options = convert(read.values, ExtraBatchImages, strict=False)
        texts = [file.data for file in options.imageList]
        async with listed(options) as add_job:
            done = await service.upscale(options, texts, "imageList", warnings_of(read), on_submitted=add_job)
        respond = partial(ExtraBatchResponse, html_info=done.info, warnings=done.warnings)
        return json_answer(with_images(lambda marks: respond(images=tuple(marks)), done.images))

    def warnings_of(read: JSONObject) -> tuple[str, ...]:
        return (*explain_extras(read.values), *read.warnings)

    @routes.get("/upscalers")
    async def upscalers() -> Response:
        return json_response(tuple(_item(upscaler) for upscaler in service.upscalers()))

    return routes


def _item(upscaler: Upscaler) -> UpscalerItem:
    repo = None if isinstance(upscaler, str) else upscaler.repo or None
    return UpscalerItem(name=name_of(upscaler), model_name=repo, model_path=None, model_url=None, scale=DEFAULT_FACTOR)
