"""JSON responses: encoding attrs objects, in a thread where they hold images."""

from typing import Any

import attrs
import msgspec
from quart import Response

from mflux_api.system.threads import read_in_thread


def json_response(value: Any, status: int = 200) -> Response:
    """Return an attrs object as a JSON response."""
    return json_bytes(to_json(value), status)


def json_bytes(data: bytes, status: int = 200) -> Response:
    """Return bytes that are JSON already."""
    return Response(data, status=status, content_type="application/json")


def to_json(value: Any) -> bytes:
    """Encode an attrs object, or a tuple of them; the keys come in the order of the class, as in the docs."""
    if isinstance(value, tuple):
        return msgspec.json.encode([attrs.asdict(each) for each in value])
    return msgspec.json.encode(attrs.asdict(value))


async def in_thread(value: Any) -> bytes:
    """Encode what holds images, in a thread: megabytes of text would hold up all other requests."""
    return await read_in_thread(to_json, value)
