"""Named for what a scheduler or a client would see if `job_store.py` did not keep its word."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import attrs
import pytest
import trio
from trio.testing import MockClock

from mflux_api.actors import messages as m
from mflux_api.actors.job_store import CHECKPOINT_JOBS, CHECKPOINT_SECONDS, QUIET_SECONDS, JobStore
from mflux_api.actors.mailbox import Address, Ask, Mailbox, T
from mflux_api.errors import DiskFull, InternalError, InvalidParameter, JobGone
from mflux_api.jobs.job import Failure, InvalidTransition, Job, Status, StoredImage, Timings
from mflux_api.jobs.webhook import Delivery, DeliveryState, Webhook
from mflux_api.storage.image_files import ImageFiles
from mflux_api.storage.in_memory import InMemoryRepository
from mflux_api.storage.repository import Repository
from mflux_api.storage.retention import Retention
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support.crew import a_job, running
from tests.support.harness import run_inline

IMAGE = StoredImage(path="/x.png", seed=1, width=64, height=64, sha256="0" * 64)
DONE = m.Completed(images=(IMAGE,), timings=Timings(total=1.0))
BROKEN = m.Failed(failure=Failure(message="broken", code="GENERATION_FAILED"), progress=0.5)
CANCELLED = m.JobWasCancelled(images=(IMAGE,), progress=0.25)


class _Store:
    def __init__(self, repository: Repository, retention: Retention | None, delivers: bool) -> None:
        self._mailbox: Mailbox[m.StoreMessage] = Mailbox(m.JOB_STORE)
        self._address = Address(self._mailbox, sender=m.SCHEDULER, asks=m.ASK_GRAPH)
        self.run = JobStore(self._mailbox, repository, retention, delivers=delivers).run

    async def __call__(self, message: Ask[T]) -> T:
        return await self._address.ask(message)

    async def insert(self, *, begun: bool = False, webhook: Webhook | None = None) -> Job:
        job = a_job(owner="ana")
        job = attrs.evolve(job, request=attrs.evolve(job.request, webhook=webhook))
        await self(m.Insert(job=job))
        return await self(m.StartJob(job_id=job.id)) if begun else job


@asynccontextmanager
async def a_store(
    repository: Repository | None = None, retention: Retention | None = None, *, delivers: bool = False
) -> AsyncIterator[_Store]:
    store = _Store(repository or InMemoryRepository(), retention, delivers)
    async with running(store.run):
        yield store


async def test_what_was_inserted_can_be_read() -> None:
    async with a_store() as store:
        job = await store.insert()
        assert await store(m.GetJob(job_id=job.id)) == job
        assert await store(m.GetJob(job_id="unknown")) is None


@pytest.mark.parametrize(
    ("outcome", "status"), [(DONE, Status.COMPLETED), (BROKEN, Status.FAILED), (CANCELLED, Status.CANCELLED)]
)
@pytest.mark.parametrize("second", [DONE, BROKEN, CANCELLED])
async def test_the_first_end_of_a_job_wins(outcome: m.Outcome, status: Status, second: m.Outcome) -> None:
    async with a_store() as store:
        job = await store.insert(begun=True)
        first = await store(m.Finish(job_id=job.id, outcome=outcome))
        assert first.status is status
        assert await store(m.Finish(job_id=job.id, outcome=second)) == first
        assert await store(m.GetJob(job_id=job.id)) == first
        assert (await store(m.GetTotals())).generations == (status is Status.COMPLETED)


async def test_an_end_keeps_what_was_generated_and_how_far_it_came() -> None:
    async with a_store() as store:
        one, two = await store.insert(begun=True), await store.insert(begun=True)
        cancelled = await store(m.Finish(job_id=one.id, outcome=CANCELLED))
        assert (cancelled.images, cancelled.progress) == ((IMAGE,), 0.25)
        failed = await store(m.Finish(job_id=two.id, outcome=BROKEN))
        assert failed.failure == BROKEN.failure
        assert failed.completed_at is not None


async def test_beginning_a_cancelled_job_is_the_askers_error_and_the_store_lives_on() -> None:
    async with a_store() as store:
        job = await store.insert()
        await store(m.Finish(job_id=job.id, outcome=m.JobWasCancelled()))
        with pytest.raises(InvalidTransition):
            await store(m.StartJob(job_id=job.id))
        with pytest.raises(InvalidTransition):
            await store(m.Requeue(job_id=job.id))
        with pytest.raises(InvalidTransition):
            await store(m.StartJob(job_id="unknown"))
        assert (await store(m.StartJob(job_id=(await store.insert()).id))).status is Status.GENERATING


async def test_a_requeue_counts_whose_death_it_was() -> None:
    async with a_store() as store:
        job = await store.insert(begun=True)
        job = await store(m.Requeue(job_id=job.id, engine_died=True))
        assert (job.status, job.engine_deaths, job.service_deaths) == (Status.QUEUED, 1, 0)
        await store(m.StartJob(job_id=job.id))
        job = await store(m.Requeue(job_id=job.id, service_died=True))
        assert (job.engine_deaths, job.service_deaths) == (1, 1)


async def test_the_unfinished_are_listed_oldest_first() -> None:
    async with a_store() as store:
        queued, running_, done = await store.insert(), await store.insert(begun=True), await store.insert(begun=True)
        await store(m.Finish(job_id=done.id, outcome=DONE))
        assert await store(m.Unfinished()) == (queued, running_)


async def test_a_listing_pages_newest_first_without_gap_or_double() -> None:
    async with a_store() as store:
        jobs = [await store.insert(begun=number % 3 == 0) for number in range(10)]
        for status in (None, Status.QUEUED, Status.GENERATING):
            listed: list[Job] = []
            cursor, pages = None, 0
            while pages == 0 or cursor is not None:
                page = await store(m.ListJobs(limit=3, cursor=cursor, status=status))
                assert len(page.jobs) <= 3
                listed.extend(page.jobs)
                cursor, pages = page.next_cursor, pages + 1
            assert listed == [job for job in reversed(jobs) if status in (None, job.status)]


async def test_a_cursor_of_no_page_is_the_askers_error_and_the_store_lives_on() -> None:
    async with a_store() as store:
        job = await store.insert()
        with pytest.raises(InvalidParameter) as raised:
            await store(m.ListJobs(limit=3, cursor="nonsense"))
        assert raised.value.details["field"] == "cursor"
        assert (await store(m.ListJobs(limit=3))).jobs == (job,)


class _Counted(InMemoryRepository):
    def __init__(self) -> None:
        super().__init__(keep_finished=None)
        self.checkpoints = 0

    def checkpoint(self) -> None:
        self.checkpoints += 1


async def test_finished_jobs_are_in_the_main_file_soon_in_quiet_times_and_after_so_many_else(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)
    repository = _Counted()
    async with a_store(repository) as store:
        job = await store.insert(begun=True)
        assert repository.checkpoints == 0
        await store(m.Finish(job_id=job.id, outcome=DONE))
        await store(m.GetTotals())
        # The next job may be on its way, and does not wait for it.
        assert repository.checkpoints == 0
        await trio.sleep(1.5 * QUIET_SECONDS)
        assert repository.checkpoints == 1
        jobs = [await store.insert(begun=True) for _ in range(2 * CHECKPOINT_JOBS)]
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(store, m.Finish(job_id=job.id, outcome=DONE))
        await store(m.GetTotals())
        assert repository.checkpoints == 3


async def test_accepted_job_is_in_the_main_file_within_a_second_also_while_the_store_is_asked_all_the_time(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)
    repository = _Counted()
    async with a_store(repository) as store:
        await store.insert()
        assert repository.checkpoints == 0
        with trio.move_on_after(1.5 * CHECKPOINT_SECONDS):
            while True:
                await store(m.GetTotals())
                await trio.sleep(CHECKPOINT_SECONDS / 10)
        assert repository.checkpoints == 1
        await store.insert()
        await trio.sleep(1.5 * CHECKPOINT_SECONDS)
        assert repository.checkpoints == 2


async def test_log_that_fills_the_disk_is_written_into_the_main_file(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins anew then, and takes no more room; without that every job waited for ever."""
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)
    repository = _Counted()
    async with a_store(repository) as store:
        job = await store.insert(begun=True)
        await trio.sleep(2 * CHECKPOINT_SECONDS)
        before = repository.checkpoints
        with monkeypatch.context() as patched:
            patched.setattr(repository, "replace", Mock(side_effect=DiskFull("No space left")))
            with pytest.raises(DiskFull):
                await store(m.Finish(job_id=job.id, outcome=DONE))
        await trio.sleep(2 * CHECKPOINT_SECONDS)
        assert repository.checkpoints == before + 1


