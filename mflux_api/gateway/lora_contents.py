"""What LoRA files hold: read by the decoder's children once for each state of a file, and kept.

A look at many files that are not known yet takes a while. It reads a few in each order, so that images of others are
decoded in between, ends after some seconds with what is known then, and the next look goes on from there.
"""

import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import trio

from mflux_api.errors import InvalidParameter, ServiceError
from mflux_api.images.child.protocol import DescribedLora
from mflux_api.storage.lora_folders import MAX_FILES, LoraFile

READ_SECONDS = 4.0
"""How long one look waits for another that reads, and then how long it begins with further orders."""
ORDER_SECONDS = 6.0
"""How long it waits for one of them; a usual one takes 0.1 to 0.3 s."""
SLOW_SECONDS = 1.0
REST_SECONDS = 60.0
"""How long nothing is read after one that was slow and not answered: on a disk that hangs the next child would hang."""
ORDER_FILES = 32
"""Files of one order: a header of usual size takes 2 to 10 ms."""
MAX_KNOWN = 2 * MAX_FILES

_State = tuple[Path, int, datetime]
_UNREAD = DescribedLora()


class LoraContentsCache:
    """The contents of the LoRAs of one service."""

    def __init__(self, describe: Callable[[Sequence[Path], str], Awaitable[Sequence[DescribedLora]]]) -> None:
        """Take the question that has files read.

        Args:
            describe: gets paths and on whose behalf; answers for the first of them, at least one. It may fail with an
                :class:`InvalidParameter` that has the ``index`` of the file which is to blame, and a ``reason``.
        """
        self._describe = describe
        self._known: dict[_State, DescribedLora] = {}
        # One look reads at a time; another finds what that one has read.
        self._reading = trio.Lock()
        self._rests_until = -math.inf

    async def describe(self, files: Sequence[LoraFile], caller: str = "") -> tuple[DescribedLora, ...]:
        """Return what is known of each file after some seconds at most.

        Args:
            files: as they were found now: one that was changed since it was read is read again.
            caller: on whose behalf.
        """
        if self._unknown(files) and await self._turn():
            try:
                await self._read(self._unknown(files), caller)
            finally:
                self._reading.release()
        return tuple(self._known.get(_state(file), _UNREAD) for file in files)

    def _unknown(self, files: Sequence[LoraFile]) -> list[LoraFile]:
        return [file for file in files if _state(file) not in self._known]

    async def _turn(self) -> bool:
        """Wait until no other look reads, if that does not take long."""
        with trio.move_on_after(READ_SECONDS):
            await self._reading.acquire()
            return True
        return False

    async def _read(self, files: list[LoraFile], caller: str) -> None:
        end = trio.current_time() + READ_SECONDS
        while files and trio.current_time() < end and trio.current_time() >= self._rests_until:
            order, found = files[:ORDER_FILES], tuple[DescribedLora, ...]()
            try:
                with trio.move_on_after(ORDER_SECONDS), self._resting_if_slow():
                    found = tuple(await self._describe([file.path for file in order], caller))
            except InvalidParameter as error:
                # A child died of this one. It is told so, and the others are read without it.
                culprit = files.pop(min(int(error.details.get("index") or 0), len(order) - 1))
                self._keep(
                    culprit, DescribedLora(problem=str(error.details.get("reason", "its header cannot be read")))
                )
                continue
            except ServiceError:
                # The decoder is busy, or restarted: the next look finds it at rest.
                return
            if not found:
                return
            for file, described in zip(order, found, strict=False):
                self._keep(file, described)
            del files[: len(found)]

    @contextmanager
    def _resting_if_slow(self) -> Iterator[None]:
        """Rest for a while after an order that was left without an answer, in its own time or its caller's."""
        began = trio.current_time()
        try:
            yield
        except trio.Cancelled:
            if trio.current_time() - began > SLOW_SECONDS:
                self._rests_until = trio.current_time() + REST_SECONDS
            raise

    def _keep(self, file: LoraFile, described: DescribedLora) -> None:
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[_state(file)] = described


def _state(file: LoraFile) -> _State:
    return file.path, file.size, file.modified_at
