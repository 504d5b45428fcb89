"""Jobs as JSON. A result with pixels is rendered once and shared by all who ask for it."""

import base64
from collections import OrderedDict
from datetime import UTC, datetime

import trio

from mflux_api.gateway.gateway import Gateway, JobView
from mflux_api.http.responses import in_thread, to_json
from mflux_api.http.schemas import JobResponse, JobResult, StageName
from mflux_api.jobs.job import Job, Stage, Status
from mflux_api.jobs.progress import Progress
from mflux_api.system.threads import read_in_thread

CACHE_BYTES = 64 * 1024 * 1024


def timestamp(moment: datetime) -> str:
    """Return a time as clients see it: UTC, seconds, ``Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def job_response(view: JobView, result: JobResult | None = None) -> JobResponse:
    """Return a job as clients see it, with every key."""
    job, live = view.job, view.live
    progress = live.progress if live is not None else None
    return JobResponse(
        id=job.id,
        status=job.status.value,
        stage=_stage(job, progress),
        progress=progress.progress if progress is not None else job.progress,
        prompt=job.request.prompt,
        model=job.model,
        position=live.position if live is not None else None,
        eta_seconds=progress.eta_seconds if progress is not None else None,
        created_at=timestamp(job.created_at),
        started_at=None if job.started_at is None else timestamp(job.started_at),
        completed_at=None if job.completed_at is None else timestamp(job.completed_at),
        result=result,
        error=job.failure.message if job.failure is not None else None,
        code=job.failure.code if job.failure is not None else None,
        details=dict(job.failure.details) if job.failure is not None else None,
    )


def _stage(job: Job, progress: Progress | None) -> StageName | None:
    if job.status.terminal:
        return None
    return progress.stage.value if progress is not None else Stage.QUEUED.value


class Renderer:
    """Renders finished jobs with their images; keeps the newest results within a number of bytes."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._cache: OrderedDict[tuple[str, bool], bytes] = OrderedDict()
        self._size = 0
        self._rendering: dict[tuple[str, bool], trio.Event] = {}

    async def job(self, view: JobView, *, urls: bool = False) -> bytes:
        """Return a job as JSON bytes; a finished one with its result.

        Args:
            view: the job.
            urls: put the images' paths on this server into the result, in place of base64.

        Raises:
            ImageGone: an image's file was removed.
        """
        if not view.job.images:
            return to_json(_with_result(view, []))
        if not view.job.status.terminal:
            return to_json(job_response(view))
        key = (view.job.id, urls)
        while key not in self._cache:
            if key in self._rendering:
                await self._rendering[key].wait()
                continue
            self._rendering[key] = trio.Event()
            try:
                data = await self._render(view, urls=urls)
            finally:
                self._rendering.pop(key).set()
            self._cache_bytes(key, data)
            return data
        self._cache.move_to_end(key)
        return self._cache[key]

    async def images(self, job: Job) -> list[str]:
        """Return a finished job's images as base64 PNG.

        Raises:
            ImageGone: an image's file was removed.
        """
        files = [await self._gateway.image_bytes(image) for image in job.images]
        return await read_in_thread(lambda: [base64.b64encode(data).decode() for data in files])

    async def _render(self, view: JobView, *, urls: bool) -> bytes:
        job = view.job
        if urls:
            images = [f"/api/v1/jobs/{job.id}/images/{index}" for index in range(len(job.images))]
        else:
            images = await self.images(job)
        return await in_thread(_with_result(view, images))

    def _cache_bytes(self, key: tuple[str, bool], data: bytes) -> None:
        if len(data) > CACHE_BYTES // 4:
            return
        self._cache[key] = data
        self._size += len(data)
        while self._size > CACHE_BYTES:
            _, dropped = self._cache.popitem(last=False)
            self._size -= len(dropped)


def _with_result(view: JobView, images: list[str]) -> JobResponse:
    job = view.job
    if job.status is not Status.COMPLETED and not images:
        return job_response(view)
    return job_response(view, JobResult(images=tuple(images), seeds=tuple(image.seed for image in job.images)))
