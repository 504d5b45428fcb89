"""Jobs in an SQLite file: what the service uses; synchronous ones are held in memory until their end."""

import json
import logging
import os
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs

from mflux_api.access.visibility import ALL_JOBS, Visibility
from mflux_api.errors import DiskFull, InternalError
from mflux_api.jobs.idempotency import IdempotencyKey, IdempotencyRecord
from mflux_api.jobs.job import Job, Status
from mflux_api.jobs.search import JobFilter, choose
from mflux_api.storage.database_file import DatabaseFile, translate_errors
from mflux_api.storage.job_inputs import JobInputs
from mflux_api.storage.job_table import JobTable
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
from mflux_api.storage.rows import COLUMNS, UnreadableRow, moment, moment_text, to_row

logger = logging.getLogger(__name__)

DATABASE_NAME = "mflux-api.sqlite3"
INPUTS_FOLDER = "inputs"

DEFAULT_MAX_INPUT_BYTES = 10**9
"""Init images of all waiting jobs together."""

_PUT = f"""
    INSERT INTO jobs ({COLUMNS}) VALUES ({", ".join(f":{name.strip()}" for name in COLUMNS.split(","))})
    ON CONFLICT (id) DO UPDATE SET
        status = excluded.status, started_at = excluded.started_at, completed_at = excluded.completed_at,
        finished = excluded.finished, engine_deaths = excluded.engine_deaths, service_deaths = excluded.service_deaths,
        progress = excluded.progress, device = excluded.device, request = excluded.request,
        images = excluded.images, failure = excluded.failure, timings = excluded.timings,
        delivery = excluded.delivery, delivery_due = excluded.delivery_due
"""
_EXPIRED = f"""
    SELECT {COLUMNS} FROM jobs WHERE finished IS NOT NULL AND (
        completed_at < :horizon OR finished <= (
            SELECT finished FROM jobs WHERE finished IS NOT NULL ORDER BY finished DESC LIMIT 1 OFFSET :keep
        )
    ) ORDER BY finished
"""


@attrs.frozen
class _Held:
    """A synchronous job that is not finished, with the place in the list that it will have."""

    number: int
    job: Job


