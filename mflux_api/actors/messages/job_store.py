"""What the job store is told and asked, and what becomes of a job."""

from datetime import timedelta

import attrs

from mflux_api.access.visibility import ALL_JOBS, Visibility
from mflux_api.actors.mailbox import Ask
from mflux_api.jobs.idempotency import IdempotencyKey, IdempotencyRecord
from mflux_api.jobs.job import Failure, Job, Status, StoredImage, Timings
from mflux_api.jobs.search import JobFilter
from mflux_api.jobs.webhook import Delivery
from mflux_api.storage.repository import Page, Totals
from mflux_api.storage.retention import Removed


@attrs.frozen(kw_only=True)
class Insert(Ask[None]):
    """Keep a new job; the answer means it is kept."""

    job: Job
    key: IdempotencyKey | None = None


@attrs.frozen(kw_only=True)
class GetIdempotencyRecord(Ask[IdempotencyRecord | None]):
    """Read what was kept under an idempotency key."""

    key: str


@attrs.frozen(kw_only=True)
class StartJob(Ask[Job]):
    """Take a job from queued to generating."""

    job_id: str


@attrs.frozen(kw_only=True)
class Requeue(Ask[Job]):
    """Take a job from generating back to queued."""

    job_id: str
    engine_died: bool = False
    service_died: bool = False


@attrs.frozen(kw_only=True)
class Completed:
    """Outcome: everything asked for was generated."""

    images: tuple[StoredImage, ...]
    timings: Timings | None
    device: str | None = None
    """``cpu``, ``metal`` or ``cuda``: the same request on the same kind of device gives the same bits."""


@attrs.frozen(kw_only=True)
class Failed:
    """Outcome: it cannot be done."""

    failure: Failure
    images: tuple[StoredImage, ...] = ()
    progress: float = 0.0


@attrs.frozen(kw_only=True)
class JobWasCancelled:
    """Outcome: it is not wanted any more."""

    images: tuple[StoredImage, ...] = ()
    progress: float = 0.0


Outcome = Completed | Failed | JobWasCancelled


@attrs.frozen(kw_only=True)
class Finish(Ask[Job]):
    """Commit a terminal state. The first one wins: the answer is the job as it stands."""

    job_id: str
    outcome: Outcome
    warnings: tuple[str, ...] = ()
    """What its runs did not do of what was asked for."""


ChangeJob = StartJob | Requeue | Finish
"""A step of a job's state machine; the answer is the job after it."""


@attrs.frozen(kw_only=True)
class GetJob(Ask[Job | None]):
    """Read one job."""

    job_id: str
    visible: Visibility = ALL_JOBS
    """Which jobs there are for the caller; another is none."""


@attrs.frozen(kw_only=True)
class GetInputs(Ask[tuple[str, ...]]):
    """Read the init images of an unfinished job; one that was removed is an empty text."""

    job_id: str


@attrs.frozen(kw_only=True)
class ListJobs(Ask[Page]):
    """Read a page of jobs, newest first."""

    limit: int
    cursor: str | None = None
    status: Status | None = None
    visible: Visibility = ALL_JOBS


@attrs.frozen(kw_only=True)
class SearchJobs(Ask[Page]):
    """Read a page of the jobs that are found, newest first; it may have fewer than there are, and a next one."""

    where: JobFilter
    limit: int
    cursor: str | None = None
    visible: Visibility = ALL_JOBS


@attrs.frozen(kw_only=True)
class Unfinished(Ask[tuple[Job, ...]]):
    """Read what is queued or generating, oldest first."""


@attrs.frozen(kw_only=True)
class GetTotals(Ask[Totals]):
    """Read the running counters."""


@attrs.frozen(kw_only=True)
class ExpireJobs:
    """Remove finished jobs that retention does not keep."""


@attrs.frozen(kw_only=True)
class CallerDone:
    """The caller of a synchronous job has its answer, or is gone: until then retention leaves the job alone."""

    job_id: str


@attrs.frozen(kw_only=True)
class PruneJobs(Ask[Removed]):
    """Remove the records of jobs that finished longer ago than that, or only say which they are."""

    older_than: timedelta
    dry_run: bool


@attrs.frozen(kw_only=True)
class GetUndelivered(Ask[tuple[Job, ...]]):
    """Read the finished jobs whose webhook is still to be delivered, those that are due first at the front."""


@attrs.frozen(kw_only=True)
class DeliveryCounts:
    """Webhooks that are still to be delivered."""

    of_owner: int
    in_all: int


@attrs.frozen(kw_only=True)
class CountDeliveries(Ask[DeliveryCounts]):
    """Read how many webhooks are still to be delivered."""

    owner: str


@attrs.frozen(kw_only=True)
class RecordDelivery(Ask[None]):
    """Keep what became of a finished job's webhook; nothing to do where the job is gone."""

    job_id: str
    delivery: Delivery


StoreMessage = (
    Insert
    | GetIdempotencyRecord
    | StartJob
    | Requeue
    | Finish
    | GetJob
    | GetInputs
    | ListJobs
    | SearchJobs
    | Unfinished
    | GetTotals
    | ExpireJobs
    | CallerDone
    | PruneJobs
    | GetUndelivered
    | CountDeliveries
    | RecordDelivery
)
