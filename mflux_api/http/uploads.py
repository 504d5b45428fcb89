"""Bodies too large for memory: taken from the socket no faster than they are read, with limits of their own."""

import trio

from mflux_api.http.pace import PacedBody

BUFFER_BYTES = 1024 * 1024
UNREAD_BYTES = 64 * 1024
"""What is taken of a body ahead of its reader; less while none reads, as there may be many that wait for their turn."""


class UploadBody(PacedBody):
    """A body to iterate over; the ASGI side awaits :meth:`room` before it takes more from the client."""

    def __init__(self, content_length: int | None, limit: int) -> None:
        super().__init__(content_length, limit)
        self._limit = limit
        self._total = 0
        self._ahead = UNREAD_BYTES
        self._taken = trio.Event()

    async def __anext__(self) -> bytes:
        """Return what has come since the last call.

        Raises:
            RequestEntityTooLarge: it is over the limit.
            RequestTimeout: its client is too slow.
        """
        self._ahead = BUFFER_BYTES
        self._taken.set()
        return await super().__anext__()

    def append(self, data: bytes) -> None:
        """Add what came; never more than the limit is kept."""
        self._total += len(data)
        if self._total > self._limit:
            # The reader may be ahead of us: what it has taken no longer counts for the base class.
            self._max_content_length = -1
        super().append(data)

    async def room(self) -> None:
        """Wait until the reader has taken most of what came."""
        while len(self._data) > self._ahead and not self._complete.is_set():
            self._taken = trio.Event()
            await self._taken.wait()

    def discard(self, why: Exception | None = None) -> None:
        """Keep nothing of the body, and let what still comes pass."""
        super().discard(why)
        self._taken.set()
