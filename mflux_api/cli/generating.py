"""One request from the command line to its images: on a service of its own, or on a running server."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from mflux_api.cli.output import Made, MadeImage, Output
from mflux_api.cli.progress_bar import ProgressBar
from mflux_api.cli.running_server import connected
from mflux_api.config import Settings
from mflux_api.errors import ServiceError
from mflux_api.images.encode import ImageTarget
from mflux_api.jobs.job import is_job_id
from mflux_api.jobs.progress import Progress
from mflux_api.jobs.request import GenerateRequest
from mflux_api.service import Service, open_service
from mflux_api.storage.image_files import ImageFiles

if TYPE_CHECKING:
    from mflux_api.client import Client, Job

Put = Callable[[Made, int], None]


def generate_here(settings: Settings, requests: Sequence[GenerateRequest], output: Output) -> None:
    """Generate on a service of our own, whose store is in memory, one request after the other.

    Raises:
        ServiceError: one cannot be generated; those before it are there.
        OSError: an image cannot be written.
    """
    with _folder(settings, output) as used:
        trio.run(partial(_generate_here, used, requests, output))


@contextmanager
def _folder(settings: Settings, output: Output) -> Iterator[Settings]:
    """Images that are put somewhere else leave nothing in ``output_dir``."""
    if not output.takes_bytes:
        yield settings
        return
    with tempfile.TemporaryDirectory(prefix="mflux-api-") as name:
        generation = attrs.evolve(settings.generation, output_dir=Path(name))
        yield attrs.evolve(settings, generation=generation)


async def _generate_here(settings: Settings, requests: Sequence[GenerateRequest], output: Output) -> None:
    count = 0
    # The progress bar shows no previews.
    async with open_service(settings, previews=False) as service:
        for request in requests:
            made = await _run(service, request, output)
            output.put(made, count)
            count += len(made.images)


async def _run(service: Service, request: GenerateRequest, output: Output) -> Made:
    began = time.monotonic()
    with _bar(output) as bar:
        if bar is not None:
            bar.note("starting the engine")
        job = await service.submit(request, synchronous=True)
        async with service.events(job.id) as events:
            async for event in events:
                if bar is not None and isinstance(event, Progress):
                    bar.update(event)
    result = await service.result(job.id)
    target = ImageTarget(format=output.format)
    images = [
        MadeImage(
            seed=image.seed, path=image.path, data=await service.image(image, target) if output.takes_bytes else None
        )
        for image in result.images
    ]
    return Made(
        job_id=job.id,
        prompt=request.prompt,
        model=result.job.model,
        images=tuple(images),
        warnings=result.warnings,
        seconds=result.timings.total or time.monotonic() - began,
    )


def generate_there(settings: Settings, url: str, requests: Sequence[GenerateRequest], output: Output) -> None:
    """Generate on a running server, one request after the other; one that is interrupted is cancelled.

    Raises:
        ServiceError: the server refuses one, or it fails; those before it are there.
        ConnectionError: no server answers.
        OSError: an image cannot be written.
    """
    count = 0
    with connected(settings, url, retries=3) as client:
        for request in requests:
            made = _ask(client, request, settings, output)
            output.put(made, count)
            count += len(made.images)


def _ask(client: "Client", request: GenerateRequest, settings: Settings, output: Output) -> Made:
    from mflux_api.client import UnexpectedAnswer

    began = time.monotonic()
    job_id = client.submit(request).job_id
    if not is_job_id(job_id):
        # It becomes a part of a path.
        raise UnexpectedAnswer(client.url)
    try:
        with _bar(output) as bar:
            job = follow(client, job_id, bar)
    except KeyboardInterrupt:
        # Its end may have come first, or the server's.
        with suppress(ServiceError, ConnectionError):
            client.cancel(job_id)
        raise
    if (failure := job.failure()) is not None:
        raise failure
    seeds = () if job.result is None else job.result.seeds
    return Made(
        job_id=job_id,
        prompt=job.prompt,
        model=job.model,
        images=tuple(_fetched(client, job, index, seed, settings, output) for index, seed in enumerate(seeds)),
        warnings=job.warnings,
        seconds=time.monotonic() - began,
    )


def follow(client: "Client", job_id: str, bar: ProgressBar | None) -> "Job":
    """Follow a job of a server to its end, and return it."""
    from mflux_api.client import Finished

    with client.stream(job_id) as events:
        for event in events:
            if isinstance(event, Finished):
                return event.job
            if bar is not None and isinstance(event, Progress):
                bar.update(event)
    return client.job(job_id)


def _fetched(client: "Client", job: "Job", index: int, seed: int, settings: Settings, output: Output) -> MadeImage:
    data = client.image(job.id, index, format=output.format)
    if output.takes_bytes:
        return MadeImage(seed=seed, data=data)
    path = ImageFiles(settings.generation.output_dir).put(job.id, job.created_at or datetime.now(UTC), index, data)
    return MadeImage(seed=seed, path=str(path))


def _bar(output: Output) -> "ProgressBar | nullcontext[None]":
    return nullcontext() if output.quiet else ProgressBar(sys.stderr)
