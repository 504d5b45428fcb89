"""The line that the log has for each job at its end: what it was, how long it waited and ran, what became of it."""

import logging

from mflux_api.jobs.job import Job
from mflux_api.system.log_fields import with_fields

logger = logging.getLogger(__name__)


def log_end(job: Job, request_id: str) -> None:
    """Log a job's end. No prompt is in it, and a failure's message, which may quote names of files, is not either.

    Args:
        job: the job, with its end.
        request_id: of the HTTP request that it came by; empty where it is not known.
    """
    code = None if job.failure is None else job.failure.code
    width, height = job.request.result_size
    queued, ran = _seconds(job)
    logger.log(
        logging.INFO if code is None else logging.WARNING,
        "job %s: %s%s; %s, %dx%d, %d steps, %d of %d image(s), queued %.1f s%s",
        job.id,
        job.status.value,
        "" if code is None else f" ({code})",
        job.model,
        width,
        height,
        job.request.steps_run,
        len(job.images),
        job.request.num_images,
        queued,
        "" if ran is None else f", ran {ran:.1f} s",
        extra=with_fields(
            job_id=job.id,
            outcome=job.status.value,
            code=code,
            model=job.model,
            width=width,
            height=height,
            steps=job.request.steps_run,
            images=len(job.images),
            queued_seconds=round(queued, 3),
            ran_seconds=None if ran is None else round(ran, 3),
            request_id=request_id or None,
        ),
    )


def _seconds(job: Job) -> tuple[float, float | None]:
    """Return how long a job waited and ran; ``None`` where it never ran. The clock may have been set back meanwhile."""
    ended = job.completed_at or job.created_at
    if job.started_at is None:
        return max(0.0, (ended - job.created_at).total_seconds()), None
    queued = (job.started_at - job.created_at).total_seconds()
    return max(0.0, queued), max(0.0, (ended - job.started_at).total_seconds())
