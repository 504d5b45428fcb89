"""Every JSON object this API answers with. The responses and ``/openapi.json`` are both made from these classes."""

from collections.abc import Mapping
from typing import Any, Literal

import attrs

StatusName = Literal["queued", "generating", "completed", "failed", "cancelled"]
ModelStatusName = Literal["not_downloaded", "downloading", "ready", "loading", "loaded", "error"]
StageName = Literal["queued", "downloading", "loading", "encoding", "denoising", "decoding", "saving"]


@attrs.frozen(kw_only=True)
class ErrorBody:
    """What every failed request answers with."""

    error: str
    """A sentence that says what is wrong and what to do."""
    code: str
    details: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class Health:
    """``GET /api/v1/health``."""

    status: Literal["healthy", "degraded", "draining"]
    version: str
    models_available: int
    active_jobs: int
    queue_length: int


@attrs.frozen(kw_only=True)
class GenerateAnswer:
    """``POST /api/v1/generate``."""

    job_id: str
    status: StatusName
    position: int


@attrs.frozen(kw_only=True)
class JobResult:
    """What a job left: base64 PNG (or URLs, when asked for) and the seed of each image."""

    images: tuple[str, ...]
    seeds: tuple[int, ...]


@attrs.frozen(kw_only=True)
class JobObject:
    """One job; keys that do not apply are null."""

    id: str
    status: StatusName
    stage: StageName | None
    progress: float
    prompt: str
    model: str
    position: int | None
    eta_seconds: float | None
    created_at: str
    started_at: str | None
    completed_at: str | None
    result: JobResult | None
    error: str | None
    code: str | None
    details: Mapping[str, Any] | None


@attrs.frozen(kw_only=True)
class JobList:
    """``GET /api/v1/jobs``: newest first, without results."""

    jobs: tuple[JobObject, ...]
    next_cursor: str | None


@attrs.frozen(kw_only=True)
class CancelAnswer:
    """``DELETE /api/v1/jobs/{job_id}``."""

    status: StatusName


@attrs.frozen(kw_only=True)
class ProgressData:
    """Data of a ``progress`` event."""

    id: str
    status: StatusName
    stage: StageName
    progress: float
    step: int
    steps: int
    image: int
    images: int
    attempt: int
    eta_seconds: float | None
    bytes_done: int | None
    bytes_total: int | None
    preview: str | None


@attrs.frozen(kw_only=True)
class ImagesAnswer:
    """``POST /sdapi/v1/txt2img`` and ``img2img``."""

    images: tuple[str, ...]
    """Base64 PNG."""
    parameters: Mapping[str, Any]
    info: str


@attrs.frozen(kw_only=True)
class ExtraSingleAnswer:
    """``POST /sdapi/v1/extra-single-image``."""

    html_info: str
    image: str
    """Base64 PNG."""


@attrs.frozen(kw_only=True)
class ExtraBatchAnswer:
    """``POST /sdapi/v1/extra-batch-images``."""

    html_info: str
    images: tuple[str, ...]
    """Base64 PNG, in the order of the request."""


@attrs.frozen(kw_only=True)
class UpscalerObject:
    """One of ``GET /sdapi/v1/upscalers``."""

    name: str
    """What ``upscaler_1`` takes."""
    model_name: str | None
    model_path: str | None
    model_url: str | None
    scale: float | None


@attrs.frozen(kw_only=True)
class ModelConfigObject:
    """The rules of a model."""

    base_arch: str
    supports_guidance: bool
    max_sequence_length: int


@attrs.frozen(kw_only=True)
class ModelObject:
    """One model of the catalog."""

    title: str
    model_name: str
    hash: str | None
    sha256: str | None
    config: ModelConfigObject
    downloaded: bool
    size_gb: float | None
    size_source: Literal["measured", "computed"] | None
    """Whether the files were weighed, or the size follows from the shapes of the parameters."""
    description: str
    base: str
    """The alias whose architecture and rules it has."""
    revision: str | None
    quantization: Literal["none", "stored", "runtime"]
    bits: int | None
    licence: str
    gated: bool
    default_steps: int
    default_guidance: float
    native_size: tuple[int, int]


@attrs.frozen(kw_only=True)
class ModelList:
    """``GET /api/v1/models``."""

    models: tuple[ModelObject, ...]


@attrs.frozen(kw_only=True)
class ModelStatus:
    """``GET /api/v1/models/{model_id}/status``."""

    model: str
    status: ModelStatusName
    downloaded: bool
    loaded: bool
    size_gb: float | None
    path: str | None
    commit: str | None
    """The repository's commit that is on disk."""
    percent: float | None
    """This and the next four: of a download that is under way."""
    bytes_done: int | None
    bytes_total: int | None
    bytes_per_second: float | None
    eta_seconds: float | None
    error: str | None
    """This and the next two: why the last download failed."""
    code: str | None
    details: Mapping[str, Any] | None


@attrs.frozen(kw_only=True)
class LoraObject:
    """One LoRA file; its name is what ``lora_files`` takes."""

    name: str
    size_bytes: int
    modified_at: str


@attrs.frozen(kw_only=True)
class LoraList:
    """``GET /api/v1/loras``."""

    loras: tuple[LoraObject, ...]


@attrs.frozen(kw_only=True)
class SystemMemory:
    """Gigabytes of the machine's memory."""

    total: float
    used: float
    free: float


@attrs.frozen(kw_only=True)
class EngineObject:
    """The engine child; null values while none is up."""

    running: bool
    degraded: bool
    backend: str | None
    precision: str | None
    blas: str | None
    peak_memory_gb: float
    versions: Mapping[str, str]


@attrs.frozen(kw_only=True)
class ListedEngine:
    """One of the engines."""

    id: str
    status: Literal["starting", "ready", "degraded", "failed"]
    incarnation: int
    """Counts its children."""
    device: str | None
    backend: str | None
    models: tuple[str, ...]
    """In its memory, the most recently used first."""
    loading: str | None
    memory_gb: float
    peak_memory_gb: float


@attrs.frozen(kw_only=True)
class SystemObject:
    """``GET /api/v1/system``."""

    active_model: str | None
    mlx_memory_gb: float
    system_memory_gb: SystemMemory
    device: str
    engine: EngineObject
    """The first of ``engines``, as this answer always had it."""
    engines: tuple[ListedEngine, ...]


@attrs.frozen(kw_only=True)
class ActiveJob:
    """The oldest running job."""

    job_id: str
    prompt: str
    progress: float
    eta_seconds: float | None


@attrs.frozen(kw_only=True)
class QueuedJob:
    """A job that waits; position 1 is next."""

    job_id: str
    position: int
    prompt: str
    eta_seconds: float | None


@attrs.frozen(kw_only=True)
class QueueObject:
    """``GET /api/v1/queue``."""

    active: ActiveJob | None
    queued: tuple[QueuedJob, ...]


@attrs.frozen(kw_only=True)
class StatsObject:
    """``GET /api/v1/stats``."""

    total_generations: int
    total_images: int
    average_time_seconds: float
    uptime_hours: float
