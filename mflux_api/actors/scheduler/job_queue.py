"""The unfinished jobs of a scheduler: the state of each, the order in which they are due, how long they will take."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum, auto

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.engine.interface import EngineId
from mflux_api.errors import ServiceError
from mflux_api.jobs.estimates import Estimates
from mflux_api.jobs.job import Job, StoredImage
from mflux_api.jobs.progress import ProgressTracker


class JobState(Enum):
    """Where an unfinished job is; see :data:`TRANSITIONS`."""

    PERSISTING = auto()
    """On its way into the store; it has no place in the queue yet."""
    WAITING = auto()
    """In the queue, and due when its turn comes."""
    DOWNLOADING = auto()
    """In the queue, and overtaken by others while its model is being brought to disk."""
    RUNNING = auto()
    """An engine is taken for it."""
    SAVING = auto()
    """The engine is free again; what it made is still being written."""
    HALTED = auto()
    """Its run was stopped without an end; it is about to go back to the queue."""
    ENDING = auto()
    """One task is committing its end; no other may."""
    ENDED = auto()


class JobEvent(Enum):
    """What happens to an unfinished job."""

    KEPT = auto()
    """The store has it, and it takes its place in the queue."""
    FOUND_RUNNING = auto()
    """At a start: it ran when the scheduler or the service ended."""
    DOWNLOAD_BEGAN = auto()
    DOWNLOADED = auto()
    DISPATCHED = auto()
    ENGINE_FREED = auto()
    """The engine has nothing more to do for it."""
    HALT = auto()
    """A drain stops its run, or another engine is to run it."""
    REQUEUED = auto()
    """Its attempt is over without an end."""
    END = auto()
    """It is to end: completed, failed or cancelled."""
    COMMITTED = auto()
    """The store has its end."""


_S, _E = JobState, JobEvent
TRANSITIONS: Mapping[tuple[JobState, JobEvent], JobState] = {
    (_S.PERSISTING, _E.KEPT): _S.WAITING,
    (_S.PERSISTING, _E.FOUND_RUNNING): _S.HALTED,
    (_S.WAITING, _E.DOWNLOAD_BEGAN): _S.DOWNLOADING,
    (_S.WAITING, _E.DISPATCHED): _S.RUNNING,
    (_S.WAITING, _E.END): _S.ENDING,
    (_S.DOWNLOADING, _E.DOWNLOADED): _S.WAITING,
    (_S.DOWNLOADING, _E.END): _S.ENDING,
    (_S.RUNNING, _E.ENGINE_FREED): _S.SAVING,
    (_S.RUNNING, _E.HALT): _S.HALTED,
    (_S.RUNNING, _E.REQUEUED): _S.WAITING,
    (_S.RUNNING, _E.END): _S.ENDING,
    (_S.SAVING, _E.END): _S.ENDING,
    (_S.HALTED, _E.REQUEUED): _S.WAITING,
    (_S.HALTED, _E.END): _S.ENDING,
    (_S.ENDING, _E.COMMITTED): _S.ENDED,
}
"""State and event → next state; what is not here cannot happen."""

QUEUED = frozenset({JobState.WAITING, JobState.DOWNLOADING})
"""In the queue."""
AT_WORK = frozenset({JobState.RUNNING, JobState.SAVING, JobState.HALTED})
"""An attempt is under way."""
OVER = frozenset({JobState.ENDING, JobState.ENDED})
"""Its end is being committed, or was."""


class ImpossibleEvent(Exception):
    """A job's state does not allow that event: a defect."""


