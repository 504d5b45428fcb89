"""What an engine is to the service: something that takes commands, sends events, and can die."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import attrs
import trio

from mflux_api.engine.protocol import Command, Event, Ready
from mflux_api.ipc.child_process import ChildDied

EngineId = str
"""What an engine is called: the same for as long as the service lives, whatever becomes of its children."""


class EngineDied(ChildDied):
    """The engine ended, fell silent or broke the protocol; ``reason`` says which, for a log line."""

    def __init__(self, reason: str, *, out_of_memory: bool = False) -> None:
        super().__init__(reason)
        self.out_of_memory = out_of_memory
        """Whether there is evidence that the system ended it for want of memory."""


@attrs.frozen
class Received:
    """One event and the raw bytes that came with it."""

    event: Event
    blobs: tuple[bytes, ...] = ()


class Engine(Protocol):
    """One incarnation of an engine, past its handshake."""

    @property
    def info(self) -> Ready:
        """What it said of itself in the handshake."""

    async def send(self, command: Command, blobs: Sequence[bytes] = ()) -> None:
        """Pass a command on, with the raw bytes that belong to it.

        Raises:
            EngineDied: it is gone.
        """

    async def receive(self) -> Received:
        """Wait for the next event.

        Raises:
            EngineDied: it is gone, silent for too long, or talks nonsense.
        """

    async def aclose(self, *, force: bool = False) -> None:
        """End it: politely, then less so; with ``force`` at once. Nothing is left when this returns."""


EngineStarter = Callable[[trio.Nursery], Awaitable[Engine]]
"""Starts an engine whose helper tasks live in the nursery; raises :class:`EngineDied` when it does not come up."""
