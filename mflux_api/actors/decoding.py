"""Typed questions to the decoder: what the gateway and the scheduler ask of it, with the answers as they need them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import attrs

from mflux_api.actors.messages.decoder import Decode
from mflux_api.images.child import protocol as p
from mflux_api.images.child.client import Decoded
from mflux_api.ipc.child_process import Blob

R = TypeVar("R")


@attrs.frozen
class Decoding:
    """The questions of one asker.

    Every method raises what asking raises, :class:`~mflux_api.errors.ServerBusy` when too many orders wait, and the
    order's own error when it takes more than it may.
    """

    _ask: Callable[[Decode], Awaitable[Decoded]]
    _urgent: bool = False
    """Whether they are for jobs that run."""

    async def check_images(
        self, texts: Sequence[str], *, field: str = "init_images", first: int = 0, reference: bool = True, caller: str
    ) -> tuple[p.Size, ...]:
        """Check images and return their sizes.

        Args:
            texts: each as base64 or a data URL.
            field: what the client calls them, for errors.
            first: place of the first one in the client's list.
            reference: whether they are for editing, which needs a least size.
            caller: on whose behalf.

        Raises:
            InvalidParameter: one of them cannot be used.
        """
        order = p.CheckImages(field=field, first=first, reference=reference)
        done, _ = await self._do(order, texts, p.ImagesChecked, caller)
        return done.sizes

    async def _do(
        self, order: p.Order, blobs: Sequence[Blob], kind: type[R], caller: str
    ) -> tuple[R, tuple[bytes, ...]]:
        decoded = await self._ask(Decode(order=order, blobs=tuple(blobs), caller=caller, urgent=self._urgent))
        if not isinstance(decoded.result, kind):
            raise TypeError(f"the decoder answered a {type(order).__name__} with a {type(decoded.result).__name__}")
        return decoded.result, decoded.blobs
