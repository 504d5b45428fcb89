"""Request bodies: JSON objects, read within limits."""

from typing import Any

import msgspec
from quart import request

from mflux_api.errors import InvalidJSON
from mflux_api.http.held import held
from mflux_api.system.threads import read_in_thread

MAX_BODY_BYTES = 64 * 1024 * 1024
THREAD_ABOVE_BYTES = 256 * 1024
"""Larger bodies are parsed in a thread: images in JSON would hold up all other requests."""


async def json_object() -> dict[str, Any]:
    """Read the body as a JSON object, whatever its content type says.

    Raises:
        InvalidJSON: it is not JSON, or not an object.
    """
    data = await request.get_data(as_text=False, cache=False)
    if len(data) > THREAD_ABOVE_BYTES:
        value = await read_in_thread(_parse, data, limiter=held().in_flight.parsers)
    else:
        value = _parse(data)
    # An error's traceback would keep the body in memory until the garbage collector comes.
    del data
    if isinstance(value, InvalidJSON):
        raise value
    if not isinstance(value, dict):
        raise InvalidJSON("The body must be a JSON object")
    return value


def _parse(data: str | bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except RecursionError:
        return InvalidJSON("The body is nested too deeply")
    except UnicodeDecodeError:
        return InvalidJSON("The body is not valid JSON: it is not UTF-8")
    except msgspec.DecodeError as error:
        return InvalidJSON(f"The body is not valid JSON: {error}")
