"""Cancelling many jobs with one question."""

from collections.abc import Sequence

import attrs

from mflux_api.access.visibility import ALL_JOBS, Visibility
from mflux_api.actors import messages as m
from mflux_api.errors import ServiceError
from mflux_api.gateway.jobs import Jobs
from mflux_api.jobs.job import Status
from mflux_api.jobs.search import JobFilter

UNFINISHED = (Status.QUEUED, Status.GENERATING)


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of one job."""

    id: str
    status: Status | None = None
    """Its state now; ``None`` where it could not be cancelled."""
    error: ServiceError | None = None


class BulkCancel(Jobs):
    """Cancelling jobs one after the other: of one caller, one message is on its way at a time."""

    async def cancel_all(self, job_ids: Sequence[str], *, visible: Visibility = ALL_JOBS) -> tuple[Outcome, ...]:
        """Cancel jobs and say of each what became of it, in their order; finished ones stay as they are."""
        wanted = tuple(dict.fromkeys(job_ids))
        snapshots = await self._ask(self._to.scheduler, m.GetSnapshots(job_ids=wanted))
        places = {job_id: live.position or 0 for job_id, live in snapshots.items()}
        outcomes: dict[str, Outcome] = {}
        # The last first, so that none that is to be cancelled, too, takes the place of one before it and runs.
        for job_id in sorted(wanted, key=lambda each: places.get(each, 0), reverse=True):
            try:
                job = await self.cancel(job_id, visible=visible)
            except ServiceError as error:
                outcomes[job_id] = Outcome(id=job_id, error=error)
            else:
                outcomes[job_id] = Outcome(id=job_id, status=job.status)
        return tuple(outcomes[job_id] for job_id in wanted)

    async def cancel_found(
        self, where: JobFilter, *, limit: int, visible: Visibility = ALL_JOBS
    ) -> tuple[tuple[Outcome, ...], bool]:
        """Cancel the unfinished jobs that are found, and say whether there may be more of them than ``limit``."""
        wanted = attrs.evolve(where, statuses=where.statuses or UNFINISHED)
        views, cursor = await self.search(wanted, limit=limit, visible=visible)
        return await self.cancel_all([view.job.id for view in views], visible=visible), cursor is not None
