"""JSON objects that several parts of the API answer with: an error, a job, a job's progress.

Objects of one group of routes are beside it: ``routes/…_schemas.py``, ``a1111/sdapi_schemas.py``. Answers and
``/openapi.json`` are both made from these classes, so their docstrings are read by clients.
"""

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from mflux_api.images.encode import ImageFormat

StatusName = Literal["queued", "generating", "completed", "failed", "cancelled"]
StageName = Literal["queued", "downloading", "loading", "encoding", "compiling", "denoising", "decoding", "saving"]


@attrs.frozen(kw_only=True)
class ErrorBody:
    """What every failed request answers with."""

    error: str
    """A sentence that says what is wrong and what to do."""
    code: str
    details: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class JobResult:
    """What a job left: base64 PNG (or URLs, when asked for) and the seed of each image."""

    images: tuple[str, ...]
    seeds: tuple[int, ...]


WebhookState = Literal["waiting", "pending", "delivered", "failed", "skipped"]


@attrs.frozen(kw_only=True)
class WebhookResponse:
    """The webhook of a job, and what became of it."""

    url: str | None
    """Only in ``GET /api/v1/jobs/{id}``, and for the job's owner."""
    events: tuple[StatusName, ...]
    """The ends that are sent."""
    state: WebhookState
    """``waiting`` for the job's end, ``pending`` until the receiver has it, ``failed`` when that was given up, and
    ``skipped`` where the job ended otherwise than in ``events``."""
    attempts: int
    last_error: str | None
    """A sentence about the last attempt that failed."""
    next_attempt_at: str | None


@attrs.frozen(kw_only=True)
class PartialImageResponse:
    """Data of a job's ``partial_image`` events, for which its request has to ask: what an image is coming to.

    Each has an ``id`` of the job's progress before it, after which a follower goes on. One that is behind, and one for
    which there is no memory now, goes without them.
    """

    id: str
    """The job's."""
    image: int
    """The image's number, from 0."""
    partial_image_index: int
    """Which of the image's partial ones, from 0."""
    step: int
    """After how many of ``steps``."""
    steps: int
    width: int
    height: int
    output_format: ImageFormat
    b64_json: str = ""
    """The file in base64."""


@attrs.frozen(kw_only=True)
class JobResponse:
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
    request: Mapping[str, Any]
    """What is run, with every default filled in: ``POST /api/v1/generate`` takes it again, but for images and mask."""
    edit: bool
    """Whether it is made from images, which are not in ``request``."""
    webhook: WebhookResponse | None
    warnings: tuple[str, ...]
    """What is not as it was asked for, in sentences: unknown fields, an image that cannot be read; empty as a rule."""
