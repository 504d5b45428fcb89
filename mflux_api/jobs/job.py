"""The job state machine and its events: pure values, no I/O, no clock of its own.

::

    queued ──► generating ──► completed
      │  ▲         │ ├──────► failed
      │  └─────────┘ └──────► cancelled
      └─────────────────────► cancelled | failed

A job goes back to ``queued`` when the engine, the scheduler or the server died with it inside and attempts remain.
"""

import secrets
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

import attrs

from mflux_api.errors import ServiceError
from mflux_api.jobs.resolve import ResolvedRequest


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

    @property
    def model(self) -> str:
        """The alias that the job runs on."""
        return self.request.model


class InvalidTransition(Exception):
    """The job's state does not allow that step."""


def new_job_id() -> str:
    """Return 12 random hexadecimal digits."""
    return secrets.token_hex(6)


def start(job: Job, now: datetime) -> Job:
    """Queued → generating."""
    _require(job, Status.QUEUED)
    return attrs.evolve(job, status=Status.GENERATING, started_at=job.started_at or now)


def requeue(job: Job, *, engine_died: bool = False, service_died: bool = False) -> Job:
    """Generating → queued, counting whose death it was; a drain counts for nobody."""
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
    return _ended(
        job, status=Status.COMPLETED, images=images, progress=1.0, timings=timings, device=device, completed_at=now
    )


def fail(
    job: Job, failure: Failure, now: datetime, *, images: tuple[StoredImage, ...] = (), progress: float = 0.0
) -> Job:
    """Queued | generating → failed; what was saved stays."""
    _require(job, Status.QUEUED, Status.GENERATING)
    return _ended(job, status=Status.FAILED, failure=failure, images=images, progress=progress, completed_at=now)


def cancel(job: Job, now: datetime, *, images: tuple[StoredImage, ...] = (), progress: float = 0.0) -> Job:
    """Queued | generating → cancelled; what was saved stays."""
    _require(job, Status.QUEUED, Status.GENERATING)
    return _ended(job, status=Status.CANCELLED, images=images, progress=progress, completed_at=now)


def _ended(job: Job, **changes: Any) -> Job:
    """A finished job needs its inputs no more, and they are large."""
    return attrs.evolve(job, request=attrs.evolve(job.request, init_images=()), **changes)


def _require(job: Job, *allowed: Status) -> None:
    if job.status not in allowed:
        raise InvalidTransition(f"job {job.id} is {job.status}, not {' or '.join(allowed)}")


@attrs.frozen(kw_only=True)
class Progress:
    """The state of a job that is not finished, or one step of its way."""

    id: str
    status: Status
    stage: Stage
    progress: float
    """0.0 to 1.0; never decreases, also not across attempts."""
    step: int = 0
    """Steps finished for the current image."""
    steps: int = 0
    image: int = 0
    """While steps are done, the first image that they are for (from 0); else how many images are saved."""
    images: int = 1
    attempt: int = 1
    eta_seconds: float | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    preview: str | None = None
    """A small JPEG in base64 of image number ``image``; only in events that nobody gets unasked."""


@attrs.frozen(kw_only=True)
class Finished:
    """The one terminal event of a job: ``complete``, ``failed`` or ``cancelled``."""

    job: Job


JobEvent = Progress | Finished
"""What a subscriber of one job receives: any number of :class:`Progress`, then one :class:`Finished`."""


_NO_TRANSFER: Mapping[str, Any] = {"bytes_done": None, "bytes_total": None, "eta_seconds": None}


class ProgressTracker:
    """Turns what the engine reports into :class:`Progress` values whose ``progress`` never decreases."""

    def __init__(self, job: Job) -> None:
        self._latest = Progress(
            id=job.id,
            status=job.status,
            stage=Stage.QUEUED,
            progress=0.0,
            steps=job.request.steps_run,
            images=job.request.num_images,
            attempt=job.engine_deaths + 1,
        )
        self._count(steps=0, pass_end=0, saved=0)

    def _count(self, *, steps: int, pass_end: int, saved: int) -> None:
        self._steps_done = steps
        """Of all images together."""
        self._pass_end = pass_end
        """The number of the first image that no step was for yet."""
        self._saved = saved

    @property
    def images_saved(self) -> int:
        """Images on disk."""
        return self._saved

    @property
    def steps_ahead(self) -> int:
        """Steps done of images that are not saved yet, all together."""
        return self._steps_done - self._saved * self._latest.steps

    @property
    def latest(self) -> Progress:
        """The present."""
        return self._latest

    def begin_attempt(self, attempt: int) -> None:
        """Start counting from the first step again; ``progress`` keeps its highest value."""
        self._count(steps=0, pass_end=0, saved=0)
        self._latest = attrs.evolve(
            self._latest,
            status=Status.GENERATING,
            stage=Stage.LOADING,
            attempt=attempt,
            step=0,
            image=0,
            **_NO_TRANSFER,
        )

    def back_to_queue(self) -> Progress:
        """The job waits again."""
        self._count(steps=0, pass_end=0, saved=0)
        self._latest = attrs.evolve(
            self._latest, status=Status.QUEUED, stage=Stage.QUEUED, step=0, image=0, **_NO_TRANSFER
        )
        return self._latest

    def downloading(self, done: int, total: int | None, eta_seconds: float | None) -> Progress:
        """The model is being downloaded; the job keeps its place in the queue meanwhile."""
        self._latest = attrs.evolve(
            self._latest, stage=Stage.DOWNLOADING, bytes_done=done, bytes_total=total, eta_seconds=eta_seconds
        )
        return self._latest

    def stage(self, stage: Stage) -> Progress:
        """Another kind of work began."""
        return self._advance(stage=stage, image=self._saved)

    def step(self, step: int, steps: int, *, image: int, images: int = 1) -> Progress:
        """Step ``step`` of ``steps`` is done (1-based) of ``images`` images from number ``image`` on.

        Those before have all their steps behind them, whether they are saved or not.
        """
        images = min(images, self._latest.images - image)
        self._count(steps=image * steps + step * images, pass_end=image + images, saved=self._saved)
        return self._advance(stage=Stage.DENOISING, step=step, steps=steps, image=image)

    def preview(self, rgb_image: str) -> Progress:
        """What image number ``latest.image`` is coming to, in base64; no later event repeats it."""
        return attrs.evolve(self._latest, preview=rgb_image)

    def image_saved(self, count: int) -> Progress:
        """``count`` images are on disk."""
        self._saved = count
        nothing_yet = self._pass_end <= count < self._latest.images
        return self._advance(stage=Stage.SAVING, image=count, step=0 if nothing_yet else self._latest.steps)

    def _advance(self, **changes: Any) -> Progress:
        changed = attrs.evolve(self._latest, **changes)
        ratio = (self._steps_done + self._saved) / (changed.images * (changed.steps + 1))
        self._latest = attrs.evolve(changed, progress=max(self._latest.progress, min(ratio, 1.0)))
        return self._latest
