"""What LoRA files hold: read by the decoder's children once for each state of a file, and kept.

A look at many files that are not known yet takes a while. It reads a few in each order, so that images of others are
decoded in between, ends after some seconds with what is known then, and the next look goes on from there.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path

import trio

from mflux_api.errors import InvalidParameter, ServiceError
from mflux_api.images.child.protocol import DescribedLora
from mflux_api.storage.lora_folders import MAX_FILES, LoraFile

READ_SECONDS = 5.0
"""How long one look reads what is not known."""
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

    async def describe(self, files: Sequence[LoraFile], caller: str = "") -> tuple[DescribedLora, ...]:
        """Return what is known of each file after a few seconds at most.

        Args:
            files: as they were found now: one that was changed since it was read is read again.
            caller: on whose behalf.
        """
        if self._unknown(files):
            with trio.move_on_after(READ_SECONDS):
                async with self._reading:
                    await self._read(self._unknown(files), caller)
        return tuple(self._known.get(_state(file), _UNREAD) for file in files)

    def _unknown(self, files: Sequence[LoraFile]) -> list[LoraFile]:
        return [file for file in files if _state(file) not in self._known]

    async def _read(self, files: list[LoraFile], caller: str) -> None:
        while files:
            order = files[:ORDER_FILES]
            try:
                found = await self._describe([file.path for file in order], caller)
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

    def _keep(self, file: LoraFile, described: DescribedLora) -> None:
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[_state(file)] = described


def _state(file: LoraFile) -> _State:
    return file.path, file.size, file.modified_at
