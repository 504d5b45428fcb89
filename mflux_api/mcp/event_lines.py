"""Server-sent events out of the bytes of an answer, within a bound."""

from collections.abc import AsyncGenerator, AsyncIterable
from typing import Final

import attrs

MAX_EVENT_BYTES: Final = 2**20
"""Longest event; a job's end with the paths of 64 images has 20 kB."""


class EventTooLong(Exception):
    """An event has more bytes than any of this service has."""


@attrs.frozen
class ServerEvent:
    """One event."""

    name: str
    data: bytes


async def read_events(chunks: AsyncIterable[bytes]) -> AsyncGenerator[ServerEvent, None]:
    """Return the events of a stream as they come; comments are skipped.

    Raises:
        EventTooLong: one of them is too long.
    """
    waiting, name, data = bytearray(), "", b""
    async for chunk in chunks:
        waiting += chunk
        *lines, rest = waiting.split(b"\n")
        waiting = bytearray(rest)
        for line in lines:
            field, _, value = bytes(line).rstrip(b"\r").partition(b": ")
            if field == b"event":
                name = value.decode("utf-8", "replace")
            elif field == b"data":
                data = value
            elif not field and name:
                yield ServerEvent(name, data)
                name, data = "", b""
        if len(waiting) > MAX_EVENT_BYTES:
            raise EventTooLong
