"""Bodies that come packed (``Content-Encoding: gzip`` or ``deflate``): unpacked in slices, within a body's limit."""

import zlib
from collections.abc import AsyncIterator, Iterator
from enum import StrEnum
from typing import Final

import trio
from quart import request

from mflux_api.errors import BodyTooLarge, UnsupportedEncoding
from mflux_api.http.body_limits import too_large
from mflux_api.ipc.printable import printable
from mflux_api.system.threads import read_in_thread

ACCEPTED: Final = "gzip, deflate"
"""What a client is told with a 415, as RFC 9110 (15.5.16) asks."""

SLICE_BYTES: Final = 2**20
"""What comes out at one time. zlib lets other threads run meanwhile."""
_TAKEN_BYTES: Final = 64 * 1024
"""What is put in at one time: what zlib leaves of it is copied."""
_MOST_MEMBERS: Final = 1000
"""Files put one behind the other in one of gzip's; each costs, however small it is."""


class Encoding(StrEnum):
    """How a body is packed."""

    GZIP = "gzip"
    DEFLATE = "deflate"


class BadPacking(Exception):
    """The body is not what its ``Content-Encoding`` says; the message completes a sentence that begins with it."""


def body_encoding() -> Encoding | None:
    """Return how the current request's body is packed; ``None`` where it is not.

    Raises:
        UnsupportedEncoding: in a way that is not known, or in several.
    """
    names = [name.strip().lower() for value in request.headers.getlist("Content-Encoding") for name in value.split(",")]
    names = [name.removeprefix("x-") for name in names if name not in ("", "identity")]
    if not names:
        return None
    if len(names) == 1 and names[0] in tuple(Encoding):
        return Encoding(names[0])
    shown = printable(", ".join(names), 64)
    raise UnsupportedEncoding(
        f"Content-Encoding '{shown}' is not supported; send the body as it is, or with gzip or deflate",
        {"encoding": shown, "supported": [*Encoding, "identity"]},
    )


def not_packed(encoding: Encoding, problem: BadPacking) -> str:
    """Return the sentence for a body that cannot be unpacked."""
    return f"The body {problem}, and Content-Encoding says {encoding}; send it again, or as it is without that header"


class Unpacker:
    """Unpacks one body, piece by piece; a piece of its result is never larger than :data:`SLICE_BYTES`."""

    def __init__(self, encoding: Encoding) -> None:
        self._gzip = encoding is Encoding.GZIP
        self._stream = zlib.decompressobj(16 + zlib.MAX_WBITS) if self._gzip else None
        self._head = b""
        self._members = 1

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """Take a piece of the body; each piece of the result is made when it is asked for.

        Raises:
            BadPacking: it is not packed so.
        """
        view = memoryview(data)
        for start in range(0, len(view), _TAKEN_BYTES):
            try:
                yield from self._unpack(bytes(view[start : start + _TAKEN_BYTES]))
            except zlib.error:
                raise BadPacking("is damaged or packed otherwise") from None

    def end(self) -> None:
        """Say that the body has ended.

        Raises:
            BadPacking: it is cut off.
        """
        if self._stream is None or not self._stream.eof:
            raise BadPacking("is cut off")

    def _unpack(self, data: bytes) -> Iterator[bytes]:
        if self._stream is None:
            data = self._head = self._head + data
            if len(data) < 2:
                return
            # Half of all clients send what RFC 9110 says, and half leave zlib's two bytes out.
            wrapped = data[0] & 15 == zlib.DEFLATED and (data[0] << 8 | data[1]) % 31 == 0
            self._stream = zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
        while True:
            if self._stream.eof:
                if not data.strip(b"\0"):
                    return
                self._stream = self._next_member()
            piece = self._stream.decompress(data, SLICE_BYTES)
            if piece:
                yield piece
            data = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            if not data and len(piece) < SLICE_BYTES:
                return

    def _next_member(self) -> "zlib._Decompress":
        self._members += 1
        if not self._gzip:
            raise BadPacking("goes on behind its end")
        if self._members > _MOST_MEMBERS:
            raise BadPacking("has too many parts")
        return zlib.decompressobj(16 + zlib.MAX_WBITS)


class UnpackedBody:
    """A body to iterate over, unpacked."""

    def __init__(
        self, body: AsyncIterator[bytes], encoding: Encoding, most: int, limiter: trio.CapacityLimiter | None = None
    ) -> None:
        """Take a body that is read as it comes.

        Args:
            body: what comes.
            encoding: how it is packed.
            most: bytes that it may have once it is unpacked.
            limiter: of the threads that unpack.
        """
        self._body = body
        self._unpacker = Unpacker(encoding)
        self._pieces: Iterator[bytes] = iter(())
        self._most = most
        self._limiter = limiter
        self._total = 0

    def __aiter__(self) -> "UnpackedBody":
        """Return itself."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece.

        Raises:
            BadPacking: it is not packed so, or cut off.
            BodyTooLarge: it is over the limit.
        """
        while not (piece := await read_in_thread(next, self._pieces, b"", limiter=self._limiter)):
            try:
                data = await self._body.__anext__()
            except StopAsyncIteration:
                self._unpacker.end()
                raise
            self._pieces = self._unpacker.feed(data)
        self._total += len(piece)
        if self._total > self._most:
            raise unpacked_too_large(self._most)
        return piece


def unpacked_too_large(most: int) -> BodyTooLarge:
    """Return the error for a body that is over its limit once it is unpacked."""
    return too_large(most, " once it is unpacked")
