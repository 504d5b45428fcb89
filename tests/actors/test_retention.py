"""Retention under a running service: no caller loses what it is about to read."""

from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest
import trio
import trio.testing

from mflux_api.access.keys import PROGRAM
from mflux_api.actors.job_store import EXPIRE_SECONDS, UNREAD_SECONDS
from mflux_api.config import JobSettings
from mflux_api.errors import JobGone, JobNotFound
from mflux_api.http.synchronous import run_job, run_jobs
from mflux_api.jobs.job import Status
from mflux_api.jobs.progress import Finished
from mflux_api.service import open_service
from tests.support.harness import (
    DEADLINE_SECONDS,
    ended,
    eventually,
    gateway,
    images,
    request,
    run_inline,
    scripted_service,
    settings,
    settled,
)
from tests.support.scripted_engine import Hold, Script


@pytest.mark.parametrize(("keep", "ttl_hours"), [(0, 1.0), (1000, 0.0), (2, 1.0)])
async def test_synchronous_caller_reads_its_results_however_few_records_are_kept(
    tmp_path: Path, keep: int, ttl_hours: float
) -> None:
    base = settings(tmp_path)
    kept = JobSettings(keep_completed=keep, ttl_hours=ttl_hours, delete_images=True)
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_service(attrs.evolve(base, jobs=kept), start_engine=Script().start) as service:
            of = gateway(service)
            async with run_jobs(of, [request(seed) for seed in range(5)], caller=PROGRAM) as ran:
                jobs = [each.job for each in ran]
                assert [job.status for job in jobs] == [Status.COMPLETED] * 5
                for job in jobs:
                    assert await of.image_bytes(job.images[0])
                    assert (await service.job(job.id)).status is Status.COMPLETED
            # Read: now they go.
            await eventually(lambda: len(images(tmp_path)) == (keep if ttl_hours else 0))
            with pytest.raises((JobGone, JobNotFound)):
                await service.job(jobs[0].id)


@pytest.mark.parametrize("hears", ["result", "events", "cancel"])
async def test_record_of_an_embedding_programs_synchronous_job_goes_when_its_end_was_told(
    tmp_path: Path, hears: str
) -> None:
    async with scripted_service(tmp_path, Script(), keep=0) as service:
        job = await service.submit(request(), synchronous=True)
        # Another that looks on leaves it to its caller.
        await gateway(service).finished(job.id)
        assert (await service.job(job.id)).status is Status.COMPLETED
        if hears == "result":
            await service.result(job.id)
        elif hears == "cancel":
            await service.cancel(job.id)
        else:
            async with service.events(job.id) as events:
                assert isinstance([event async for event in events][-1], Finished)

        await eventually(lambda: settled(service, 0))


async def test_record_of_a_synchronous_caller_that_left_goes(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"step 0/1": hold}), keep=0) as service:
        with trio.CancelScope() as caller:
            async with trio.open_nursery() as nursery:

                async def call() -> None:
                    async with run_job(gateway(service), request(), caller=PROGRAM):
                        raise AssertionError("it was cancelled before its end")

                nursery.start_soon(call)
                await hold.reached.wait()
                caller.cancel()

        await eventually(lambda: settled(service, 0))
        hold.release.set()


async def test_record_of_a_synchronous_job_goes_though_its_caller_never_says_that_it_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """A program that embeds the service need not: for ever, its jobs would pile up."""
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)
    async with open_service(settings(tmp_path, keep=0), start_engine=Script().start) as service:
        job = await service.submit(request(), synchronous=True)
        await trio.sleep(UNREAD_SECONDS / 2)
        assert (await service.job(job.id)).status is Status.COMPLETED
        await trio.sleep(UNREAD_SECONDS / 2 + EXPIRE_SECONDS)
        with pytest.raises((JobGone, JobNotFound)):
            await service.job(job.id)


async def test_follower_of_a_job_that_expires_at_its_end_gets_the_end(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"step 0/1": hold}), keep=0) as service:
        job = await service.submit(request())
        await hold.reached.wait()
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                assert (await ended(service, job.id)).status is Status.COMPLETED

            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked(0.05)
            hold.release.set()


class Clock(datetime):
    """A wall clock that can be set."""

    offset = timedelta()

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "Clock":
        return cls.fromisoformat((datetime.now(tz) + cls.offset).isoformat())


async def test_clock_that_is_set_forward_by_a_year_lets_retention_take_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mflux_api.actors.job_store.datetime", Clock)
    monkeypatch.setattr(Clock, "offset", timedelta())
    async with scripted_service(tmp_path, Script()) as service:
        first = await ended(service, (await service.submit(request(1))).id)
        Clock.offset = timedelta(days=365)
        second = await ended(service, (await service.submit(request(2))).id)
        third = await ended(service, (await service.submit(request(3))).id)
        assert third.completed_at is not None
        assert third.completed_at > datetime.now(UTC) + timedelta(days=360)
        for job in (first, second, third):
            assert await service.job(job.id) == job


async def test_images_beyond_the_limit_go_but_not_those_of_a_running_job(tmp_path: Path) -> None:
    base, hold = settings(tmp_path), Hold()
    limited = attrs.evolve(base, jobs=attrs.evolve(base.jobs, max_images_gb=1e-9))
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_service(limited, start_engine=Script(at={"step 1/1": hold}).start) as service:
            running = await service.submit(request(1, num_images=2))
            await hold.reached.wait()
            mine = f"{running.id}-0.png"
            await eventually(lambda: images(tmp_path) == [mine])
            (folder,) = (tmp_path / "output").iterdir()
            (folder / "0123456789ab-0.png").write_bytes(b"an old image")
            other = await service.submit(request(2))
            await service.cancel(other.id)
            await eventually(lambda: images(tmp_path) == [mine])
            hold.release.set()
            await ended(service, running.id)
            await eventually(lambda: images(tmp_path) == [])


async def test_uptime_goes_by_a_clock_that_cannot_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("mflux_api.actors.stats.time", SimpleNamespace(monotonic=lambda: now))
    async with scripted_service(tmp_path, Script()) as service:
        now += 7200.0
        assert (await gateway(service).counters()).uptime_seconds == 7200.0
