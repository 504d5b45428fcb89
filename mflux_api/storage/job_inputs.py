"""Which init images the jobs of a database need: kept before their job is, and removed with the last one's end."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mflux_api.errors import DiskFull, InternalError, QueueFull
from mflux_api.storage.database_file import DatabaseFile, translate_errors
from mflux_api.storage.input_files import InputFiles, digest_of, stored_form

_NEEDED = "FROM inputs JOIN jobs USING (number) WHERE finished IS NULL"

logger = logging.getLogger(__name__)


class JobInputs:
    """The files and the rows that say which job has which; a row outlives its file until its job expires."""

    def __init__(self, file: DatabaseFile, folder: Path, max_bytes: int) -> None:
        self._file = file
        self._files = InputFiles(folder)
        self._max_bytes = max_bytes

    def tidy(self) -> None:
        """Remove what no unfinished job needs: an earlier process may have died between two steps."""
        with translate_errors():
            needed = {digest for (digest,) in self._file.connection.execute(f"SELECT sha256 {_NEEDED}")}
        try:
            count = self._files.discard_all_but(needed)
        except OSError as error:
            logger.warning("init images of finished jobs cannot be removed: %s", error.strerror)
            return
        if count:
            logger.info("removed %d init image(s) that no job needs", count)

    @contextmanager
    def keeping(self, images: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Keep a new job's init images, and yield their digests for the block that commits the job.

        Raises:
            QueueFull: those of waiting jobs take all the room that there is for them.
            DiskFull: no space is left.
            InternalError: the folder cannot be written.
        """
        # Each is looked through once: they are large, and the store's one thread does it.
        named = [(digest_of(data), data) for data in map(stored_form, images)]
        files = dict(named)
        if files and self._files.total_bytes + self._files.bytes_more(files) > self._max_bytes:
            raise QueueFull(
                f"The init images of waiting jobs would take more than scheduler.max_inputs_gb "
                f"({self._max_bytes / 1e9:g} GB); try again when some of them have ended",
                {"max_inputs_gb": self._max_bytes / 1e9},
            )
        kept: list[str] = []
        try:
            with translate_errors():
                for digest, data in files.items():
                    self._files.keep(digest, data)
                    kept.append(digest)
            yield tuple(digest for digest, _ in named)
        except BaseException:
            self.discard_unneeded(kept)
            raise

    def note(self, number: int, digests: Sequence[str]) -> None:
        """Write down what a job has; part of the transaction that keeps it."""
        self._file.connection.executemany(
            "INSERT INTO inputs VALUES (?, ?, ?)", [(number, place, digest) for place, digest in enumerate(digests)]
        )

    def reader(self, job_id: str) -> Callable[[], tuple[str, ...]]:
        """Return how to read a job's init images, as base64; the files are read by the one who calls it.

        Raises:
            InternalError: the database cannot be read.
        """
        query = "SELECT sha256 FROM inputs JOIN jobs USING (number) WHERE id = ? ORDER BY place"
        with translate_errors():
            digests = [digest for (digest,) in self._file.connection.execute(query, (job_id,))]
        return lambda: tuple(map(self._files.read, digests))

    def counts(self) -> Mapping[int, int]:
        """Return how many init images each unfinished job has, by its number."""
        with translate_errors():
            return dict(self._file.connection.execute(f"SELECT number, count(*) {_NEEDED} GROUP BY number"))

    def job_ended(self, job_id: str) -> None:
        """Remove a job's init images, unless others need them; its end is committed."""
        query = "SELECT sha256 FROM inputs JOIN jobs USING (number) WHERE id = ?"
        try:
            with translate_errors():
                digests = [digest for (digest,) in self._file.connection.execute(query, (job_id,))]
        except (DiskFull, InternalError) as error:
            _warn(error)
        else:
            self.discard_unneeded(digests)

    def discard_unneeded(self, digests: Sequence[str]) -> None:
        """Remove those of them that no unfinished job needs; what cannot be removed now goes at the next start."""
        for digest in dict.fromkeys(digests):
            query = f"SELECT 1 {_NEEDED} AND sha256 = ?"
            try:
                with translate_errors():
                    if self._file.connection.execute(query, (digest,)).fetchone() is None:
                        self._files.discard(digest)
            except (DiskFull, InternalError) as error:
                _warn(error)


def _warn(error: Exception) -> None:
    logger.warning("init images that no job needs stay until the next start: %s", type(error).__name__)
