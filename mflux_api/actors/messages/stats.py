"""What the stats actor is told and asked. All that it is told is lost when its mailbox is full."""

from enum import StrEnum

import attrs

from mflux_api.actors.mailbox import Ask
from mflux_api.actors.messages.metrics import MetricValues
from mflux_api.engine.interface import EngineId
from mflux_api.jobs.job import Job


@attrs.frozen(kw_only=True)
class JobEnded:
    """A job has its end, and it is kept."""

    job: Job


@attrs.frozen(kw_only=True)
class StepMeasured:
    """One denoising step took so long, for all images of its pass."""

    model: str
    width: int
    height: int
    seconds: float


@attrs.frozen(kw_only=True)
class ModelLoaded:
    """A model was loaded."""

    engine: EngineId
    model: str
    seconds: float


class EvictionReason(StrEnum):
    """Why a model left memory."""

    ROOM = "room"
    """Another needed its place."""
    IDLE = "idle"
    """No job used it for ``memory.idle_unload_seconds``."""
    ASKED = "asked"
    """A client or an operator wanted it out."""


@attrs.frozen(kw_only=True)
class ModelEvicted:
    """A model left memory, other than with its engine's process."""

    engine: EngineId
    model: str
    reason: EvictionReason


@attrs.frozen(kw_only=True)
class EngineRestarted:
    """An engine's process died, and another is started in its place."""

    engine: EngineId


@attrs.frozen(kw_only=True)
class RequestAnswered:
    """An HTTP request has the head of its answer."""

    method: str
    route: str
    """The route's rule, never the path that was asked for."""
    status: int
    seconds: float


@attrs.frozen(kw_only=True)
class Counters:
    """The process, and what happened since its stats actor started."""

    uptime_seconds: float
    """By a clock that cannot be set."""
    metrics: tuple[MetricValues, ...]


@attrs.frozen(kw_only=True)
class GetCounters(Ask[Counters]):
    """Read the process counters."""


StatsMessage = JobEnded | StepMeasured | ModelLoaded | ModelEvicted | EngineRestarted | RequestAnswered | GetCounters
