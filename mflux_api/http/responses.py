"""JSON responses."""

from typing import Any

import msgspec
from quart import Response


def json_response(value: Any, status: int = 200) -> Response:
    """Return a value as a JSON response."""
    return json_bytes(msgspec.json.encode(value), status)


def json_bytes(data: bytes, status: int = 200) -> Response:
    """Return bytes that are JSON already."""
    return Response(data, status=status, content_type="application/json")
