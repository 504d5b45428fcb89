"""Clients that close their side for writing after a request: some still read, and others have left. TCP does not tell.

An answer that is made soon is made for either. One that waits for a job, a model or events needs a client that stays:
there the end of its input is its leaving, so that no engine works for a client that is gone.
"""

from typing import Final, cast

import trio
from quart import has_request_context, request

CLIENT: Final = "client"
"""Key of a request's ASGI state: its :class:`ClientInput`."""

SAYS: Final = "SAYS_WHEN_IT_NEEDS_THE_CLIENT"
"""Key of an app's config: whether its routes call :func:`need_client`. Without it, every route needs its client."""

BEGIN_SECONDS: Final = 60.0
"""How long an answer may take to begin for a client that sends no more."""


class ClientInput:
    """What the end of one client's input means for the request that it has sent."""

    def __init__(self, *, needed: bool) -> None:
        self._needed = needed
        self._begun = trio.Event()
        self._over = trio.Event()
        if needed:
            self.need()

    def need(self) -> None:
        """Say that the answer is of no use without a client that stays, from now on."""
        self._needed = True
        self._begun.set()
        self._over.set()

    def begin_answer(self) -> None:
        """Say that the answer is being sent: from now on what the client takes bounds it."""
        self._begun.set()

    def end_answer(self) -> None:
        """Say that the answer is sent."""
        self._begun.set()
        self._over.set()

    async def answered(self) -> bool:
        """Wait until the request is answered; return whether it is: ``False`` where it needs a client that stays."""
        with trio.move_on_after(BEGIN_SECONDS):
            await self._begun.wait()
        if not self._begun.is_set():
            return False
        await self._over.wait()
        return not self._needed


def need_client() -> None:
    """Say that the current request, if there is one, goes on only for a client that stays."""
    if has_request_context():
        client = request.scope.get("state", {}).get(CLIENT)
        if client is not None:
            cast("ClientInput", client).need()