async def test_new_store_beside_old_images_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = ImageFiles(tmp_path / "output")
    retention = Retention(keep=9, ttl=timedelta.max, files=files)
    for name, expected in (("notes.txt", 0), ("0123456789ab-0.png", 1)):
        file = files.folder / "2026-01-01" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
        caplog.clear()
        with SqliteRepository(tmp_path / name / DATABASE_NAME) as repository:
            async with a_store(repository, retention) as store:
                await store.insert()
            assert caplog.text.count("the job store is new, so the images that are in generation") == expected
            caplog.clear()
            async with a_store(repository, retention):
                assert "the job store is new" not in caplog.text


WEBHOOK = Webhook(url="https://a.example/")
DELIVERED = Delivery(state=DeliveryState.DELIVERED, attempts=1)


async def test_count_is_that_of_the_owner_and_of_all_also_after_a_restart() -> None:
    repository = InMemoryRepository()
    async with a_store(repository, delivers=True) as store:
        for _ in range(2):
            await store(m.Finish(job_id=(await store.insert(begun=True, webhook=WEBHOOK)).id, outcome=DONE))
        await store(m.Finish(job_id=(await store.insert(begun=True)).id, outcome=DONE))
    async with a_store(repository, delivers=True) as store:
        assert await store(m.CountDeliveries(owner="ana")) == m.DeliveryCounts(of_owner=2, in_all=2)
        assert await store(m.CountDeliveries(owner="bob")) == m.DeliveryCounts(of_owner=0, in_all=2)
        first, _ = await store(m.GetUndelivered())
        await store(m.RecordDelivery(job_id=first.id, delivery=DELIVERED))
        await store(m.RecordDelivery(job_id="unknown", delivery=DELIVERED))
        assert await store(m.CountDeliveries(owner="ana")) == m.DeliveryCounts(of_owner=1, in_all=1)
        assert (await store(m.GetJob(job_id=first.id))) == attrs.evolve(first, delivery=DELIVERED)


