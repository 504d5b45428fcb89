"""``Idempotency-Key`` of a request: its place in the API's description, and reading it."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from quart import request

from mflux_api.http.security.guard import caller
from mflux_api.jobs.idempotency import HEADER, MAX_LENGTH, IdempotencyKey, idempotency_key
from mflux_api.system.threads import read_in_thread

PARAMETER = {"name": HEADER, "in": "header", "schema": {"type": "string", "maxLength": MAX_LENGTH}}


async def read_idempotency_key(body: Mapping[str, Any]) -> IdempotencyKey | None:
    """Return the key of the current request; ``None`` where it has none.

    Args:
        body: what a call that comes again must repeat.

    Raises:
        InvalidParameter: it is not a key.
        InvalidJSON: the body is nested too deeply to be compared.
    """
    text = request.headers.get(HEADER)
    if text is None:
        return None
    # In a thread: a body may hold megabytes of images.
    return await read_in_thread(partial(idempotency_key, text, body, caller=caller().identity))
