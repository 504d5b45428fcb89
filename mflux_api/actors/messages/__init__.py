"""Every message that actors exchange, one union per receiver, and who may ask whom.

``tell`` messages are plain; messages derived from :class:`Ask` carry the channel for their answer.
"""

from collections.abc import Mapping
from datetime import datetime

import attrs
import trio

from mflux_api.actors.mailbox import Ask
from mflux_api.engine.protocol import Bits as Bits
from mflux_api.engine.protocol import Ready
from mflux_api.images.run_inputs import RunInputs
from mflux_api.jobs.idempotency import IdempotencyKey, IdempotencyRecord
from mflux_api.jobs.job import Failure, Job, Status, StoredImage, Timings
from mflux_api.jobs.progress import JobEvent, Progress
from mflux_api.jobs.resolve import ResolvedRequest
from mflux_api.storage.repository import Page, Totals

GATEWAY = "gateway"
JOB_STORE = "job_store"
EVENT_HUB = "event_hub"
DOWNLOADER = "downloader"
MODEL_LOADER = "model_loader"
GENERATOR = "generator"
SCHEDULER = "scheduler"
STATS = "stats"
HTTP_FRONT = "http_front"

ASK_GRAPH: Mapping[str, frozenset[str]] = {
    GATEWAY: frozenset({SCHEDULER, JOB_STORE, EVENT_HUB, DOWNLOADER, MODEL_LOADER, GENERATOR, STATS}),
    SCHEDULER: frozenset({JOB_STORE, EVENT_HUB, DOWNLOADER, MODEL_LOADER, GENERATOR}),
    DOWNLOADER: frozenset({MODEL_LOADER}),
    MODEL_LOADER: frozenset({GENERATOR}),
}
"""Who may wait for an answer of whom: always downhill, so nobody can wait in a circle. ``tell`` may go anywhere."""


# --- job_store -----------------------------------------------------------------------------------------------------


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
    """queued → generating."""

    job_id: str


@attrs.frozen(kw_only=True)
class Requeue(Ask[Job]):
    """generating → queued."""

    job_id: str
    engine_died: bool = False
    service_died: bool = False


@attrs.frozen(kw_only=True)
class Completed:
    """Outcome: everything asked for was generated."""

    images: tuple[StoredImage, ...]
    timings: Timings | None


@attrs.frozen(kw_only=True)
class Failed:
    """Outcome: it cannot be done."""

    failure: Failure
    images: tuple[StoredImage, ...] = ()
    progress: float = 0.0


@attrs.frozen(kw_only=True)
class Cancelled:
    """Outcome: nobody wants it any more."""

    images: tuple[StoredImage, ...] = ()
    progress: float = 0.0


Outcome = Completed | Failed | Cancelled


@attrs.frozen(kw_only=True)
class Finish(Ask[Job]):
    """Commit a terminal state. The first one wins: the answer is the job as it stands, whoever finished it."""

    job_id: str
    outcome: Outcome


@attrs.frozen(kw_only=True)
class GetJob(Ask[Job | None]):
    """Read one job."""

    job_id: str


@attrs.frozen(kw_only=True)
class ListJobs(Ask[Page]):
    """Read a page of jobs, newest first."""

    limit: int
    cursor: str | None = None
    status: Status | None = None


@attrs.frozen(kw_only=True)
class Unfinished(Ask[tuple[Job, ...]]):
    """Read what is queued or generating, oldest first."""


@attrs.frozen(kw_only=True)
class GetTotals(Ask[Totals]):
    """Read the running counters."""


@attrs.frozen(kw_only=True)
class ExpireJobs:
    """Remove finished jobs that are too old."""


StoreMessage = (
    Insert
    | GetIdempotencyRecord
    | StartJob
    | Requeue
    | Finish
    | GetJob
    | ListJobs
    | Unfinished
    | GetTotals
    | ExpireJobs
)

# --- event_hub -----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class LogEntry:
    """One event with its place in the job's log."""

    id: str
    """``{boot}-{n}``: what a client sends back as ``Last-Event-ID``."""
    event: JobEvent


@attrs.frozen(kw_only=True)
class Subscription:
    """The past that a subscriber missed, and the channel the future comes through."""

    backlog: tuple[LogEntry, ...]
    present: LogEntry | None
    """The newest state of the job before its end, when the subscriber named no event."""
    channel: trio.MemoryReceiveChannel[LogEntry]


@attrs.frozen(kw_only=True)
class Publish:
    """Tell everybody who follows the job. After the terminal event nothing more is taken."""

    job_id: str
    event: JobEvent


