"""What the scheduler is told and asked: jobs, how busy it is, and the engines that it gives them to."""

from collections.abc import Mapping

import attrs

from mflux_api.actors.mailbox import Ask
from mflux_api.actors.messages.engine import EngineChanged, EngineStatus
from mflux_api.jobs.idempotency import IdempotencyKey
from mflux_api.jobs.job import Job, new_job_id
from mflux_api.jobs.progress import Progress
from mflux_api.jobs.resolve import ResolvedRequest


@attrs.frozen(kw_only=True)
class Accepted:
    """A job and its place in the queue (1: next; 0: it does not wait any more)."""

    job: Job
    position: int


@attrs.frozen(kw_only=True)
class Submit(Ask[Accepted]):
    """Accept a resolved request; the answer comes when the job is kept."""

    job_id: str = attrs.field(factory=new_job_id)
    """Chosen by the asker, who can find the job, or end it, when the scheduler dies before its answer."""
    request: ResolvedRequest
    synchronous: bool
    owner: str = ""
    """Who asks: the name of an API key, else the caller; the program that embeds the service has no name."""
    most_queued: int | None = None
    """How many jobs the owner may have waiting; by default its share of the queue."""
    key: IdempotencyKey | None = None
    """A job that was accepted under it is the answer, whatever became of it since."""
    request_id: str = ""
    """Of the HTTP request that it comes from; for the log."""


@attrs.frozen(kw_only=True)
class CheckAdmission(Ask[None]):
    """Say whether a job would be accepted now, before work is spent on it; only :class:`Submit` takes a place.

    Fails with the error that the submission would get.
    """

    owner: str
    most_queued: int | None
    synchronous: bool
    init_images: bool
    """Whether it has any."""


@attrs.frozen(kw_only=True)
class FindAccepted(Ask[Accepted | None]):
    """Look for the job that was accepted under a key; ``None`` when there is none."""

    key: IdempotencyKey


@attrs.frozen(kw_only=True)
class CancelJob(Ask[Job | None]):
    """Cancel a job; a finished one is answered as it is, an unknown one with ``None``."""

    job_id: str


@attrs.frozen(kw_only=True)
class WantPreviews:
    """Someone follows a job's previews: they are made from now on."""

    job_id: str


@attrs.frozen
class JobEnd:
    """How a job ended, and how far it had come."""

    job: Job
    newest: Progress | None
    """The last progress before the end; ``None`` when the scheduler has forgotten the job."""


@attrs.frozen(kw_only=True)
class AwaitEnd(Ask[JobEnd | None]):
    """Wait for a job's end; a finished one is answered at once, an unknown one with ``None``.

    Fails at once when the store cannot write the end, on a full disk for instance, while the scheduler goes on trying.
    """

    job_id: str


@attrs.frozen(kw_only=True)
class Abandon:
    """Like :class:`CancelJob`, from a caller that has no time to wait for the answer."""

    job_id: str


@attrs.frozen(kw_only=True)
class JobSnapshot:
    """What only the scheduler knows of a job that is not finished."""

    prompt: str = attrs.field(repr=False)
    progress: Progress
    position: int | None
    priority: int = 0
    owner: str = ""
    warnings: tuple[str, ...] = ()
    """What its runs did not do so far; the store has them with the job's end."""


@attrs.frozen(kw_only=True)
class GetSnapshots(Ask[Mapping[str, JobSnapshot]]):
    """Read some jobs, in no order; those that are finished or unknown are left out."""

    job_ids: tuple[str, ...]


LISTED = 200
"""Waiting jobs that a list of the queue has at most."""


@attrs.frozen(kw_only=True)
class QueueListing:
    """The beginning of the queue."""

    jobs: Mapping[str, JobSnapshot]
    """The running jobs, then those that are due first, in their order."""
    total: int
    """How many wait in all."""


@attrs.frozen(kw_only=True)
class GetQueue(Ask[QueueListing]):
    """Read what runs and what is due next."""

    limit: int = LISTED
    """Waiting jobs to list."""


@attrs.frozen(kw_only=True)
class SchedulerStatus:
    """How busy the scheduler is."""

    active: int
    queued: int
    draining: bool
    degraded: bool
    """No engine is left that could run a job, or one that ran at the last end cannot be put back into the queue."""
    store_trouble: str | None = None
    """What the store said when it could not write the last time that it was asked."""
    engine_trouble: str | None = None
    """Why no engine is left; ``None`` while there is one that could run a job."""
    preloading: str | None = None
    """The model that is loaded ahead, until it was in the memory of an engine and warmed up."""
    preload_problem: str = ""
    """Why it could not be; empty otherwise."""
    warming_up: bool = False
    """Whether an engine has it in memory and warms it up."""


@attrs.frozen(kw_only=True)
class GetStatus(Ask[SchedulerStatus]):
    """Read how busy the scheduler is."""


@attrs.frozen(kw_only=True)
class GetEngines(Ask[tuple[EngineStatus, ...]]):
    """Read what the scheduler knows of every engine, in their order."""


@attrs.frozen(kw_only=True)
class CountLoraJobs(Ask[int]):
    """Count the jobs that are not finished and name one of some LoRAs."""

    names: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Drain(Ask[None]):
    """Take no new work and start none; answered when nothing runs any more.

    Synchronous jobs that wait fail at once: their callers need an answer, and a restart would lose them.
    """

    halt: bool = False
    """Stop what runs, too: asynchronous jobs go back to the queue, which counts as no death; synchronous ones fail."""


SchedulerMessage = (
    Submit
    | CheckAdmission
    | FindAccepted
    | CancelJob
    | AwaitEnd
    | Abandon
    | WantPreviews
    | GetSnapshots
    | GetQueue
    | GetStatus
    | GetEngines
    | CountLoraJobs
    | Drain
    | EngineChanged
)
