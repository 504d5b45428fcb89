"""How slowly a client may send a body or take an answer, and bodies that hold their client to it."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import trio
from quart_trio.wrappers.request import TrioBody
from werkzeug.exceptions import RequestEntityTooLarge

from mflux_api.errors import RequestTimeout
from mflux_api.http.turns import Turn

CREDIT_SECONDS = 30.0
"""How long a client may be waited for before it has moved anything; also the longest pause. A network that fails for a
moment is back by then."""

LEAST_BYTES_PER_SECOND = 32 * 1024
"""The slowest that a client may be on average: a quarter of a megabit, less than any network that images travel on."""


class Pace:
    """A credit of seconds, which waiting for the client takes from, and bytes that move add to.

    Only waits for the client count, so a busy server costs no client its connection. Whatever a client does, it is
    waited for no longer than `CREDIT_SECONDS` and what its bytes take at `LEAST_BYTES_PER_SECOND`.
    """

    def __init__(self) -> None:
        self._most = CREDIT_SECONDS
        self._left = self._most
        self._scope: trio.CancelScope | None = None

    @contextmanager
    def waiting(self) -> Iterator[trio.CancelScope]:
        """Bound one wait; where the credit is used up the scope has caught its own cancellation."""
        with trio.CancelScope(deadline=trio.current_time() + self._left) as scope:
            self._scope = scope
            try:
                yield scope
            finally:
                self._scope = None
                self._left = max(0.0, scope.deadline - trio.current_time())

    def moved(self, count: int) -> None:
        """Add what the client has earned, to a wait that goes on too."""
        earned = count / LEAST_BYTES_PER_SECOND
        if self._scope is None:
            self._left = min(self._most, self._left + earned)
        else:
            self._scope.deadline = min(trio.current_time() + self._most, self._scope.deadline + earned)


class PacedBody(TrioBody):
    """A body whose client must keep its pace while a handler waits for it."""

    def __init__(self, content_length: int | None, limit: int | None) -> None:
        super().__init__(content_length, limit)
        self._pace = Pace()
        self.turn: Turn | None = None
        """What the request works in, and sets aside while it waits."""

    def append(self, data: bytes) -> None:
        """Add what came."""
        self._pace.moved(len(data))
        super().append(data)

    def __await__(self) -> Generator[Any, None, Any]:
        """Return the whole body.

        Raises:
            RequestTimeout: its client is too slow.
            HTTPException: it is over the limit.
        """
        return self._whole().__await__()

    async def __anext__(self) -> bytes:
        """Return what has come since the last call.

        Raises:
            RequestTimeout: its client is too slow.
            HTTPException: it is over the limit.
        """
        data: bytes | None = None
        with self._pace.waiting() as scope:
            try:
                data = await super().__anext__()
            except StopAsyncIteration:
                # What was refused half-way is not a whole body.
                if self._must_raise is None:
                    raise
        if scope.cancelled_caught:
            self._refuse_slow_client()
        if data is None:
            assert self._must_raise is not None
            raise self._must_raise
        return data

    async def _whole(self) -> bytearray:
        if self._must_raise is None and not self._complete.is_set():
            async with nullcontext() if self.turn is None else self.turn.set_aside():
                with self._pace.waiting() as scope:
                    await self._complete.wait()
            if scope.cancelled_caught:
                self._refuse_slow_client()
        if self._must_raise is not None:
            raise self._must_raise
        # As it lies there: a copy of 64 MB takes 50 ms.
        data, self._data = self._data, bytearray()
        return data

    def discard(self, why: Exception | None = None) -> None:
        """Keep nothing of the body, neither what came nor what still comes.

        Args:
            why: what a handler gets that goes on reading.
        """
        self._must_raise = why or RequestEntityTooLarge()
        self.clear()
        self.set_complete()

    def _refuse_slow_client(self) -> None:
        self.discard(
            RequestTimeout(
                f"The request's body came too slowly; send at least {LEAST_BYTES_PER_SECOND // 1024} KB a second, "
                f"without a pause of {CREDIT_SECONDS:g} s"
            )
        )
