"""Jobs kept in this process only, in dictionaries: what ``generate`` and short-lived embeddings use."""

import math
from collections.abc import Callable, Container, Mapping
from datetime import datetime, timedelta
from itertools import islice

from mflux_api.access.visibility import ALL_JOBS, Visibility
from mflux_api.errors import InternalError
from mflux_api.jobs.idempotency import IdempotencyKey, IdempotencyRecord
from mflux_api.jobs.job import Job, Status
from mflux_api.jobs.search import JobFilter, choose
from mflux_api.storage.repository import (
    Abandoned,
    Page,
    Tombstone,
    Totals,
    discard_nothing,
    first_number_not_on_page,
    horizon,
    make_cursor,
    make_page,
)


class InMemoryRepository:
    """A :class:`~mflux_api.storage.repository.Repository` that forgets everything at the end.

    It keeps at most ``keep_finished`` finished jobs and as many tombstones; the oldest go first. The files
    of these jobs stay, because no caller is told of them. With ``None`` only :meth:`expire` removes jobs.
    """

    def __init__(self, *, keep_finished: int | None = 1000) -> None:
        self._jobs: dict[int, Job] = {}
        self._numbers: dict[str, int] = {}
        self._finished: dict[int, Job] = {}
        self._tombstones: dict[str, Tombstone] = {}
        self._keys: dict[str, IdempotencyRecord] = {}
        self._key_of: dict[str, str] = {}
        self._next_number = 1
        self._keep_finished = math.inf if keep_finished is None else keep_finished
        self._totals = Totals()

    def insert(self, job: Job, key: IdempotencyKey | None = None) -> None:
        """Keep a new job, and its key until its tombstone goes.

        Raises:
            InternalError: there is, or was, a job with this id, or one with this key.
        """
        if job.id in self._numbers or job.id in self._tombstones:
            raise InternalError("A job with this id exists already; submit it again")
        if key is not None and not job.synchronous:
            if key.key in self._keys:
                raise InternalError("A job with this key exists already")
            self._keys[key.key] = IdempotencyRecord(body=key.body, job_id=job.id)
            self._key_of[job.id] = key.key
        self._numbers[job.id] = self._next_number
        self._next_number += 1
        self.replace(job)

    def get_idempotency_record(self, key: str) -> IdempotencyRecord | None:
        """Return what was kept under an idempotency key (its digest)."""
        return self._keys.get(key)

    def replace(self, job: Job) -> None:
        """Overwrite a job with its next state.

        Raises:
            KeyError: no job has this id.
        """
        number = self._numbers[job.id]
        self._jobs[number] = job
        if not job.status.terminal:
            return
        if number not in self._finished:
            self._totals = self._totals.after(job)
        self._finished[number] = job
        while len(self._finished) > self._keep_finished:
            self._remove(next(iter(self._finished)), job.completed_at or job.created_at)

    def get(self, job_id: str) -> Job | Tombstone | None:
        """Return one job, or what retention left of it, or ``None``."""
        number = self._numbers.get(job_id)
        return self._tombstones.get(job_id) if number is None else self._jobs[number]

    def inputs(self, job_id: str) -> Callable[[], tuple[str, ...]]:
        """Return how to read the init images of a job."""
        job = self.get(job_id)
        given = job.request.inputs if isinstance(job, Job) else ()
        return lambda: given

    def page(self, *, limit: int, cursor: str | None, status: Status | None, visible: Visibility = ALL_JOBS) -> Page:
        """Return a page of jobs, newest first; of those that are ``visible``.

        Raises:
            ValueError: the cursor is not one of this list.
        """
        before = first_number_not_on_page(cursor)
        matching = (
            (number, job)
            for number, job in reversed(self._jobs.items())
            if number < before and status in (None, job.status) and visible.shows(job.owner)
        )
        return make_page(tuple(islice(matching, limit + 1)), limit)

    def search(
        self, where: JobFilter, *, limit: int, cursor: str | None, rows: int, visible: Visibility = ALL_JOBS
    ) -> Page:
        """Return a page of jobs that are found, newest first; it looks at no more than ``rows`` jobs.

        Raises:
            ValueError: the cursor is not one of this list.
        """
        before = first_number_not_on_page(cursor)
        candidates = (
            (number, job)
            for number, job in reversed(self._jobs.items())
            if number < before and (not where.statuses or job.status in where.statuses) and visible.shows(job.owner)
        )
        looked = tuple(islice(candidates, rows))
        found = (number for number, job in looked if where.takes(job))
        chosen = choose(looked, found, limit=limit, rows=rows)
        return Page(jobs=tuple(self._jobs[number] for number in chosen.numbers), next_cursor=make_cursor(chosen.last))

    def unfinished(self) -> tuple[Job, ...]:
        """Return every job that is queued or generating, oldest first."""
        return tuple(job for job in self._jobs.values() if not job.status.terminal)

    def undelivered(self) -> tuple[Job, ...]:
        """Return the finished jobs whose webhook is still to be delivered, those that are due first at the front."""
        due = [(job.delivery.due, job) for job in self._finished.values() if job.delivery and job.delivery.due]
        return tuple(job for _, job in sorted(due, key=lambda each: each[0]))

    def owners_of_undelivered(self) -> Mapping[str, str]:
        """Return the ids of the jobs whose webhook is still to be delivered, with their owners."""
        return {job.id: job.owner for job in self.undelivered()}

    def totals(self) -> Totals:
        """Return the running counters."""
        return self._totals

    def abandoned(self) -> tuple[Abandoned, ...]:
        """Return nothing: this store knows no earlier process."""
        return ()

    def forget_abandoned(self) -> None:
        """Do nothing: there are no abandoned jobs."""

    def sync(self) -> None:
        """Do nothing: nothing outlives the process."""

    def checkpoint(self) -> None:
        """Do nothing: there is no file."""

    def never_used(self) -> bool:
        """Return ``False``: every such store begins empty."""
        return False

    def finished_before(self, moment: datetime, *, spare: Container[str] = ()) -> tuple[Job, ...]:
        """Return the jobs that finished before a moment, but for some, in the order they finished."""
        return tuple(
            job
            for job in self._finished.values()
            if job.completed_at is not None and job.completed_at < moment and job.id not in spare
        )

    def expire(
        self,
        *,
        now: datetime,
        keep: int,
        ttl: timedelta,
        discard: Callable[[Job], bool] = discard_nothing,
        spare: Container[str] = (),
        tombstone_ttl: timedelta | None = None,
    ) -> tuple[Job, ...]:
        """Remove old finished jobs whose files ``discard`` could delete, and older tombstones."""
        oldest, oldest_tombstone = horizon(now, ttl), horizon(now, ttl if tombstone_ttl is None else tombstone_ttl)
        for old in [each.id for each in self._tombstones.values() if each.removed_at < oldest_tombstone]:
            self._forget(old)
        surplus = len(self._finished) - keep
        removed = [
            (number, job)
            for place, (number, job) in enumerate(self._finished.items())
            if (place < surplus or (job.completed_at is not None and job.completed_at < oldest))
            and job.id not in spare
            and discard(job)
        ]
        for number, _ in removed:
            self._remove(number, now)
        return tuple(job for _, job in removed)

    def _remove(self, number: int, now: datetime) -> None:
        job = self._jobs.pop(number)
        del self._finished[number], self._numbers[job.id]
        self._tombstones[job.id] = Tombstone(id=job.id, removed_at=now, owner=job.owner)
        while len(self._tombstones) > self._keep_finished:
            self._forget(next(iter(self._tombstones)))

    def _forget(self, job_id: str) -> None:
        del self._tombstones[job_id]
        key = self._key_of.pop(job_id, None)
        if key is not None:
            del self._keys[key]
