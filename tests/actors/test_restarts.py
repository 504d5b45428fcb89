"""Actors that crash in the middle of a job: they come back, and the job ends once."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from mflux_api.actors import messages as m
from mflux_api.actors.event_hub import HubState
from mflux_api.actors.generator.generator import Generator
from mflux_api.actors.mailbox import Address
from mflux_api.actors.model_loader.model_loader import ModelLoader
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.actors.scheduler.job_runner import JobRunner
from mflux_api.jobs import job as jobs
from mflux_api.jobs.idempotency import IdempotencyKey
from mflux_api.jobs.job import Job, Status
from mflux_api.service import open_service
from mflux_api.storage.in_memory import InMemoryRepository
from tests.support.actor_crashes import crash, provoke
from tests.support.harness import (
    DEADLINE_SECONDS,
    RESOLVED,
    ended,
    eventually,
    gateway,
    images,
    request,
    rgb,
    scripted_service,
    settings,
    settled,
)
from tests.support.scripted_engine import Hold, Script, pixels


@pytest.mark.parametrize("moment", ["load", "step 0/1", "image 1"])
@pytest.mark.parametrize(
    ("owner", "method", "question"),
    [
        (JobQueue, "snapshots", "snapshots"),
        (Generator, "_state", "engine"),
        (ModelLoader, "_residency", "residency"),
        (HubState, "subscribe", "follow"),
    ],
    ids=["scheduler", "generator", "model_loader", "event_hub"],
)
async def test_job_inside_a_crashed_actor_is_done_again(
    tmp_path: Path, owner: type[Any], method: str, question: str, moment: str
) -> None:
    hold = Hold()
    script = Script(at={moment: hold})
    async with scripted_service(tmp_path, script) as service:
        job = await service.submit(request(5, num_images=2))
        waiting = await service.submit(request(9))
        await hold.reached.wait()
        with crash(owner, method):
            way_in = gateway(service)
            ask = {
                "snapshots": way_in.snapshots,
                "engine": lambda: way_in._ask(way_in._to.engines["0"].generator, m.GetEngine()),
                "residency": lambda: way_in._ask(way_in._to.engines["0"].loader, m.GetResidency()),
                "follow": lambda: way_in.follow(job.id),
            }[question]
            await provoke(ask)
        hold.release.set()
        result = await service.result(job.id)
        assert [rgb(image) for image in result.images] == [pixels(5, 64, 64), pixels(6, 64, 64)]
        assert (result.job.engine_deaths, result.job.service_deaths) == (0, 1)
        second = await service.result(waiting.id)
        assert (second.job.engine_deaths, second.job.service_deaths) == (0, 0)
        assert await ended(service, job.id) == result.job


async def test_follower_of_a_job_sees_one_end_across_a_crash_of_the_scheduler(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"step 1/1": hold})) as service, trio.open_nursery() as nursery:
        job = await service.submit(request(num_images=2))
        ends: list[Job] = []

        async def follow() -> None:
            ends.append(await ended(service, job.id))

        for _ in range(3):
            nursery.start_soon(follow)
        await hold.reached.wait()
        with crash(JobQueue, "snapshots"):
            await provoke(gateway(service).snapshots)
        hold.release.set()
        ended_job = (await service.result(job.id)).job
        await eventually(lambda: len(ends) == 3)
        assert ends == [ended_job] * 3


@pytest.mark.parametrize("synchronous", [False, True])
async def test_caller_whose_job_was_kept_when_the_scheduler_died_gets_that_job(
    tmp_path: Path, synchronous: bool
) -> None:
    async with scripted_service(tmp_path, Script()) as service:
        with crash(JobQueue, "enqueue"):
            accepted = await gateway(service).submit(request(), synchronous=synchronous)
        assert (await gateway(service).awaited_end(accepted.job.id)).job.status is Status.COMPLETED
        views, _ = await gateway(service).jobs()
        assert [view.job.id for view in views] == [accepted.job.id]


async def test_synchronous_job_of_a_caller_that_left_while_the_scheduler_died_is_not_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, caller, ask = Hold(), trio.CancelScope(), Address.ask

    async def asking(self: Address[Any], message: Any, *, control: bool = False) -> Any:
        if isinstance(message, m.GetSnapshots):
            # The caller leaves while it asks for the job that was kept.
            caller.cancel()
        return await ask(self, message, control=control)

    async with scripted_service(tmp_path, Script(at={"run": hold})) as service:
        monkeypatch.setattr(Address, "ask", asking)
        with crash(JobQueue, "enqueue"), caller:
            await gateway(service).submit(request(), synchronous=True)
        monkeypatch.setattr(Address, "ask", ask)
        assert caller.cancelled_caught
        await eventually(lambda: settled(service, 1))
        ((view,), _) = await gateway(service).jobs()
        assert (view.job.status, view.job.synchronous) == (Status.CANCELLED, True)


async def test_retry_with_an_idempotency_key_finds_the_job_that_was_kept_when_the_scheduler_died(
    tmp_path: Path,
) -> None:
    key = IdempotencyKey(key="k", body="b")
    async with scripted_service(tmp_path, Script()) as service:
        with crash(JobQueue, "enqueue"):
            accepted = await gateway(service).submit(request(), key=key)
        again = await gateway(service).submit(request(), key=key)
        assert again.job.id == accepted.job.id
        found = await gateway(service).accepted_before(key)
        assert found is not None
        assert found.job.id == accepted.job.id
        assert await gateway(service).accepted_before(IdempotencyKey(key="other", body="b")) is None


async def test_images_of_an_attempt_that_a_crash_ended_are_removed(tmp_path: Path) -> None:
    hold, again = Hold(), Hold()
    script = Script(at={"step 1/1": hold})
    async with scripted_service(tmp_path, script) as service:
        job = await service.submit(request(num_images=2))
        await hold.reached.wait()
        await eventually(lambda: images(tmp_path) == [f"{job.id}-0.png"])
        script.at["run"] = again
        with crash(JobQueue, "snapshots"):
            await provoke(gateway(service).snapshots)
        await again.reached.wait()
        assert images(tmp_path) == []
        assert (await service.cancel(job.id)).images == ()
        assert images(tmp_path) == []


async def test_defect_that_only_one_job_meets_fails_that_job_and_no_actor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = JobRunner.run

    async def defective(self: JobRunner, job: Job, *rest: Any) -> Any:
        if job.request.prompt == "poison":
            raise ZeroDivisionError("injected")
        return await generate(self, job, *rest)

    monkeypatch.setattr(JobRunner, "run", defective)
    async with scripted_service(tmp_path, Script()) as service:
        for _ in range(6):
            poisoned = await ended(service, (await service.submit(request(prompt="poison"))).id)
            assert poisoned.failure is not None
            assert poisoned.failure.code == "INTERNAL_ERROR"
            assert "injected" not in poisoned.failure.message
        healthy = await ended(service, (await service.submit(request())).id)
        assert (healthy.status, healthy.service_deaths) == (Status.COMPLETED, 0)


@pytest.mark.parametrize(("deaths", "status"), [(0, Status.COMPLETED), (4, Status.FAILED)])
async def test_job_that_was_running_when_the_last_service_ended_is_taken_up(
    tmp_path: Path, deaths: int, status: Status
) -> None:
    now = datetime.now(UTC)
    job = jobs.start(Job(id="0123456789ab", request=RESOLVED, created_at=now, service_deaths=deaths), now)
    waiting = Job(id="ba9876543210", request=attrs.evolve(RESOLVED, seed=6), created_at=now)
    repository = InMemoryRepository()
    repository.insert(job)
    repository.insert(waiting)
    script = Script()
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_service(settings(tmp_path), repository=repository, start_engine=script.start) as service:
            taken_up = await ended(service, job.id)
            assert (taken_up.status, taken_up.service_deaths) == (status, deaths + 1)
            assert taken_up.failure is None or taken_up.failure.code == "SERVER_CRASHED"
            assert (await ended(service, waiting.id)).status is Status.COMPLETED


async def test_image_that_a_stop_left_of_a_job_back_in_the_queue_is_removed_at_the_next_start(tmp_path: Path) -> None:
    now, hold = datetime.now(UTC), Hold()
    left = jobs.requeue(jobs.start(Job(id="0123456789ab", request=RESOLVED, created_at=now), now), engine_died=True)
    repository = InMemoryRepository()
    repository.insert(left)
    options = settings(tmp_path)
    day = options.generation.output_dir / f"{now:%Y-%m-%d}"
    day.mkdir(parents=True)
    (day / f"{left.id}-0.png").write_bytes(b"of the attempt before")
    with trio.fail_after(DEADLINE_SECONDS):
        script = Script(at={"run": hold})
        async with open_service(options, repository=repository, start_engine=script.start) as service:
            await hold.reached.wait()
            assert (await service.cancel(left.id)).images == ()
            assert images(tmp_path) == []


async def test_image_of_an_attempt_that_a_halt_ended_is_removed(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"step 1/1": hold})) as service:
        job = await service.submit(request(num_images=2))
        await hold.reached.wait()
        await eventually(lambda: images(tmp_path) == [f"{job.id}-0.png"])
        await trio.testing.wait_all_tasks_blocked(0.05)
        await service.drain(halt=True)
        assert (await service.job(job.id)).status is Status.QUEUED
        assert images(tmp_path) == []
