"""Jobs to store, and what a test needs to see a storage fail. Imports little: child processes start with it."""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mflux_api.jobs import job as jobs
from mflux_api.jobs.job import Failure, Job, Status, StoredImage, Timings
from mflux_api.storage.sqlite import SqliteRepository
from tests.support.requests import resolved_request

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
UNPRIVILEGED_UID = 65534


def queued(job_id: str, *, synchronous: bool = False, prompt: str = "a cat", created_at: datetime = NOW) -> Job:
    request = resolved_request(prompt=prompt, seed=7, height=48, num_images=2)
    return Job(id=job_id, request=request, created_at=created_at, synchronous=synchronous)


def stored_images(job_id: str, count: int = 2, folder: str = "/elsewhere") -> tuple[StoredImage, ...]:
    return tuple(
        StoredImage(path=f"{folder}/{job_id}-{n}.png", seed=7 + n, width=64, height=48, sha256=f"{n:064x}")
        for n in range(count)
    )


def started(job: Job, at: datetime = NOW) -> Job:
    return jobs.start(job, at)


def completed(job: Job, *, at: datetime = NOW, seconds: float = 2.0, images: tuple[StoredImage, ...] = ()) -> Job:
    """Complete a queued or generating job that took so long."""
    if job.status is Status.QUEUED:
        job = started(job, at - timedelta(seconds=seconds))
    return jobs.complete(job, images or stored_images(job.id), Timings(load=0.5, total=seconds), at)


def failed(job: Job, *, at: datetime = NOW) -> Job:
    failure = Failure(message="The engine died twice", code="ENGINE_CRASHED", details={"attempts": 2, "tried": ["a"]})
    return jobs.fail(job, failure, at, images=stored_images(job.id, 1), progress=0.25)


def insert_and_finish_forever(path: Path, first: int) -> None:
    """What the kill test's child does: each printed line is a change that must survive."""
    with SqliteRepository(path) as repository:
        for n in itertools.count(first):
            job = queued(f"{n:012x}", synchronous=n % 3 == 0)
            repository.insert(job)
            if not job.synchronous:
                print(f"kept {job.id}", flush=True)  # noqa: T201
            repository.replace(started(job))
            repository.replace(failed(job) if n % 5 == 0 else completed(job))
            print(f"ended {job.id}", flush=True)  # noqa: T201


@contextlib.contextmanager
def read_only_folder() -> Iterator[Path]:
    """A folder in which nothing can be made meanwhile, even if the tests run as root."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if root:
            os.chown(folder, UNPRIVILEGED_UID, -1)
            os.seteuid(UNPRIVILEGED_UID)
        folder.chmod(0o500)
        try:
            yield folder
        finally:
            folder.chmod(0o700)
            if root:
                os.seteuid(0)
