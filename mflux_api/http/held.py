"""What a request holds while it lasts: its share of the bytes in flight, and whatever else has to be let go."""

from contextlib import ExitStack
from types import TracebackType
from typing import cast

from quart import request
from quart_trio.wrappers.request import TrioRequest

from mflux_api.errors import ServerBusy
from mflux_api.gateway.bytes_in_flight import BytesInFlight
from mflux_api.http.pace import PacedBody

IN_FLIGHT = "BYTES_IN_FLIGHT"
"""Key of the app's config: the :class:`BytesInFlight` of its service."""

SMALL_BYTES = 64 * 1024
"""A body or an answer up to this is never refused: any connection costs as much."""


class Held:
    """Entered when a request begins and left when its answer is sent, or its client gone."""

    def __init__(self, in_flight: BytesInFlight) -> None:
        self._stack = ExitStack()
        self.in_flight = in_flight
        """What all requests of the service hold."""
        self.body = in_flight.open()
        """The body, and what was parsed of it."""
        self.answer = in_flight.open()
        """What the answer alone has in memory."""

    def __enter__(self) -> "Held":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self.body, self.answer:
            self._stack.close()

    def reserve_body(self, count: int) -> None:
        """See to it that so many bytes are reserved for the body; a small one needs no room.

        Raises:
            ServerBusy: there is no room for them now.
        """
        more = count - self.body.bytes
        if count > SMALL_BYTES and more > 0:
            self.body.grow(more)

    @property
    def stack(self) -> ExitStack:
        """Takes callbacks for the end of the request."""
        return self._stack


class ServiceRequest(TrioRequest):
    """A request that knows what it holds."""

    held: Held


def held() -> Held:
    """Return what the current request holds."""
    return cast("ServiceRequest", request).held


class MeteredBody(PacedBody):
    """A body in memory, which reserves what has come of it.

    Where its length is told it is refused before it is read if there is no room for it. It is not reserved then: a
    client that announces much and sends little would keep the room from all others.
    """

    def __init__(self, content_length: int | None, limit: int | None, held: Held) -> None:
        super().__init__(content_length, limit)
        self._held = held
        self._arrived = 0
        if self._must_raise is None:
            self._reserve(content_length or 0)
            held.body.release()

    def append(self, data: bytes) -> None:
        """Add what came; nothing is kept of a body that has no room."""
        self._arrived += len(data)
        if self._must_raise is None:
            self._reserve(self._arrived)
        super().append(data)

    def _reserve(self, count: int) -> None:
        try:
            self._held.reserve_body(count)
        except ServerBusy as busy:
            self.discard(busy)
            # At once: of many that grow together some are to find room.
            self._held.body.release()
