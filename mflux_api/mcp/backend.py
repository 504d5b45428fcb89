"""What the tools need of a service, wherever it runs: submit, follow, cancel, images, models."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import attrs

from mflux_api.errors import ServiceError
from mflux_api.images.encode import ImageTarget
from mflux_api.jobs.progress import Progress


class Unreachable(Exception):
    """The service cannot be asked; the message says why, and what to do."""


@attrs.frozen(kw_only=True)
class JobState:
    """A job as the tools tell it."""

    id: str
    status: str
    model: str
    progress: float
    created_at: datetime
    stage: str | None = None
    position: int | None = None
    """Queued jobs before it, and itself."""
    eta_seconds: float | None = None
    seconds: float | None = None
    """From its start to its end; ``None`` while it has none."""
    seeds: tuple[int, ...] = ()
    """Of its finished images, in order."""
    error: ServiceError | None = None
    warnings: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.status in ("completed", "failed", "cancelled")


@attrs.frozen(kw_only=True)
class ModelState:
    """A model as the tools tell it."""

    name: str
    description: str
    kind: str
    """``generator`` or ``upscaler``."""
    downloaded: bool
    size_gb: float | None
    licence: str
    default_steps: int
    supports_guidance: bool
    native_width: int
    """Of the images that it was made for; not a pair, whose schema clients read in two ways."""
    native_height: int
    default: bool = False
    """Whether it is what a request without a model runs on, where that is known."""


class Backend(Protocol):
    """One service. Methods raise ``ServiceError`` where it cannot do what is asked, and ``Unreachable``."""

    @property
    def max_images(self) -> int | None:
        """Most images of a request, where that is known before one is sent."""
        ...

    async def submit(self, body: Mapping[str, Any], *, waits: bool) -> str:
        """Queue a job and return its id.

        Args:
            body: the fields of a request, as ``POST /api/v1/generate`` takes them.
            waits: whether the caller waits for its end.
        """
        ...

    def follow(self, job_id: str) -> AbstractAsyncContextManager[AsyncIterator[Progress]]:
        """Follow a job: its progress, until its end."""
        ...

    async def job(self, job_id: str) -> JobState:
        """Return a job as it is now."""
        ...

    async def cancel(self, job_id: str) -> JobState:
        """Cancel a job; a finished one is returned as it is."""
        ...

    async def file(self, job: JobState, index: int) -> Path:
        """Return where on this machine a finished image's PNG file lies."""
        ...

    async def image(self, job: JobState, index: int, target: ImageTarget) -> bytes:
        """Return a finished image in a format and size."""
        ...

    async def models(self) -> tuple[ModelState, ...]:
        """Return every model of the table."""
        ...
