"""Jobs and downloads: a service over scripted engines, its download children, and a hub on loopback."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import psutil
import pytest
import trio

from mflux_api.actors.scheduler.scheduler import Scheduler
from mflux_api.catalog import Model
from mflux_api.config import CustomModel, ModelSettings
from mflux_api.errors import ModelInUse, ModelNotDeletable, ModelNotDownloaded
from mflux_api.gateway.gateway import Gateway
from mflux_api.jobs.job import Job, Stage, Status
from mflux_api.jobs.progress import JobEvent, Progress
from mflux_api.jobs.request import GenerateRequest
from mflux_api.service import Service, open_service
from tests.support.harness import checked, eventually, gateway, model_in_memory, request, settings
from tests.support.hub_downloads import REPO, download_children, needed
from tests.support.hub_server import Hub
from tests.support.scripted_engine import Hold, Script

pytestmark = pytest.mark.slow

DEADLINE_SECONDS = 60.0
TINY = CustomModel(name="tiny", base="flux2-klein-4b", repo=REPO)
TWIN = CustomModel(name="twin", base="flux2-klein-4b", repo=REPO)
OTHER = CustomModel(name="other", base="flux2-klein-4b", repo="owner/nothing")


@attrs.define
class ServiceUnderTest:
    """A running service and what a test asks of it."""

    service: Service
    gateway: Gateway
    script: Script

    def model(self, alias: str = "tiny") -> Model:
        model = self.gateway.catalog.get(alias)
        assert model is not None
        return model

    async def submit(self, alias: str = "tiny") -> Job:
        return await self.service.submit(_request(alias))

    async def events(self, job: Job) -> list[JobEvent]:
        """Follow a job to its end."""
        async with self.service.events(job.id) as stream:
            return [event async for event in stream]

    async def end(self, job: Job) -> Job:
        """Follow a job to its end; every rule about its events is checked on the way."""
        return checked(await self.events(job))

    async def downloading(self, alias: str = "tiny", least: int = 1) -> None:
        """Wait until that many bytes have come."""
        while True:
            transfer = (await self.gateway.download_state(self.model(alias))).transfer
            if transfer is not None and transfer.bytes_done >= least:
                return
            await trio.sleep(0.02)

    async def quiet(self) -> None:
        """Wait until nothing is downloaded any more."""

        async def over() -> bool:
            transfer = (await self.gateway.download_state(self.model())).transfer
            return transfer is None and not download_children()

        await eventually(over)

    def on_disk(self, alias: str = "tiny") -> bool:
        return self.gateway.checkpoints.folder(self.model(alias)) is not None


def _request(alias: str) -> GenerateRequest:
    return attrs.evolve(request(), model=alias)


@asynccontextmanager
async def service_under_test(
    folder: Path, script: Script | None = None, *, automatic: bool = True
) -> AsyncIterator[ServiceUnderTest]:
    """A service that knows the hub's repository under two names; afterwards no child of it is left."""
    script = script or Script()
    base = settings(folder)
    models = ModelSettings(cache_dir=folder / "models", auto_download=automatic, custom=(TINY, TWIN, OTHER))
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_service(attrs.evolve(base, models=models), start_engine=script.start) as service:
            yield ServiceUnderTest(service, gateway(service), script)
    assert download_children() == []


async def test_a_job_downloads_its_model_first_and_its_events_say_so(hub: Hub, tmp_path: Path) -> None:
    hub.faults.bytes_per_second = 3e6
    async with service_under_test(tmp_path) as tested:
        events = await tested.events(await tested.submit())
        assert checked(events).status is Status.COMPLETED
        transfers = [event for event in events if isinstance(event, Progress) and event.stage is Stage.DOWNLOADING]
        total = sum(map(len, needed(hub).values()))
        assert transfers[0].bytes_total is None
        assert {event.bytes_total for event in transfers if event.bytes_done} == {total}
        assert [event.bytes_done for event in transfers][-1] == total
        assert any(event.eta_seconds is not None for event in transfers)
        assert all(event.status is Status.QUEUED for event in transfers)
        last = max(place for place, event in enumerate(events) if event is transfers[-1])
        # A load has bytes of its own.
        after = [event for event in events[last + 1 :] if getattr(event, "stage", None) is not Stage.LOADING]
        assert after
        assert all(getattr(event, "bytes_done", None) is None for event in after)
        sent = hub.total_sent()
        assert (await tested.end(await tested.submit())).status is Status.COMPLETED
        assert hub.total_sent() == sent


