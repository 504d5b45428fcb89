"""How jobs end while other things happen: a halt, a drain, a restart, a job before them that is still being saved."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Address, Ask
from mflux_api.actors.scheduler.endings import Endings
from mflux_api.actors.scheduler.job_runner import JobRunner, Ran
from mflux_api.actors.scheduler.scheduler import MAX_SAVING
from mflux_api.engine.protocol import ImageDone
from mflux_api.errors import DiskFull, GenerationFailed
from mflux_api.jobs.job import Job, Status, StoredImage, Timings
from mflux_api.jobs.progress import Finished
from mflux_api.service import Service
from tests.support.harness import ended, gateway, images, request, run_inline, seeds_run, service_of
from tests.support.scripted_engine import Hold, Script

PATIENCE_SECONDS = 60.0
"""Of virtual time."""


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)


@asynccontextmanager
async def one_engine(folder: Path, script: Script) -> AsyncIterator[Service]:
    with trio.fail_after(PATIENCE_SECONDS):
        async with service_of(folder, {"0": script}) as service:
            yield service


def hold_questions(
    patch: pytest.MonkeyPatch, kind: type[Ask[Any]], *, fails: Callable[[], Exception] | None = None
) -> Hold:
    """Hold every question of a kind before it is sent; then it may fail instead."""
    hold = Hold()
    ask = Address.ask

    async def asking(self: Address[Any], message: Ask[Any], *, control: bool = False) -> Any:
        if isinstance(message, kind):
            hold.reached.set()
            await hold.release.wait()
            if fails is not None:
                raise fails()
        return await ask(self, message, control=control)

    patch.setattr(Address, "ask", asking)
    return hold


def hold_saving(patch: pytest.MonkeyPatch, *seeds: int) -> dict[int, Hold]:
    """Hold the saving of the images with those seeds."""
    holds = {seed: Hold() for seed in seeds}
    save = JobRunner._save

    async def saving(self: JobRunner, attempt: Any, image: ImageDone, rgb: bytes) -> StoredImage:
        hold = holds.get(image.seed)
        if hold is not None:
            hold.reached.set()
            await hold.release.wait()
        return await save(self, attempt, image, rgb)

    patch.setattr(JobRunner, "_save", saving)
    return holds


class Draining:
    """A drain in a task of its own."""

    def __init__(self, service: Service, *, halt: bool) -> None:
        self.done = trio.Event()
        self._service, self._halt = service, halt

    async def run(self) -> None:
        await self._service.drain(halt=self._halt)
        self.done.set()


# --- drain and halt ---


@pytest.mark.parametrize("halt", [False, True])
async def test_drain_waits_for_a_job_that_is_just_ending_and_a_halt_lets_it_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, halt: bool
) -> None:
    hold = hold_questions(monkeypatch, m.Finish)
    async with one_engine(tmp_path, Script()) as service, trio.open_nursery() as nursery:
        job = await service.submit(request())
        await hold.reached.wait()
        draining = Draining(service, halt=halt)
        nursery.start_soon(draining.run)
        await trio.sleep(1.0)
        assert not draining.done.is_set()
        hold.release.set()
        await trio.sleep(1.0)
        assert draining.done.is_set()
        ended_job = await service.job(job.id)
        assert (ended_job.status, ended_job.service_deaths, len(ended_job.images)) == (Status.COMPLETED, 0, 1)


@pytest.mark.parametrize("halt", [False, True])
async def test_drain_waits_for_a_job_that_is_being_saved_and_a_halt_lets_it_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, halt: bool
) -> None:
    hold = hold_saving(monkeypatch, 5)[5]
    async with one_engine(tmp_path, Script()) as service, trio.open_nursery() as nursery:
        job = await service.submit(request(5))
        await hold.reached.wait()
        await trio.sleep(1.0)
        draining = Draining(service, halt=halt)
        nursery.start_soon(draining.run)
        await trio.sleep(1.0)
        assert not draining.done.is_set()
        hold.release.set()
        await trio.sleep(1.0)
        assert draining.done.is_set()
        assert (await service.job(job.id)).status is Status.COMPLETED
        assert images(tmp_path) == [f"{job.id}-0.png"]


@pytest.mark.parametrize("outcome", [GenerationFailed("scripted"), Ran(timings=Timings(), device="cpu")])
async def test_attempt_that_ends_in_the_moment_of_a_halt_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, outcome: GenerationFailed | Ran
) -> None:
    """Its task has been cancelled, and must not begin an end that it cannot commit."""
    hold = Hold()

    async def run(*_: object) -> Ran:
        hold.reached.set()
        with trio.CancelScope(shield=True):
            await hold.release.wait()
        if isinstance(outcome, GenerationFailed):
            raise outcome
        return outcome

    monkeypatch.setattr(JobRunner, "run", run)
    async with one_engine(tmp_path, Script()) as service, trio.open_nursery() as nursery:
        job = await service.submit(request())
        await hold.reached.wait()
        draining = Draining(service, halt=True)
        nursery.start_soon(draining.run)
        await wait_all_tasks_blocked()
        hold.release.set()
        await trio.sleep(1.0)
        assert draining.done.is_set()
        assert (await service.job(job.id)).status is Status.QUEUED
        assert (await service.cancel(job.id)).status is Status.CANCELLED


async def test_drain_is_answered_when_the_job_it_waits_for_could_not_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    hold = hold_questions(monkeypatch, m.Insert, fails=lambda: DiskFull("scripted"))
    async with one_engine(tmp_path, Script()) as service, trio.open_nursery() as nursery:

        async def submit() -> None:
            with pytest.raises(DiskFull):
                await gateway(service).submit(request(), synchronous=True)

        nursery.start_soon(submit)
        await hold.reached.wait()
        draining = Draining(service, halt=False)
        nursery.start_soon(draining.run)
        await trio.sleep(1.0)
        assert not draining.done.is_set(), "its caller needs an answer"
        hold.release.set()
        await trio.sleep(1.0)
        assert draining.done.is_set()


# --- a restart ---


async def test_end_that_was_committed_and_not_told_is_told_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    store = Endings.change
    crashes = 0

    async def store_and_crash(self: Endings, message: Callable[[], m.ChangeJob]) -> Job:
        nonlocal crashes
        job = await store(self, message)
        if job.status.terminal and not crashes:
            crashes += 1
            raise ZeroDivisionError("injected")
        return job

    begin = Hold()
    async with one_engine(tmp_path, Script(at={"run": begin})) as service:
        job = await service.submit(request())
        await begin.reached.wait()
        # Not through the gateway: it would look at the row itself in the end.
        monkeypatch.setattr(Endings, "change", store_and_crash)
        subscription = await gateway(service)._to.hub.ask(m.Subscribe(job_id=job.id))
        begin.release.set()
        events = [entry.event async for entry in subscription.channel]
        assert crashes == 1
        assert isinstance(events[-1], Finished)
        assert (events[-1].job.status, events[-1].job.service_deaths) == (Status.COMPLETED, 0)


# --- one job after another ---


async def test_jobs_of_one_engine_end_in_the_order_in_which_they_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    hold = hold_saving(monkeypatch, 1)[1]
    script = Script()
    async with one_engine(tmp_path, script) as service:
        first, second = await service.submit(request(1)), await service.submit(request(2))
        await hold.reached.wait()
        await trio.sleep(1.0)
        assert seeds_run(script) == [1, 2], "the engine goes on meanwhile"
        assert f"{second.id}-0.png" in images(tmp_path)
        assert [(await service.job(job.id)).status for job in (first, second)] == [Status.GENERATING] * 2
        hold.release.set()
        ends = [await ended(service, job.id) for job in (first, second)]
        assert [job.status for job in ends] == [Status.COMPLETED] * 2
        assert ends[0].completed_at is not None
        assert ends[1].completed_at is not None
        assert ends[0].completed_at <= ends[1].completed_at


@pytest.mark.parametrize("fate", ["cancelled", "failed"])
async def test_job_whose_predecessor_does_not_complete_ends_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, fate: str
) -> None:
    hold = hold_saving(monkeypatch, 1)[1]
    async with one_engine(tmp_path, Script()) as service:
        first, second = await service.submit(request(1)), await service.submit(request(2))
        await hold.reached.wait()
        await trio.sleep(1.0)
        if fate == "cancelled":
            await service.cancel(first.id)
        else:
            monkeypatch.setattr("mflux_api.storage.image_files.ImageFiles.save", no_space)
            hold.release.set()
        assert (await ended(service, second.id)).status is Status.COMPLETED
        assert (await ended(service, first.id)).status.value == fate


def no_space(*_: object, **__: object) -> StoredImage:
    raise OSError(28, "scripted")


async def test_so_many_jobs_of_one_engine_are_saved_at_once_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    seeds = range(1, MAX_SAVING + 4)
    holds = hold_saving(monkeypatch, *seeds)
    script = Script()
    async with one_engine(tmp_path, script) as service:
        jobs = [await service.submit(request(seed)) for seed in seeds]
        for seed in seeds:
            await holds[seed].reached.wait()
            await trio.sleep(1.0)
            running = min(seed + MAX_SAVING - 1, len(jobs))
            assert seeds_run(script) == list(seeds)[:running]
            holds[seed].release.set()
        assert [(await ended(service, job.id)).status for job in jobs] == [Status.COMPLETED] * len(jobs)
