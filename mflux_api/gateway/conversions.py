"""Finished images in other formats and sizes: made once for all who ask, one at a time, and kept for a while.

A conversion takes a decoder's child as long as decoding a stranger's image does, and pages ask for many at a time. One
at a time leaves the other child to new work, and callers take turns: each has one in the line.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final
from weakref import WeakValueDictionary

import trio

from mflux_api.images.encode import ImageTarget

CACHE_BYTES: Final = 64 * 1024 * 1024
_MOST_OF_ONE: Final = CACHE_BYTES // 8

Key = tuple[str, ImageTarget]
"""The digest of the stored file, and what it is made into."""


class Conversions:
    """Those of one service."""

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._most = most_bytes
        self._kept = OrderedDict[Key, bytes]()
        self._bytes = 0
        self._making: dict[Key, trio.Event] = {}
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._turns = WeakValueDictionary[str, trio.CapacityLimiter]()

    async def get(
        self, digest: str, target: ImageTarget, make: Callable[[], Awaitable[bytes]], *, caller: str = ""
    ) -> bytes:
        """Return an image's conversion.

        Args:
            digest: of the stored file.
            target: what it is made into.
            make: makes it; what it raises, the caller sees, and the next one tries again.
            caller: who asks.
        """
        key = digest, target
        while (making := self._making.get(key)) is not None:
            await making.wait()
        kept = self._kept.get(key)
        if kept is None:
            return await self._make(key, make, caller)
        self._kept.move_to_end(key)
        return kept

    async def _make(self, key: Key, make: Callable[[], Awaitable[bytes]], caller: str) -> bytes:
        turn = self._turns.setdefault(caller, trio.CapacityLimiter(1))
        done = self._making[key] = trio.Event()
        try:
            async with turn, self._one_at_a_time:
                data = await make()
            self._keep(key, data)
        finally:
            del self._making[key]
            done.set()
        return data

    def _keep(self, key: Key, data: bytes) -> None:
        if len(data) > _MOST_OF_ONE:
            return
        self._kept[key] = data
        self._bytes += len(data)
        while self._bytes > self._most:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest)
