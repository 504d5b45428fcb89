"""A job and its state machine: pure values, no I/O, no clock of its own.

::

    queued ──► generating ──► completed
      │  ▲         │ ├──────► failed
      │  └─────────┘ └──────► cancelled
      └─────────────────────► cancelled | failed

A job goes back to ``queued`` when the engine, the scheduler or the server died with it inside and attempts remain.
"""

import re
import secrets
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

import attrs

from mflux_api.errors import ServiceError, by_code
from mflux_api.jobs.resolve import ResolvedRequest
from mflux_api.jobs.warnings import merge
from mflux_api.jobs.webhook import Delivery, first_delivery

_JOB_ID = re.compile(r"[0-9a-f]{12}")


class Status(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    GENERATING = "generating"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether nothing can happen to the job any more."""
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class Stage(StrEnum):
    """What is being done for a job right now."""

    QUEUED = "queued"
    DOWNLOADING = "downloading"
    LOADING = "loading"
    ENCODING = "encoding"
    COMPILING = "compiling"
    """The first step of its kind on a GPU, which is compiled for it."""
    DENOISING = "denoising"
    DECODING = "decoding"
    SAVING = "saving"


@attrs.frozen(kw_only=True)
class StoredImage:
    """One finished image on disk."""

    path: str
    """Absolute path of the PNG file."""
    seed: int
    width: int
    height: int
    sha256: str
    """Digest of the file's bytes."""


@attrs.frozen(kw_only=True)
class Failure:
    """Why a job failed."""

    message: str
    code: str
    details: Mapping[str, Any] = attrs.field(factory=dict)

    @classmethod
    def from_error(cls, error: ServiceError) -> "Failure":
        """Keep what a client may see of an error."""
        return cls(message=error.message, code=error.code, details=dict(error.details))

    def to_error(self) -> ServiceError:
        """Return the error again, for who waits for the job."""
        return by_code(self.code)(self.message, self.details)


@attrs.frozen(kw_only=True)
class Timings:
    """Seconds one attempt spent in each part of the engine."""

    load: float = 0.0
    encode: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    total: float = 0.0


@attrs.frozen(kw_only=True)
class Job:
    """One accepted request and what became of it."""

    id: str
    request: ResolvedRequest
    created_at: datetime
    status: Status = Status.QUEUED
    started_at: datetime | None = None
    completed_at: datetime | None = None
    engine_deaths: int = 0
    """Engine deaths with this job inside."""
    service_deaths: int = 0
    """Deaths of the scheduler or the server with this job inside."""
    images: tuple[StoredImage, ...] = ()
    progress: float = 0.0
    """How far a finished job had come; an unfinished one is followed through its events."""
    failure: Failure | None = None
    timings: Timings | None = None
    synchronous: bool = False
    """Whether a client waits on an open connection for the result."""
    owner: str = ""
    """Who asked for it: the name of an API key, else the caller; empty for the program that embeds the service."""
    device: str | None = None
    """The kind of device that a completed job ran on: on the same kind the same request gives the same bits."""
    delivery: Delivery | None = None
    """Of a finished job's webhook. It begins in the job's last transition, so no end is committed without it."""

    @property
    def model(self) -> str:
        """The alias that the job runs on."""
        return self.request.model

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what was asked for and is not done."""
        return self.request.warnings


class InvalidTransition(Exception):
    """The job's state does not allow that step."""


def new_job_id() -> str:
    """Return 12 random hexadecimal digits."""
    return secrets.token_hex(6)


def is_job_id(text: str) -> bool:
    """Whether a text can be the id of a job, and so a part of a path."""
    return _JOB_ID.fullmatch(text) is not None


def start(job: Job, now: datetime) -> Job:
    """Queued → generating."""
    _require(job, Status.QUEUED)
    return attrs.evolve(job, status=Status.GENERATING, started_at=job.started_at or now)


def requeue(job: Job, *, engine_died: bool = False, service_died: bool = False) -> Job:
    """Generating → queued, counting a death of the engine or the service; a drain is neither."""
    _require(job, Status.GENERATING)
    return attrs.evolve(
        job,
        status=Status.QUEUED,
        engine_deaths=job.engine_deaths + engine_died,
        service_deaths=job.service_deaths + service_died,
        images=(),
    )


def complete(
    job: Job,
    images: tuple[StoredImage, ...],
    timings: Timings | None,
    now: datetime,
    *,
    device: str | None = None,
) -> Job:
    """Generating → completed."""
    _require(job, Status.GENERATING)
    return _end(job, Status.COMPLETED, now, images=images, progress=1.0, timings=timings, device=device)


def fail(
    job: Job, failure: Failure, now: datetime, *, images: tuple[StoredImage, ...] = (), progress: float = 0.0
) -> Job:
    """Queued | generating → failed; what was saved stays."""
    _require(job, Status.QUEUED, Status.GENERATING)
    return _end(job, Status.FAILED, now, failure=failure, images=images, progress=progress)


def cancel(job: Job, now: datetime, *, images: tuple[StoredImage, ...] = (), progress: float = 0.0) -> Job:
    """Queued | generating → cancelled; what was saved stays."""
    _require(job, Status.QUEUED, Status.GENERATING)
    return _end(job, Status.CANCELLED, now, images=images, progress=progress)


def add_warnings(job: Job, warnings: Iterable[str]) -> Job:
    """Return the job with those of its runs behind those of its request."""
    merged = merge(job.request.warnings, warnings)
    return job if merged == job.request.warnings else attrs.evolve(job, request=job.request.with_warnings(merged))


def with_delivery(job: Job, delivery: Delivery) -> Job:
    """Return a finished job with what became of its webhook since; one that awaits no delivery stays as it is."""
    return job if job.delivery is None else attrs.evolve(job, delivery=delivery)


def _end(job: Job, status: Status, now: datetime, **changes: Any) -> Job:
    """Return the finished job without its init images: it needs them no more, and they are large."""
    delivery = first_delivery(job.request.webhook, status.value, now)
    request = job.request.with_inputs(())
    return attrs.evolve(job, status=status, completed_at=now, request=request, delivery=delivery, **changes)


def _require(job: Job, *allowed: Status) -> None:
    if job.status not in allowed:
        raise InvalidTransition(f"job {job.id} is {job.status}, not {' or '.join(allowed)}")
