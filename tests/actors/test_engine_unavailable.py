"""An engine that does not come up, in virtual time: every wait of a caller has a bound."""

from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from mflux_api.actors import messages as m
from mflux_api.catalog import Model
from mflux_api.config import EngineSettings
from mflux_api.errors import EngineUnavailable
from mflux_api.jobs.job import Job, Status
from mflux_api.service import Service, open_service
from tests.support.harness import condition_of, ended, eventually, gateway, request, run_inline, service_of, settings
from tests.support.scripted_engine import Crash, Hold, Script

NEVER = Crash(times=100_000, reason="exited with status 3")


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)


def demo(service: Service) -> Model:
    model = gateway(service).catalog.get("demo")
    assert model is not None
    return model


async def is_degraded(service: Service) -> bool:
    return await condition_of(service) is m.EngineCondition.DEGRADED


async def submit_sync(service: Service) -> Job:
    return await service.submit(request(), synchronous=True)


async def test_load_route_answers_why_as_soon_as_the_engine_is_degraded(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with service_of(tmp_path, {"0": Script(at={"start": NEVER})}) as service:
        with trio.fail_after(5), pytest.raises(EngineUnavailable, match="exited with status 3"):
            await gateway(service).load_model(demo(service))
        with trio.fail_after(0.1), pytest.raises(EngineUnavailable, match="exited with status 3"):
            await gateway(service).load_model(demo(service))


async def test_calls_of_the_load_route_wait_for_a_start_together_and_no_longer_than_one_may_take(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with service_of(tmp_path, {"0": Script(at={"start": Hold()})}) as service:
        began = trio.current_time()

        async def load() -> None:
            with pytest.raises(EngineUnavailable, match="not up after 60 s"):
                await gateway(service).load_model(demo(service))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(load)
        assert trio.current_time() - began == pytest.approx(EngineSettings().start_timeout_seconds)


async def test_load_route_gets_an_engine_that_comes_up_in_time(tmp_path: Path, autojump_clock: MockClock) -> None:
    hold = Hold()
    async with service_of(tmp_path, {"0": Script(at={"start": hold})}) as service:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gateway(service).load_model, demo(service))
            await trio.sleep(50)
            hold.release.set()
        (engine,) = await gateway(service).engines()
        assert engine.models == ("demo",)


async def test_synchronous_job_is_answered_when_its_engine_is_degraded(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with service_of(tmp_path, {"0": Script(at={"start": NEVER})}) as service:
        jobs = [await submit_sync(service) for _ in range(3)]
        with trio.fail_after(5):
            ends = [await ended(service, job.id) for job in jobs]
        for job in ends:
            assert job.failure is not None
            assert (job.failure.code, job.engine_deaths) == ("ENGINE_UNAVAILABLE", 0)
            assert "exited with status 3" in job.failure.message


async def test_status_says_what_the_last_child_died_of_while_no_engine_is_left(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with service_of(tmp_path, {"0": Script(at={"start": Crash(times=4, reason="exited: no driver")})}) as service:
        await eventually(lambda: is_degraded(service))
        assert (await gateway(service).status()).engine_trouble == "exited: no driver"
        with pytest.raises(EngineUnavailable, match="no driver") as refused:
            await service.submit(request())
        assert refused.value.details == {"reason": "exited: no driver"}
        await trio.sleep(60)
        assert (await gateway(service).status()).engine_trouble is None


async def test_synchronous_job_is_answered_when_its_engine_hangs_at_the_start(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with service_of(tmp_path, {"0": Script(at={"start": Hold()})}) as service:
        job = await submit_sync(service)
        with trio.fail_after(61):
            end = await ended(service, job.id)
        assert end.failure is not None
        assert end.failure.code == "ENGINE_UNAVAILABLE"


async def test_job_waits_in_the_queue_while_the_only_engine_is_degraded_and_runs_when_it_is_back(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    starts = Crash(times=8)
    async with service_of(tmp_path, {"0": Script(at={"start": starts})}) as service:
        job = await service.submit(request())
        await eventually(lambda: is_degraded(service))
        assert (await service.job(job.id)).status is Status.QUEUED
        status = await gateway(service).status()
        assert (status.active, status.queued, status.degraded) == (0, 1, True)
        end = await ended(service, job.id)
        assert (end.status, end.engine_deaths, end.service_deaths) == (Status.COMPLETED, 0, 0)


async def test_job_whose_engine_is_slow_to_start_waits_for_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    hold = Hold()
    async with service_of(tmp_path, {"0": Script(at={"start": hold})}) as service:
        job = await service.submit(request())
        await trio.sleep(200)
        assert (await service.job(job.id)).status in (Status.QUEUED, Status.GENERATING)
        hold.release.set()
        end = await ended(service, job.id)
        assert (end.status, end.engine_deaths, end.service_deaths) == (Status.COMPLETED, 0, 0)


async def test_job_waits_for_no_engine_twice_while_another_is_sound(tmp_path: Path, autojump_clock: MockClock) -> None:
    scripts = {"0": Script(at={"start": NEVER}), "1": Script()}
    async with service_of(tmp_path, scripts) as service:
        jobs = [await submit_sync(service) for _ in range(4)]
        ends = [await ended(service, job.id) for job in jobs]
    assert {(job.status, job.engine_deaths) for job in ends} == {(Status.COMPLETED, 0)}


async def test_model_loaded_ahead_is_loaded_when_a_degraded_engine_is_back(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    plain = settings(tmp_path)
    chosen = attrs.evolve(
        plain,
        models=attrs.evolve(plain.models, default="demo"),
        engine=attrs.evolve(plain.engine, preload=True),
    )
    async with open_service(chosen, start_engine=Script(at={"start": Crash(times=5)}).start) as service:
        await eventually(lambda: is_degraded(service))
        await eventually(lambda: has_demo(service))
        assert not (await gateway(service).status()).degraded


async def has_demo(service: Service) -> bool:
    (view,) = await gateway(service).engines()
    return view.models == ("demo",)
