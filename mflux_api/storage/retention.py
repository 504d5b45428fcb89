"""Retention: which finished jobs' records are removed and when, what becomes of their images, and by which clock."""

import logging
import time
from collections.abc import Callable, Container
from datetime import datetime, timedelta

import attrs

from mflux_api.config import Settings
from mflux_api.jobs.job import Job
from mflux_api.storage.image_files import ImageFiles
from mflux_api.storage.repository import Repository, horizon

CLOCK_TOLERANCE = timedelta(hours=2)
"""What the wall clock may gain between two looks and be believed: jobs go by so much too early, and no more."""

DOUBT = timedelta(hours=24)
"""How long a clock that was set forward is not believed: time for an operator to set it back."""

KEEP_ALL = 1 << 62

logger = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Retention:
    """How long the records of finished jobs are kept, and whether their images go with them."""

    keep: int
    """Finished jobs; older ones go."""
    ttl: timedelta
    """Age at which a finished job goes, and again its tombstone."""
    files: ImageFiles
    delete_images: bool = False
    """Whether a job's images go with its record; otherwise they are the user's and stay."""
    max_image_bytes: int | None = None
    """What all images may take together; the oldest go."""

    @classmethod
    def from_settings(cls, settings: Settings) -> "Retention":
        """Return what ``[jobs]`` says."""
        try:
            ttl = timedelta(hours=settings.jobs.ttl_hours)
        except OverflowError:
            ttl = timedelta.max
        gigabytes = settings.jobs.max_images_gb
        return cls(
            keep=settings.jobs.keep_completed,
            ttl=ttl,
            files=ImageFiles(settings.generation.output_dir),
            delete_images=settings.jobs.delete_images,
            max_image_bytes=None if gigabytes is None else int(gigabytes * 1e9),
        )


@attrs.frozen(kw_only=True)
class Removed:
    """What a pass of retention removed, or would remove."""

    jobs: tuple[Job, ...]
    stuck: str | None
    """Why the images of a job cannot be deleted; its record stays, too."""


def elapsed_seconds() -> float:
    """Return a time that cannot be set, and that goes on while the machine sleeps."""
    # Python's own time.monotonic() stands still then.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class RetentionClock:
    """The wall clock, but for one that was just set forward: a wrong date must not make every job old at once.

    A clock that is set back is believed at once: that keeps jobs for longer. At the start it is believed as it is.
    """

    def __init__(self, wall: Callable[[], datetime], elapsed: Callable[[], float] = elapsed_seconds) -> None:
        self._wall = wall
        self._elapsed = elapsed
        self._seen, self._seen_at = wall(), elapsed()
        self._doubted_since: float | None = None

    def now(self) -> datetime:
        """Return the moment that ages are measured by."""
        wall, elapsed = self._wall(), self._elapsed()
        expected = self._seen + timedelta(seconds=elapsed - self._seen_at)
        if wall - expected > CLOCK_TOLERANCE:
            if self._doubted_since is None:
                self._doubted_since = elapsed
                logger.warning(
                    "the clock was set forward; for %g hours no job expires by it", DOUBT.total_seconds() / 3600
                )
            if elapsed - self._doubted_since < DOUBT.total_seconds():
                return expected
        self._doubted_since = None
        self._seen, self._seen_at = wall, elapsed
        return wall


def expire(repository: Repository, retention: Retention, *, now: datetime, spare: Container[str] = ()) -> Removed:
    """Remove the records that are too many or too old, and log each.

    Args:
        repository: has the jobs.
        retention: the rules.
        now: what ages are measured by.
        spare: jobs that stay, because a caller is about to read them.

    Raises:
        ServiceError: the storage cannot be read or written.
    """
    return _remove(
        repository,
        retention,
        lambda discard: repository.expire(
            now=now, keep=retention.keep, ttl=retention.ttl, discard=discard, spare=spare
        ),
    )


def prune(
    repository: Repository,
    retention: Retention,
    *,
    now: datetime,
    older_than: timedelta,
    dry_run: bool,
    spare: Container[str] = (),
) -> Removed:
    """Remove the records of jobs that finished longer ago than that, like :func:`expire`; or only say which.

    Raises:
        ServiceError: the storage cannot be read or written.
    """
    if dry_run:
        return Removed(jobs=repository.finished_before(horizon(now, older_than), spare=spare), stuck=None)
    return _remove(
        repository,
        retention,
        lambda discard: repository.expire(
            now=now, keep=KEEP_ALL, ttl=older_than, discard=discard, spare=spare, tombstone_ttl=retention.ttl
        ),
    )


def _remove(
    repository: Repository, retention: Retention, remove: Callable[[Callable[[Job], bool]], tuple[Job, ...]]
) -> Removed:
    stuck: str | None = None

    def discard(job: Job) -> bool:
        nonlocal stuck
        if not retention.delete_images:
            return True
        try:
            for image in job.images:
                retention.files.discard(image)
        except OSError as error:
            stuck = error.strerror or type(error).__name__
            return False
        return True

    jobs = remove(discard)
    fate = "were deleted" if retention.delete_images else "stay"
    for job in jobs:
        logger.info("job %s: its record was removed; %d image(s) of it %s", job.id, len(job.images), fate)
    return Removed(jobs=jobs, stuck=stuck)
