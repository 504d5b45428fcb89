"""The unfinished jobs of a scheduler: the order in which they are due, and how long they will take."""

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import attrs

from mflux_api.actors import messages as m
from mflux_api.actors.scheduler.engine_plan import EnginePlan
from mflux_api.actors.scheduler.entries import AT_WORK, QUEUED, Entry, JobState
from mflux_api.actors.scheduler.ordered_sums import OrderedSums
from mflux_api.actors.scheduler.ready_jobs import ReadyJobs
from mflux_api.actors.scheduler.work_ahead import WorkAhead
from mflux_api.engine.interface import EngineId
from mflux_api.jobs.estimates import Estimates
from mflux_api.jobs.job import Job
from mflux_api.jobs.progress import ProgressTracker

PLANNED = 32
"""Waiting jobs that are planned one by one for an ETA, where there are several engines."""


class JobQueue:
    """Entries by id, and those that wait in their order: first come, first served.

    What is asked for at each event, call or end costs no more in a long queue: numbers are counted as they change, and
    places and work are kept as sums (:class:`OrderedSums`).
    """

    def __init__(self, estimates: Estimates) -> None:
        self._estimates = estimates
        self._numbers = itertools.count()
        self._entries: dict[str, Entry] = {}
        self._states = Counter[JobState]()
        self._synchronous = 0
        self._input_bytes: dict[int, int] = {}
        self._input_bytes_of_all = 0
        self._at_work: dict[int, Entry] = {}
        self._waiting: dict[int, Entry] = {}
        self._places = OrderedSums()
        # What follows is brought up to date when it is needed: an entry changes more often than that.
        self._changed: dict[int, Entry] = {}
        self._ready = ReadyJobs()
        self._retries: dict[int, Entry] = {}
        self._work = WorkAhead(estimates)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def input_bytes(self) -> int:
        """Return how much the init images of all unfinished jobs take; they are held as text."""
        return self._input_bytes_of_all

    def get(self, job_id: str) -> Entry | None:
        """Return a job's entry."""
        return self._entries.get(job_id)

    def add(self, job: Job) -> Entry:
        """Make an entry for a job that was accepted; it does not wait yet."""
        entry = Entry(job=job, number=next(self._numbers), tracker=ProgressTracker(job), watcher=self)
        self._entries[job.id] = entry
        self._states[entry.state] += 1
        self._synchronous += job.synchronous
        # Counted as they are now: a finished job has none.
        self._input_bytes[entry.number] = sum(len(text) for text in job.request.init_images)
        self._input_bytes_of_all += self._input_bytes[entry.number]
        return entry

    def forget(self, entry: Entry) -> None:
        """Drop an entry, wherever it is."""
        self.take(entry)
        if entry.watcher is not self:
            return
        entry.watcher = None
        del self._entries[entry.job.id]
        self._at_work.pop(entry.number, None)
        self._states[entry.state] -= 1
        self._synchronous -= entry.job.synchronous
        self._input_bytes_of_all -= self._input_bytes.pop(entry.number)

    def changes(self, entry: Entry, state: JobState) -> None:
        """Note that an entry is about to change, and its next state."""
        self._states[entry.state] -= 1
        self._states[state] += 1
        if state in AT_WORK:
            self._at_work[entry.number] = entry
        else:
            self._at_work.pop(entry.number, None)
        if entry.number in self._waiting:
            self._changed[entry.number] = entry

    def enqueue(self, entry: Entry) -> int:
        """Put an entry at its place among the waiting and return that place, counted from 1."""
        self._waiting[entry.number] = self._changed[entry.number] = entry
        self._places.add(entry.number)
        return self._places.before(entry.number) + 1

    def position(self, job_id: str) -> int:
        """Return a job's place among the waiting, counted from 1; 0 when it does not wait."""
        entry = self._entries.get(job_id)
        return 0 if entry is None or entry.number not in self._waiting else self._places.before(entry.number) + 1

    def take(self, entry: Entry) -> None:
        """Take an entry out of the waiting, if it is there."""
        if self._waiting.pop(entry.number, None) is not None:
            self._places.remove(entry.number)
            self._changed.pop(entry.number, None)
            self._leave(entry)

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
        if not free:
            return None
        self._settle()
        # Jobs that failed on an engine may not go to each of them, so they are looked at one by one. They are few.
        retries = {
            entry.number: engines for entry in self._retries.values() if (engines := _choices(entry, free, usable))
        }
        choices = [number for number in (self._ready.first(), *retries) if number is not None]
        if not choices:
            return None
        at_home = [number for number, engines in retries.items() if _with_model(self._waiting[number], engines)]
        first_ready = self._ready.first_of({model for engine in free for model in engine.models})
        number = min([*at_home, *([] if first_ready is None else [first_ready])], default=None)
        if number is None or self._must_wait(number, retries, max_skips):
            number = min(choices)
        else:
            self._overtake(number, retries)
        entry = self._waiting[number]
        engines = retries.get(number, free)
        self.take(entry)
        return entry, _with_model(entry, engines) or engines[0]

    def _must_wait(self, number: int, retries: Collection[int], max_skips: int) -> bool:
        """Whether an entry may not run yet, because one before it was overtaken often enough."""
        counts = [self._waiting[retry].overtaken for retry in retries if retry < number]
        return max(*counts, self._ready.most_overtaken_before(number), -1) >= max_skips

    def _overtake(self, number: int, retries: Collection[int]) -> None:
        self._ready.overtake(number)
        for retry in retries:
            if retry < number:
                self._waiting[retry].overtaken += 1

    def _settle(self) -> None:
        """Bring up to date which jobs are ready, and how much work they are."""
        for entry in self._changed.values():
            self._leave(entry)
            if entry.state is not JobState.WAITING:
                continue
            self._work.add(entry.number, entry.job.request)
            if entry.failed_on is None:
                self._ready.add(entry.number, entry.job.model, entry.overtaken)
            else:
                self._retries[entry.number] = entry
        self._changed.clear()

    def _leave(self, entry: Entry) -> None:
        """Take an entry out of what is ready."""
        self._work.remove(entry.number)
        self._retries.pop(entry.number, None)
        if entry.number in self._ready:
            entry.overtaken = self._ready.remove(entry.number)

    def accepted(self) -> int:
        """How many jobs wait or are on their way into the store."""
        return sum(self._states[state] for state in (*QUEUED, JobState.PERSISTING))

    def active(self) -> int:
        """How many attempts are under way."""
        return len(self._at_work)

    def at_work(self) -> Sequence[Entry]:
        """Return the entries with an attempt under way, in the order of acceptance."""
        return sorted(self._at_work.values(), key=lambda entry: entry.number)

    def waiting_synchronous(self) -> Sequence[Entry]:
        """Return the entries in the queue whose callers wait for the end; without any there is nothing to look at."""
        if not self._synchronous:
            return ()
        return [entry for entry in self if entry.state in QUEUED and entry.job.synchronous]

    def quiet(self) -> bool:
        """Whether nothing runs or ends, and no synchronous caller waits."""
        return not self._synchronous and self.accepted() == len(self._entries)

    def snapshots(
        self, engines: Sequence[m.EngineStatus], job_ids: Collection[str] | None = None
    ) -> dict[str, m.JobSnapshot]:
        """Return what is known of unfinished jobs: the running first, then the waiting in order.

        Args:
            engines: the engines that will run them.
            job_ids: which jobs, in no order; all of them by default, which costs a look at each.
        """
        if job_ids is None:
            etas = self.etas(engines)
            at_work, waiting = self.at_work(), self._in_order()
            places = {entry.number: place for place, entry in enumerate(waiting, start=1)}
            return {
                entry.job.id: _snapshot(entry, places.get(entry.number), etas[entry.job.id])
                for entry in (*at_work, *waiting)
            }
        entries = [entry for job_id in job_ids if (entry := self._entries.get(job_id)) is not None]
        return {
            entry.job.id: _snapshot(entry, self.position(entry.job.id) or None, self.eta(entry, engines))
            for entry in entries
            if entry.number in self._waiting or entry.number in self._at_work
        }

    def etas(self, engines: Sequence[m.EngineStatus]) -> dict[str, float | None]:
        """Return the seconds until the end of each job, as the engines will take them one after another.

        ``None`` where nothing is known yet. A job whose model is being downloaded counts only its download.
        """
        plan = EnginePlan(engines, self._estimates)
        return {entry.job.id: self._plan(entry, plan) for entry in (*self.at_work(), *self._in_order())}

    def eta(self, entry: Entry, engines: Sequence[m.EngineStatus]) -> float | None:
        """Return the seconds until the end of one job: with one engine what :meth:`etas` says of it.

        With several engines the first of those that wait are planned one by one, and the others as their sum.
        """
        if entry.state is JobState.DOWNLOADING:
            return entry.tracker.latest.eta_seconds
        plan = EnginePlan(engines, self._estimates)
        for running in self.at_work():
            seconds = self._plan(running, plan)
            if running is entry:
                return seconds
        if entry.number not in self._waiting:
            return None
        self._settle()
        first = 0
        for number in itertools.islice(self._places, PLANNED if plan.several else 0):
            if number == entry.number:
                break
            self._plan(self._waiting[number], plan)
            first = number + 1
        plan.add_ahead(lambda device: self._work.seconds_between(first, entry.number, device))
        return self._plan(entry, plan)

    def _plan(self, entry: Entry, plan: EnginePlan) -> float | None:
        tracker = entry.tracker
        if entry.state is JobState.DOWNLOADING:
            return tracker.latest.eta_seconds
        taken = entry.engine.id if entry.engine is not None else None
        return plan.take(entry.job.request, taken, step=tracker.steps_ahead, image=tracker.images_saved)

    def _in_order(self) -> list[Entry]:
        return [self._waiting[number] for number in sorted(self._waiting)]


def _snapshot(entry: Entry, position: int | None, eta_seconds: float | None) -> m.JobSnapshot:
    return m.JobSnapshot(
        prompt=entry.job.request.prompt,
        progress=attrs.evolve(entry.tracker.latest, eta_seconds=eta_seconds),
        position=position,
        owner=entry.job.owner,
    )


def _choices(entry: Entry, free: Sequence[m.EngineStatus], usable: Collection[EngineId]) -> Sequence[m.EngineStatus]:
    """The free engines that a job may go to: not the one that it failed on, unless there is no other."""
    if entry.failed_on is None or not any(other != entry.failed_on for other in usable):
        return free
    return [engine for engine in free if engine.id != entry.failed_on]


def _with_model(entry: Entry, engines: Sequence[m.EngineStatus]) -> m.EngineStatus | None:
    """The first of the engines that has the job's model in memory."""
    return next((engine for engine in engines if entry.job.model in engine.models), None)