@attrs.define(eq=False)
class Entry:
    """A job that is not finished, as the scheduler knows it."""

    job: Job
    number: int
    """Order of acceptance; a job that goes back to the queue keeps its place."""
    tracker: ProgressTracker
    state: JobState = JobState.PERSISTING
    images: list[StoredImage] = attrs.field(factory=list)
    overtaken: int = 0
    """How often a later job ran before it."""
    out_of_memory: bool = False
    """There is evidence that the last engine that died with it inside was out of memory."""
    engine: m.EngineStatus | None = None
    """What runs it, as it was when the job was given to it; ``None`` while it does not run."""
    failed_on: EngineId | None = None
    """The engine that could not complete its last attempt, until the next one; any other is better."""
    began: bool = False
    """Whether the engine was seen loading its model during this attempt."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """Of what is under way for it: the attempt, or the wait for its model."""
    kept: trio.Event = attrs.field(factory=trio.Event)
    """Set once the store has it, or has refused it."""
    answerable: trio.Event = attrs.field(factory=trio.Event)
    """Set once those who wait for its end can be answered: the store has it, or said that it cannot write it now."""
    unwritten: ServiceError | None = None
    """Why the store does not have its end yet; it is asked again."""

    def on(self, event: JobEvent) -> None:
        """Take the job on to its next state.

        Raises:
            ImpossibleEvent: its state does not allow that.
        """
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise ImpossibleEvent(f"job {self.job.id}: {event.name} while {self.state.name}") from None


class JobQueue:
    """Entries by id, and those that wait in their order: first come, first served."""

    def __init__(self, estimates: Estimates) -> None:
        self._entries: dict[str, Entry] = {}
        self._waiting: list[Entry] = []
        self._numbers = itertools.count()
        self._estimates = estimates

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def input_bytes(self) -> int:
        """Return how much the init images of all unfinished jobs take; they are held as text."""
        return sum(len(text) for entry in self for text in entry.job.request.init_images)

    def get(self, job_id: str) -> Entry | None:
        """Return a job's entry."""
        return self._entries.get(job_id)

    def add(self, job: Job) -> Entry:
        """Make an entry for a job that was accepted; it does not wait yet."""
        entry = Entry(job=job, number=next(self._numbers), tracker=ProgressTracker(job))
        self._entries[job.id] = entry
        return entry

    def forget(self, entry: Entry) -> None:
        """Drop an entry, wherever it is."""
        self._entries.pop(entry.job.id, None)
        self.take(entry)

    def enqueue(self, entry: Entry) -> int:
        """Put an entry at its place among the waiting and return that place, counted from 1."""
        self._waiting.append(entry)
        self._waiting.sort(key=lambda waiting: waiting.number)
        return self._waiting.index(entry) + 1

    def position(self, job_id: str) -> int:
        """Return a job's place among the waiting, counted from 1; 0 when it does not wait."""
        return next((place for place, entry in enumerate(self._waiting, start=1) if entry.job.id == job_id), 0)

    def take(self, entry: Entry) -> None:
        """Take an entry out of the waiting, if it is there."""
        if entry in self._waiting:
            self._waiting.remove(entry)

    def next(
        self, free: Sequence[m.EngineStatus], usable: Collection[EngineId], max_skips: int = 0
    ) -> tuple[Entry, m.EngineStatus] | None:
        """Take the entry that is due, and choose the engine for it.

        That is the first, or the first whose model is in the memory of a free engine.

        Args:
            free: the engines that are free, the best first.
            usable: those and the ones that will be free again: a job that failed on one engine waits for another.
            max_skips: how often an entry may be overtaken for the sake of what is in memory.
        """
        ready = [entry for entry in self._waiting if entry.state is JobState.WAITING]
        choices = [(entry, engines) for entry in ready if (engines := _choices(entry, free, usable))]
        if not choices:
            return None
        for place, (entry, engines) in enumerate(choices):
            engine = next((each for each in engines if entry.job.model in each.models), None)
            if engine is not None:
                for passed, _ in choices[:place]:
                    passed.overtaken += 1
                return self._take(entry), engine
            if entry.overtaken >= max_skips:
                break
        entry, engines = choices[0]
        return self._take(entry), engines[0]

    def _take(self, entry: Entry) -> Entry:
        self._waiting.remove(entry)
        return entry

    def accepted(self) -> int:
        """How many jobs wait or are on their way into the store."""
        return sum(entry.state in QUEUED or entry.state is JobState.PERSISTING for entry in self)

    def active(self) -> int:
        """How many attempts are under way."""
        return sum(entry.state in AT_WORK for entry in self)

    def snapshots(self, engines: Sequence[m.EngineStatus]) -> dict[str, m.JobSnapshot]:
        """Return what is known of every unfinished job: the running first, then the waiting in order."""
        etas = self.etas(engines)
        positions = {entry.job.id: place for place, entry in enumerate(self._waiting, start=1)}
        return {
            entry.job.id: m.JobSnapshot(
                prompt=entry.job.request.prompt,
                progress=attrs.evolve(entry.tracker.latest, eta_seconds=etas[entry.job.id]),
                position=positions.get(entry.job.id),
            )
            for entry in (*self._at_work(), *self._waiting)
        }

    def etas(self, engines: Sequence[m.EngineStatus]) -> dict[str, float | None]:
        """Return the seconds until the end of each job, as the engines will take them one after another.

        ``None`` where nothing is known yet. A job whose model is being downloaded counts only its download.
        """
        etas: dict[str, float | None] = {}
        busy: dict[str, float | None] = {engine.id: 0.0 for engine in engines} or {"": 0.0}
        devices = {engine.id: engine.device for engine in engines}
        for entry in (*self._at_work(), *self._waiting):
            tracker = entry.tracker
            if entry.state is JobState.DOWNLOADING:
                etas[entry.job.id] = tracker.latest.eta_seconds
                continue
            taken = entry.engine.id if entry.engine is not None else None
            engine = taken if taken in busy else min(busy, key=lambda each: _or_last(busy[each]))
            seconds = self._estimates.remaining(
                entry.job.request, devices.get(engine), step=tracker.steps_ahead, image=tracker.images_saved
            )
            before = busy[engine]
            busy[engine] = None if before is None or seconds is None else before + seconds
            after = busy[engine]
            etas[entry.job.id] = None if after is None else round(after, 1)
        return etas

    def _at_work(self) -> list[Entry]:
        return [entry for entry in self if entry.state in AT_WORK]


def _choices(entry: Entry, free: Sequence[m.EngineStatus], usable: Collection[EngineId]) -> Sequence[m.EngineStatus]:
    """The free engines that a job may go to: not the one that it failed on, unless there is no other."""
    if entry.failed_on is None or not any(other != entry.failed_on for other in usable):
        return free
    return [engine for engine in free if engine.id != entry.failed_on]


def _or_last(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds
