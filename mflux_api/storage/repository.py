"""The storage behind the job store: one interface with several implementations."""

import re
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

import attrs

from mflux_api.access.visibility import ALL_JOBS, Visibility
from mflux_api.jobs.idempotency import IdempotencyKey, IdempotencyRecord
from mflux_api.jobs.job import Job, Status
from mflux_api.jobs.search import JobFilter


@attrs.frozen(kw_only=True)
class Tombstone:
    """What is left of a job that retention removed."""

    id: str
    removed_at: datetime
    owner: str = ""
    """Whose job it was."""


@attrs.frozen(kw_only=True)
class Abandoned:
    """A synchronous job that ran when its process died: only images on disk may be left of it."""

    id: str
    created_at: datetime
    images: int


@attrs.frozen(kw_only=True)
class Page:
    """One page of the job list, newest first."""

    jobs: tuple[Job, ...]
    next_cursor: str | None
    """Pass it back for the page after this one; ``None`` on the last page."""


@attrs.frozen(kw_only=True)
class Totals:
    """Running counters; removing old jobs does not change them."""

    generations: int = 0
    images: int = 0
    seconds: float = 0.0
    """Time that completed jobs spent generating, in all."""

    def after(self, job: Job) -> "Totals":
        """Count one job that has just completed."""
        if job.status is not Status.COMPLETED or job.started_at is None or job.completed_at is None:
            return self
        return Totals(
            generations=self.generations + 1,
            images=self.images + len(job.images),
            # A clock that was set back in between takes nothing away.
            seconds=self.seconds + max(0.0, (job.completed_at - job.started_at).total_seconds()),
        )


def discard_nothing(job: Job) -> bool:
    """Let the job be removed and keep its files."""
    return True


class Repository(Protocol):
    """Keeps jobs. Calls are synchronous and come one at a time, but not always from the same thread.

    A call that raises has changed nothing, and the next one may succeed. Each may raise
    :class:`~mflux_api.errors.DiskFull`, or :class:`~mflux_api.errors.InternalError` when the storage fails.
    """

    def insert(self, job: Job, key: IdempotencyKey | None = None) -> None:
        """Keep a new job; it is durable when this returns, unless it is synchronous and not finished.

        An asynchronous job's ``key`` is kept with it, in one transaction, until the job's tombstone goes.

        Raises:
            InternalError: there is, or was, a job with this id, or one with this key.
        """

    def get_idempotency_record(self, key: str) -> IdempotencyRecord | None:
        """Return what was kept under an idempotency key (its digest)."""

    def replace(self, job: Job) -> None:
        """Overwrite a job with its next state; counts it when it completed.

        Durable like :meth:`insert`, but for a job that begins to run: that is only after :meth:`sync`.

        Raises:
            KeyError: no job has this id.
        """

    def get(self, job_id: str) -> Job | Tombstone | None:
        """Return one job, or what retention left of it, or ``None``.

        Init images are large, and an unfinished job may come without them; :meth:`inputs` reads them.
        """

    def inputs(self, job_id: str) -> Callable[[], tuple[str, ...]]:
        """Return how to read the init images of an unfinished job, which takes long and may be done in any thread.

        One that was removed, or is broken, is an empty text.
        """

    def page(self, *, limit: int, cursor: str | None, status: Status | None, visible: Visibility = ALL_JOBS) -> Page:
        """Return a page of at most ``limit`` (at least 1) jobs, newest first; of those that are ``visible``.

        Raises:
            ValueError: the cursor is not one of this list.
        """

    def search(
        self, where: JobFilter, *, limit: int, cursor: str | None, rows: int, visible: Visibility = ALL_JOBS
    ) -> Page:
        """Return a page of at most ``limit`` jobs that are found, newest first; of those that are ``visible``.

        It looks at no more than ``rows`` jobs, so that a page may have few or none and yet a next one.

        Raises:
            ValueError: the cursor is not one of this list.
        """

    def unfinished(self) -> tuple[Job, ...]:
        """Return every job that is queued or generating, oldest first; init images may be empty texts."""

    def undelivered(self) -> tuple[Job, ...]:
        """Return the finished jobs whose webhook is still to be delivered, those that are due first at the front."""

    def owners_of_undelivered(self) -> Mapping[str, str]:
        """Return the ids of the jobs whose webhook is still to be delivered, with their owners."""

    def totals(self) -> Totals:
        """Return the running counters."""

    def abandoned(self) -> tuple[Abandoned, ...]:
        """Return the synchronous jobs in which an earlier process died, until :meth:`forget_abandoned`."""

    def forget_abandoned(self) -> None:
        """Forget the abandoned jobs: nothing of them is left on disk."""

    def sync(self) -> None:
        """Return when everything that was kept is durable.

        Raises:
            DiskFull: no space is left.
            InternalError: the disk refuses it.
        """

    def checkpoint(self) -> None:
        """Bring what was kept to where a copy of the storage's main file has it, as far as that can be done now."""

    def never_used(self) -> bool:
        """Whether the storage outlives the process, and no job was ever kept in it."""

    def finished_before(self, moment: datetime, *, spare: Container[str] = ()) -> tuple[Job, ...]:
        """Return the jobs that finished before a moment, but for some, in the order they finished."""

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
        """Remove finished jobs and leave a tombstone of each; remove tombstones older than ``ttl``.

        Args:
            now: the time that the tombstones get.
            keep: how many jobs may stay; those that finished first go.
            ttl: jobs that finished longer ago than this go too.
            discard: may delete a job's image files before it is removed, so that a killed process leaves no image
                without a row; a job for which it returns ``False`` stays until the next time.
            spare: ids of jobs that stay, whatever their age.
            tombstone_ttl: the age at which tombstones go, where it is another than that of jobs.

        Returns:
            The removed jobs in the order they finished.
        """


def make_page(numbered: Sequence[tuple[int, Job]], limit: int) -> Page:
    """Make a page of up to ``limit + 1`` jobs with their insert numbers; the one too many says that there are more."""
    shown = numbered[:limit]
    more = len(numbered) > limit
    return Page(jobs=tuple(job for _, job in shown), next_cursor=make_cursor(shown[-1][0] if more else None))


def make_cursor(last: int | None) -> str | None:
    """Return the cursor of what comes after a number."""
    return None if last is None else f"{last:x}"


def first_number_not_on_page(cursor: str | None) -> int:
    """Return the insert number below which the page begins.

    Raises:
        ValueError: the cursor is not one of this list.
    """
    if cursor is None:
        return 1 << 62
    # Fifteen digits fit SQLite's integers; int() alone would also take signs, blanks and underscores.
    if re.fullmatch("[1-9a-f][0-9a-f]{0,14}", cursor) is None:
        raise ValueError("the cursor is not one of this list")
    return int(cursor, 16)


def horizon(now: datetime, ttl: timedelta) -> datetime:
    """Return ``now - ttl``, however long ago that was."""
    try:
        return now - ttl
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)
