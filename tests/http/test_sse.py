"""One job's stream over a real socket: which id its events have, and what a client gets that comes back with one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import trio

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


@attrs.frozen
class Api:
    """A service over a scripted engine, and its port."""

    service: Service
    port: int

    async def finished(self, seed: int = 1) -> Job:
        return await ended(self.service, (await self.service.submit(request(seed))).id)

    async def stream(self, job_id: str, last: str | None = None) -> list[Event]:
        status, data = await self.raw_stream(job_id, last)
        assert status == 200
        return parsed(data)

    async def raw_stream(self, job_id: str, last: str | None = None) -> tuple[int, bytes]:
        headers = () if last is None else (("Last-Event-ID", last),)
        async with connect(self.port) as client:
            return await client.get(f"/api/v1/jobs/{job_id}/stream", *headers)


def parsed(data: bytes) -> list[Event]:
    blocks = [
        dict(line.split(": ", 1) for line in block.splitlines()) for block in data.decode().split("\n\n") if block
    ]
    return [Event(block.get("id"), block["event"]) for block in blocks]


@asynccontextmanager
async def api(folder: Path, repository: InMemoryRepository | None = None) -> AsyncIterator[Api]:
    with trio.fail_after(DEADLINE_SECONDS):
        async with (
            open_service(settings(folder), repository=repository, start_engine=Script().start) as service,
            trio.open_nursery() as nursery,
        ):
            (url,) = await nursery.start(service.serve_http, ["127.0.0.1:0"])
            yield Api(service, urlsplit(url).port or 0)
            nursery.cancel_scope.cancel()


async def test_client_that_comes_back_with_the_end_gets_204_and_no_body(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        job = await here.finished()
        end = (await here.stream(job.id))[-1].id
        assert await here.raw_stream(job.id, end) == (204, b"")


async def test_terminal_events_id_is_the_same_on_every_open_after_a_restart_and_without_a_log(tmp_path: Path) -> None:
    kept = InMemoryRepository(keep_finished=None)
    async with api(tmp_path, kept) as here:
        job = await here.finished()
        ids = {(await here.stream(job.id, last))[-1].id for last in (None, "unknown")}
    async with api(tmp_path, kept) as here:
        # The new hub has never heard of the job.
        ids |= {(await here.stream(job.id, last))[-1].id for last in (None, "unknown", "0123-4")}
        assert ids == {f"{job.id}-completed"}
        assert await here.raw_stream(job.id, f"{job.id}-completed") == (204, b"")


async def test_job_whose_log_is_gone_gets_the_present_and_its_end(tmp_path: Path) -> None:
    kept = InMemoryRepository(keep_finished=None)
    async with api(tmp_path, kept) as here:
        job = await here.finished()
        before = await here.stream(job.id, "unknown")
    expected = [Event(None, "progress"), Event(f"{job.id}-completed", "complete")]
    async with api(tmp_path, kept) as here:
        assert await here.stream(job.id) == expected
        assert await here.stream(job.id, before[2].id) == expected


async def test_stream_of_a_finished_job_begins_with_the_present_under_the_newest_id_before_the_end(
    tmp_path: Path,
) -> None:
    async with api(tmp_path) as here:
        job = await here.finished()
        *progress, end = await here.stream(job.id, "unknown")
        assert await here.stream(job.id) == [progress[-1], end]
        # Cut off between the two, a client goes on with the end.
        assert await here.stream(job.id, progress[-1].id) == [end]


async def test_another_jobs_end_is_an_unknown_id(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        job, other = await here.finished(1), await here.finished(2)
        events = await here.stream(job.id, "unknown")
        for last in (f"{other.id}-completed", f"{job.id}-failed"):
            assert await here.stream(job.id, last) == events
