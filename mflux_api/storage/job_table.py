"""Reading the table of jobs: a row that cannot be read is set aside and keeps no other from being read."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mflux_api.errors import DiskFull, InternalError
from mflux_api.jobs.job import Job
from mflux_api.storage.database_file import DatabaseFile, translate_errors
from mflux_api.storage.rows import COLUMNS, UnreadableRow, from_row, moment_text

_SET_ASIDE = (
    f"INSERT INTO unreadable_jobs (set_aside_at, {COLUMNS}) SELECT :now, {COLUMNS} FROM jobs WHERE number = :number",
    "DELETE FROM idempotency_keys WHERE job_id = (SELECT id FROM jobs WHERE number = :number)",
    "DELETE FROM jobs WHERE number = :number",
)

logger = logging.getLogger(__name__)


class JobTable:
    """The rows of ``jobs`` as jobs. Not to be used inside a transaction: it may begin one of its own."""

    def __init__(self, file: DatabaseFile, folder: Path) -> None:
        """Take the file, and the folder that relative paths of images are relative to."""
        self._file = file
        self._folder = folder

    def one(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        """Return the first row of any query."""
        row: tuple[Any, ...] | None = self._file.connection.execute(query, values).fetchone()
        return row

    def jobs(self, query: str, *values: Any, **named: Any) -> list[tuple[int, Job]]:
        """Return the jobs of a query for all columns, with their numbers.

        Raises:
            InternalError: the file cannot be read.
        """
        while True:
            with translate_errors():
                rows = self._file.connection.execute(query, named or values).fetchall()
            found = self.readable(rows)
            # What was set aside leaves room on a page.
            if len(found) == len(rows) or self._still_has(rows):
                return found

    def readable(self, rows: list[tuple[Any, ...]]) -> list[tuple[int, Job]]:
        """Return the jobs of those rows that can be read, and set the others aside."""
        found: list[tuple[int, Job]] = []
        for row in rows:
            try:
                found.append(from_row(row, folder=self._folder))
            except UnreadableRow:
                self._set_aside(row[0], row[1])
        return found

    def _set_aside(self, number: int, job_id: object) -> None:
        """Move a row to a table of its own, as it is; its idempotency key is free again, for a retry."""
        shown = str(job_id)[:32]
        try:
            with self._file.transaction():
                for statement in _SET_ASIDE:
                    self._file.connection.execute(statement, {"number": number, "now": moment_text(datetime.now(UTC))})
        except (DiskFull, InternalError) as error:
            logger.warning("job %s: its row cannot be read, and not be set aside now (%s)", shown, error.code)
        else:
            logger.error("job %s: its row cannot be read; it is in the table unreadable_jobs now", shown)

    def _still_has(self, rows: list[tuple[Any, ...]]) -> bool:
        """Whether none of these rows could be set aside: on a full disk they are passed over."""
        with translate_errors():
            return all(self.one("SELECT 1 FROM jobs WHERE number = ?", row[0]) for row in rows)
