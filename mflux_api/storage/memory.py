"""Jobs kept in this process only: what ``generate`` and short-lived embeddings use."""

from mflux_api.jobs import Job, Status
from mflux_api.storage.repository import Page, Totals


class MemoryRepository:
    """A :class:`~mflux_api.storage.repository.Repository` that forgets everything at the end.

    It keeps at most ``keep_finished`` finished jobs; the oldest go first.
    """

    def __init__(self, *, keep_finished: int = 1000) -> None:
        self._jobs: dict[str, Job] = {}
        self._finished: dict[str, None] = {}
        self._keep_finished = keep_finished
        self._totals = Totals()

    def insert(self, job: Job) -> None:
        """Keep a new job."""
        self._jobs[job.id] = job

    def replace(self, job: Job) -> None:
        """Overwrite a job with its next state."""
        self._jobs[job.id] = job
        if job.status.terminal:
            self._totals = self._totals.after(job)
            self._finished[job.id] = None
            while len(self._finished) > self._keep_finished:
                oldest = next(iter(self._finished))
                del self._finished[oldest], self._jobs[oldest]

    def get(self, job_id: str) -> Job | None:
        """Return one job, or ``None``."""
        return self._jobs.get(job_id)

    def page(self, *, limit: int, cursor: str | None, status: Status | None) -> Page:
        """Return a page of jobs, newest first."""
        newest_first = list(reversed(self._jobs.values()))
        if cursor is not None:
            ids = [job.id for job in newest_first]
            if cursor not in ids:
                raise ValueError("unknown cursor")
            newest_first = newest_first[ids.index(cursor) + 1 :]
        matching = [job for job in newest_first if status is None or job.status is status]
        jobs = tuple(matching[:limit])
        return Page(jobs=jobs, next_cursor=jobs[-1].id if len(matching) > limit else None)

    def unfinished(self) -> tuple[Job, ...]:
        """Return every job that is queued or generating, oldest first."""
        return tuple(job for job in self._jobs.values() if not job.status.terminal)

    def totals(self) -> Totals:
        """Return the running counters."""
        return self._totals
