"""What a server answers, as classes: each has the fields of the server's own, and takes those of newer servers, too."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import attrs

from mflux_api.errors import GenerationFailed, JobCancelled, ServiceError, by_code
from mflux_api.jobs.job import Status
from mflux_api.jobs.progress import Progress


@attrs.frozen(kw_only=True)
class Submitted:
    """A job that was accepted."""

    job_id: str
    status: Status
    position: int
    warnings: tuple[str, ...] = ()
    """Sentences about what was asked for and will not be done."""


@attrs.frozen(kw_only=True)
class JobResult:
    """What a job left: where its images are on the server, and the seed of each."""

    images: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


@attrs.frozen(kw_only=True)
class WebhookStatus:
    """A job's webhook, and what became of it."""

    url: str | None = None
    """Only where one job is asked for, by its owner."""
    events: tuple[str, ...] = ()
    """The ends that are sent."""
    state: str = ""
    """``waiting``, ``pending``, ``delivered``, ``failed`` or ``skipped``."""
    attempts: int = 0
    last_error: str | None = None
    """A sentence about the last attempt that failed."""
    next_attempt_at: datetime | None = None


@attrs.frozen(kw_only=True)
class Job:
    """A job as it is now."""

    id: str
    status: Status
    stage: str | None = None
    progress: float = 0.0
    prompt: str = ""
    model: str = ""
    position: int | None = None
    """Its place in the queue, from 1."""
    eta_seconds: float | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    result: JobResult | None = None
    error: str | None = None
    code: str | None = None
    details: Mapping[str, Any] | None = None
    request: Mapping[str, Any] = attrs.field(factory=dict)
    """What is run, with every default filled in; another job of it needs its images and mask again."""
    edit: bool = False
    """Whether it is made from images."""
    webhook: WebhookStatus | None = None
    warnings: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """How long it ran, in whole seconds."""
        if self.started_at is None or self.completed_at is None:
            return None
        return (self.completed_at - self.started_at).total_seconds()

    def failure(self) -> ServiceError | None:
        """Return the error with which it ended: :class:`JobCancelled`, or what it failed with."""
        if self.status is Status.CANCELLED:
            return JobCancelled(f"Job '{self.id}' was cancelled", {"job_id": self.id})
        if self.status is Status.FAILED:
            kind = by_code(self.code) if self.code else GenerationFailed
            return kind(self.error or f"Job '{self.id}' failed", self.details or {})
        return None


def succeeded(job: Job) -> Job:
    """Return a job that completed.

    Raises:
        ServiceError: it did not; the class says why.
    """
    if (failure := job.failure()) is not None:
        raise failure
    return job


@attrs.frozen(kw_only=True)
class JobPage:
    """Jobs, newest first, without results."""

    jobs: tuple[Job, ...]
    next_cursor: str | None = None
    """Leads to the next page."""
    warnings: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class CancelOutcome:
    """What became of one job of a bulk cancel."""

    id: str
    status: Status | None = None
    """Its state now; ``None`` where it could not be cancelled."""
    code: str | None = None
    error: str | None = None


@attrs.frozen(kw_only=True)
class BulkCancel:
    """What became of every job that was named or found."""

    jobs: tuple[CancelOutcome, ...]
    cancelled: int = 0
    more: bool = False
    """Whether there are further ones: ask again."""
    warnings: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class PartialImage:
    """What an image is coming to, decoded."""

    id: str
    image: int
    partial_image_index: int
    step: int
    steps: int
    width: int
    height: int
    output_format: str
    b64_json: bytes = attrs.field(repr=False)
    """The file; its base64 is decoded already."""


@attrs.frozen(kw_only=True)
class Finished:
    """The last event of a job."""

    job: Job


Event = Progress | PartialImage | Finished
"""What a follower of a job gets; one :class:`Finished` is the last."""


@attrs.frozen(kw_only=True)
class ModelInfo:
    """One model of the catalog."""

    title: str
    model_name: str
    downloaded: bool
    base: str
    hash: str | None = None
    sha256: str | None = None
    config: Mapping[str, Any] = attrs.field(factory=dict)
    size_gb: float | None = None
    size_source: str | None = None
    description: str = ""
    revision: str | None = None
    quantization: str = "none"
    bits: int | None = None
    licence: str = ""
    gated: bool = False
    default_steps: int = 0
    default_guidance: float = 1.0
    native_size: tuple[int, int] = (512, 512)


@attrs.frozen(kw_only=True)
class ModelStatus:
    """Where a model is; what does not apply is ``None``."""

    model: str
    status: str
    """``not_downloaded``, ``downloading``, ``ready``, ``loading``, ``loaded`` or ``error``."""
    downloaded: bool = False
    loaded: bool = False
    size_gb: float | None = None
    path: str | None = None
    commit: str | None = None
    percent: float | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    bytes_per_second: float | None = None
    eta_seconds: float | None = None
    error: str | None = None
    code: str | None = None
    details: Mapping[str, Any] | None = None


@attrs.frozen(kw_only=True)
class Lora:
    """A LoRA file; its name is what ``lora_files`` takes."""

    name: str
    size_bytes: int
    modified_at: str | None = None
    format: str | None = None
    rank: int | None = None
    base: str | None = None
    layers: int | None = None
    layers_understood: int | None = None
    text_encoder_layers: int | None = None
    unknown: tuple[str, ...] = ()
    problem: str | None = None


@attrs.frozen(kw_only=True)
class SkippedLora:
    """Something in the server's folders of LoRAs that no request can name."""

    name: str
    reason: str


@attrs.frozen(kw_only=True)
class LoraList:
    """The LoRAs of a server."""

    loras: tuple[Lora, ...]
    skipped: tuple[SkippedLora, ...] = ()
    skipped_total: int = 0


@attrs.frozen(kw_only=True)
class ActiveJob:
    """The oldest running job; without its id and prompt where it is another key's."""

    job_id: str | None = None
    prompt: str | None = None
    progress: float = 0.0
    eta_seconds: float | None = None


@attrs.frozen(kw_only=True)
class QueuedJob:
    """A job that waits; position 1 is next."""

    job_id: str | None = None
    position: int
    priority: int = 0
    prompt: str | None = None
    eta_seconds: float | None = None


@attrs.frozen(kw_only=True)
class Queue:
    """What runs and what waits."""

    active: ActiveJob | None = None
    queued: tuple[QueuedJob, ...] = ()
    total: int = 0


@attrs.frozen(kw_only=True)
class Health:
    """How a server is."""

    status: str
    """``healthy``, ``degraded`` or ``draining``."""
    version: str
    models_available: int = 0
    active_jobs: int = 0
    queue_length: int = 0
    problem: str | None = None
    """Why it is degraded."""
