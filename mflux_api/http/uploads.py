"""Bodies too large for memory: taken from the socket no faster than they are read, with limits of their own."""

import trio
from quart_trio.wrappers.request import TrioBody
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

BUFFER_BYTES = 4 * 1024 * 1024
STALL_SECONDS = 60.0


class UploadBody(TrioBody):
    """A body to iterate over; the ASGI side awaits :meth:`room` before it takes more from the client."""

    def __init__(self, content_length: int | None, limit: int) -> None:
        super().__init__(content_length, limit)
        self._limit = limit
        self._total = 0
        self._taken = trio.Event()

    async def __anext__(self) -> bytes:
        """Return what has come since the last call.

        Raises:
            RequestEntityTooLarge: it is over the limit.
            RequestTimeout: nothing came for a minute.
        """
        self._taken.set()
        with trio.move_on_after(STALL_SECONDS):
            return await super().__anext__()
        raise RequestTimeout

    def append(self, data: bytes) -> None:
        """Add what came; never more than the limit is kept."""
        self._total += len(data)
        if self._total > self._limit:
            # The reader may be ahead of us: what it has taken no longer counts for the base class.
            self._max_content_length = -1
        super().append(data)

    async def room(self) -> None:
        """Wait until the reader has taken most of what came."""
        while len(self._data) > BUFFER_BYTES and not self._complete.is_set():
            self._taken = trio.Event()
            await self._taken.wait()

    def discard(self) -> None:
        """Let what still comes pass and keep none of it: the answer is complete, and no handler will read on."""
        self._must_raise = RequestEntityTooLarge()
        self.clear()
        self.set_complete()
        self._taken.set()