async def test_jobs_that_wait_for_one_repository_share_its_download_and_others_run_meanwhile(
    hub: Hub, tmp_path: Path
) -> None:
    hub.faults.bytes_per_second = 1.5e6
    async with service_under_test(tmp_path) as tested:
        first, second = await tested.submit("tiny"), await tested.submit("twin")
        await tested.downloading()
        assert len(download_children()) == 1
        meanwhile = await tested.submit("demo")
        assert (await tested.end(meanwhile)).status is Status.COMPLETED
        assert not tested.on_disk()
        live = await tested.gateway.snapshots()
        assert [live[job.id].position for job in (first, second)] == [1, 2]
        assert [(await tested.end(job)).status for job in (first, second)] == [Status.COMPLETED] * 2
    assert hub.total_sent() == sum(map(len, needed(hub).values()))


async def test_a_cancelled_job_ends_at_once_and_its_download_with_the_last_job_that_waits(
    hub: Hub, tmp_path: Path
) -> None:
    hub.faults.bytes_per_second = 5e5
    async with service_under_test(tmp_path) as tested:
        first, second = await tested.submit(), await tested.submit()
        await tested.downloading()
        assert (await tested.service.cancel(first.id)).status is Status.CANCELLED
        # So much that a large file has begun.
        await tested.downloading(least=300_000)
        assert len(download_children()) == 1
        assert (await tested.service.cancel(second.id)).status is Status.CANCELLED
        await tested.quiet()
        assert (await tested.gateway.download_state(tested.model())).transfer is None
        assert not tested.on_disk()
        hub.faults.bytes_per_second = None
        assert (await tested.end(await tested.submit())).status is Status.COMPLETED
        assert hub.ranges


async def test_a_download_that_was_asked_for_goes_on_without_jobs(hub: Hub, tmp_path: Path) -> None:
    hub.faults.bytes_per_second = 1e6
    async with service_under_test(tmp_path) as tested:
        job = await tested.submit()
        await tested.gateway.download(tested.model())
        await tested.downloading()
        await tested.service.cancel(job.id)
        hub.faults.bytes_per_second = None
        await tested.quiet()
        assert tested.on_disk()
        await tested.gateway.download(tested.model())
        assert download_children() == []


async def test_a_failed_download_fails_the_job_with_its_reason_and_the_next_job_tries_again(
    hub: Hub, tmp_path: Path
) -> None:
    hub.faults.gated = True
    async with service_under_test(tmp_path) as tested:
        failed = await tested.end(await tested.submit())
        assert failed.failure is not None
        assert failed.failure.code == "MODEL_GATED"
        assert "HF_TOKEN" in failed.failure.message
        state = await tested.gateway.download_state(tested.model("twin"))
        assert state.failure == failed.failure
        hub.faults.gated = False
        assert (await tested.end(await tested.submit())).status is Status.COMPLETED
        assert (await tested.gateway.download_state(tested.model())).failure is None


async def test_without_automatic_downloads_a_request_is_refused_until_the_model_is_there(
    hub: Hub, tmp_path: Path
) -> None:
    async with service_under_test(tmp_path, automatic=False) as tested:
        with pytest.raises(ModelNotDownloaded, match="mflux-api models download tiny"):
            await tested.submit()
        assert hub.requests == []
        await tested.gateway.download(tested.model())
        await tested.downloading(least=0)
        await tested.quiet()
        assert (await tested.end(await tested.submit())).status is Status.COMPLETED


async def test_deleting_frees_the_disk_and_is_refused_while_a_job_runs_or_waits(hub: Hub, tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"step 0/1": hold})
    hub.faults.bytes_per_second = 2e6
    async with service_under_test(tmp_path, script) as tested:
        with pytest.raises(ModelNotDownloaded):
            await tested.gateway.delete_model(tested.model())
        job = await tested.submit()
        await tested.downloading()
        with pytest.raises(ModelInUse, match="for a job"):
            await tested.gateway.delete_model(tested.model("twin"))
        await hold.reached.wait()
        for alias in ("tiny", "twin"):
            with pytest.raises(ModelInUse, match="in use"):
                await tested.gateway.delete_model(tested.model(alias))
        hold.release.set()
        assert (await tested.end(job)).status is Status.COMPLETED
        assert await model_in_memory(tested.gateway) == "tiny"
        await tested.gateway.delete_model(tested.model("twin"))
        assert await model_in_memory(tested.gateway) is None
        assert not tested.on_disk()
        assert not list((tmp_path / "models").rglob("*.safetensors"))


