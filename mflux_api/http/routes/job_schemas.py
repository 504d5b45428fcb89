"""JSON of ``/api/v1/generate`` and ``/api/v1/jobs``: lists and receipts; one job's shape is in ``http/schemas``."""

from typing import Annotated, Literal

import attrs
from msgspec import Meta

from mflux_api.http.schemas import JobResponse, StatusName
from mflux_api.jobs.search import MAX_NAME, MAX_QUERY

MAX_CANCELLED = 500
"""Jobs that one call cancels."""


@attrs.frozen(kw_only=True)
class GenerateResponse:
    """``POST /api/v1/generate``."""

    job_id: str
    status: StatusName
    position: int
    warnings: tuple[str, ...]
    """Sentences about what was asked for and will not be done, such as unknown fields; empty as a rule."""


@attrs.frozen(kw_only=True)
class JobList:
    """``GET /api/v1/jobs``: newest first, without results."""

    jobs: tuple[JobResponse, ...]
    next_cursor: str | None
    warnings: tuple[str, ...]
    """Sentences about parameters that are not known; empty as a rule."""


@attrs.frozen(kw_only=True)
class PruneRequest:
    """``POST /api/v1/jobs/prune``."""

    older_than_hours: Annotated[float, Meta(ge=0.0, le=1e6)]
    """Since the end of a job."""
    dry_run: bool = False
    """Only say which they are."""


@attrs.frozen(kw_only=True)
class PruneResponse:
    """``POST /api/v1/jobs/prune``."""

    removed: tuple[str, ...]
    """Ids of the jobs whose records were removed, or would be."""
    dry_run: bool
    warnings: tuple[str, ...]
    """Sentences about what was asked for and is not done, such as unknown fields; empty as a rule."""


@attrs.frozen(kw_only=True)
class BulkCancelRequest:
    """``POST /api/v1/jobs/cancel``: either ``ids``, or conditions that all have to be met, or ``all``."""

    ids: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=MAX_CANCELLED)] = ()
    """These jobs."""
    status: Literal["queued", "generating"] | None = None
    """Jobs in this state."""
    q: Annotated[str, Meta(min_length=1, max_length=MAX_QUERY)] | None = None
    """Jobs whose prompt has all these words."""
    model: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)] | None = None
    """Jobs on this model."""
    lora: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)] | None = None
    """Jobs with this LoRA."""
    edit: bool | None = None
    """Jobs that are made from an image, or are not."""
    all: bool = False
    """Every job that is not finished."""


@attrs.frozen(kw_only=True)
class CancelOutcome:
    """What became of one job of ``POST /api/v1/jobs/cancel``."""

    id: str
    status: StatusName | None
    """Its state now: ``cancelled``, or another end that it had before; null where it could not be cancelled."""
    code: str | None
    """Why it could not, such as ``JOB_NOT_FOUND``."""
    error: str | None


@attrs.frozen(kw_only=True)
class BulkCancelResponse:
    """``POST /api/v1/jobs/cancel``."""

    jobs: tuple[CancelOutcome, ...]
    """Every job that was named or found."""
    cancelled: int
    """How many of them are cancelled now."""
    more: bool
    """Whether further jobs meet the conditions: ask again."""
    warnings: tuple[str, ...]
    """Sentences about what was asked for and is not done, such as unknown fields; empty as a rule."""


@attrs.frozen(kw_only=True)
class CancelResponse:
    """``DELETE /api/v1/jobs/{job_id}``."""

    status: StatusName
