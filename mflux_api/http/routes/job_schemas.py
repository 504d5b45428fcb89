"""JSON of ``/api/v1/generate`` and ``/api/v1/jobs``: lists and receipts; one job's shape is in ``http/schemas``."""

from typing import Annotated

import attrs
from msgspec import Meta

from mflux_api.http.schemas import JobResponse, StatusName


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
class CancelResponse:
    """``DELETE /api/v1/jobs/{job_id}``."""

    status: StatusName
