"""Request bodies: JSON objects, read within limits by the fields that a route knows."""

import itertools
from collections.abc import Sequence
from functools import partial

import attrs
from quart import request

from mflux_api.errors import InvalidJSON, ServerBusy, ServiceError
from mflux_api.http.content_encoding import (
    BadPacking,
    Encoding,
    Unpacker,
    body_encoding,
    not_packed,
    unpacked_too_large,
)
from mflux_api.http.form import read_form
from mflux_api.http.held import held
from mflux_api.ipc.printable import printable
from mflux_api.jobs.json_fields import Fields, JSONObject, read_object
from mflux_api.jobs.unknown_fields import MAX_NAME_LENGTH, MAX_NAMES
from mflux_api.system.threads import read_in_thread

MAX_BODY_BYTES = 64 * 1024 * 1024
THREAD_ABOVE_BYTES = 256 * 1024
"""Larger bodies are read in a thread: images in JSON would hold up all other requests."""


async def json_object(
    fields: Fields, *, may_be_empty: bool = False, forms: bool = False, parameters: Sequence[str] = ()
) -> JSONObject:
    """Read the body as a JSON object, whatever its content type says, unless it may be a form.

    Args:
        fields: what the route knows; all else is skipped, with a warning.
        may_be_empty: whether no body is an object without fields.
        forms: whether a ``multipart/form-data`` body is read as a form.
        parameters: those of the address that the route knows; all else belongs into the body, with a warning.

    Raises:
        InvalidJSON: it is not JSON, or not an object.
        InvalidParameter: a field is too large, or has too many items.
        UnsupportedEncoding: it is packed in a way that is not known.
        BodyTooLarge: it is over its limit once it is unpacked.
    """
    encoding = body_encoding()
    data: bytes | bytearray = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    if encoding is not None:
        unpacked = await _unpack(data, encoding)
        # See below.
        del data
        if isinstance(unpacked, ServiceError):
            raise unpacked
        data = unpacked
    if may_be_empty and not data:
        return JSONObject({}, _of_address(parameters))
    boundary = _boundary() if forms else None
    if len(data) > THREAD_ABOVE_BYTES:
        read = await read_in_thread(partial(_read, data, fields, boundary), limiter=held().in_flight.parsers)
    else:
        read = _read(data, fields, boundary)
    # An error's traceback would keep the body in memory until the garbage collector comes.
    del data
    if isinstance(read, ServiceError):
        raise read
    return attrs.evolve(read, warnings=(*read.warnings, *_of_address(parameters)))


def _of_address(known: Sequence[str]) -> tuple[str, ...]:
    """Return what is said of a query that a route does not know: what it reads is in the body."""
    asked = (name for name in request.args if name not in known)
    names = [f"'{printable(name, MAX_NAME_LENGTH)}'" for name in itertools.islice(asked, MAX_NAMES)]
    if not names:
        return ()
    return (f"{', '.join(names)} in the address {'has' if len(names) == 1 else 'have'} no effect: use the body",)


async def _unpack(data: bytes | bytearray, encoding: Encoding) -> bytearray | ServiceError:
    """Return a body unpacked; what comes out is reserved beside what came in, as both are in memory."""
    error: ServiceError
    most, threads = request.max_content_length or MAX_BODY_BYTES, held().in_flight.parsers
    unpacker, made = Unpacker(encoding), bytearray()
    pieces = unpacker.feed(data)
    try:
        while piece := await read_in_thread(next, pieces, b"", limiter=threads):
            if len(made) + len(piece) > most:
                return unpacked_too_large(most)
            held().reserve_body(len(data) + len(made) + len(piece))
            made += piece
        unpacker.end()
        return made
    except BadPacking as problem:
        error = InvalidJSON(not_packed(encoding, problem))
    except ServerBusy as busy:
        error = ServerBusy(busy.message, busy.details)
    return error


def _boundary() -> str | None:
    """Return what is between the parts of a form; ``None`` where the body is none."""
    if request.mimetype != "multipart/form-data":
        return None
    return request.mimetype_params.get("boundary", "")


def _read(data: bytes | bytearray, fields: Fields, boundary: str | None) -> JSONObject | ServiceError:
    error: ServiceError
    try:
        return read_object(data, fields) if boundary is None else read_form(data, boundary, fields)
    except ServiceError as caught:
        error = type(caught)(caught.message, caught.details)
    return error
