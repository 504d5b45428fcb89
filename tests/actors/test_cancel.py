"""Cancelling jobs in a whole service over scripted engines: one end each, and an engine that can be used again."""

import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Address, Ask
from mflux_api.errors import JobGone, JobNotFound
from mflux_api.jobs.idempotency import IdempotencyKey
from mflux_api.jobs.job import Job, Status
from mflux_api.service import Service
from mflux_api.storage.in_memory import InMemoryRepository
from tests.support.harness import (
    checked,
    ended,
    eventually,
    gateway,
    images,
    request,
    scripted_service,
    seeds_run,
    settled,
)
from tests.support.scripted_engine import Crash, Hang, Hold, Script


async def test_cancel_of_a_queued_job_keeps_it_from_the_engine(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"run": hold})
    async with scripted_service(tmp_path, script) as service:
        running = await service.submit(request(1))
        await hold.reached.wait()
        queued = await service.submit(request(2))
        assert (await service.cancel(queued.id)).status is Status.CANCELLED
        assert (await ended(service, queued.id)).status is Status.CANCELLED
        hold.release.set()
        assert (await ended(service, running.id)).status is Status.COMPLETED
    assert seeds_run(script) == [1]


@pytest.mark.parametrize(
    "moment", ["load", "run", "encoding", "step 0/1", "step 0/2", "decoding", "image 0", "step 1/1", "image 1", "done"]
)
async def test_cancel_at_any_moment_gives_one_end_and_leaves_the_engine_usable(tmp_path: Path, moment: str) -> None:
    hold = Hold()
    script = Script(at={moment: hold})
    async with scripted_service(tmp_path, script) as service:
        job = await service.submit(request(num_images=2))
        async with service.events(job.id) as stream:
            await hold.reached.wait()
            saved = {"step 1/1": 1, "image 1": 1, "done": 2}.get(moment, 0)
            await eventually(lambda: len(images(tmp_path)) == saved)
            cancelled = await service.cancel(job.id)
            assert cancelled.status is Status.CANCELLED
            hold.release.set()
            assert checked([event async for event in stream]) == cancelled
        assert (await ended(service, (await service.submit(request(9))).id)).status is Status.COMPLETED
        assert (await service.cancel(job.id)) == cancelled
    assert len(script.engines) == 1
    kept = [Path(image.path).name for image in cancelled.images]
    assert [name for name in images(tmp_path) if name.startswith(job.id)] == kept


async def test_cancel_while_the_engine_is_down_between_two_attempts(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"step 0/2": Crash()})
    async with scripted_service(tmp_path, script) as service:
        await eventually(lambda: bool(script.engines))
        script.at["start"] = hold
        job = await service.submit(request())
        await hold.reached.wait()
        assert (await service.cancel(job.id)).status is Status.CANCELLED
        hold.release.set()
        del script.at["start"]
        assert (await ended(service, job.id)).status is Status.CANCELLED
        assert (await ended(service, (await service.submit(request(9))).id)).status is Status.COMPLETED


async def test_many_cancels_of_one_job_agree(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"step 0/1": hold})) as service:
        job = await service.submit(request())
        await hold.reached.wait()
        answers: list[Job] = []

        async def cancel() -> None:
            answers.append(await service.cancel(job.id))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(cancel)
        assert answers == [await ended(service, job.id)] * 10


@pytest.mark.parametrize("yields", range(0, 40, 2))
async def test_cancel_that_races_the_completion_gives_one_end(tmp_path: Path, yields: int) -> None:
    hold = Hold()
    script = Script(at={"done": hold})
    async with scripted_service(tmp_path, script) as service:
        job = await service.submit(request())
        async with service.events(job.id) as stream:
            await hold.reached.wait()
            hold.release.set()
            for _ in range(yields):
                await trio.lowlevel.checkpoint()
            answer = await service.cancel(job.id)
            assert checked([event async for event in stream]) == answer
        assert answer.status in {Status.COMPLETED, Status.CANCELLED}
        assert (await ended(service, (await service.submit(request(9))).id)).status is Status.COMPLETED
        assert len([name for name in images(tmp_path) if name.startswith(job.id)]) == len(answer.images)
    assert len(script.engines) == 1


