"""The unfinished jobs of a scheduler: the order in which they are due, and how long they will take."""

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import attrs

from mflux_api.access.addresses import client_of
from mflux_api.actors import messages as m
from mflux_api.actors.scheduler.engine_plan import EnginePlan
from mflux_api.actors.scheduler.entries import AT_WORK, QUEUED, Entry, JobState
from mflux_api.actors.scheduler.job_plan import PLANNED, PLANNED_WITH_LOADS, ReadyFirst, plan_job
from mflux_api.actors.scheduler.round_robin import Place, RoundRobin
from mflux_api.actors.scheduler.tally import Tally
from mflux_api.engine.interface import EngineId
from mflux_api.jobs.estimates import Estimates
from mflux_api.jobs.job import Job
from mflux_api.jobs.progress import ProgressTracker

LOOKED_AT = 32
"""Waiting jobs among which companions are looked for."""


SETTLED = 64
"""Changed entries that are brought up to date together, at 10 to 50 µs each."""


PRIORITY_NUMBERS = 1 << 40
"""Numbers between two priorities, so that a number alone says which of a caller's jobs is due first."""


class JobQueue:
    """Entries by id, and those that wait in their order: callers in turn, of each by priority, then as they came.

    What is asked for at each event, call or end costs no more in a long queue: numbers are counted as they change, and
    the order is not gone through (:class:`RoundRobin`).
    """

    def __init__(self, estimates: Estimates, max_skips: int = 0) -> None:
        """Take what ETAs are made of.

        Args:
            estimates: how long jobs and loads take.
            max_skips: how often a job may be overtaken for the sake of what is in memory.
        """
        self._estimates = estimates
        self._max_skips = max_skips
        self._models = Counter[str]()
        """How many jobs wait for each model."""
        self._together = set[frozenset[str]]()
        """Pairs of models that were in one engine's memory together."""
        self._numbers = itertools.count()
        self._entries: dict[str, Entry] = {}
        self.tally = Tally()
        self._synchronous: dict[int, Entry] = {}
        self._at_work: dict[int, Entry] = {}
        self._waiting: dict[int, Entry] = {}
        self._order = RoundRobin(estimates)
        # What follows is brought up to date when it is needed: an entry changes more often than that.
        self._changed: dict[int, Entry] = {}
        self._retries: dict[int, Entry] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def get(self, job_id: str) -> Entry | None:
        """Return a job's entry."""
        return self._entries.get(job_id)

    def add(self, job: Job) -> Entry:
        """Make an entry for a job that was accepted; it does not wait yet."""
        number = next(self._numbers) - job.request.priority * PRIORITY_NUMBERS
        entry = Entry(job=job, number=number, tracker=ProgressTracker(job), watcher=self)
        self._entries[job.id] = entry
        self.tally.add(entry)
        if job.synchronous:
            self._synchronous[entry.number] = entry
        return entry

    def forget(self, entry: Entry) -> None:
        """Drop an entry, wherever it is."""
        self.take(entry)
        if entry.watcher is not self:
            return
        entry.watcher = None
        del self._entries[entry.job.id]
        self._at_work.pop(entry.number, None)
        self.tally.remove(entry)
        self._synchronous.pop(entry.number, None)

    def changes(self, entry: Entry, state: JobState) -> None:
        """Note that an entry is about to change, and its next state."""
        self.tally.change(entry, state)
        if state in AT_WORK:
            self._at_work[entry.number] = entry
        else:
            self._at_work.pop(entry.number, None)
        if entry.number in self._waiting:
            self._changed[entry.number] = entry

    def enqueue(self, entry: Entry) -> int:
        """Put an entry at its place among the waiting and return that place, counted from 1."""
        self._waiting[entry.number] = self._changed[entry.number] = entry
        self._models[entry.job.model] += 1
        self._order.add(entry.number, client_of(entry.job.owner), entry.turn, lane=entry.job.request.lane)
        if len(self._changed) >= SETTLED:
            # The next look at the queue must not pay for all that came since the last one.
            self._settle()
        return self._order.position(entry.number)

    def position(self, job_id: str) -> int:
        """Return a job's place among the waiting, counted from 1; 0 when it does not wait."""
        entry = self._entries.get(job_id)
        return 0 if entry is None else self._order.position(entry.number)

    def take(self, entry: Entry) -> None:
        """Take an entry out of the waiting, if it is there."""
        if self._forget_waiting(entry):
            self._order.remove(entry.number)

    def _forget_waiting(self, entry: Entry) -> bool:
        if self._waiting.pop(entry.number, None) is None:
            return False
        self._changed.pop(entry.number, None)
        self._models[entry.job.model] -= 1
        if not self._models[entry.job.model]:
            del self._models[entry.job.model]
        self._leave(entry)
        return True

    def next(
        self, free: Sequence[m.EngineStatus], usable: Collection[EngineId], max_skips: int = 0
    ) -> tuple[Entry, m.EngineStatus] | None:
        """Take the entry that is due, and choose the engine for it.

        That is the first, or the first whose model is in the memory of a free engine. Its caller has had its turn then.

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
            self._order.place(entry.number): engines
            for entry in self._retries.values()
            if (engines := _choices(entry, free, usable))
        }
        choices = [place for place in (self._order.first(), *retries) if place is not None]
        if not choices:
            return None
        at_home = [place for place, engines in retries.items() if _with_model(self._waiting[place[1]], engines)]
        first_ready = self._order.first_of({model for engine in free for model in engine.models})
        place = min([*at_home, *([] if first_ready is None else [first_ready])], default=None)
        if place is None or self._must_wait(place, retries, max_skips):
            place = min(choices)
        else:
            self._overtake(place, retries)
        entry = self._waiting[place[1]]
        engines = retries.get(place, free)
        self._forget_waiting(entry)
        entry.turn = self._order.serve(entry.number)
        return entry, _with_model(entry, engines) or engines[0]

    def take_first(self, is_fit: Callable[[Entry], bool]) -> Entry | None:
        """Take the first of those that are due next that is fit, whatever is before it; its caller has its turn."""
        self._settle()
        for entry in self._first(LOOKED_AT):
            if entry.state is JobState.WAITING and is_fit(entry):
                self._forget_waiting(entry)
                entry.turn = self._order.serve(entry.number)
                return entry
        return None

    def _must_wait(self, place: Place, retries: Collection[Place], max_skips: int) -> bool:
        """Whether an entry may not run yet, because one before it was overtaken often enough."""
        counts = [self._waiting[retry[1]].overtaken for retry in retries if retry < place]
        return max(*counts, self._order.most_overtaken_before(place), -1) >= max_skips

    def _overtake(self, place: Place, retries: Collection[Place]) -> None:
        self._order.overtake(place)
        for retry in retries:
            if retry < place:
                self._waiting[retry[1]].overtaken += 1

    def _settle(self) -> None:
        """Bring up to date which jobs are ready, and how much work they are."""
        for entry in self._changed.values():
            self._leave(entry)
            if entry.state is not JobState.WAITING:
                continue
            self._order.work(entry.number).add(entry.number, entry.job.request)
            if entry.failed_on is None:
                self._order.set_ready(entry.number, entry.job.model, entry.overtaken)
            else:
                self._retries[entry.number] = entry
        self._changed.clear()

    def _leave(self, entry: Entry) -> None:
        """Take an entry out of what is ready."""
        self._retries.pop(entry.number, None)
        self._order.work(entry.number).remove(entry.number)
        overtaken = self._order.unset_ready(entry.number)
        if overtaken is not None:
            entry.overtaken = overtaken

    def active(self) -> int:
        """How many attempts are under way."""
        return len(self._at_work)

    def at_work(self) -> Sequence[Entry]:
        """Return the entries with an attempt under way, in the order of acceptance."""
        return sorted(self._at_work.values(), key=lambda entry: entry.number % PRIORITY_NUMBERS)

    def waiting_synchronous(self) -> Sequence[Entry]:
        """Return the entries in the queue whose callers wait for the end."""
        return [entry for entry in self._synchronous.values() if entry.state in QUEUED]

    def quiet(self) -> bool:
        """Whether nothing runs or ends, and no synchronous caller waits."""
        return not self._synchronous and self.tally.queued() == len(self._entries)

    def snapshots(
        self, engines: Sequence[m.EngineStatus], job_ids: Collection[str] | None = None, *, limit: int | None = None
    ) -> dict[str, m.JobSnapshot]:
        """Return what is known of unfinished jobs: the running first, then the waiting in order.

        Args:
            engines: the engines that will run them.
            job_ids: which jobs, in no order, each of which costs an ETA; by default those that are due first.
            limit: how many of those that wait then; all by default, which costs a look at each.
        """
        if job_ids is None:
            etas = self.etas(engines, limit)
            places: dict[str, int | None] = dict.fromkeys((entry.job.id for entry in self.at_work()), None)
            places |= {entry.job.id: place for place, entry in enumerate(self._first(limit), start=1)}
            return {job_id: _snapshot(self._entries[job_id], place, etas[job_id]) for job_id, place in places.items()}
        entries = [entry for job_id in job_ids if (entry := self._entries.get(job_id)) is not None]
        return {
            entry.job.id: _snapshot(entry, self.position(entry.job.id) or None, self.eta(entry, engines))
            for entry in entries
            if entry.number in self._waiting or entry.number in self._at_work
        }

    def waiting(self) -> int:
        """Return how many jobs have a place in the queue."""
        return len(self._waiting)

    def etas(self, engines: Sequence[m.EngineStatus], limit: int | None = None) -> dict[str, float | None]:
        """Return the seconds until the end of each job, as the engines will take them one after another.

        ``None`` where nothing is known yet. A job whose model is being downloaded counts only its download.

        Args:
            engines: the engines that will run them.
            limit: how many of those that wait are looked at; all by default.
        """
        plan = self._new_plan(engines)
        etas = {entry.job.id: seconds for entry, seconds in self._running(plan)}
        return etas | {entry.job.id: seconds for entry, seconds in self._planned(plan, self._first(limit))}

    def eta(self, entry: Entry, engines: Sequence[m.EngineStatus]) -> float | None:
        """Return the seconds until the end of one job: with one engine what :meth:`etas` says of it.

        With several engines, or loads of other models ahead, the first of those that wait are planned one by one, and
        the others as their sum.
        """
        if entry.state is JobState.DOWNLOADING:
            return entry.tracker.latest.eta_seconds
        plan = self._new_plan(engines)
        for running, seconds in self._running(plan):
            if running is entry:
                return seconds
        if entry.number not in self._waiting:
            return None
        self._settle()
        turns, first = Counter[int](), list[Entry]()
        if plan.has_loads(self._models):
            first = self._first(PLANNED_WITH_LOADS)
        elif plan.several:
            first = self._first(PLANNED)
        loads_before = plan.load_seconds
        for planned, seconds in self._planned(plan, first):
            if planned is entry:
                return seconds
            turns[self._order.place(planned.number)[0]] += 1
        # Those behind them need as many loads for each job.
        ahead = self._order.position(entry.number) - 1 - len(first)
        loads = (plan.load_seconds - loads_before) * ahead / len(first) if first else 0.0

        def seconds_on(device: str | None) -> float | None:
            seconds = self._order.seconds_ahead(entry.number, turns, device)
            return None if seconds is None else seconds + loads

        plan.add_ahead(seconds_on)
        return plan_job(entry, plan)

    def _running(self, plan: EnginePlan) -> list[tuple[Entry, float | None]]:
        """Plan the jobs at work, and return when each ends; those that share their passes end with the last of them."""
        entries = self.at_work()
        ends = [plan_job(entry, plan) for entry in entries]
        last = {entry.companions: end for entry, end in zip(entries, ends, strict=True)}
        return [
            (entry, end if entry.companions is None else last[entry.companions])
            for entry, end in zip(entries, ends, strict=True)
        ]

    def _new_plan(self, engines: Sequence[m.EngineStatus]) -> EnginePlan:
        for engine in engines:
            self._together |= {frozenset(pair) for pair in itertools.combinations(engine.models, 2)}
        return EnginePlan(engines, self._estimates, self._together)

    def _planned(self, plan: EnginePlan, entries: Sequence[Entry]) -> Iterator[tuple[Entry, float | None]]:
        """Plan jobs that wait in the order in which engines will take them, and yield each with its ETA."""
        order: Iterable[Entry] = entries
        if entries and plan.has_loads(self._models):
            order = ReadyFirst(entries, self._order.overtaken(entries[0].number), self._max_skips).order(plan)
        return ((entry, plan_job(entry, plan)) for entry in order)

    def _first(self, limit: int | None) -> list[Entry]:
        return [self._waiting[number] for number in itertools.islice(self._order, limit)]


def _snapshot(entry: Entry, position: int | None, eta_seconds: float | None) -> m.JobSnapshot:
    return m.JobSnapshot(
        prompt=entry.job.request.prompt,
        progress=attrs.evolve(entry.tracker.latest, eta_seconds=eta_seconds),
        position=position,
        owner=entry.job.owner,
        priority=entry.job.request.priority,
        warnings=entry.warnings,
    )


def _choices(entry: Entry, free: Sequence[m.EngineStatus], usable: Collection[EngineId]) -> Sequence[m.EngineStatus]:
    """The free engines that a job may go to: not the one that it failed on, unless there is no other."""
    if entry.failed_on is None or not any(other != entry.failed_on for other in usable):
        return free
    return [engine for engine in free if engine.id != entry.failed_on]


def _with_model(entry: Entry, engines: Sequence[m.EngineStatus]) -> m.EngineStatus | None:
    """The first of the engines that has the job's model in memory."""
    return next((engine for engine in engines if entry.job.model in engine.models), None)
