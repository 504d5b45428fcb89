"""``/api/v1/loras``: which LoRAs there are, and how another one gets there."""

import errno
from collections.abc import Callable
from typing import TypeVar

import trio
from quart import Blueprint, Response, request
from quart.datastructures import FileStorage

from mflux_api.access.keys import Scope
from mflux_api.errors import BodyTooLarge, DiskFull, InternalError, InvalidParameter, RequestTimeout
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.operations import Operation, query_parameter
from mflux_api.http.render import timestamp
from mflux_api.http.responses import json_response
from mflux_api.http.routes.lora_schemas import LoraList, LoraResponse
from mflux_api.storage.loras import LoraFile, Upload, checked_name
from mflux_api.system.threads import read_in_thread, run_in_thread

T = TypeVar("T")

PATH = "/api/v1/loras"
CHUNK_BYTES = 1024 * 1024

OPERATIONS = (
    Operation(
        method="get",
        path=PATH,
        summary="List the LoRA files that requests may name",
        scope=Scope.READ,
        response=LoraList,
    ),
    Operation(
        method="post",
        path=PATH,
        summary="Add a LoRA file: the body is the file, or a form with the field `file`",
        scope=Scope.MANAGE,
        response=LoraResponse,
        parameters=(
            query_parameter("name", {"type": "string"}, "What to call it; a form's own file name by default"),
            query_parameter("overwrite", {"enum": ["true", "false"]}, "Replace a file of that name"),
        ),
        upload=True,
        errors=(InvalidParameter, BodyTooLarge, RequestTimeout, DiskFull),
    ),
)


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("loras", __name__)
    uploads = trio.CapacityLimiter(2)

    @routes.get(PATH)
    async def list_loras() -> Response:
        files = await read_in_thread(gateway.loras.all, limiter=gateway.lora_readers)
        return json_response(LoraList(loras=tuple(_response(file) for file in files)))

    @routes.post(PATH)
    async def add_lora() -> Response:
        overwrite = _flag("overwrite")
        name = request.args.get("name")
        if name is not None:
            # Before the body is read: no client wants to send a gigabyte for a name that will be refused.
            checked_name(name)
        async with uploads:
            if request.mimetype == "multipart/form-data":
                file = await _from_form(gateway, name, overwrite=overwrite)
            else:
                file = await _from_body(gateway, name, overwrite=overwrite)
        return json_response(_response(file))

    return routes


async def _from_body(gateway: Gateway, name: str | None, *, overwrite: bool) -> LoraFile:
    if name is None:
        raise InvalidParameter.for_field(
            "name",
            "is required: POST /api/v1/loras?name=my-style with the file as the body, or a form with a 'file'",
            limit="required",
        )
    with await _file_work(gateway.loras.begin) as upload:
        async for data in request.body:
            await _write(upload, data)
        checked = await gateway.decoding.check_lora(upload)
        return await _file_work(lambda: upload.publish(name, checked, overwrite=overwrite))


async def _from_form(gateway: Gateway, name: str | None, *, overwrite: bool) -> LoraFile:
    form, files = await request.form, await request.files
    sent: FileStorage | None = files.get("file")
    if sent is None:
        raise InvalidParameter.for_field("file", "is required: a form field with the LoRA's file", limit="required")
    chosen = name or form.get("name") or sent.filename or ""
    checked_name(chosen)
    with sent.stream as stream, await _file_work(gateway.loras.begin) as upload:
        while data := await _file_work(lambda: stream.read(CHUNK_BYTES)):
            await _write(upload, data)
        checked = await gateway.decoding.check_lora(upload)
        return await _file_work(lambda: upload.publish(chosen, checked, overwrite=overwrite))


async def _write(upload: Upload, data: bytes) -> None:
    await _file_work(lambda: upload.write(data))


async def _file_work(function: Callable[[], T]) -> T:
    """Run a function in a thread; what the disk refuses is an error that says so.

    Raises:
        DiskFull: there is no space left.
        InternalError: the disk refused it for another reason.
    """
    try:
        return await run_in_thread(function)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("No space left in the LoRA folder; free some and try again") from None
        raise InternalError(
            "The LoRA cannot be written; check that the first folder of lora.dirs is writable",
            {"reason": error.strerror or type(error).__name__},
        ) from None


def _flag(name: str) -> bool:
    value = request.args.get(name, "false")
    if value not in ("true", "false"):
        raise InvalidParameter.for_field(
            name, "is invalid: expected true or false", value=value[:64], limit="true or false"
        )
    return value == "true"


def _response(file: LoraFile) -> LoraResponse:
    return LoraResponse(name=file.name, size_bytes=file.size, modified_at=timestamp(file.modified_at))