@attrs.frozen(kw_only=True)
class Subscribe(Ask[Subscription]):
    """Follow one job; closing the channel ends it. A job without a log has no past, and its channel is closed."""

    job_id: str
    last_event_id: str | None = None
    previews: bool = False
    """Also send events that carry a preview; no log has them."""


@attrs.frozen(kw_only=True)
class OpenLogs(Ask[tuple[str, ...]]):
    """The jobs that have a log without a terminal event."""


@attrs.frozen(kw_only=True)
class EndStreams:
    """Nothing more will happen to any job here: end the streams of unfinished jobs, and open no new ones."""


HubMessage = Publish | Subscribe | OpenLogs | EndStreams

# --- downloader ----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Transfer:
    """How far a download is."""

    bytes_done: int = 0
    bytes_total: int | None = None
    """``None`` until the hub has said how large it all is."""
    bytes_per_second: float | None = None
    """Over the last seconds."""
    eta_seconds: float | None = None


@attrs.frozen(kw_only=True)
class EnsureOnDisk(Ask[None]):
    """Have a model's files on disk, downloading them where that is needed and allowed; answered when they are."""

    model: str
    updates: trio.MemorySendChannel[Transfer] = attrs.field(eq=False, repr=False)
    """Gets how far it is; lossy."""


@attrs.frozen(kw_only=True)
class DownloadAbandoned:
    """Somebody waits no more for a model: a download that nobody wants is stopped, and what it has is kept."""


@attrs.frozen(kw_only=True)
class StartDownload(Ask[None]):
    """Download a model whether a job needs it or not; answered when that has begun, or there is nothing to do."""

    model: str


@attrs.frozen(kw_only=True)
class DownloadState:
    """What a downloader knows of one model."""

    transfer: Transfer | None = None
    """Set while it is being downloaded."""
    failure: Failure | None = None
    """Why the last try failed."""


@attrs.frozen(kw_only=True)
class GetDownload(Ask[DownloadState]):
    """Read how far a model's download is."""

    model: str


@attrs.frozen(kw_only=True)
class DeleteModel(Ask[None]):
    """Remove a model from disk, if this service put it there; a download that only waits for itself is stopped."""

    model: str


DownloaderMessage = EnsureOnDisk | DownloadAbandoned | StartDownload | GetDownload | DeleteModel

# --- model_loader --------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Lease:
    """The right to run on a model; while it is held the model stays."""

    id: int
    model: str
    incarnation: int
    """The engine child that has the model in memory. A run with an older number is refused."""
    load_seconds: float
    """What loading cost this lease; 0 when the model was resident."""
    alternating_offload: bool = False
    """There is no room for the whole model: its text encoder and its transformer take turns."""


@attrs.frozen(kw_only=True)
class Acquire(Ask[Lease]):
    """Make a model resident and keep it so until the lease is released."""

    model: str
    low_ram: bool = False
    """One component in memory at a time is enough."""


@attrs.frozen(kw_only=True)
class Release:
    """Give a lease back."""

    lease_id: int


@attrs.frozen(kw_only=True)
class Residency:
    """Which models are in memory."""

    model: str | None
    """The most recently used one."""
    leases: int
    loading: str | None
    models: tuple[str, ...] = ()
    """All of them, the most recently used first."""


@attrs.frozen(kw_only=True)
class GetResidency(Ask[Residency]):
    """Read what is resident."""


@attrs.frozen(kw_only=True)
class Evict(Ask[None]):
    """Have a model out of memory; refused while somebody holds or loads it."""

    model: str


LoaderMessage = Acquire | Release | GetResidency | Evict

# --- generator -----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Resident:
    """A model in the memory of one engine child."""

    incarnation: int
    seconds: float
    warning: str = ""
    """What an operator should know."""


@attrs.frozen(kw_only=True)
class LoadModel(Ask[Resident]):
    """Have the engine load a checkpoint."""

    model: str
    path: str
    bits: Bits | None = None
    """Quantize to that many bits."""
    entry: str = ""
    """With ``bits``: where the quantized weights are kept."""
    component_offload: bool = False
    """Read each component only when a run needs it."""


@attrs.frozen(kw_only=True)
class UnloadModel(Ask[None]):
    """Have the engine drop a model; answered when its memory is free."""

    model: str


@attrs.frozen(kw_only=True)
class Generated:
    """One image, still as pixels."""

    index: int
    seed: int
    width: int
    height: int
    rgb: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Stepped:
    """One denoising step is done."""

    image: int
    """The first image that the step was for."""
    step: int
    steps: int
    images: int = 1
    """How many images the step was for."""


