"""Finished images on disk: named by job, written whole or not at all, and removed."""

import hashlib
import logging
import re
from collections.abc import Container, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import attrs

from mflux_api.images.generation_record import generation_record
from mflux_api.images.infotext import infotext
from mflux_api.images.png import encode_png
from mflux_api.jobs.job import Job, StoredImage
from mflux_api.system.durable import make_folder, remove_abandoned, write_whole

logger = logging.getLogger(__name__)

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_IMAGE = re.compile(r"[0-9a-f]{12}-[0-9]+\.png")
_LEFTOVER = re.compile(r"\.[0-9a-f]{12}-[0-9]+\.png\.tmp")


@attrs.frozen
class ImageFiles:
    """Images as ``{folder}/{YYYY-MM-DD}/{job id}-{n}.png``, by the day the job was made (UTC)."""

    folder: Path
    metadata: bool = attrs.field(default=True, kw_only=True)
    """Whether the files hold their infotext, and with it the prompt."""

    def save(
        self, job: Job, index: int, *, seed: int, width: int, height: int, rgb: bytes, model_hash: str | None = None
    ) -> StoredImage:
        """Encode and keep one image; it is durable when this returns.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        parameters = infotext(job.request, seed, model_hash) if self.metadata else ""
        record = generation_record(job.request, seed) if self.metadata else ""
        data = encode_png(rgb, width, height, parameters=parameters, record=record)
        path = self.put(job.id, job.created_at, index, data)
        return StoredImage(
            path=str(path), seed=seed, width=width, height=height, sha256=hashlib.sha256(data).hexdigest()
        )

    def put(self, job_id: str, created_at: datetime, index: int, data: bytes) -> Path:
        """Keep the file of one image, and return where it lies; it is durable when this returns.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        path = self.path(job_id, created_at, index)
        make_folder(path.parent)
        write_whole(path, data)
        return path

    def discard(self, image: StoredImage) -> None:
        """Remove an image that no job keeps."""
        _remove(Path(image.path))

    def discard_all(self, job_id: str, created_at: datetime, count: int) -> None:
        """Remove the images that a killed process had saved of a job that has no row.

        Raises:
            OSError: the folder cannot be written.
        """
        for index in range(count):
            _remove(self.path(job_id, created_at, index))

    def path(self, job_id: str, created_at: datetime, index: int) -> Path:
        """Return where an image of a job lies, or will lie."""
        return self.folder / f"{created_at:%Y-%m-%d}" / f"{job_id}-{index}.png"

    def remove_oldest(self, limit: int, *, spare: Container[str] = ()) -> int:
        """Remove the oldest images of any jobs until the others take no more than ``limit`` bytes, and log each.

        Args:
            limit: in bytes.
            spare: ids of jobs whose images stay.

        Returns:
            How many were removed.

        Raises:
            OSError: the folder cannot be read or written.
        """
        found: list[tuple[float, int, Path]] = []
        for image in self._files(_IMAGE):
            with suppress(FileNotFoundError):
                status = image.stat()
                found.append((status.st_mtime, status.st_size, image))
        surplus, count = sum(size for _, size, _ in found) - limit, 0
        for _, size, image in sorted(found):
            if surplus <= 0:
                break
            if image.name.partition("-")[0] not in spare:
                _remove(image)
                surplus, count = surplus - size, count + 1
                logger.info("image %s: removed, because all take more than jobs.max_images_gb", image.name)
        return count

    def _files(self, name: re.Pattern[str]) -> Iterator[Path]:
        """Every file of that name in the folder of any day, and no file that is called otherwise."""
        for day in self.folder.iterdir() if self.folder.is_dir() else ():
            if _DAY.fullmatch(day.name) and day.is_dir() and not day.is_symlink():
                yield from (file for file in day.iterdir() if name.fullmatch(file.name) and file.is_file())

    def has_images(self) -> bool:
        """Return whether there is an image of any job; a folder that cannot be read has none."""
        try:
            return next(self._files(_IMAGE), None) is not None
        except OSError:
            return False

    def remove_leftovers(self) -> int:
        """Remove half-written images of killed processes, not those that are being written; return how many there were.

        Raises:
            OSError: the folder cannot be read or written.
        """
        # All are found before the first is removed: a folder must not change while it is read.
        return remove_abandoned(list(self._files(_LEFTOVER)))


def _remove(path: Path) -> None:
    """Remove a file, unless it is gone, or its folder is not a folder any more."""
    with suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()
