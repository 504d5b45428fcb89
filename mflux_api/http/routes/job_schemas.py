"""JSON of ``/api/v1/generate`` and ``/api/v1/jobs``: lists and receipts; one job's shape is in ``http/schemas``."""

import attrs

from mflux_api.http.schemas import JobResponse, StatusName


@attrs.frozen(kw_only=True)
class GenerateResponse:
    """``POST /api/v1/generate``."""

    job_id: str
    status: StatusName
    position: int


@attrs.frozen(kw_only=True)
class JobList:
    """``GET /api/v1/jobs``: newest first, without results."""

    jobs: tuple[JobResponse, ...]
    next_cursor: str | None


@attrs.frozen(kw_only=True)
class CancelResponse:
    """``DELETE /api/v1/jobs/{job_id}``."""

    status: StatusName