@attrs.frozen(kw_only=True)
class Entered:
    """The engine entered another stage."""

    stage: str


@attrs.frozen(kw_only=True)
class Previewed:
    """What an image is coming to."""

    index: int
    jpeg: bytes = attrs.field(repr=False)


RunEvent = Generated | Stepped | Entered | Previewed


@attrs.frozen(kw_only=True)
class Run(Ask[Timings]):
    """Run a request on a leased model; what happens on the way goes to ``events``."""

    lease: Lease
    request: ResolvedRequest
    run_id: int
    """Unique for this run; also what :class:`CancelRun` names."""
    events: trio.MemorySendChannel[RunEvent] = attrs.field(eq=False, repr=False)
    inputs: RunInputs = attrs.field(factory=RunInputs, repr=False)


@attrs.frozen(kw_only=True)
class CancelRun:
    """Nobody waits for that run any more: free the engine at the next step."""

    run_id: int


@attrs.frozen(kw_only=True)
class EngineState:
    """The engine child as its generator sees it."""

    info: Ready | None
    """``None`` while no child is up."""
    incarnation: int
    degraded: bool
    """The child kept dying before it finished a step."""
    active_bytes: int
    peak_bytes: int
    free_bytes: int | None = None
    """What the device had left at the last heartbeat."""


@attrs.frozen(kw_only=True)
class GetEngine(Ask[EngineState]):
    """Read the state of the engine."""


@attrs.frozen(kw_only=True)
class AwaitEngine(Ask[EngineState]):
    """Read the state of the engine once a child is up and has nothing to do."""


GeneratorMessage = LoadModel | UnloadModel | Run | CancelRun | GetEngine | AwaitEngine

# --- scheduler -----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Accepted:
    """A job and its place in the queue (1: next; 0: it does not wait any more)."""

    job: Job
    position: int


@attrs.frozen(kw_only=True)
class Submit(Ask[Accepted]):
    """Accept a resolved request; the answer comes when the job is kept."""

    request: ResolvedRequest
    synchronous: bool
    key: IdempotencyKey | None = None
    """A job that was accepted under it is the answer, whatever became of it since."""


@attrs.frozen(kw_only=True)
class CancelJob(Ask[Job | None]):
    """Cancel a job; a finished one is answered as it is, an unknown one with ``None``."""

    job_id: str


@attrs.frozen(kw_only=True)
class Abandon:
    """Like :class:`CancelJob`, from somebody who has no time to wait for the answer."""

    job_id: str


@attrs.frozen(kw_only=True)
class JobSnapshot:
    """What only the scheduler knows of a job that is not finished."""

    prompt: str = attrs.field(repr=False)
    progress: Progress
    position: int | None


@attrs.frozen(kw_only=True)
class GetSnapshots(Ask[Mapping[str, JobSnapshot]]):
    """Read every unfinished job: the running ones first, then the queue in order."""


@attrs.frozen(kw_only=True)
class Load:
    """How busy the scheduler is."""

    active: int
    queued: int
    draining: bool
    degraded: bool


@attrs.frozen(kw_only=True)
class GetLoad(Ask[Load]):
    """Read how busy the scheduler is."""


@attrs.frozen(kw_only=True)
class Drain(Ask[None]):
    """Take no new work and start none; answered when nothing runs any more.

    Synchronous jobs that wait fail at once: their callers need an answer, and a restart would lose them.
    """

    halt: bool = False
    """Stop what runs, too: asynchronous jobs go back to the queue, which is nobody's death; synchronous ones fail."""


@attrs.frozen(kw_only=True)
class EngineHealth:
    """The generator's word on its child; lossy, repeated at every change."""

    degraded: bool


@attrs.frozen(kw_only=True)
class ModelsResident:
    """The model loader's word on which models are in memory; lossy, repeated at every change."""

    models: frozenset[str]


SchedulerMessage = Submit | CancelJob | Abandon | GetSnapshots | GetLoad | Drain | EngineHealth | ModelsResident

# --- stats ---------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Count:
    """Something happened. Lost when the mailbox is full."""

    name: str
    amount: int = 1


@attrs.frozen(kw_only=True)
class Counters:
    """What happened since the process started."""

    started_at: datetime
    counts: Mapping[str, int]


@attrs.frozen(kw_only=True)
class GetCounters(Ask[Counters]):
    """Read the process counters."""


StatsMessage = Count | GetCounters

AnyMessage = (
    StoreMessage | HubMessage | DownloaderMessage | LoaderMessage | GeneratorMessage | SchedulerMessage | StatsMessage
)


class StaleLease(Exception):
    """The lease belongs to an engine child that is gone; acquire again."""
