"""A service over a scripted engine with its HTTP front, in this process, for tests that look at both sides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import httpx
import trio

from mflux_api.config import Settings
from mflux_api.jobs.job import Job
from mflux_api.service import Service, open_service
from mflux_api.storage.in_memory import InMemoryRepository
from tests.support.harness import DEADLINE_SECONDS, ended, request, settings
from tests.support.http_server import connect
from tests.support.scripted_engine import Script


@attrs.frozen
class Event:
    id: str | None
    name: str
    data: str


@attrs.frozen
class Api:
    """A running service, and its port."""

    service: Service
    port: int
    http: httpx.AsyncClient

    async def finished(self, seed: int = 1, **fields: Any) -> Job:
        """A job that was run to its end."""
        job = await self.service.submit(attrs.evolve(request(seed), **fields))
        return await ended(self.service, job.id)

    async def stream(self, job_id: str, last: str | None = None, *, query: str = "") -> list[Event]:
        """All events of a job's stream."""
        status, data = await self.raw_stream(job_id, last, query=query)
        assert status == 200
        return parsed(data)

    async def raw_stream(self, job_id: str, last: str | None = None, *, query: str = "") -> tuple[int, bytes]:
        """The status and the bytes of a job's stream."""
        headers = () if last is None else (("Last-Event-ID", last),)
        async with connect(self.port) as client:
            return await client.get(f"/api/v1/jobs/{job_id}/stream{query}", *headers)


async def answer_to(api: Api, method: str, path: str, headers: Mapping[str, str]) -> httpx.Response:
    """An answer to a body that no route takes; of a stream without an end the head alone."""
    async with api.http.stream(method.upper(), path, headers=headers, content=b"{") as answer:
        endless = answer.status_code == 200 and path.partition("?")[0] == "/api/v1/events"
        if not endless:
            await answer.aread()
    return answer if not endless else httpx.Response(answer.status_code)


def parsed(data: bytes) -> list[Event]:
    """The events in the bytes of a stream."""
    blocks = [
        dict(line.split(": ", 1) for line in block.splitlines()) for block in data.decode().split("\n\n") if block
    ]
    return [Event(block.get("id"), block["event"], block["data"]) for block in blocks]


@asynccontextmanager
async def scripted_api(
    folder: Path,
    script: Script | None = None,
    *,
    repository: InMemoryRepository | None = None,
    changed: Settings | None = None,
) -> AsyncIterator[Api]:
    """Run a service and its HTTP front for as long as the block lasts."""
    script = script or Script()
    with trio.fail_after(DEADLINE_SECONDS):
        async with (
            open_service(changed or settings(folder), repository=repository, start_engine=script.start) as service,
            trio.open_nursery() as nursery,
        ):
            (url,) = await nursery.start(service.serve_http, ["127.0.0.1:0"])
            async with httpx.AsyncClient(base_url=url, timeout=DEADLINE_SECONDS) as http:
                yield Api(service, urlsplit(url).port or 0, http)
            nursery.cancel_scope.cancel()
