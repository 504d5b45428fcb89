"""A service that does what a test says, and an SDK client of the tools over it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import mcp_types as types
import trio
from mcp.client.client import Client

from mflux_api.catalog import BUILT_IN
from mflux_api.errors import JobNotFound
from mflux_api.images.encode import ImageTarget
from mflux_api.jobs.job import Stage, Status
from mflux_api.jobs.progress import Progress
from mflux_api.mcp.backend import JobState, ModelState
from mflux_api.mcp.embedded import model_state
from mflux_api.mcp.files import InputFiles, Links
from mflux_api.mcp.server import build_server
from mflux_api.mcp.tools import Tools

JOB_ID = "0123456789ab"


COMPLETED = JobState(
    id=JOB_ID,
    status="completed",
    model="demo",
    progress=1.0,
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
    seeds=(7,),
    seconds=2.0,
)


@attrs.define
class FakeBackend:
    """One job at a time, which ends with ``end`` once ``go_on`` is set."""

    folder: Path
    end: JobState = COMPLETED
    go_on: trio.Event = attrs.field(factory=trio.Event)
    following: trio.Event = attrs.field(factory=trio.Event)
    cancelled: trio.Event = attrs.field(factory=trio.Event)
    bodies: list[Mapping[str, Any]] = attrs.field(factory=list)
    image_bytes: int = 1000
    """Bytes of a JPEG of 768 pixels; a smaller one has as much less as its side."""
    whole_bytes: int = 1000
    """Bytes of an image in its own size; half of it as JPEG."""
    max_images: int | None = 4

    async def submit(self, body: Mapping[str, Any], *, waits: bool) -> str:
        self.bodies.append(body)
        return JOB_ID

    @asynccontextmanager
    async def follow(self, job_id: str) -> AsyncIterator[AsyncIterator[Progress]]:
        yield self._progress()

    async def _progress(self) -> AsyncIterator[Progress]:
        common: dict[str, Any] = {"id": JOB_ID, "status": Status.GENERATING, "steps": 4}
        yield Progress(stage=Stage.LOADING, progress=0.0, bytes_done=1, bytes_total=2, **common)
        yield Progress(stage=Stage.DENOISING, progress=0.4, step=2, **common)
        self.following.set()
        await self.go_on.wait()

    async def job(self, job_id: str) -> JobState:
        if job_id != JOB_ID:
            raise JobNotFound(f"Job '{job_id}' not found")
        if self.go_on.is_set():
            return self.end
        return attrs.evolve(self.end, status="generating", progress=0.4, stage="denoising", seconds=None, seeds=())

    async def cancel(self, job_id: str) -> JobState:
        self.cancelled.set()
        return attrs.evolve(self.end, status="cancelled", seeds=())

    async def file(self, job: JobState, index: int) -> Path:
        path = self.folder / f"{job.id}-{index}.png"
        path.write_bytes(b"png")
        return path

    async def image(self, job: JobState, index: int, target: ImageTarget) -> bytes:
        if target.side is None:
            return bytes(self.whole_bytes if target.as_stored else self.whole_bytes // 2 + 1)
        return bytes(self.image_bytes * target.side // 768)

    async def models(self) -> tuple[ModelState, ...]:
        known = {model.alias: model for model in BUILT_IN}
        demo, seedvr2 = known["demo"], known["seedvr2"]
        own = attrs.evolve(seedvr2, alias="my-seedvr2")
        return (
            model_state(seedvr2, downloaded=False, default_steps=4),
            model_state(demo, downloaded=True, default_steps=4, default=True),
            model_state(own, downloaded=True, default_steps=4),
        )


@asynccontextmanager
async def connected(backend: FakeBackend, **options: Any) -> AsyncIterator[Client]:
    """Connect the SDK's client to the tools, in this process."""
    links = Links()
    files = InputFiles((backend.folder.resolve(),), backend.folder)
    async with Client(build_server(Tools(backend, files, links), links), **options) as client:
        yield client


def text_of(result: types.CallToolResult) -> str:
    """Return what an assistant reads first."""
    block = result.content[0]
    assert isinstance(block, types.TextContent)
    return block.text
