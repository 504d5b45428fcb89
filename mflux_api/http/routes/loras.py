"""``/api/v1/loras``: which LoRAs there are, and how one comes and goes."""

import errno
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import trio
from quart import Blueprint, Response, request

from mflux_api.access.keys import Scope
from mflux_api.errors import (
    BodyTooLarge,
    DiskFull,
    InternalError,
    InvalidParameter,
    LoraInUse,
    LoraNotDeletable,
    LoraNotFound,
    RequestTimeout,
    ServerBusy,
    ShuttingDown,
    TooManyConnections,
    UnsupportedEncoding,
)
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.content_encoding import BadPacking, Encoding, UnpackedBody, body_encoding, not_packed
from mflux_api.http.multipart import read_form
from mflux_api.http.operations import Operation, path_parameter, query_parameter
from mflux_api.http.query import invalid_parameter
from mflux_api.http.render import timestamp
from mflux_api.http.responses import json_bytes, json_response, to_json
from mflux_api.http.routes.lora_schemas import DeletedLora, LoraList, LoraResponse, SkippedLora
from mflux_api.http.security.guard import caller
from mflux_api.http.slots import Slots
from mflux_api.images.child.protocol import DescribedLora
from mflux_api.storage.lora_folders import Listing, LoraFile
from mflux_api.storage.loras import Upload, checked_name
from mflux_api.system.threads import run_in_thread

T = TypeVar("T")

PATH = "/api/v1/loras"

MOST_UPLOADS = 16
MOST_OF_CALLER = 8
"""Uploads at one time, and of one key or address. Each may take hours, at the least rate of its body."""

WAIT_SECONDS = 8.0
"""How long a further upload waits, unread, for another to end."""

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
        errors=(
            InvalidParameter,
            BodyTooLarge,
            UnsupportedEncoding,
            RequestTimeout,
            TooManyConnections,
            ServerBusy,
            DiskFull,
        ),
    ),
    Operation(
        method="delete",
        path=f"{PATH}/{{name}}",
        summary="Remove a LoRA file; the name may hold slashes",
        scope=Scope.MANAGE,
        response=DeletedLora,
        parameters=(path_parameter("name"),),
        errors=(LoraNotFound, LoraNotDeletable, LoraInUse, ServerBusy, ShuttingDown),
    ),
)


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("loras", __name__)
    uploads = _Uploads(gateway)
    render = _Render()

    @routes.get(PATH)
    async def list_loras() -> Response:
        listing = await gateway.read_loras(gateway.loras.look)
        described = await gateway.lora_contents.describe(listing.files, caller().owner)
        # In a thread: of thousands of files it takes a while.
        return json_bytes(await gateway.read_loras(render, listing, described))

    @routes.post(PATH)
    async def add_lora() -> Response:
        overwrite = _flag("overwrite")
        name = request.args.get("name")
        if name is not None:
            # Before the body is read: no client wants to send a gigabyte for a name that will be refused.
            checked_name(name)
        file = await uploads.add(caller().owner, name, overwrite=overwrite)
        (described,) = await gateway.lora_contents.describe((file,), caller().owner)
        return json_response(_response(file, described))

    @routes.delete(f"{PATH}/<path:name>")
    async def delete_lora(name: str) -> Response:
        file = await gateway.delete_lora(name)
        return json_response(DeletedLora(name=file.name))

    return routes


class _Uploads:
    """The uploads that go on, and the threads that write them."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._slots = Slots("uploads", total=MOST_UPLOADS, per_caller=MOST_OF_CALLER)
        self._threads = trio.CapacityLimiter(MOST_UPLOADS)

    async def add(self, caller: str, name: str | None, *, overwrite: bool) -> LoraFile:
        """Make a LoRA of the request's body.

        Raises:
            ServiceError: it cannot be, or there are too many uploads.
        """
        # A client that uploads several at once gets its turn; the wait has an end, as has the upload before it.
        await self._slots.wait(caller, WAIT_SECONDS)
        with self._slots.slot(caller):
            async with self._opened() as upload:
                chosen = await self._receive(upload, name)
                checked = await self._gateway.decoding.check_lora(upload, caller)
                return await self._file_work(lambda: upload.publish(chosen, checked, overwrite=overwrite))

    async def _receive(self, upload: Upload, name: str | None) -> str:
        """Write what comes into the upload; return what it is to be called."""
        encoding = body_encoding()
        try:
            return await self._write(upload, name, encoding)
        except BadPacking as problem:
            assert encoding is not None
            raise InvalidParameter.for_field(
                "file", f"is invalid: {not_packed(encoding, problem)}", limit=f"a body packed with {encoding}"
            ) from None

    async def _write(self, upload: Upload, name: str | None, encoding: Encoding | None) -> str:

        async def write(data: bytes) -> None:
            await self._file_work(lambda: upload.write(data))

        body: AsyncIterator[bytes] = request.body
        if encoding is not None:
            body = UnpackedBody(body, encoding, request.max_content_length or 0, limiter=self._threads)
        if request.mimetype != "multipart/form-data":
            if name is None:
                raise InvalidParameter.for_field(
                    "name",
                    "is required: POST /api/v1/loras?name=my-style with the file as the body, or a form with a 'file'",
                    limit="required",
                )
            async for data in body:
                await write(data)
            return name
        form = await read_form(body, request.mimetype_params.get("boundary", ""), write)
        if form.file_name is None:
            raise InvalidParameter.for_field("file", "is required: a form field with the LoRA's file", limit="required")
        return checked_name(name or form.fields.get("name") or form.file_name)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Upload]:
        """A file for what a client sends; what is not published is removed, by a thread: its disk may not answer."""
        upload = await self._file_work(self._gateway.loras.begin)
        try:
            yield upload
        finally:
            with trio.CancelScope(shield=True), suppress(OSError):
                await run_in_thread(upload.__exit__, None, None, None, limiter=self._threads)

    async def _file_work(self, function: Callable[[], T]) -> T:
        """Run a function in a thread; what the disk refuses is an error that says so.

        Raises:
            DiskFull: there is no space left.
            InternalError: the disk refused it for another reason.
        """
        try:
            return await run_in_thread(function, limiter=self._threads)
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
        raise invalid_parameter(name, value, "true or false")
    return value == "true"


class _Render:
    """Makes the answer; while nothing changes all callers get the same bytes, which may be megabytes."""

    _last: tuple[Listing, Sequence[DescribedLora], bytes] | None = None

    def __call__(self, listing: Listing, described: Sequence[DescribedLora]) -> bytes:
        last = self._last
        if last is not None and last[:2] == (listing, described):
            return last[2]
        data = to_json(_list(listing, described))
        self._last = listing, described, data
        return data


def _list(listing: Listing, described: Sequence[DescribedLora]) -> LoraList:
    return LoraList(
        loras=tuple(map(_response, listing.files, described)),
        skipped=tuple(SkippedLora(name=each.name, reason=each.reason) for each in listing.skipped),
        skipped_total=listing.skipped_total,
    )


def _response(file: LoraFile, described: DescribedLora) -> LoraResponse:
    contents = described.contents
    return LoraResponse(
        name=file.name,
        size_bytes=file.size,
        modified_at=timestamp(file.modified_at),
        format=None if contents is None else contents.format,
        rank=None if contents is None else contents.rank,
        base=None if contents is None else contents.base,
        layers=None if contents is None else contents.layers,
        layers_understood=None if contents is None else contents.understood,
        text_encoder_layers=None if contents is None else contents.text_encoder_layers,
        unknown=() if contents is None else contents.unknown,
        problem=described.problem,
    )
