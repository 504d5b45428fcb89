"""A store that cannot write for a while: every caller gets an answer at once, and no end is lost."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mflux_api.access.keys import PROGRAM
from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Address
from mflux_api.actors.scheduler.endings import STORE_RETRY_SECONDS
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.errors import DiskFull, InternalError, ServiceError
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.synchronous import run_job
from mflux_api.jobs import job as jobs
from mflux_api.jobs.idempotency import IdempotencyKey
from mflux_api.jobs.job import Job, Status
from mflux_api.service import Service, open_service
from mflux_api.storage.in_memory import InMemoryRepository
from tests.support.actor_crashes import crash, provoke
from tests.support.harness import RESOLVED, ended, eventually, gateway, request, run_inline, seeds_run, settings
from tests.support.scripted_engine import Hold, Script

ANSWER_SECONDS = 0.5
"""Virtual time in which an answer counts as given at once: less than what lies between two tries."""

DISK_FULL, REMOVED = DiskFull("scripted"), InternalError("The job database was removed")


class Disk(InMemoryRepository):
    """A store on a disk that may refuse to write; like SQLite's it writes a synchronous job's start and its end."""

    def __init__(self) -> None:
        super().__init__(keep_finished=None)
        self.refuses: ServiceError | None = None
        self.unreadable: ServiceError | None = None

    def insert(self, job: Job, key: IdempotencyKey | None = None) -> None:
        if self.refuses is not None and not job.synchronous:
            raise self.refuses
        super().insert(job, key)

    def replace(self, job: Job) -> None:
        if self.refuses is not None and not (job.synchronous and job.status is Status.QUEUED):
            raise self.refuses
        super().replace(job)

    def unfinished(self) -> tuple[Job, ...]:
        if self.unreadable is not None:
            raise self.unreadable
        return super().unfinished()


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)


@asynccontextmanager
async def on_disk(folder: Path, disk: Disk, script: Script) -> AsyncIterator[Service]:
    with trio.fail_after(60):
        async with open_service(settings(folder), repository=disk, start_engine=script.start) as service:
            yield service


async def answer_of_synchronous_call(of: Gateway, seed: int) -> str:
    """The code of the error that a synchronous call gets."""
    with pytest.raises(ServiceError) as raised:
        async with run_job(of, request(seed), caller=PROGRAM):
            pass
    return raised.value.code


@pytest.mark.parametrize("trouble", [DISK_FULL, REMOVED])
async def test_delete_of_a_waiting_job_is_answered_while_the_disk_is_full_and_told_when_it_is_not(
    tmp_path: Path, autojump_clock: MockClock, trouble: ServiceError
) -> None:
    hold, disk = Hold(), Disk()
    async with on_disk(tmp_path, disk, Script(at={"step 0/1": hold})) as service:
        await service.submit(request(1))
        waiting = await service.submit(request(2))
        await hold.reached.wait()
        disk.refuses = trouble
        for _ in range(2):
            with trio.fail_after(ANSWER_SECONDS), pytest.raises(type(trouble)) as raised:
                await service.cancel(waiting.id)
            assert raised.value.code == trouble.code
        with trio.move_on_after(5 * STORE_RETRY_SECONDS):
            await ended(service, waiting.id)
            pytest.fail("an end was told that is not written")
        disk.refuses = None
        assert (await ended(service, waiting.id)).status is Status.CANCELLED
        assert (await service.cancel(waiting.id)).status is Status.CANCELLED
        hold.release.set()


async def test_synchronous_callers_are_answered_while_the_disk_is_full_wherever_their_jobs_are(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """One job runs, two wait behind an asynchronous one, and one comes later."""
    hold, disk = Hold(), Disk()
    async with on_disk(tmp_path, disk, Script(at={"step 0/1": hold})) as service, trio.open_nursery() as nursery:
        codes: list[str] = []

        async def call(seed: int) -> None:
            codes.append(await answer_of_synchronous_call(gateway(service), seed))

        nursery.start_soon(call, 1)
        await hold.reached.wait()
        asynchronous = await service.submit(request(2))
        nursery.start_soon(call, 3)
        nursery.start_soon(call, 4)
        await trio.sleep(0.1)
        disk.refuses = DISK_FULL
        hold.release.set()
        with trio.fail_after(ANSWER_SECONDS):
            await eventually(lambda: len(codes) == 3)
        await call(5)
        assert codes == ["DISK_FULL"] * 4
        disk.refuses = None
        assert (await ended(service, asynchronous.id)).status is Status.COMPLETED
        await trio.sleep(2 * STORE_RETRY_SECONDS)
        status = await gateway(service).status()
        assert (status.active, status.queued, status.store_trouble) == (0, 0, None)
        assert disk.unfinished() == ()


@pytest.mark.parametrize("trouble", [DISK_FULL, REMOVED])
async def test_log_says_once_that_new_jobs_are_refused(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, trouble: ServiceError
) -> None:
    disk = Disk()
    async with on_disk(tmp_path, disk, Script()) as service:
        for times in (1, 2):
            disk.refuses = trouble
            for seed in range(3):
                with pytest.raises(type(trouble)):
                    await service.submit(request(seed))
            assert caplog.messages.count(f"new jobs are refused: {trouble.message}") == times
            disk.refuses = None
            await ended(service, (await service.submit(request(9))).id)


async def test_synchronous_call_does_not_wait_behind_a_long_job_for_a_disk_that_is_known_to_be_full(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    hold, disk = Hold(), Disk()
    async with on_disk(tmp_path, disk, Script(at={"step 0/1": hold})) as service:
        await service.submit(request(1))
        waiting = await service.submit(request(2))
        await hold.reached.wait()
        disk.refuses = DISK_FULL
        with pytest.raises(DiskFull):
            await service.cancel(waiting.id)
        with trio.fail_after(ANSWER_SECONDS):
            assert await answer_of_synchronous_call(gateway(service), 3) == "DISK_FULL"
        disk.refuses = None
        await ended(service, waiting.id)
        hold.release.set()
        async with run_job(gateway(service), request(4), caller=PROGRAM) as ran:
            assert ran.job.status is Status.COMPLETED


@pytest.mark.parametrize("asked", ["write", "read"])
async def test_start_on_a_full_disk_with_a_job_left_generating_serves_and_says_so(
    tmp_path: Path, autojump_clock: MockClock, asked: str
) -> None:
    now = datetime.now(UTC)
    disk, script = Disk(), Script()
    left = jobs.start(Job(id="0123456789ab", request=RESOLVED, created_at=now), now)
    disk.insert(left)
    disk.refuses, disk.unreadable = DISK_FULL, (DISK_FULL if asked == "read" else None)
    async with on_disk(tmp_path, disk, script) as service:
        status = await gateway(service).status()
        assert (status.degraded, status.store_trouble) == (True, "scripted")
        with trio.fail_after(ANSWER_SECONDS), pytest.raises(DiskFull):
            await service.submit(request())
        await trio.sleep(3 * STORE_RETRY_SECONDS)
        disk.refuses = disk.unreadable = None
        job = await gateway(service).finished(left.id)
        assert (job.status, job.service_deaths) == (Status.COMPLETED, 1)
        status = await gateway(service).status()
        assert (status.degraded, status.store_trouble) == (False, None)


async def test_job_left_generating_on_a_full_disk_can_be_cancelled(tmp_path: Path, autojump_clock: MockClock) -> None:
    now = datetime.now(UTC)
    disk = Disk()
    left = jobs.start(Job(id="0123456789ab", request=RESOLVED, created_at=now), now)
    disk.insert(left)
    disk.refuses = DISK_FULL
    async with on_disk(tmp_path, disk, Script()) as service:
        with trio.fail_after(ANSWER_SECONDS), pytest.raises(DiskFull):
            await service.cancel(left.id)
        disk.refuses = None
        assert (await ended(service, left.id)).status is Status.CANCELLED


async def test_drain_does_not_run_a_job_whose_start_cannot_be_stored(tmp_path: Path, autojump_clock: MockClock) -> None:
    hold, disk = Hold(), Disk()
    script = Script(at={"step 0/1": hold})
    async with on_disk(tmp_path, disk, script) as service, trio.open_nursery() as nursery:
        first, second = await service.submit(request(1)), await service.submit(request(2))
        await hold.reached.wait()
        disk.refuses = DISK_FULL
        hold.release.set()
        await trio.sleep(STORE_RETRY_SECONDS / 2)
        nursery.start_soon(service.drain)
        await trio.sleep(2 * STORE_RETRY_SECONDS)
        disk.refuses = None
        assert (await ended(service, first.id)).status is Status.COMPLETED
        await trio.sleep(2 * STORE_RETRY_SECONDS)
        assert (await service.job(second.id)).status is Status.QUEUED
        assert seeds_run(script) == [1]


# --- a start that goes on without having read the unfinished jobs ---


async def test_caller_of_a_synchronous_job_is_answered_when_a_restarted_scheduler_cannot_read_the_store(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    hold, disk = Hold(), Disk()
    script = Script(at={"step 0/1": hold})
    async with on_disk(tmp_path, disk, script) as service, trio.open_nursery() as nursery:
        codes: list[str] = []

        async def call() -> None:
            codes.append(await answer_of_synchronous_call(gateway(service), 1))

        nursery.start_soon(call)
        await hold.reached.wait()
        disk.unreadable = REMOVED
        with crash(JobQueue, "snapshots"):
            await provoke(gateway(service).snapshots)
        with trio.fail_after(ANSWER_SECONDS):
            await eventually(lambda: bool(codes))
        assert codes == [REMOVED.code]
        disk.unreadable = None
        await trio.sleep(3 * STORE_RETRY_SECONDS)
        # Its caller has gone, so it does not run again.
        assert seeds_run(script) == [1]
        assert disk.unfinished() == ()


async def test_delete_of_a_job_that_the_scheduler_could_not_read_yet_does_not_answer_that_it_waits(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    disk = Disk()
    disk.insert(Job(id="0123456789ab", request=RESOLVED, created_at=datetime.now(UTC)))
    disk.unreadable = REMOVED
    async with on_disk(tmp_path, disk, Script()) as service:
        with trio.fail_after(ANSWER_SECONDS), pytest.raises(InternalError):
            await service.cancel("0123456789ab")


@pytest.mark.parametrize("status", [Status.QUEUED, Status.GENERATING])
async def test_job_that_is_cancelled_in_the_moment_it_is_taken_up_again_is_cancelled(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    status: Status,
) -> None:
    now = datetime.now(UTC)
    disk, hold = Disk(), Hold()
    left = Job(id="0123456789ab", request=RESOLVED, created_at=now)
    disk.insert(left if status is Status.QUEUED else jobs.start(left, now))
    disk.unreadable = REMOVED
    tell = Address.tell

    async def telling(self: Address[Any], message: Any, *, control: bool = False) -> None:
        if isinstance(message, m.Publish) and not hold.reached.is_set():
            hold.reached.set()
            await hold.release.wait()
        await tell(self, message, control=control)

    monkeypatch.setattr(Address, "tell", telling)
    async with on_disk(tmp_path, disk, Script()) as service, trio.open_nursery() as nursery:
        answers: list[Status] = []

        async def cancel() -> None:
            answers.append((await service.cancel(left.id)).status)

        disk.unreadable = None
        await hold.reached.wait()
        nursery.start_soon(cancel)
        await trio.sleep(STORE_RETRY_SECONDS)
        hold.release.set()
        await eventually(lambda: answers == [Status.CANCELLED])
    assert "failed" not in caplog.text, "an actor met a state that cannot be"
