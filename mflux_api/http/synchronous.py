"""Jobs whose caller waits for them on its open connection: run to the end, or cancelled when it leaves."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from mflux_api.errors import by_code
from mflux_api.gateway.gateway import Gateway
from mflux_api.jobs.job import Job
from mflux_api.jobs.request import GenerateRequest


@asynccontextmanager
async def run_job(gateway: Gateway, request: GenerateRequest, *, owner: str) -> AsyncIterator[Job]:
    """Run a job until it is completed or cancelled; a caller that leaves takes its job with it.

    While the block lasts retention leaves the job and its images alone.

    Raises:
        ServiceError: the request was refused, or the job failed.
    """
    async with run_jobs(gateway, [request], owner=owner) as (job,):
        yield job


@asynccontextmanager
async def run_jobs(
    gateway: Gateway, requests: Sequence[GenerateRequest], *, owner: str
) -> AsyncIterator[tuple[Job, ...]]:
    """Run jobs that are one to their caller: all are accepted before the first is waited for, or none stays.

    While the block lasts retention leaves them and their images alone.

    Args:
        gateway: the way to the actors.
        requests: what to run, in this order.
        owner: who asks.

    Raises:
        ServiceError: a request was refused, or a job failed; the other jobs are cancelled.
    """
    accepted, jobs = list[str](), list[Job]()
    try:
        try:
            for request in requests:
                accepted.append((await gateway.submit(request, synchronous=True, owner=owner)).job.id)
            for job_id in accepted:
                job = await gateway.awaited_end(job_id)
                if job.failure is not None:
                    raise by_code(job.failure.code)(job.failure.message, job.failure.details)
                jobs.append(job)
        except BaseException:
            for job_id in accepted[len(jobs) :]:
                gateway.abandon(job_id)
            raise
        yield tuple(jobs)
    finally:
        for job_id in accepted:
            gateway.caller_done(job_id)
