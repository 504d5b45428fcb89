"""The scheduler in a whole service over scripted engines: order, admission, retries, cancellation."""

import errno
import itertools
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mflux_api.actors import messages as m
from mflux_api.actors.scheduler import endings
from mflux_api.errors import DiskFull, EngineUnavailable, QueueFull, ShuttingDown
from mflux_api.jobs.idempotency import IdempotencyKey
from mflux_api.jobs.job import Job, Status, StoredImage
from mflux_api.jobs.progress import Progress
from mflux_api.storage.image_files import ImageFiles
from mflux_api.storage.in_memory import InMemoryRepository
from tests.support.harness import (
    ended,
    eventually,
    gateway,
    images,
    request,
    rgb,
    run_inline,
    scripted_service,
    seeds_run,
)
from tests.support.scripted_engine import Crash, Fail, Hold, Script, pixels

# --- order and admission -------------------------------------------------------------------------------------------


async def test_jobs_run_in_the_order_in_which_they_were_accepted(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"run": hold})
    places: dict[int, int] = {}
    async with scripted_service(tmp_path, script) as service:
        first = await service.submit(request(0))
        await hold.reached.wait()
        async with trio.open_nursery() as nursery:

            async def submit(seed: int) -> None:
                accepted = await gateway(service).submit(request(seed))
                places[accepted.position] = seed
                nursery.start_soon(ended, service, accepted.job.id)

            for seed in range(1, 31):
                nursery.start_soon(submit, seed)
            await eventually(lambda: len(places) == 30)
            hold.release.set()
        await ended(service, first.id)
    assert sorted(places) == list(range(1, 31))
    assert seeds_run(script) == [0, *(places[place] for place in sorted(places))]


async def test_queue_full_counts_only_what_waits(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"run": hold}), max_queue=2) as service:
        await service.submit(request())
        await hold.reached.wait()
        waiting = [await service.submit(request()) for _ in range(2)]
        with pytest.raises(QueueFull) as caught:
            await service.submit(request())
        assert caught.value.details == {"max_queue": 2}
        await service.cancel(waiting[0].id)
        await service.submit(request())
        with pytest.raises(QueueFull):
            await service.submit(request())


async def test_queue_full_counts_submits_that_are_not_on_disk_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"run": hold}), max_queue=3) as service:
        await service.submit(request())
        await hold.reached.wait()
        refused = 0

        async def submit() -> None:
            nonlocal refused
            try:
                await service.submit(request())
            except QueueFull:
                refused += 1

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(submit)
        assert refused == 7


async def test_submits_are_refused_while_the_engine_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)
    async with scripted_service(tmp_path, Script(at={"start": Crash(times=100)})) as service:
        await eventually(lambda: _degraded(service))
        with pytest.raises(EngineUnavailable):
            await service.submit(request())


async def _degraded(service: object) -> bool:
    return (await gateway(service).status()).degraded  # type: ignore[arg-type]


# --- retries -------------------------------------------------------------------------------------------------------


async def test_job_is_tried_again_after_an_engine_death_and_gives_the_same_pixels(tmp_path: Path) -> None:
    script = Script(at={"step 1/2": Crash()})
    async with scripted_service(tmp_path, script) as service:
        job = await ended(service, (await service.submit(request(5, num_images=2))).id)
    assert job.status is Status.COMPLETED
    assert job.engine_deaths == 1
    assert [rgb(image) for image in job.images] == [pixels(5, 64, 64), pixels(6, 64, 64)]
    assert images(tmp_path) == [f"{job.id}-0.png", f"{job.id}-1.png"]


@pytest.mark.parametrize("moment", ["load", "run", "encoding", "step 0/1", "decoding", "image 1", "done"])
async def test_engine_that_dies_every_time_fails_the_job_and_only_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, moment: str
) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)
    script = Script(at={moment: Crash(times=2)})
    async with scripted_service(tmp_path, script) as service:
        job = await ended(service, (await service.submit(request(num_images=2))).id)
        assert (job.status, job.engine_deaths) == (Status.FAILED, 2)
        assert job.failure is not None
        assert (job.failure.code, job.failure.details) == ("ENGINE_CRASHED", {"attempts": 2})
        assert images(tmp_path) == []
        assert (await ended(service, (await service.submit(request())).id)).status is Status.COMPLETED


@pytest.mark.parametrize("moment", ["load", "step 0/2", "step 1/1"])
async def test_error_of_the_engine_fails_the_job_at_once(tmp_path: Path, moment: str) -> None:
    script = Script(at={moment: Fail("OOM_ERROR")})
    async with scripted_service(tmp_path, script) as service:
        job = await ended(service, (await service.submit(request(num_images=2))).id)
        assert job.failure is not None
        assert (job.failure.code, job.engine_deaths) == ("OOM_ERROR", 0)
        assert (await ended(service, (await service.submit(request())).id)).status is Status.COMPLETED
    assert len(script.engines) == 1


