"""What `engine.preload` does besides loading: on a GPU one throw-away pass, which costs no job more than it would."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from mflux_api.actors import messages as m
from mflux_api.config import CustomModel, Settings
from mflux_api.engine import protocol as p
from mflux_api.engine.interface import Engine, Received
from mflux_api.engine.local import LocalEngine, LocalEngineOptions
from mflux_api.jobs.job import Status
from mflux_api.service import Service, open_service
from mflux_api.storage.checkpoints import EMBEDDED
from tests.support.harness import (
    condition_of,
    ended,
    eventually,
    gateway,
    images,
    loads_of,
    request,
    run_inline,
    runs,
    settings,
)
from tests.support.scripted_engine import Crash, Fail, Hang, Hold, Script


def preloading(folder: Path) -> Settings:
    """Settings with the demo model loaded ahead, and a second model."""
    plain = settings(folder)
    other = CustomModel(name="other", base="demo", path=EMBEDDED)
    return attrs.evolve(
        plain,
        models=attrs.evolve(plain.models, default="demo", custom=(other,)),
        engine=attrs.evolve(plain.engine, preload=True, step_timeout_seconds=30.0),
    )


@asynccontextmanager
async def service_with(script: Script, folder: Path) -> AsyncIterator[Service]:
    async with open_service(preloading(folder), start_engine=script.start) as service:
        yield service
    assert script.alive == 0


@pytest.fixture(autouse=True)
def _no_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "autojump_clock" in request.fixturenames:
        monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)


async def preloaded(service: Service) -> bool:
    return (await gateway(service).status()).preloading is None


async def warming_up(service: Service) -> bool:
    return (await gateway(service).status()).warming_up


async def test_service_on_a_gpu_is_warm_before_it_is_ready(tmp_path: Path, autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(device="cuda", at={"denoising": hold})
    async with service_with(script, tmp_path) as service:
        await hold.reached.wait()
        await eventually(lambda: warming_up(service))
        assert not await preloaded(service)
        hold.release.set()
        await eventually(lambda: preloaded(service))
        assert not await warming_up(service)
        ((run, blobs),) = runs(script)
        assert (run.model, run.width, run.height, len(run.seeds), run.steps, blobs) == ("demo", 512, 512, 1, 2, ())
        assert (await gateway(service).status()).active == 0
        views, _ = await gateway(service).jobs()
        assert list(views) == []
        assert (await gateway(service).totals()).generations == 0
    assert images(tmp_path) == []


async def test_cpu_compiles_nothing_so_no_pass_warms_it_up(tmp_path: Path, autojump_clock: MockClock) -> None:
    script = Script()
    async with service_with(script, tmp_path) as service:
        await eventually(lambda: preloaded(service))
        assert (loads_of(script), runs(script)) == (1, [])


async def test_job_on_the_model_that_warms_up_waits_for_it_and_loads_nothing_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    hold = Hold()
    script = Script(device="cuda", at={"denoising": hold})
    async with service_with(script, tmp_path) as service:
        await hold.reached.wait()
        job = await service.submit(request())
        await trio.testing.wait_all_tasks_blocked()
        assert not [command for command in script.current.received if isinstance(command, p.Cancel)]
        hold.release.set()
        assert (await ended(service, job.id)).status is Status.COMPLETED
        assert loads_of(script) == 1
        assert [run.steps for run, _ in runs(script)] == [2, 2]


async def test_job_on_another_model_has_the_warm_up_stopped_at_its_next_step(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    hold = Hold()
    script = Script(device="cuda", at={"step 0/1": hold})
    async with service_with(script, tmp_path) as service:
        await hold.reached.wait()
        job = await service.submit(attrs.evolve(request(), model="other"))
        assert (await ended(service, job.id)).status is Status.COMPLETED
        sent = [type(command) for command in script.current.received]
        assert sent.count(p.Cancel) == 1
        assert len(script.engines) == 1
        # It was in memory, and is as warm as it will get.
        assert await preloaded(service)


async def test_job_on_another_model_that_came_during_the_load_waits_for_no_warm_up(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    hold = Hold()
    script = Script(device="cuda", at={"load": hold})
    async with service_with(script, tmp_path) as service:
        await hold.reached.wait()
        job = await service.submit(attrs.evolve(request(), model="other"))
        await trio.testing.wait_all_tasks_blocked()
        hold.release.set()
        assert (await ended(service, job.id)).status is Status.COMPLETED
        assert [run.model for run, _ in runs(script)] == ["other"]
        assert await preloaded(service)


async def test_engine_is_not_killed_over_a_warm_up_that_still_compiles(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    hold = Hold()
    script = Script(device="cuda", at={"step 0/1": hold}, ignore_cancel=True)
    async with service_with(script, tmp_path) as service:
        await hold.reached.wait()
        job = await service.submit(attrs.evolve(request(), model="other"))
        await trio.sleep(25)
        hold.release.set()
        assert (await ended(service, job.id)).status is Status.COMPLETED
        assert len(script.engines) == 1


@pytest.mark.parametrize("what", [Fail(), Fail(code="OOM_ERROR")])
async def test_warm_up_that_fails_is_a_warning_and_the_model_is_ready(
    what: Fail, tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script(device="cuda", at={"decoding": what})
    async with service_with(script, tmp_path) as service:
        await eventually(lambda: preloaded(service))
        assert loads_of(script) == 1
        job = await service.submit(request())
        assert (await ended(service, job.id)).status is Status.COMPLETED
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "is loaded, but was not warmed up" in warning.getMessage()


@pytest.mark.parametrize("what", [Crash(times=100), Hang()])
async def test_engine_that_dies_over_the_warm_up_loads_the_model_again_and_runs_jobs(
    what: Crash | Hang, tmp_path: Path, autojump_clock: MockClock
) -> None:
    script = Script(device="cuda", at={"decoding": what})
    async with service_with(script, tmp_path) as service:
        await eventually(lambda: preloaded(service))
        assert (len(script.engines), loads_of(script), len(runs(script))) == (2, 2, 1)
        assert await condition_of(service) is m.EngineCondition.READY
        del script.at["decoding"]
        job = await service.submit(request())
        assert (await ended(service, job.id)).engine_deaths == 0


async def test_throw_away_prompt_is_in_no_line_of_the_log(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script(device="cuda")
    with caplog.at_level("DEBUG"):
        async with service_with(script, tmp_path) as service:
            await eventually(lambda: preloaded(service))
    ((run, _),) = runs(script)
    lines = [record.getMessage() for record in caplog.records]
    assert any("warmed up for" in line for line in lines)
    assert not [line for line in lines if run.prompt in line]


@pytest.mark.slow
async def test_real_engine_is_warmed_up_by_what_it_takes_to_generate(tmp_path: Path) -> None:
    """On a CPU, which is told to be a GPU: the pass is the same."""
    events: list[p.Event] = []

    class Watched(LocalEngine):
        @property
        def info(self) -> p.Ready:
            return attrs.evolve(super().info, device="cuda")

        async def receive(self) -> Received:
            received = await super().receive()
            events.append(received.event)
            return received

    async def start(nursery: trio.Nursery) -> Engine:
        return await Watched.start(nursery, LocalEngineOptions())

    with trio.fail_after(120):
        async with open_service(preloading(tmp_path), start_engine=start) as service:
            await eventually(lambda: preloaded(service))
    assert [event.step for event in events if isinstance(event, p.StepDone)] == [1, 2]
    (image,) = [event for event in events if isinstance(event, p.ImageDone)]
    assert (image.width, image.height) == (512, 512)
    assert [type(event) for event in events if isinstance(event, p.RunDone | p.RunFailed)] == [p.RunDone]
    assert images(tmp_path) == []
