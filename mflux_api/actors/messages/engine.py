"""What is said of an engine between actors: its condition and status, its child's state, and the lease on a model."""

from enum import StrEnum

import attrs

from mflux_api.engine.interface import EngineId
from mflux_api.engine.protocol import Ready


class EngineCondition(StrEnum):
    """How an engine is doing."""

    STARTING = "starting"
    """Its child is on the way up, for the first time or again."""
    READY = "ready"
    DEGRADED = "degraded"
    """Its child keeps dying at its start, or without work; it is still started again."""
    FAILED = "failed"
    """Its actors keep failing: none of them runs, and they are started again after a while."""


@attrs.frozen(kw_only=True)
class EngineStatus:
    """One engine as the scheduler has to know it."""

    id: EngineId
    condition: EngineCondition
    incarnation: int = 0
    """Which of its children this is about."""
    device: str | None = None
    """``cpu``, ``metal`` or ``cuda``; ``None`` until its first child has said so."""
    models: tuple[str, ...] = ()
    """The models in its memory, the most recently used first."""
    loading: str | None = None
    reason: str = ""
    """Why its last child died, or what keeps the engine from working; empty while it is sound."""
    preloaded: bool = False
    """Whether the model that is loaded ahead was in its memory and warmed up, whatever became of it since."""
    preload_problem: str = ""
    """Why that model could not be loaded ahead; empty otherwise."""
    warming_up: bool = False
    """Whether that model is in memory, and a throw-away pass has its kernels compiled."""


@attrs.frozen(kw_only=True)
class EngineChanged:
    """An engine is, has or does something else than before; the newest replaces those that were not read yet."""

    status: EngineStatus


@attrs.frozen(kw_only=True)
class EngineState:
    """The engine child as its generator sees it."""

    engine: EngineId
    incarnation: int
    info: Ready | None
    """``None`` while no child is up."""
    degraded: bool
    """The child kept dying at its start, or without work."""
    active_bytes: int
    peak_bytes: int
    free_bytes: int | None = None
    """What the device had left at the last heartbeat."""
    reason: str = ""
    """What the last child died of; empty while one is up."""


@attrs.frozen(kw_only=True)
class Lease:
    """The right to run on a model of one engine; while it is held the model stays."""

    id: int
    engine: EngineId
    incarnation: int
    """The engine's child that has the model in memory. A run with an older number is refused."""
    model: str
    device: str | None = None
    """The kind of device that the engine runs on."""
    load_seconds: float
    """What loading cost this lease; 0 when the model was resident."""
    alternating_offload: bool = False
    """There is no room for the whole model: its text encoder and its transformer take turns."""