async def test_deleting_stops_a_download_that_no_job_waits_for(hub: Hub, tmp_path: Path) -> None:
    hub.faults.bytes_per_second = 1e5
    async with service_under_test(tmp_path) as tested:
        await tested.gateway.download(tested.model())
        await tested.downloading()
        await tested.gateway.delete_model(tested.model())
        assert download_children() == []
        assert not list((tmp_path / "models").rglob("*.incomplete"))
        with pytest.raises(ModelNotDownloaded):
            await tested.gateway.delete_model(tested.model())


@pytest.mark.parametrize("alias", ["demo", "demo-base", "flux2-klein-4b-4-bit"])
async def test_what_this_service_did_not_download_is_not_deleted(hub: Hub, tmp_path: Path, alias: str) -> None:
    async with service_under_test(tmp_path) as tested:
        with pytest.raises(ModelNotDeletable):
            await tested.gateway.delete_model(tested.model(alias))


async def test_a_model_that_is_deleted_before_its_job_runs_is_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"step 0/1": hold})
    async with service_under_test(tmp_path, script) as tested:
        await tested.gateway.download(tested.model())
        await tested.downloading(least=0)
        await tested.quiet()
        first = await tested.submit("demo")
        await hold.reached.wait()
        job = await tested.submit()
        # Its model is there, and it waits for the engine.
        await eventually(_no_job_waits_for_its_model)
        await tested.gateway.delete_model(tested.model())
        hold.release.set()
        assert (await tested.end(first)).status is Status.COMPLETED
        done = await tested.end(job)
        assert (done.status, done.engine_deaths, done.service_deaths) == (Status.COMPLETED, 0, 0)


def _no_job_waits_for_its_model() -> bool:
    """Whether every job that waits has its model on disk, and the scheduler knows."""
    gone = [
        task.name
        for task in _tasks(trio.lowlevel.current_root_task())
        if task.name.endswith(Scheduler._wait_for_model.__qualname__)
    ]
    return not gone


def _tasks(task: trio.lowlevel.Task | None) -> list[trio.lowlevel.Task]:
    if task is None:
        return []
    children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return [task, *(each for child in children for each in _tasks(child))]


async def test_a_defect_in_a_download_fails_its_job_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mflux_api.actors.downloader.download_repository", broken)
    async with service_under_test(tmp_path) as tested:
        for _ in range(5):
            failed = await tested.end(await tested.submit())
            assert failed.failure is not None
            assert failed.failure.code == "INTERNAL_ERROR"
        assert (await tested.end(await tested.submit("demo"))).status is Status.COMPLETED


async def test_loading_and_unloading_by_name(hub: Hub, tmp_path: Path) -> None:
    async with service_under_test(tmp_path) as tested:
        with pytest.raises(ModelNotDownloaded, match="/download first"):
            await tested.gateway.load_model(tested.model())
        await tested.gateway.load_model(tested.model("demo"))
        assert await model_in_memory(tested.gateway) == "demo"
        await tested.gateway.unload_model(tested.model("tiny"))
        assert await model_in_memory(tested.gateway) == "demo"
        await tested.gateway.unload_model(tested.model("demo"))
        assert await model_in_memory(tested.gateway) is None
        assert (await tested.end(await tested.submit("demo"))).status is Status.COMPLETED


async def test_the_end_of_the_service_ends_its_downloads_and_keeps_the_jobs(hub: Hub, tmp_path: Path) -> None:
    hub.faults.bytes_per_second = 1e5
    async with service_under_test(tmp_path) as tested:
        await tested.submit()
        await tested.downloading()
        pids = [child.pid for child in download_children()]
        assert len(pids) == 1
    assert not any(psutil.pid_exists(pid) for pid in pids)
