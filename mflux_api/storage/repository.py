"""What the job store needs of its storage. One contract, several implementations."""

from typing import Protocol

import attrs

from mflux_api.jobs import Job, Status


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
            seconds=self.seconds + (job.completed_at - job.started_at).total_seconds(),
        )


class Repository(Protocol):
    """Keeps jobs. Calls are synchronous and come one at a time, from one thread."""

    def insert(self, job: Job) -> None:
        """Keep a new job; it is durable when this returns."""

    def replace(self, job: Job) -> None:
        """Overwrite a job with its next state; counts it when it completed."""

    def get(self, job_id: str) -> Job | None:
        """Return one job, or ``None``."""

    def page(self, *, limit: int, cursor: str | None, status: Status | None) -> Page:
        """Return a page of jobs, newest first.

        Raises:
            ValueError: the cursor is none of ours.
        """

    def unfinished(self) -> tuple[Job, ...]:
        """Return every job that is queued or generating, oldest first."""

    def totals(self) -> Totals:
        """Return the running counters."""
