"""JSON of ``/api/v1/health``, probes, ``system`` (engines, memory), ``queue`` and ``stats``, as clients see it."""

from collections.abc import Mapping
from typing import Literal

import attrs


@attrs.frozen(kw_only=True)
class HealthResponse:
    """``GET /api/v1/health``."""

    status: Literal["healthy", "degraded", "draining"]
    version: str
    models_available: int
    active_jobs: int
    queue_length: int


@attrs.frozen(kw_only=True)
class DegradedHealthResponse(HealthResponse):
    """The same while no engine starts, or the store cannot be written; the document's answer has five keys."""

    problem: str
    """The last thing that an engine said which does not start, or what the store said."""


@attrs.frozen(kw_only=True)
class ProbeResponse:
    """``GET /livez`` and ``/readyz``."""

    status: Literal["ok"]


@attrs.frozen(kw_only=True)
class SystemMemory:
    """Gigabytes of the machine's memory."""

    total: float
    used: float
    free: float


@attrs.frozen(kw_only=True)
class SystemEngine:
    """The engine's process; null values while none is up."""

    running: bool
    degraded: bool
    backend: str | None
    precision: str | None
    blas: str | None
    peak_memory_gb: float
    versions: Mapping[str, str]


@attrs.frozen(kw_only=True)
class EngineItem:
    """One of the engines."""

    id: str
    status: Literal["starting", "ready", "degraded", "failed"]
    problem: str | None
    """What its last child died of, while none is up."""
    incarnation: int
    """Counts its children."""
    device: str | None
    backend: str | None
    models: tuple[str, ...]
    """In its memory, the most recently used first."""
    loading: str | None
    memory_gb: float
    peak_memory_gb: float
    device_memory_gb: float | None
    """What its device has in all."""


@attrs.frozen(kw_only=True)
class SystemResponse:
    """``GET /api/v1/system``."""

    active_model: str | None
    mlx_memory_gb: float
    system_memory_gb: SystemMemory
    device: str
    engine: SystemEngine
    """The first of ``engines``, as this answer always had it."""
    engines: tuple[EngineItem, ...]
    problem: str | None
    """Why the job store could not write when it was last asked."""


@attrs.frozen(kw_only=True)
class ActiveJob:
    """The oldest running job; without its id and prompt where it is another key's."""

    job_id: str | None
    prompt: str | None
    progress: float
    eta_seconds: float | None


@attrs.frozen(kw_only=True)
class QueuedJob:
    """A job that waits; position 1 is next. Another key's has neither id nor prompt."""

    job_id: str | None
    position: int
    priority: int
    """-10 to 10, as it was asked for."""
    prompt: str | None
    eta_seconds: float | None


@attrs.frozen(kw_only=True)
class QueueResponse:
    """``GET /api/v1/queue``."""

    active: ActiveJob | None
    queued: tuple[QueuedJob, ...]
    """Those that are due first, at most 200."""
    total: int
    """How many wait in all."""


@attrs.frozen(kw_only=True)
class StatsResponse:
    """``GET /api/v1/stats``."""

    total_generations: int
    total_images: int
    average_time_seconds: float
    uptime_hours: float
