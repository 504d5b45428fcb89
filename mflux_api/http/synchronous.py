"""A job as somebody waits for it on an open connection."""

import trio

from mflux_api.actors.gateway import Gateway
from mflux_api.errors import by_code
from mflux_api.jobs import Job
from mflux_api.requests import GenerateRequest


async def painted(gateway: Gateway, request: GenerateRequest) -> Job:
    """Run a job until it is completed or cancelled; a caller that leaves takes its job with it.

    Raises:
        ServiceError: the request was refused, or the job failed.
    """
    accepted = await gateway.submit(request, synchronous=True)
    try:
        job = await gateway.finished(accepted.job.id)
    except trio.Cancelled:
        gateway.abandon(accepted.job.id)
        raise
    if job.failure is not None:
        raise by_code(job.failure.code)(job.failure.message, job.failure.details)
    return job
