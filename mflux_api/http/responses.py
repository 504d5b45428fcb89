"""JSON responses."""

from typing import Any

import attrs
import msgspec
import trio
from quart import Response


def json_response(value: Any, status: int = 200) -> Response:
    """Return an attrs object as a JSON response."""
    return json_bytes(to_json(value), status)


def json_bytes(data: bytes, status: int = 200) -> Response:
    """Return bytes that are JSON already."""
    return Response(data, status=status, content_type="application/json")


def to_json(value: Any) -> bytes:
    """Encode an attrs object, or several, with the keys in the order of the class, which is the order of the docs."""
    if isinstance(value, tuple):
        return msgspec.json.encode([attrs.asdict(each) for each in value])
    return msgspec.json.encode(attrs.asdict(value))


async def in_thread(value: Any) -> bytes:
    """Encode what holds images, in a thread: megabytes of text would hold up everybody else."""
    return await trio.to_thread.run_sync(to_json, value)