async def test_images_that_share_a_pass_are_followed_and_saved_one_by_one(tmp_path: Path) -> None:
    # Nothing may happen before the follower is there.
    begin = Hold()
    script = Script(per_pass=3, at={"run": begin, "image 2": Crash()})
    async with scripted_service(tmp_path, script) as service:
        job = await service.submit(request(5, num_images=4))
        async with service.events(job.id) as events:
            begin.release.set()
            seen = [event async for event in events if isinstance(event, Progress)]
        done = await ended(service, job.id)
    values = [progress.progress for progress in seen]
    assert values == sorted(values)
    assert values[-1] == 1.0
    # 2 steps of 4 images and 4 saves; a step of the first pass counts for its three images.
    assert {3 / 12, 6 / 12, 7 / 12, 8 / 12, 9 / 12, 10 / 12, 11 / 12} <= set(values)
    assert (done.status, done.engine_deaths) == (Status.COMPLETED, 1)
    assert [rgb(image) for image in done.images] == [pixels(seed, 64, 64) for seed in (5, 6, 7, 8)]


# --- saving --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "DISK_FULL"), (errno.EACCES, "INTERNAL_ERROR")])
async def test_image_that_cannot_be_saved_fails_the_job_and_only_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def save(*_: object, **__: object) -> StoredImage:
        raise OSError(number, "scripted", str(tmp_path))

    script = Script()
    async with scripted_service(tmp_path, script) as service:
        with monkeypatch.context() as patch:
            patch.setattr(ImageFiles, "save", save)
            job = await ended(service, (await service.submit(request())).id)
        assert job.failure is not None
        assert job.failure.code == code
        assert str(tmp_path) not in job.failure.message + str(job.failure.details)
        assert (await ended(service, (await service.submit(request())).id)).status is Status.COMPLETED
    assert len(script.engines) == 1


async def test_output_directory_that_is_a_file_fails_jobs_with_a_code(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("in the way")
    async with scripted_service(tmp_path, Script()) as service:
        job = await ended(service, (await service.submit(request())).id)
    assert job.failure is not None
    assert job.failure.code == "INTERNAL_ERROR"


@pytest.mark.parametrize("write", range(3), ids=["begin", "requeue", "finish"])
async def test_state_that_cannot_be_stored_is_stored_when_there_is_space_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    monkeypatch.setattr(endings, "STORE_RETRY_SECONDS", 0.01)
    replace = InMemoryRepository.replace
    # An insert is written through the same method: it comes first, and is let through.
    refused = {1: [1, 2], 2: [2, 3], 3: [4, 5]}[write + 1]
    calls = itertools.count()

    def full(self: InMemoryRepository, job: Job) -> None:
        if next(calls) in refused:
            raise DiskFull("scripted")
        replace(self, job)

    monkeypatch.setattr(InMemoryRepository, "replace", full)
    async with scripted_service(tmp_path, Script(at={"step 0/2": Crash()})) as service:
        job = await ended(service, (await service.submit(request())).id)
    assert (job.status, job.engine_deaths, job.service_deaths) == (Status.COMPLETED, 1, 0)
    assert next(calls) > max(refused)


async def test_job_that_cannot_be_kept_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: InMemoryRepository, job: Job, key: IdempotencyKey | None = None) -> None:
        raise DiskFull("scripted")

    async with scripted_service(tmp_path, Script()) as service:
        with monkeypatch.context() as patch:
            patch.setattr(InMemoryRepository, "insert", full)
            with pytest.raises(DiskFull):
                await service.submit(request())
        assert (await ended(service, (await service.submit(request())).id)).status is Status.COMPLETED


# --- drain ---------------------------------------------------------------------------------------------------------


async def test_drain_ends_when_the_running_job_has_and_starts_no_other(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"step 0/1": hold})
    async with scripted_service(tmp_path, script) as service:
        running, queued = await service.submit(request(1)), await service.submit(request(2))
        await hold.reached.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.drain)
            await eventually(lambda: _draining(service))
            with pytest.raises(ShuttingDown):
                await service.submit(request())
            hold.release.set()
        assert (await service.job(running.id)).status is Status.COMPLETED
        assert (await service.job(queued.id)).status is Status.QUEUED
        assert (await service.cancel(queued.id)).status is Status.CANCELLED
        await service.drain()
    assert seeds_run(script) == [1]


async def _draining(service: object) -> bool:
    load: m.SchedulerStatus = await gateway(service).status()  # type: ignore[arg-type]
    return load.draining