@pytest.mark.parametrize("yields", range(0, 40, 2))
async def test_cancel_that_races_an_engine_death_gives_one_end(tmp_path: Path, yields: int) -> None:
    hold = Hold()
    script = Script(at={"step 0/2": hold})
    async with scripted_service(tmp_path, script) as service:
        job = await service.submit(request())
        async with service.events(job.id) as stream:
            await hold.reached.wait()
            script.current.die()
            for _ in range(yields):
                await trio.lowlevel.checkpoint()
            answer = await service.cancel(job.id)
            assert checked([event async for event in stream]) == answer
        second = await ended(service, (await service.submit(request(9))).id)
        assert (second.status, second.service_deaths) == (Status.COMPLETED, 0)


async def test_cancelled_run_that_does_not_stop_costs_no_attempt(tmp_path: Path) -> None:
    script = Script(at={"step 0/1": Hang()}, ignore_cancel=True)
    async with scripted_service(tmp_path, script, cancel_grace_seconds=0.05) as service:
        job = await service.submit(request())
        await eventually(lambda: seeds_run(script) == [5])
        await service.cancel(job.id)
        script.at.clear()
        following = await ended(service, (await service.submit(request(9))).id)
        assert (following.status, following.engine_deaths) == (Status.COMPLETED, 0)
        assert (await service.job(job.id)).engine_deaths == 0
    assert len(script.engines) == 2


async def test_cancel_of_an_unknown_job_says_so(tmp_path: Path) -> None:
    async with scripted_service(tmp_path, Script()) as service:
        with pytest.raises(JobNotFound):
            await service.cancel("0" * 12)


async def test_cancel_of_a_job_that_retention_removed_says_so_and_harms_nothing(tmp_path: Path) -> None:
    async with scripted_service(tmp_path, Script(), keep=1) as service:
        job, _ = [await ended(service, (await service.submit(request())).id) for _ in range(2)]
        await eventually(lambda: _gone(service, job.id))
        with pytest.raises(JobGone):
            await service.cancel(job.id)
        gateway(service).abandon(job.id)
        assert (await gateway(service).status()).active == 0
        assert (await ended(service, (await service.submit(request())).id)).service_deaths == 0


async def _gone(service: Service, job_id: str) -> bool:
    try:
        await service.job(job_id)
    except JobGone:
        return True
    return False


async def test_synchronous_job_whose_submitter_went_away_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inserting, go_on = threading.Event(), threading.Event()
    insert = InMemoryRepository.insert

    def slow(self: InMemoryRepository, job: Job, key: IdempotencyKey | None = None) -> None:
        inserting.set()
        go_on.wait(5)
        insert(self, job, key)

    monkeypatch.setattr(InMemoryRepository, "insert", slow)
    script = Script()
    async with scripted_service(tmp_path, script) as service:
        for synchronous in (True, False):
            inserting.clear()
            go_on.clear()
            async with trio.open_nursery() as nursery:

                async def submit(*, synchronous: bool = synchronous) -> None:
                    await gateway(service).submit(request(), synchronous=synchronous)

                nursery.start_soon(submit)
                await trio.to_thread.run_sync(inserting.wait)
                nursery.cancel_scope.cancel()
            go_on.set()
        await eventually(lambda: settled(service, 2))
        views, _ = await gateway(service).jobs()
        assert {(view.job.synchronous, view.job.status) for view in views} == {
            (True, Status.CANCELLED),
            (False, Status.COMPLETED),
        }


async def test_cancel_between_a_requeue_and_the_return_to_the_queue_ends_the_job_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The store has answered, the job's task has not run on yet: the narrowest place that a cancel can hit.
    cancelled: list[Job] = []
    ask = Address.ask

    async def asking(self: Address[Any], message: Ask[Any], *, control: bool = False) -> Any:
        answer = await ask(self, message, control=control)
        if isinstance(message, m.Requeue):
            with trio.CancelScope(shield=True):
                cancelled.append(await service.cancel(message.job_id))
        return answer

    monkeypatch.setattr(Address, "ask", asking)
    async with scripted_service(tmp_path, Script(at={"step 0/2": Crash()})) as service:
        job = await service.submit(request())
        end = await ended(service, job.id)
        await eventually(lambda: cancelled == [end])
        second = await ended(service, (await service.submit(request(9))).id)
        assert (second.status, second.service_deaths) == (Status.COMPLETED, 0)
