"""The unfinished jobs of a scheduler: which wait, in which order, which run, and how long it will take."""

import itertools
from collections.abc import Collection, Iterator

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.jobs.estimates import Estimates
from mflux_api.jobs.job import Job, StoredImage
from mflux_api.jobs.progress import ProgressTracker


@attrs.define(eq=False)
class Entry:
    """A job that is not finished, as the scheduler knows it."""

    job: Job
    number: int
    """Order of acceptance; a job that goes back to the queue keeps its place."""
    tracker: ProgressTracker
    images: list[StoredImage] = attrs.field(factory=list)
    overtaken: int = 0
    """How often a later job ran before it."""
    out_of_memory: bool = False
    """There is evidence that the last engine that died with it inside was out of memory."""
    scope: trio.CancelScope | None = None
    """Set while it runs."""
    fetching: trio.CancelScope | None = None
    """Set while its model is being brought to disk; it keeps its place, and others overtake it."""
    kept: trio.Event = attrs.field(factory=trio.Event)
    """Set once the store has it."""
    finishing: bool = False
    """Somebody is committing its end; nobody else may."""
    halted: bool = False
    """A drain stopped its run."""
    finished: trio.Event = attrs.field(factory=trio.Event)


class JobQueue:
    """Entries by id, and those that wait in their order: first come, first served."""

    def __init__(self, estimates: Estimates) -> None:
        self._entries: dict[str, Entry] = {}
        self._waiting: list[Entry] = []
        self._numbers = itertools.count()
        self._estimates = estimates

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def input_bytes(self) -> int:
        """Return how much the init images of all unfinished jobs take; they are held as text."""
        return sum(len(text) for entry in self for text in entry.job.request.init_images)

    def get(self, job_id: str) -> Entry | None:
        """Return a job's entry."""
        return self._entries.get(job_id)

    def enter(self, job: Job) -> Entry:
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

    def next(self, resident: Collection[str] = (), max_skips: int = 0) -> Entry | None:
        """Take the entry that is due: the first, or the first whose model is in memory.

        Args:
            resident: the models in memory.
            max_skips: how often an entry may be overtaken for the sake of them.
        """
        ready = [entry for entry in self._waiting if entry.fetching is None]
        for place, entry in enumerate(ready):
            if entry.job.model in resident:
                for passed in ready[:place]:
                    passed.overtaken += 1
                return self._take(entry)
            if entry.overtaken >= max_skips:
                break
        return self._take(ready[0]) if ready else None

    def _take(self, entry: Entry) -> Entry:
        self._waiting.remove(entry)
        return entry

    def accepted(self) -> int:
        """How many jobs wait or are on their way into the store."""
        return sum(entry.scope is None and not entry.finishing for entry in self)

    def live(self) -> dict[str, m.JobSnapshot]:
        """Return what is known of every unfinished job: the running first, then the waiting in order."""
        etas = self.etas()
        positions = {entry.job.id: place for place, entry in enumerate(self._waiting, start=1)}
        return {
            entry.job.id: m.JobSnapshot(
                prompt=entry.job.request.prompt,
                progress=attrs.evolve(entry.tracker.latest, eta_seconds=etas[entry.job.id]),
                position=positions.get(entry.job.id),
            )
            for entry in (*self._running(), *self._waiting)
        }

    def etas(self) -> dict[str, float | None]:
        """Return the seconds until the end of each job, one after another; ``None`` where nothing is known yet."""
        etas: dict[str, float | None] = {}
        total: float | None = 0.0
        for entry in (*self._running(), *self._waiting):
            tracker = entry.tracker
            if entry.fetching is not None:
                # Until its model is there; nobody waits for it.
                etas[entry.job.id] = tracker.latest.eta_seconds
                continue
            seconds = self._estimates.remaining(entry.job.request, step=tracker.steps_ahead, image=tracker.images_saved)
            total = None if total is None or seconds is None else total + seconds
            etas[entry.job.id] = None if total is None else round(total, 1)
        return etas

    def _running(self) -> list[Entry]:
        return [entry for entry in self if entry.scope is not None]
