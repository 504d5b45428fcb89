"""The tools' service in this very process."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from mflux_api.catalog import Model
from mflux_api.errors import ImageNotFound, ServiceRestarting
from mflux_api.gateway.jobs import JobView
from mflux_api.images.encode import ImageTarget
from mflux_api.jobs.job import StoredImage
from mflux_api.jobs.parse import convert
from mflux_api.jobs.progress import Progress
from mflux_api.jobs.request import GenerateRequest
from mflux_api.mcp.backend import JobState, ModelState
from mflux_api.service import Service

_RETRY_SECONDS = 0.2
"""Between two tries to follow a job while a part of the service is restarted."""


class EmbeddedBackend:
    """A service of :func:`mflux_api.service.open_service`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def max_images(self) -> int | None:
        """See :class:`~mflux_api.mcp.backend.Backend`, as of all methods here."""
        return self._service.settings.generation.max_batch_size

    async def submit(self, body: Mapping[str, Any], *, waits: bool) -> str:
        """Queue a job and return its id."""
        request = convert(body, GenerateRequest)
        return (await self._service.submit(request, synchronous=waits)).id

    @asynccontextmanager
    async def follow(self, job_id: str) -> AsyncIterator[AsyncIterator[Progress]]:
        """Follow a job: its progress, until its end."""
        events = self._progress(job_id)
        try:
            yield events
        finally:
            await events.aclose()

    async def _progress(self, job_id: str) -> AsyncGenerator[Progress, None]:
        while True:
            try:
                async with self._service.events(job_id) as events:
                    async for event in events:
                        if isinstance(event, Progress):
                            yield event
                return
            except ServiceRestarting:
                # The job goes on.
                await trio.sleep(_RETRY_SECONDS)

    async def job(self, job_id: str) -> JobState:
        """Return a job as it is now."""
        return _state(await self._service.view(job_id))

    async def cancel(self, job_id: str) -> JobState:
        """Cancel a job; a finished one is returned as it is."""
        return _state(JobView(job=await self._service.cancel(job_id), live=None))

    async def file(self, job: JobState, index: int) -> Path:
        """Return where on this machine a finished image's PNG file lies."""
        return Path((await self._stored(job, index)).path)

    async def image(self, job: JobState, index: int, target: ImageTarget) -> bytes:
        """Return a finished image in a format and size."""
        return await self._service.image(await self._stored(job, index), target)

    async def _stored(self, job: JobState, index: int) -> StoredImage:
        images = (await self._service.job(job.id)).images
        if index >= len(images):
            raise ImageNotFound(f"Job '{job.id}' has no image '{index}'", {"images": len(images)})
        return images[index]

    async def models(self) -> tuple[ModelState, ...]:
        """Return every model of the table; the default one is the first."""
        settings = self._service.settings
        views = sorted(await self._service.models(), key=lambda view: view.model.alias != settings.models.default)
        return tuple(
            model_state(
                view.model,
                downloaded=view.downloaded,
                default_steps=settings.generation.default_steps,
                default=view.model.alias == settings.models.default,
            )
            for view in views
        )


def model_state(model: Model, *, downloaded: bool, default_steps: int, default: bool = False) -> ModelState:
    """Return a row of the table as the tools tell it."""
    return ModelState(
        name=model.alias,
        description=model.description,
        kind="upscaler" if model.upscales else "generator",
        downloaded=downloaded,
        size_gb=model.size_gb,
        licence=model.licence + (" (gated)" if model.gated else ""),
        default_steps=model.default_steps or default_steps,
        supports_guidance=model.supports_guidance,
        native_width=model.native_size[0],
        native_height=model.native_size[1],
        default=default,
    )


def _state(view: JobView) -> JobState:
    job, live = view.job, view.live
    progress = None if live is None else live.progress
    ended = job.status.terminal
    return JobState(
        id=job.id,
        status=job.status.value,
        model=job.model,
        progress=job.progress if progress is None else progress.progress,
        created_at=job.created_at,
        stage=None if ended else ("queued" if progress is None else progress.stage.value),
        position=None if live is None else live.position,
        eta_seconds=None if progress is None else progress.eta_seconds,
        seconds=((job.completed_at - job.started_at).total_seconds() if job.completed_at and job.started_at else None),
        seeds=tuple(image.seed for image in job.images) if ended else (),
        error=None if job.failure is None else job.failure.to_error(),
        warnings=job.warnings if live is None else (*job.warnings, *live.warnings),
    )
