"""The service as a library: what an embedding program can rely on."""

import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NoReturn

import attrs
import httpx
import psutil
import pytest
import trio

from mflux_api import (
    Finished,
    GenerateRequest,
    JobCancelled,
    JobFilter,
    Progress,
    Service,
    ServiceFailed,
    Stage,
    Status,
    open_service,
)
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.actors.stats import Stats
from mflux_api.errors import (
    GenerationFailed,
    InvalidModel,
    InvalidParameter,
    JobNotFound,
    ServiceRestarting,
    ShuttingDown,
)
from mflux_api.jobs.job import Job
from mflux_api.storage.image_files import ImageFiles
from mflux_api.storage.in_memory import InMemoryRepository
from tests.support.harness import ended, engine_info, gateway, images, request, rgb, scripted_service, settings
from tests.support.lora_files import write_lora
from tests.support.scripted_engine import Fail, Hold, Script, pixels

# --- what open_service raises --------------------------------------------------------------------------------------


class Own(Exception):
    """The caller's."""


async def test_callers_exception_passes_as_it_is(tmp_path: Path) -> None:
    own = Own()
    with pytest.raises(Own) as caught:
        async with scripted_service(tmp_path, Script()):
            raise own
    assert caught.value is own


@pytest.mark.parametrize("own", [Own(), KeyboardInterrupt()])
async def test_callers_exception_is_not_lost_when_the_caller_is_cancelled_too(
    tmp_path: Path, own: BaseException
) -> None:
    async def body() -> None:
        with trio.CancelScope() as scope:
            async with scripted_service(tmp_path, Script()):
                scope.cancel()
                raise own

    with pytest.raises(type(own)) as caught:
        await body()
    assert caught.value is own


@pytest.mark.parametrize("cancelled", [False, True])
async def test_save_on_a_dead_disk_does_not_hold_the_program_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    saving, back = threading.Event(), threading.Event()

    def save(*_: object, **__: object) -> NoReturn:
        saving.set()
        back.wait()
        raise OSError

    monkeypatch.setattr(ImageFiles, "save", save)
    monkeypatch.setattr("mflux_api.supervisor.SHUTDOWN_SECONDS", 0.1)

    async def program() -> None:
        with trio.CancelScope() as scope:
            async with scripted_service(tmp_path, Script()) as service:
                await service.submit(request())
                await trio.to_thread.run_sync(saving.wait)
                if cancelled:
                    scope.cancel()

    try:
        with pytest.raises(ServiceFailed, match="core: 'scheduler' did not stop"):
            await program()
    finally:
        back.set()


async def test_callers_own_group_passes_as_a_group_of_one_level(tmp_path: Path) -> None:
    async def body() -> None:
        async with scripted_service(tmp_path, Script()), trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise Own

    with pytest.raises(ExceptionGroup) as caught:
        await body()
    assert [type(each) for each in caught.value.exceptions] == [Own]


async def test_cancelling_from_outside_ends_the_service_and_nothing_else(tmp_path: Path) -> None:
    hold = Hold()
    after: list[str] = []

    async def body() -> None:
        async with scripted_service(tmp_path, Script(at={"run": hold})) as service:
            job = await service.submit(request())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(service.result, job.id)
                nursery.start_soon(service.result, job.id)
                await hold.reached.wait()
                scope.cancel()
        after.append("the block went on")

    with trio.CancelScope() as scope:
        await body()
    assert scope.cancelled_caught
    assert after == []


@pytest.mark.parametrize("how", ["leaves", "raises", "is cancelled"])
async def test_leaving_the_block_without_a_drain_costs_the_running_job_nothing(tmp_path: Path, how: str) -> None:
    repository = InMemoryRepository()
    job_ids: list[str] = []
    for _ in range(6):
        hold = Hold()
        script = Script(at={"step 0/1": hold})
        with suppress(Own), trio.CancelScope() as scope:
            async with open_service(settings(tmp_path), repository=repository, start_engine=script.start) as service:
                job_ids = job_ids or [(await service.submit(request())).id]
                await hold.reached.wait()
                if how == "raises":
                    raise Own
                if how == "is cancelled":
                    scope.cancel()
        job = repository.get(job_ids[0])
        assert isinstance(job, Job)
        assert (job.status, job.service_deaths, job.engine_deaths) == (Status.QUEUED, 0, 0)
    assert images(tmp_path) == []


async def test_tree_that_cannot_start_is_one_service_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(self: Stats, status: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Stats, "run", run)
    entered = False
    with pytest.raises(ServiceFailed):
        async with scripted_service(tmp_path, Script()):
            entered = True
    assert not entered


