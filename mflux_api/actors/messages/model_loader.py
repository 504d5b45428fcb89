"""What a model loader is told and asked: the residency of one engine."""

import attrs
import trio

from mflux_api.actors.mailbox import Ask, send_lossy
from mflux_api.actors.messages.engine import EngineState, Lease
from mflux_api.engine.protocol import LoadProgress


@attrs.frozen(kw_only=True)
class Acquire(Ask[Lease]):
    """Make a model resident and keep it so until the lease is released."""

    model: str
    low_ram: bool = False
    """One component in memory at a time is enough."""
    asked_at: float = attrs.field(factory=trio.current_time, eq=False, repr=False)
    """When, by Trio's clock."""
    updates: trio.MemorySendChannel[LoadProgress] | None = attrs.field(default=None, eq=False, repr=False)
    """Gets how far the load is that it waits for; lossy."""

    def tell(self, progress: LoadProgress) -> None:
        """Tell the asker how far it is."""
        if self.updates is not None:
            send_lossy(self.updates, progress)


@attrs.frozen(kw_only=True)
class Release:
    """Give back what was acquired, or was yet to be: the lease belongs to the question that asked for it."""

    request: Acquire


@attrs.frozen(kw_only=True)
class Residency:
    """Which models are in an engine's memory."""

    model: str | None
    """The most recently used one."""
    leases: int
    loading: str | None
    models: tuple[str, ...] = ()
    """All of them, the most recently used first."""


@attrs.frozen(kw_only=True)
class GetResidency(Ask[Residency]):
    """Read what is resident."""


@attrs.frozen(kw_only=True)
class Evict(Ask[None]):
    """Have a model out of memory; refused while a lease holds it or it is being loaded."""

    model: str


@attrs.frozen(kw_only=True)
class GeneratorChanged:
    """The generator's word on its child, at every change."""

    state: EngineState


@attrs.frozen(kw_only=True)
class ReportEngine:
    """Tell the scheduler how the engine is doing: one that has just started knows of none."""


LoaderMessage = Acquire | Release | GetResidency | Evict | GeneratorChanged | ReportEngine
