"""One input: the bytes that go over a connection, and how they were made."""

import random
from collections.abc import Callable, Iterator

import attrs


@attrs.frozen
class Case:
    """One connection's worth of bytes."""

    kind: str
    """``images``, ``safetensors``, ``json`` or ``http``."""
    how: str
    """What was done to which seed, for people."""
    data: bytes = attrs.field(repr=False)
    """All that is sent."""
    setup: bytes = attrs.field(default=b"", repr=False)
    """A request that goes before it, on a connection of its own: the upload of what it uses."""
    well_formed: bool = True
    """Whether the HTTP itself is right, so that an answer must come."""


Maker = Callable[[random.Random, int], Iterator[Case]]
"""Yields cases without end; the number is how large in bytes the largest inputs may be."""


def request(
    method: str, target: str, body: bytes = b"", content_type: str = "application/json", *headers: str
) -> bytes:
    """Return a request that is answered and closed."""
    head = [
        f"{method} {target} HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: close",
        f"Content-Length: {len(body)}",
        f"Content-Type: {content_type}",
        *headers,
    ]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body