class SqliteRepository:
    """A durable :class:`~mflux_api.storage.repository.Repository`.

    Only one process may use the file: hold a :class:`~mflux_api.storage.state_lock.StateLock` meanwhile. An image below
    the file's own folder is stored by its relative path, so the folder may be moved as a whole.

    Raises:
        ConfigError: the file is not a job store, is damaged, was written by a newer version, or cannot be opened.
        DiskFull: no space is left to create it.
    """

    def __init__(self, path: Path, *, max_input_bytes: int = DEFAULT_MAX_INPUT_BYTES) -> None:
        path = Path(os.path.abspath(path))
        self._folder = path.parent
        self._file = DatabaseFile(path)
        self._inputs = JobInputs(self._file, path.parent / INPUTS_FOLDER, max_input_bytes)
        self._table = JobTable(self._file, self._folder)
        self._held: dict[str, _Held] = {}
        try:
            self._inputs.tidy()
            used = self._file.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
            self._abandoned = self._read_abandoned()
            self._mend_totals()
        except BaseException:
            self.close()
            raise
        self._next_number: int = 1 if used is None else used[0] + 1

    def __enter__(self) -> "SqliteRepository":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        self._file.close()

    def insert(self, job: Job, key: IdempotencyKey | None = None) -> None:
        """Keep a new job; it is durable when this returns, unless it is synchronous and not finished.

        An asynchronous job's ``key`` is kept with it, in one transaction, until the job's tombstone goes.

        Raises:
            DiskFull: no space is left.
            QueueFull: the init images of waiting jobs take all the room that there is for them.
            InternalError: the id or the key is taken, or the file cannot be written or was removed.
        """
        self._file.check()
        if self.get(job.id) is not None:
            raise InternalError("A job with this id exists already; submit it again")
        if job.synchronous and not job.status.terminal:
            self._held[job.id] = _Held(self._next_number, job)
        else:
            waits = not job.synchronous and not job.status.terminal
            with self._inputs.keeping(job.request.inputs if waits else ()) as inputs, self._file.transaction():
                self._put(self._next_number, job, finished=None)
                self._inputs.note(self._next_number, inputs)
                if not job.synchronous:
                    self._keep_key(job, key)
        self._next_number += 1

    def get_idempotency_record(self, key: str) -> IdempotencyRecord | None:
        """Return what was kept under an idempotency key (its digest)."""
        with translate_errors():
            row = self._table.one("SELECT body, job_id FROM idempotency_keys WHERE key = ?", key)
        return None if row is None else IdempotencyRecord(body=row[0], job_id=row[1])

    def replace(self, job: Job) -> None:
        """Overwrite a job with its next state; counts it when it completed.

        Durable like :meth:`insert`, but for a job that begins to run: that is only after :meth:`sync`.

        Raises:
            KeyError: no job has this id.
            DiskFull: no space is left.
            InternalError: the file cannot be written or was removed.
        """
        self._file.check()
        held = self._held.get(job.id)
        if held is not None and not job.status.terminal:
            if job.status is Status.GENERATING:
                self._note_synchronous_run(job)
            self._held[job.id] = _Held(held.number, job)
            return
        with self._file.transaction(synced=job.status is not Status.GENERATING):
            if held is not None:
                self._put(held.number, job, finished=None)
                self._file.connection.execute("DELETE FROM synchronous_runs WHERE id = ?", (job.id,))
            else:
                row = self._table.one("SELECT number, finished FROM jobs WHERE id = ?", job.id)
                if row is None:
                    raise KeyError(job.id)
                self._put(row[0], job, finished=row[1])
        if job.status.terminal:
            self._inputs.job_ended(job.id)
        self._held.pop(job.id, None)

    def get(self, job_id: str) -> Job | Tombstone | None:
        """Return one job, or what retention left of it, or ``None``; init images only of a synchronous job."""
        held = self._held.get(job_id)
        if held is not None:
            return held.job
        if not job_id.isascii():
            # Job ids are ASCII, and SQLite takes no lone surrogates.
            return None
        with translate_errors():
            row = self._table.one(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", job_id)
            if row is not None:
                for _, job in self._table.readable([row]):
                    return job
                raise UnreadableRow.of(job_id)
            row = self._table.one("SELECT removed_at, owner FROM tombstones WHERE id = ?", job_id)
            if row is None and self._table.one("SELECT 1 FROM unreadable_jobs WHERE id = ?", job_id):
                raise UnreadableRow.of(job_id)
        return None if row is None else Tombstone(id=job_id, removed_at=_moment_or_never(row[0]), owner=row[1])

    def inputs(self, job_id: str) -> Callable[[], tuple[str, ...]]:
        """Return how to read the init images of an unfinished job.

        Raises:
            InternalError: the file cannot be read.
        """
        held = self._held.get(job_id)
        if held is not None:
            given = held.job.request.inputs
            return lambda: given
        return self._inputs.reader(job_id)

    def page(self, *, limit: int, cursor: str | None, status: Status | None, visible: Visibility = ALL_JOBS) -> Page:
        """Return a page of jobs, newest first; of those that are ``visible``.

        Raises:
            ValueError: the cursor is not one of this list.
        """
        before = first_number_not_on_page(cursor)
        query, values = _newest(COLUMNS, before, status, visible)
        numbered = self._table.jobs(query, *values, limit + 1)
        numbered += [
            (held.number, held.job)
            for held in self._held.values()
            if held.number < before and status in (None, held.job.status) and visible.shows(held.job.owner)
        ]
        return make_page(sorted(numbered, key=_number, reverse=True)[: limit + 1], limit)

    def search(
        self, where: JobFilter, *, limit: int, cursor: str | None, rows: int, visible: Visibility = ALL_JOBS
    ) -> Page:
        """Return a page of jobs that are found, newest first; it looks at no more than ``rows`` jobs.

        Raises:
            ValueError: the cursor is not one of this list.
            InternalError: the file cannot be read.
        """
        before = first_number_not_on_page(cursor)
        looked: list[tuple[int, str | Job]] = [
            (held.number, held.job)
            for held in self._held.values()
            if held.number < before
            and (not where.statuses or held.job.status in where.statuses)
            and visible.shows(held.job.owner)
        ]
        with translate_errors():
            # One query for each status: SQLite would sort all jobs of several.
            for status in where.statuses or (None,):
                query, values = _newest("number, request", before, status, visible)
                looked += self._file.connection.execute(query, (*values, rows)).fetchall()
        looked = sorted(looked, key=_number, reverse=True)[:rows]
        # Few of the rows become jobs, which takes ten times as long as a look at the request.
        found = (
            number for number, each in looked if (where.takes(each) if isinstance(each, Job) else where.may_take(each))
        )
        chosen = choose(looked, found, limit=limit, rows=rows)
        query = f"SELECT {COLUMNS} FROM jobs WHERE number IN (SELECT value FROM json_each(?))"
        stored = [
            (number, job) for number, job in self._table.jobs(query, json.dumps(chosen.numbers)) if where.takes(job)
        ]
        held = [(number, each) for number, each in looked if number in chosen.numbers and isinstance(each, Job)]
        jobs = tuple(job for _, job in sorted((*stored, *held), key=_number, reverse=True))
        return Page(jobs=jobs, next_cursor=make_cursor(chosen.last))

    def unfinished(self) -> tuple[Job, ...]:
        """Return every job that is queued or generating, oldest first; the init images on disk are empty texts."""
        query = f"SELECT {COLUMNS} FROM jobs WHERE status IN (?, ?)"
        rows = self._table.jobs(query, *(status.value for status in Status if not status.terminal))
        counts = self._inputs.counts()
        numbered = [(number, _with_empty_inputs(job, counts.get(number, 0))) for number, job in rows]
        numbered += [(held.number, held.job) for held in self._held.values()]
        return tuple(job for _, job in sorted(numbered, key=_number))

    def undelivered(self) -> tuple[Job, ...]:
        """Return the finished jobs whose webhook is still to be delivered, those that are due first at the front."""
        query = f"SELECT {COLUMNS} FROM jobs WHERE delivery_due IS NOT NULL ORDER BY delivery_due"
        return tuple(job for _, job in self._table.jobs(query))

    def owners_of_undelivered(self) -> Mapping[str, str]:
        """Return the ids of the jobs whose webhook is still to be delivered, with their owners."""
        with translate_errors():
            query = "SELECT id, owner FROM jobs WHERE delivery_due IS NOT NULL"
            return dict(self._file.connection.execute(query).fetchall())

    def totals(self) -> Totals:
        """Return the running counters."""
        with translate_errors():
            row = self._table.one("SELECT generations, images, seconds FROM totals")
        return Totals() if row is None else Totals(generations=row[0], images=row[1], seconds=row[2])

    def abandoned(self) -> tuple[Abandoned, ...]:
        """Return the synchronous jobs in which an earlier process died, until :meth:`forget_abandoned`."""
        return self._abandoned

    def forget_abandoned(self) -> None:
        """Forget the abandoned jobs: nothing of them is left on disk.

        Raises:
            DiskFull: no space is left.
            InternalError: the file cannot be written.
        """
        with self._file.transaction():
            self._file.connection.executemany(
                "DELETE FROM synchronous_runs WHERE id = ?", [(job.id,) for job in self._abandoned]
            )
        self._abandoned = ()

    def sync(self) -> None:
        """Return when everything that was kept is on the disk.

        Raises:
            DiskFull: no space is left.
            InternalError: the disk refuses it.
        """
        self._file.sync()

    def checkpoint(self) -> None:
        """Write the log into the file, so that a copy of the file alone has what was kept."""
        self._file.checkpoint()

    def never_used(self) -> bool:
        """Return whether no job was ever kept in this file."""
        return self._next_number == 1

    def finished_before(self, moment: datetime, *, spare: Container[str] = ()) -> tuple[Job, ...]:
        """Return the jobs that finished before a moment, but for some, in the order they finished."""
        query = f"SELECT {COLUMNS} FROM jobs WHERE finished IS NOT NULL AND completed_at < ? ORDER BY finished"
        return tuple(job for _, job in self._table.jobs(query, moment_text(moment)) if job.id not in spare)

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
        """Remove old finished jobs whose files ``discard`` could delete, and older tombstones.

        Raises:
            DiskFull: no space is left.
            InternalError: the file cannot be written.
        """
        oldest = moment_text(horizon(now, ttl))
        oldest_tombstone = moment_text(horizon(now, ttl if tombstone_ttl is None else tombstone_ttl))
        expired = [
            (number, job)
            for number, job in self._table.jobs(_EXPIRED, horizon=oldest, keep=keep)
            if job.id not in spare and discard(job)
        ]
        with self._file.transaction():
            for table in ("idempotency_keys WHERE job_id", "tombstones WHERE id"):
                self._file.connection.execute(
                    f"DELETE FROM {table} IN (SELECT id FROM tombstones WHERE removed_at < ?)", (oldest_tombstone,)
                )
            self._file.connection.executemany(
                "INSERT INTO tombstones (id, removed_at, owner) VALUES (?, ?, ?)",
                [(job.id, moment_text(now), job.owner) for _, job in expired],
            )
            self._file.connection.executemany("DELETE FROM jobs WHERE number = ?", [(number,) for number, _ in expired])
        return tuple(job for _, job in expired)

    def _put(self, number: int, job: Job, *, finished: int | None) -> None:
        """Write one row, and count the job if this is its end; ``finished`` is the rank of a job that ended before."""
        if finished is None and job.status.terminal:
            finished = self._file.connection.execute("SELECT coalesce(max(finished), 0) + 1 FROM jobs").fetchone()[0]
            more = Totals().after(job)
            self._file.connection.execute(
                "UPDATE totals SET generations = generations + ?, images = images + ?, seconds = seconds + ?",
                attrs.astuple(more),
            )
        self._file.connection.execute(_PUT, to_row(number, job, finished, folder=self._folder))

    def _note_synchronous_run(self, job: Job) -> None:
        with self._file.transaction(synced=False):
            self._file.connection.execute(
                "INSERT OR REPLACE INTO synchronous_runs VALUES (?, ?, ?)",
                (job.id, moment_text(job.created_at), job.request.num_images),
            )

    def _keep_key(self, job: Job, key: IdempotencyKey | None) -> None:
        if key is not None:
            self._file.connection.execute("INSERT INTO idempotency_keys VALUES (?, ?, ?)", (key.key, key.body, job.id))

    def _read_abandoned(self) -> tuple[Abandoned, ...]:
        rows = self._file.connection.execute("SELECT id, created_at, images FROM synchronous_runs").fetchall()
        return tuple(
            Abandoned(id=job_id, created_at=_moment_or_never(created), images=images)
            for job_id, created, images in rows
        )

    def _mend_totals(self) -> None:
        """Count again what is there, where the counters are gone."""
        if self._table.one("SELECT 1 FROM totals") is not None:
            return
        totals = Totals()
        for _, job in self._table.jobs(f"SELECT {COLUMNS} FROM jobs WHERE status = ?", Status.COMPLETED.value):
            totals = totals.after(job)
        logger.warning("the running totals were gone from the job database; the jobs that it has are counted again")
        # On a full disk they are counted at the next start.
        with suppress(DiskFull, InternalError), self._file.transaction():
            self._file.connection.execute("INSERT INTO totals VALUES (1, ?, ?, ?)", attrs.astuple(totals))


def _with_empty_inputs(job: Job, count: int) -> Job:
    return attrs.evolve(job, request=job.request.with_inputs(("",) * count))


def _moment_or_never(text: str) -> datetime:
    """Read a moment; one that cannot be read was long ago."""
    try:
        return moment(text)
    except (ValueError, TypeError):
        return datetime.min.replace(tzinfo=UTC)


def _newest(columns: str, before: int, status: Status | None, visible: Visibility) -> tuple[str, list[Any]]:
    """Return the query for the newest rows below a number, and its values but for the last, how many."""
    # Only what is asked for, and not `status = ? OR ? IS NULL`: that one would use no index.
    conditions: list[str] = ["number < ?"]
    values: list[Any] = [before]
    if status is not None:
        conditions.append("status = ?")
        values.append(status.value)
    if visible.only is not None:
        conditions.append("owner = ?")
        values.append(visible.only)
    if visible.hidden:
        # One value, however many they are: SQLite counts the marks of a statement.
        conditions.append("owner NOT IN (SELECT value FROM json_each(?))")
        values.append(json.dumps(visible.hidden))
    return f"SELECT {columns} FROM jobs WHERE {' AND '.join(conditions)} ORDER BY number DESC LIMIT ?", values


def _number(numbered: tuple[int, Any]) -> int:
    return numbered[0]
