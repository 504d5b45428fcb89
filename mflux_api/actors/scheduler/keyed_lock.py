"""One submission at a time for each idempotency key."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class KeyedLock:
    """Who is submitting under which key right now; the others with that key wait."""

    def __init__(self) -> None:
        self._held: dict[str, trio.Event] = {}

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[None]:
        """Hold a key for the length of the block."""
        while (released := self._held.get(key)) is not None:
            await released.wait()
        self._held[key] = trio.Event()
        try:
            yield
        finally:
            self._held.pop(key).set()
