"""The end of a service: what is refused, what is stopped, and what that costs a job."""

import logging
from pathlib import Path

import pytest
import trio

from mflux_api.actors.mailbox import ActorStopped, Mailbox
from mflux_api.errors import ServiceError, ServiceRestarting, ShuttingDown
from mflux_api.jobs.job import Status
from mflux_api.service import Service
from mflux_api.storage.in_memory import InMemoryRepository
from mflux_api.supervisor import ChildSpec, Ended, Started
from tests.support.harness import ended, eventually, gateway, images, request, scripted_service, seeds_run
from tests.support.scripted_engine import Fail, Hold, Script


async def test_drain_fails_the_synchronous_jobs_that_wait_at_once(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"step 0/1": hold})) as service:
        running = await gateway(service).submit(request(1), synchronous=True)
        waiting = await gateway(service).submit(request(2), synchronous=True)
        queued = await service.submit(request(3))
        await hold.reached.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.drain)
            with pytest.raises(ShuttingDown):
                await service.result(waiting.job.id)
            assert (await service.job(running.job.id)).status is Status.GENERATING
            assert (await service.job(queued.id)).status is Status.QUEUED
            hold.release.set()
        assert (await service.job(running.job.id)).status is Status.COMPLETED


@pytest.mark.parametrize("moment", ["load", "run", "step 0/1", "step 1/1", "decoding"])
async def test_halt_gives_a_running_job_back_without_a_death_and_without_its_images(
    tmp_path: Path, moment: str
) -> None:
    hold = Hold()
    script = Script(at={moment: hold})
    async with scripted_service(tmp_path, script) as service:
        running = await service.submit(request(1, num_images=2))
        await hold.reached.wait()
        await service.drain(halt=True)
        job = await service.job(running.id)
        assert (job.status, job.engine_deaths, job.service_deaths, job.images) == (Status.QUEUED, 0, 0, ())
        assert images(tmp_path) == []
        assert (await gateway(service).job(running.id)).live is not None
        assert (await service.cancel(running.id)).status is Status.CANCELLED
        hold.release.set()


async def test_halt_answers_the_synchronous_caller_of_the_running_job(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"step 0/1": hold})) as service:
        running = await gateway(service).submit(request(1), synchronous=True)
        await hold.reached.wait()
        await service.drain(halt=True)
        with pytest.raises(ShuttingDown):
            await service.result(running.job.id)
        hold.release.set()


async def test_halt_during_a_drain_answers_both_and_starts_nothing(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"step 0/1": hold})
    async with scripted_service(tmp_path, script) as service:
        await service.submit(request(1))
        await service.submit(request(2))
        await hold.reached.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.drain)
            nursery.start_soon(_halt, service)
            nursery.start_soon(_halt, service)
        load = await gateway(service).status()
        assert (load.active, load.queued, load.draining) == (0, 2, True)
        hold.release.set()
    assert seeds_run(script) == [1]


async def _halt(service: Service) -> None:
    await service.drain(halt=True)


async def test_cancel_while_a_halt_puts_the_job_back_wins(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"step 0/1": hold})) as service:
        job = await service.submit(request(1))
        await hold.reached.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_halt, service)
            nursery.start_soon(service.cancel, job.id)
        assert (await service.job(job.id)).status is Status.CANCELLED
        hold.release.set()


async def test_failed_job_is_one_line_in_the_log_without_its_prompt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with scripted_service(tmp_path, Script(at={"run": Fail("OOM_ERROR")})) as service:
            job = await ended(service, (await service.submit(request(prompt="a secret"))).id)
    lines = [record.getMessage() for record in caplog.records if job.id in record.getMessage()]
    (line,) = lines
    said = f"job {job.id}: failed (OOM_ERROR); demo, 64x64, 2 steps, 0 of 1 image(s), queued "
    assert line.startswith(said)
    assert line.endswith(" s")
    assert "secret" not in caplog.text


async def test_service_that_has_ended_says_so_and_result_does_not_spin(tmp_path: Path) -> None:
    async with scripted_service(tmp_path, Script()) as service:
        job = await ended(service, (await service.submit(request())).id)
    with trio.fail_after(5):
        for question in (service.result, service.job, service.cancel):
            with pytest.raises(ShuttingDown, match="has ended"):
                await question(job.id)
        with pytest.raises(ShuttingDown, match="has ended"):
            await service.submit(request())
        with pytest.raises(ShuttingDown, match="has ended"):
            await service.drain()
        with pytest.raises(Ended, match="'root' has stopped"):
            await service._root.add(ChildSpec(name="late", run=_never))


async def _never(_: Started) -> None:
    await trio.sleep_forever()


async def test_closed_mailbox_tells_askers_and_senders_that_it_is_for_good() -> None:
    mailbox: Mailbox[str] = Mailbox("actor")
    mailbox.close()
    with pytest.raises(ActorStopped, match="actor"):
        await mailbox.put("x", control=False)
    with pytest.raises(ActorStopped, match="actor"):
        mailbox.put_nowait("x", control=True)


async def test_jobs_kept_in_memory_are_dropped_by_retention_alone_with_their_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds: list[int | None] = []

    class Noted(InMemoryRepository):
        def __init__(self, *, keep_finished: int | None = 1000) -> None:
            bounds.append(keep_finished)
            super().__init__(keep_finished=keep_finished)

    monkeypatch.setattr("mflux_api.service.InMemoryRepository", Noted)
    async with scripted_service(tmp_path, Script(), keep=2, delete_images=True) as service:
        for seed in range(4):
            await ended(service, (await service.submit(request(seed))).id)
        await eventually(lambda: len(images(tmp_path)) == 2)
    assert bounds == [None]


def test_service_restarting_and_shutting_down_are_both_worth_another_try() -> None:
    assert all(issubclass(error, ServiceError) and error.retry_after for error in (ServiceRestarting, ShuttingDown))