@asynccontextmanager
async def broken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """A service whose scheduler dies at every question; the block is entered when the tree has given up."""
    async with scripted_service(folder, Script()) as service:
        monkeypatch.setattr(JobQueue, "snapshots", lambda _: 1 / 0)
        try:
            while True:
                with suppress(ServiceRestarting):
                    await gateway(service).snapshots()
        finally:
            with trio.CancelScope(shield=True):
                yield service


@pytest.mark.slow
async def test_tree_that_gives_up_is_one_service_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceFailed):
        async with broken(tmp_path, monkeypatch):
            pass


@pytest.mark.slow
async def test_question_to_a_dead_tree_is_answered_and_what_it_raises_is_the_trees_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[type[Exception]] = []

    async def ask(service: Service) -> None:
        try:
            await service.submit(request())
        except ShuttingDown as error:
            asked.append(type(error))
            raise

    async def body() -> None:
        async with broken(tmp_path, monkeypatch) as service, trio.open_nursery() as nursery:
            nursery.start_soon(ask, service)

    with pytest.raises(ServiceFailed):
        await body()
    assert asked == [ShuttingDown]


@pytest.mark.slow
async def test_callers_exception_is_not_lost_when_the_tree_gives_up_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Own) as caught:
        async with broken(tmp_path, monkeypatch):
            raise Own
    assert isinstance(caught.value.__cause__, ServiceFailed)


# --- the methods ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"prompt": " "}, InvalidParameter),
        ({"prompt": 7}, InvalidParameter),
        ({"width": 65}, InvalidParameter),
        ({"steps": 0}, InvalidParameter),
        ({"num_images": 5}, InvalidParameter),
        ({"seed": -2}, InvalidParameter),
        ({"model": "nonsense"}, InvalidModel),
    ],
)
async def test_submit_refuses_what_is_out_of_bounds(
    tmp_path: Path, changes: dict[str, object], error: type[Exception]
) -> None:
    async with scripted_service(tmp_path, Script()) as service:
        with pytest.raises(error):
            await service.submit(attrs.evolve(request(), **changes))  # type: ignore[arg-type]


async def test_events_of_a_finished_job_are_its_present_and_its_end(tmp_path: Path) -> None:
    async with scripted_service(tmp_path, Script()) as service:
        job = await ended(service, (await service.submit(request())).id)
        async with service.events(job.id) as stream:
            first, last = [event async for event in stream]
        assert isinstance(first, Progress)
        assert first.progress == 1.0
        assert last == Finished(job=job)


async def test_leaving_the_events_early_changes_nothing_for_the_job(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"run": hold})) as service:
        job = await service.submit(request())
        async with service.events(job.id) as stream:
            async for event in stream:
                assert isinstance(event, Progress)
                break
        hold.release.set()
        assert (await service.result(job.id)).job.status is Status.COMPLETED


async def test_result_has_images_seeds_and_timings(tmp_path: Path) -> None:
    async with scripted_service(tmp_path, Script()) as service:
        result = await service.result((await service.submit(request(5, num_images=2))).id)
    assert result.seeds == (5, 6)
    assert [rgb(image) for image in result.images] == [pixels(5, 64, 64), pixels(6, 64, 64)]
    assert (result.timings.encode, result.timings.denoise, result.timings.decode) == (0.1, 0.2, 0.3)
    assert result.timings.total > 0


async def test_result_of_a_job_that_did_not_complete_says_why(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"run": Fail(), "step 0/1": hold})
    async with scripted_service(tmp_path, script) as service:
        with pytest.raises(GenerationFailed, match="scripted"):
            await service.result((await service.submit(request())).id)
        job = await service.submit(request())
        await hold.reached.wait()
        await service.cancel(job.id)
        with pytest.raises(JobCancelled):
            await service.result(job.id)
        for method in (service.result, service.job, service.cancel):
            with pytest.raises(JobNotFound):
                await method("no such job")
        with pytest.raises(JobNotFound):
            async with service.events("no such job"):
                pass


async def test_two_services_in_one_process_do_not_touch(tmp_path: Path) -> None:
    hold = Hold()
    one, two = Script(at={"run": hold}), Script()
    async with scripted_service(tmp_path / "one", one) as first:
        async with open_service(settings(tmp_path / "two"), start_engine=two.start) as second:
            job = await first.submit(request())
            with pytest.raises(JobNotFound):
                await second.job(job.id)
            assert (await second.result((await second.submit(request())).id)).seeds == (5,)
        hold.release.set()
        await first.result(job.id)
    assert (len(images(tmp_path / "one")), len(images(tmp_path / "two"))) == (1, 1)


