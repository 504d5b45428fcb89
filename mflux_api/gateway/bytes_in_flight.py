"""Bytes of request bodies and answers that are in memory, of all clients of one service, within one limit."""

from types import TracebackType

import trio

from mflux_api.errors import ServerBusy
from mflux_api.machine import total_bytes

PARSERS = 2
"""Large bodies that are parsed at one time."""
_SHARE_OF_MEMORY = 32
_LEAST = 256 * 2**20
"""Some bodies and answers of the largest size at one time."""
_MOST = 2**30


def default_limit() -> int:
    """Return a limit that fits the machine: a thirty-second of its memory, from 256 MB to 1 GB."""
    return max(_LEAST, min(_MOST, total_bytes() // _SHARE_OF_MEMORY))


class BytesInFlight:
    """What is reserved of the limit; each large body and each large answer has a :class:`Reservation`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._freed = trio.Event()
        self.parsers = trio.CapacityLimiter(PARSERS)
        """Bounds what is beside the limit: a body that is being parsed is there twice."""

    @property
    def used(self) -> int:
        """Bytes that are reserved."""
        return self._used

    def open(self) -> "Reservation":
        """Return a reservation of nothing yet."""
        return Reservation(self)

    async def wait_for_less(self) -> None:
        """Wait until something is given back."""
        await self._freed.wait()

    def _fits(self, count: int, own: int) -> bool:
        # What is larger than the limit would never get its turn otherwise.
        return self._used + count <= self._limit or self._used == own

    def _change(self, count: int) -> None:
        self._used += count
        if count < 0:
            self._freed.set()
            self._freed = trio.Event()


class Reservation:
    """A part of the limit, as a context manager: at its end it is given back, whatever happens."""

    def __init__(self, budget: BytesInFlight) -> None:
        self._budget = budget
        self._bytes = 0

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    @property
    def bytes(self) -> int:
        """How much is reserved."""
        return self._bytes

    def grow(self, count: int) -> None:
        """Reserve more.

        Raises:
            ServerBusy: there is no room for it now.
        """
        if not self._budget._fits(count, self._bytes):
            raise ServerBusy(
                "Too many large requests and answers are on their way (server.max_in_flight_mb); try again in a moment"
            )
        self.grow_anyway(count)

    def grow_anyway(self, count: int) -> None:
        """Reserve more for what is in memory already, so that others wait for it."""
        self._bytes += count
        self._budget._change(count)

    def release(self) -> None:
        """Give everything back; again, it does nothing."""
        count, self._bytes = self._bytes, 0
        if count:
            self._budget._change(-count)
