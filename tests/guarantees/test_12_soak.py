"""Soak: after many jobs a service holds no more than after a few, and retention removes what it should."""

import gc
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest
import trio

from mflux_api.actors.mailbox import Address
from mflux_api.config import JobSettings, Settings
from mflux_api.errors import JobGone, JobNotFound
from mflux_api.jobs.job import Status
from mflux_api.service import Service, open_service
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support.api_jobs import SMALL, submit, wait_for_end
from tests.support.harness import eventually, gateway, images, request, settings
from tests.support.report import report
from tests.support.scripted_engine import Script
from tests.support.server import api_client, serving

pytestmark = pytest.mark.slow

MIB = 1 << 20
KEEP = 50
LANES = 8
"""Jobs that are followed at the same time."""


@attrs.frozen
class Footprint:
    """What a service holds while it does nothing."""

    rss: int
    tasks: int
    descriptors: int
    queued: int
    """Messages in all mailboxes."""
    in_hand: int
    """Messages that were taken; those answered are forgotten at the next one."""
    live: int
    """Jobs that the scheduler knows."""


class Clock(datetime):
    """A wall clock that can be set."""

    offset = timedelta()

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "Clock":
        return cls.fromisoformat((datetime.now(tz) + cls.offset).isoformat())


def soak_settings(folder: Path) -> Settings:
    return attrs.evolve(settings(folder), jobs=JobSettings(keep_completed=KEEP, ttl_hours=1.0, delete_images=True))


async def generate(service: Service, count: int) -> list[str]:
    """Submit and follow so many jobs to their end, cancelling some; return the ids in their order."""
    ids: list[str] = []

    async def lane(jobs: int) -> None:
        for _ in range(jobs):
            number = len(ids)
            job = await service.submit(request(number))
            ids.append(job.id)
            if number % 10 == 9:
                await service.cancel(job.id)
            ended = await gateway(service).finished(job.id)
            assert ended.status in (Status.COMPLETED, Status.CANCELLED)

    async with trio.open_nursery() as nursery:
        for _ in range(LANES):
            nursery.start_soon(lane, count // LANES)
    return ids


async def footprint(service: Service, script: Script) -> Footprint:
    """Look once everything has come to rest."""
    await eventually(lambda: _idle(service))
    for engine in script.engines:
        # The script's own diary is not the service's.
        engine.received.clear()
    gc.collect()
    to = gateway(service)._to
    addresses: list[Address[Any]] = [to.scheduler, to.store, to.hub, to.downloader, to.stats]
    addresses += [address for engine in to.engines.values() for address in (engine.loader, engine.generator)]
    boxes = [address._mailbox for address in addresses]
    return Footprint(
        rss=psutil.Process().memory_info().rss,
        tasks=trio.lowlevel.current_statistics().tasks_living,
        descriptors=psutil.Process().num_fds(),
        queued=sum(box.queued() for box in boxes),
        in_hand=sum(len(box._in_flight) for box in boxes),
        live=len(await gateway(service).snapshots()),
    )


async def _idle(service: Service) -> bool:
    load = await gateway(service).status()
    return load.active == 0 and load.queued == 0


async def test_many_jobs_leave_everything_flat_and_retention_removes_the_rest(
    tmp_path: Path, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("actors.scheduler.admission", "actors.job_store"):
        monkeypatch.setattr(f"mflux_api.{module}.datetime", Clock)
    monkeypatch.setattr(Clock, "offset", timedelta())
    warm, count = (2000, 20_000) if full else (160, 320)
    options = soak_settings(tmp_path)
    script = Script()
    began = time.monotonic()
    with SqliteRepository(options.state_dir / DATABASE_NAME) as repository:
        async with open_service(options, repository=repository, start_engine=script.start) as service:
            await generate(service, warm)
            before = await footprint(service, script)
            ids = await generate(service, count)
            after = await footprint(service, script)
            report(f"{count} jobs in {time.monotonic() - began:.0f} s: {before} {after}")
            assert after.rss - before.rss < (20 if full else 10) * MIB
            assert (after.tasks, after.queued, after.live) == (before.tasks, before.queued, before.live)
            # The pool of idle worker threads has no descriptors; sockets and files would show here.
            assert after.descriptors <= before.descriptors
            assert after.in_hand <= before.in_hand + 2
            await check_retention(service, tmp_path, ids)


async def check_retention(service: Service, folder: Path, ids: list[str]) -> None:
    """Newest rows and their images are there, older ones are 410, and in the end 404."""
    views, cursor = await gateway(service).jobs(limit=500)
    assert (len(views), cursor) == (KEEP, None)
    shown = {Path(image.path).name for view in views for image in view.job.images}
    assert {name for name in images(folder) if name.endswith(".png")} == shown
    with pytest.raises(JobGone):
        await service.job(ids[0])
    Clock.offset += timedelta(hours=1.5)
    await generate(service, LANES)
    # Rows older than jobs.ttl_hours go, and the tombstones that were that old.
    views, _ = await gateway(service).jobs(limit=500)
    assert len(views) == LANES
    with pytest.raises(JobNotFound):
        await service.job(ids[0])
    with pytest.raises(JobGone):
        await service.job(ids[-1])


def test_many_real_jobs_leave_server_and_engine_flat(tmp_path: Path, full: bool) -> None:
    if not full:
        pytest.skip("only with --full: a few jobs show nothing")
    warm, count = 100, 1000
    config = '[models]\ndefault = "demo"\n[jobs]\nkeep_completed = 20\ndelete_images = true\n'
    with serving(tmp_path, config) as server, api_client(server.url) as client:
        for seed in range(warm):
            wait_for_end(client, submit(client, seed=seed))
        processes = [psutil.Process(server.process.pid), *server.children()]
        before = [(process.memory_info().rss, process.num_fds(), process.num_threads()) for process in processes]
        for seed in range(count):
            if seed % 10 == 0:
                assert client.post("/sdapi/v1/txt2img", json=SMALL | {"seed": seed}).status_code == 200
            else:
                assert wait_for_end(client, submit(client, seed=seed))["status"] == "completed"
        after = [(process.memory_info().rss, process.num_fds(), process.num_threads()) for process in processes]
        growth = [(late[0] - early[0]) / MIB for early, late in zip(before, after, strict=True)]
        report(f"{count} real jobs: server {growth[0]:+.1f} MiB, engine {growth[1]:+.1f} MiB; {before} {after}")
        assert max(growth) < 64
        assert all(late[1] <= early[1] + 3 for early, late in zip(before, after, strict=True))
        assert [process.pid for process in server.children()] == [processes[1].pid]
        assert len(list((tmp_path / "output").rglob("*.png"))) == 20
        assert server.stop() == 0