async def test_closing_with_work_inside_leaves_no_task_no_engine_and_no_file(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"step 1/1": hold})) as service:
        await service.submit(request(num_images=2))
        await service.submit(request())
        await hold.reached.wait()
    assert images(tmp_path) == []


@pytest.mark.slow
async def test_each_serve_http_ends_alone(tmp_path: Path) -> None:
    async with (
        scripted_service(tmp_path, Script()) as service,
        httpx.AsyncClient() as client,
        trio.open_nursery() as outer,
    ):
        [lasting] = await outer.start(service.serve_http, ["127.0.0.1:0"])
        async with trio.open_nursery() as inner:
            [brief] = await inner.start(service.serve_http, ["127.0.0.1:0"])
            assert (await client.get(f"{brief}/api/v1/health")).status_code == 200
            inner.cancel_scope.cancel()
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{brief}/api/v1/health")
        assert (await client.get(f"{lasting}/api/v1/health")).status_code == 200
        outer.cancel_scope.cancel()


# --- with the real engine ------------------------------------------------------------------------------------------


@asynccontextmanager
async def real_service(folder: Path) -> AsyncIterator[Service]:
    """A service with an engine child; when the block ends there is no child."""
    with trio.fail_after(60):
        async with open_service(settings(folder)) as service:
            yield service
    assert not psutil.Process().children(recursive=True)


@pytest.mark.slow
async def test_embedding_example_of_the_documentation(tmp_path: Path) -> None:
    async with real_service(tmp_path) as service:
        job = await service.submit(GenerateRequest(prompt="a red house", model="demo", width=64, height=64, steps=2))
        async with service.events(job.id) as events:
            stages = [event.stage async for event in events if isinstance(event, Progress)]
        seldom = {Stage.QUEUED, Stage.DOWNLOADING, Stage.COMPILING}
        assert [stage for stage in dict.fromkeys(stages) if stage not in seldom] == [
            stage for stage in Stage if stage not in seldom
        ]
        result = await service.result(job.id)
        assert len(result.images) == len(result.seeds) == 1
        async with trio.open_nursery() as nursery, httpx.AsyncClient() as client:
            [url] = await nursery.start(service.serve_http, ["127.0.0.1:0"])
            shown = (await client.get(f"{url}/api/v1/jobs/{job.id}")).json()
            assert (shown["status"], shown["progress"]) == ("completed", 1.0)
            nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_job_whose_engine_is_killed_completes_with_the_pixels_of_an_undisturbed_run(tmp_path: Path) -> None:
    wanted = attrs.evolve(request(7, num_images=2), steps=3)
    async with real_service(tmp_path) as service:
        undisturbed = await service.result((await service.submit(wanted)).id)
        job = await service.submit(wanted)
        engine = await engine_info(service)
        assert engine is not None
        async with service.events(job.id) as events:
            async for event in events:
                if isinstance(event, Progress) and event.image == 1 and event.attempt == 1:
                    os.kill(engine.pid, signal.SIGKILL)
                    break
        killed = await service.result(job.id)
    assert (killed.job.engine_deaths, undisturbed.job.engine_deaths) == (1, 0)
    assert [rgb(image) for image in killed.images] == [rgb(image) for image in undisturbed.images]


# --- lists ---------------------------------------------------------------------------------------------------------


async def test_service_lists_what_there_is(tmp_path: Path) -> None:
    write_lora(tmp_path / "loras" / "ink.safetensors", seed=1)
    async with scripted_service(tmp_path, Script()) as service:
        made = [await ended(service, (await service.submit(request(seed))).id) for seed in range(3)]
        page = await service.jobs(limit=2)
        assert [job.id for job in page.jobs] == [made[2].id, made[1].id]
        rest = await service.jobs(cursor=page.next_cursor)
        assert ([job.id for job in rest.jobs], rest.next_cursor) == ([made[0].id], None)
        found = await service.jobs(where=JobFilter(words=("RED",), statuses=(Status.COMPLETED,)))
        assert len(found.jobs) == 3
        assert (await service.jobs(where=JobFilter(edit=True))).jobs == ()
        models = {view.model.alias: view for view in await service.models()}
        assert models["demo"].downloaded
        assert not models["flux2-klein-4b"].downloaded
        assert await service.downloads() == ()
        [lora] = await service.loras()
        assert (lora.name, lora.problem, lora.contents is not None) == ("ink.safetensors", None, True)
        with pytest.raises(InvalidModel):
            await service.download("nonsense")
        image = made[0].images[0]
        assert await service.image(image) == await trio.Path(image.path).read_bytes()