@pytest.mark.parametrize("delivers", [True, False])
async def test_retention_waits_for_the_delivery_where_there_is_one(tmp_path: Path, delivers: bool) -> None:
    keeps_none = Retention(keep=0, ttl=timedelta.max, files=ImageFiles(tmp_path))
    async with a_store(retention=keeps_none, delivers=delivers) as store:
        job = await store.insert(begun=True, webhook=WEBHOOK)
        await store(m.Finish(job_id=job.id, outcome=DONE))
        if not delivers:
            with pytest.raises(JobGone):
                await store(m.GetJob(job_id=job.id))
            return
        assert await store(m.GetJob(job_id=job.id)) is not None
        await store(m.RecordDelivery(job_id=job.id, delivery=DELIVERED))
        await store(m.Finish(job_id=(await store.insert(begun=True)).id, outcome=DONE))
        with pytest.raises(JobGone):
            await store(m.GetJob(job_id=job.id))


class Unreadable(InMemoryRepository):
    def owners_of_undelivered(self) -> Mapping[str, str]:
        raise InternalError("The job database cannot be read")


async def test_nothing_expires_while_it_cannot_be_read_what_is_to_be_delivered(tmp_path: Path) -> None:
    keeps_none = Retention(keep=0, ttl=timedelta.max, files=ImageFiles(tmp_path))
    async with a_store(Unreadable(), keeps_none, delivers=True) as store:
        job = await store.insert(begun=True)
        await store(m.Finish(job_id=job.id, outcome=DONE))
        assert await store(m.GetJob(job_id=job.id)) is not None
        with pytest.raises(InternalError):
            await store(m.CountDeliveries(owner="ana"))
