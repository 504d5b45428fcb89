"""A lock for each key: one submission at a time under an idempotency key."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class KeyedLock:
    """One holder of each key at a time; the others wait for it."""

    def __init__(self) -> None:
        self._held: dict[str, trio.Event] = {}

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Hold a key for the length of the block."""
        while (released := self._held.get(key)) is not None:
            await released.wait()
        self._held[key] = trio.Event()
        try:
            yield
        finally:
            self._held.pop(key).set()
