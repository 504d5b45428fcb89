"""Jobs whose caller waits for them on its open connection: run to the end, or cancelled when it leaves."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import attrs

from mflux_api.access.keys import Caller
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.half_close import need_client
from mflux_api.jobs.ignored import NO_NAMES
from mflux_api.jobs.job import Job
from mflux_api.jobs.progress import Progress
from mflux_api.jobs.request import GenerateRequest


@attrs.frozen
class RanJob:
    """A job that was completed or cancelled, and how far it came."""

    job: Job
    newest: Progress | None
    """The last progress before its end; ``None`` where it is not known any more."""

    @property
    def steps_run(self) -> int:
        """How many steps each of its images took; without an image, how many the first one had when it ended."""
        if self.job.images:
            return self.job.request.steps_run
        if self.newest is None:
            return 0
        return self.newest.step if self.newest.image == 0 else self.newest.steps


@asynccontextmanager
async def run_job(
    gateway: Gateway,
    request: GenerateRequest,
    *,
    caller: Caller,
    warnings: tuple[str, ...] = (),
    names: Mapping[str, str] = NO_NAMES,
    on_accepted: Callable[[], None] = lambda: None,
    on_submitted: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[RanJob]:
    """Run a job until it is completed or cancelled; a caller that leaves takes its job with it.

    While the block lasts retention leaves the job and its images alone.

    Raises:
        ServiceError: the request was refused, or the job failed.
    """
    jobs = run_jobs(
        gateway,
        [request],
        caller=caller,
        warnings=warnings,
        names=names,
        on_accepted=on_accepted,
        on_submitted=on_submitted,
    )
    async with jobs as (ran,):
        yield ran


@asynccontextmanager
async def run_jobs(
    gateway: Gateway,
    requests: Sequence[GenerateRequest],
    *,
    caller: Caller,
    warnings: tuple[str, ...] = (),
    names: Mapping[str, str] = NO_NAMES,
    on_accepted: Callable[[], None] = lambda: None,
    on_submitted: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[tuple[RanJob, ...]]:
    """Run jobs that are one to their caller: all are accepted before the first is waited for, or none stays.

    While the block lasts retention leaves them and their images alone.

    Args:
        gateway: the way to the actors.
        requests: what to run, in this order.
        caller: who asks.
        warnings: about what was asked for and is not done; every job keeps them.
        names: what the client calls a field, where it has a name of its own; warnings use it.
        on_accepted: called when all are accepted: from then on what they carry is the jobs'.
        on_submitted: is given the id of each job when it is accepted.

    Raises:
        ServiceError: a request was refused, or a job failed; the other jobs are cancelled.
    """
    accepted, ran = list[str](), list[RanJob]()
    if any(request.init_images for request in requests):
        # Decoding them may take long.
        need_client()
    try:
        try:
            for request in requests:
                kept = await gateway.submit(
                    request,
                    synchronous=True,
                    caller=caller,
                    warnings=warnings,
                    names=names,
                )
                accepted.append(kept.job.id)
                on_submitted(kept.job.id)
            need_client()
            on_accepted()
            for job_id in accepted:
                end = await gateway.awaited_end(job_id)
                if end.job.failure is not None:
                    raise end.job.failure.to_error()
                ran.append(RanJob(end.job, end.newest))
        except BaseException:
            for job_id in accepted[len(ran) :]:
                gateway.abandon(job_id)
            raise
        yield tuple(ran)
    finally:
        for job_id in accepted:
            gateway.caller_done(job_id)
