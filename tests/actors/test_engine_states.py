"""What is said of an engine after its child died and after the scheduler was restarted: no model that is not there."""

from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from mflux_api.actors import messages as m
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.errors import EngineUnavailable
from mflux_api.http.app import create_app
from mflux_api.jobs.job import Status
from mflux_api.service import Service, open_service
from tests.support.actor_crashes import crash, provoke
from tests.support.harness import ended, eventually, gateway, request, run_inline, seeds_run, service_of, settings
from tests.support.scripted_engine import Crash, Hold, Script

READY, DEGRADED = m.EngineCondition.READY, m.EngineCondition.DEGRADED


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)


async def said(service: Service) -> list[tuple[m.EngineCondition, tuple[str, ...]]]:
    """What the scheduler knows of each engine."""
    return [(view.status.condition, view.status.models) for view in await gateway(service).engines()]


async def model_status(service: Service) -> str:
    answer = await create_app(gateway(service)).test_client().get("/api/v1/models/demo/status")
    return str((await answer.get_json())["status"])


async def restart_scheduler(service: Service) -> None:
    with crash(JobQueue, "snapshots"):
        await provoke(gateway(service).snapshots)
    await gateway(service).snapshots()


async def test_model_of_a_dead_engine_is_not_said_to_be_loaded(tmp_path: Path, autojump_clock: MockClock) -> None:
    script = Script()
    async with service_of(tmp_path, {"0": script}) as service:
        await ended(service, (await service.submit(request(1))).id)
        assert await model_status(service) == "loaded"
        script.at["start"] = Hold()
        script.current.die()
        await trio.sleep(1)
        assert await model_status(service) == "ready"
        ((condition, models),) = await said(service)
        assert (condition, models) == (m.EngineCondition.STARTING, ())


async def test_engine_that_dies_while_it_loads_is_not_said_to_load(tmp_path: Path, autojump_clock: MockClock) -> None:
    hold = Hold()
    script = Script(at={"load": hold})
    async with service_of(tmp_path, {"0": script}) as service:
        job = await service.submit(request(1))
        await hold.reached.wait()
        assert await model_status(service) == "loading"
        script.at["start"] = starting = Hold()
        script.current.die()
        await starting.reached.wait()
        assert await model_status(service) == "ready"
        starting.release.set()
        assert (await ended(service, job.id)).status is Status.COMPLETED


async def test_no_job_overtakes_for_a_model_that_died_with_its_engine(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    hold = Hold()
    script = Script(at={"step 0/1": hold})
    plain = settings(tmp_path)
    once = attrs.evolve(plain, scheduler=attrs.evolve(plain.scheduler, max_attempts=1, max_affinity_skips=4))
    async with open_service(once, start_engine=script.start) as service:
        first = await service.submit(request(1))
        await hold.reached.wait()
        other = await service.submit(attrs.evolve(request(2), model="demo-base"))
        same = await service.submit(request(3))
        script.current.die()
        ends = [await ended(service, job.id) for job in (first, other, same)]
    assert [job.status for job in ends] == [Status.FAILED, Status.COMPLETED, Status.COMPLETED]
    assert seeds_run(script) == [1, 2, 3]


async def test_scheduler_that_restarts_learns_which_models_are_resident_and_which_engine_is_degraded(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    scripts = {"0": Script(), "1": Script(at={"start": Crash(times=1000)})}
    async with service_of(tmp_path, scripts) as service:
        await ended(service, (await service.submit(request(1))).id)
        expected = [(READY, ("demo",)), (DEGRADED, ())]

        async def is_known() -> bool:
            return await said(service) == expected

        await eventually(is_known)
        await restart_scheduler(service)
        with trio.fail_after(1):
            await eventually(is_known)


async def test_scheduler_that_restarts_refuses_work_for_an_only_engine_that_is_degraded(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with service_of(tmp_path, {"0": Script(at={"start": Crash(times=1000)})}) as service:

        async def is_degraded() -> bool:
            return (await gateway(service).status()).degraded

        await eventually(is_degraded)
        await restart_scheduler(service)
        with trio.fail_after(1):
            await eventually(is_degraded)
        with pytest.raises(EngineUnavailable):
            await service.submit(request(1))
