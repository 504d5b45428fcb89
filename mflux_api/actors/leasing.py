"""Leases on models as one construct: asked for, held for the length of a block, and given back however it ends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Address


@asynccontextmanager
async def leased(loader: Address[m.LoaderMessage], request: m.Acquire) -> AsyncIterator[m.Lease]:
    """Ask for a lease and hold it for the length of the block.

    The lease belongs to the question: it is given back also where the asker is cancelled in the moment of the grant,
    and a question without an answer is withdrawn.

    Raises:
        ActorGone: the loader ended before it answered.
        EngineDied: the engine ended while it loaded the model.
        ServiceError: the model cannot be had.
    """
    try:
        yield await loader.ask(request)
    finally:
        # As news: it must not be lost for want of room.
        loader.tell_latest(m.Release(request=request), key=request.reply)
