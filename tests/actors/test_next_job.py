"""The next job comes to its engine while the last one is decoded, where that is short."""

from pathlib import Path

import pytest

from mflux_api.actors.scheduler import job_runner
from mflux_api.engine.protocol import Run
from mflux_api.jobs.job import Status
from mflux_api.service import Service
from tests.support.harness import ended, eventually, gateway, request, rgb, scripted_service, seeds_run
from tests.support.scripted_engine import Crash, Hold, Script, pixels


async def _status(service: Service, job_id: str) -> Status:
    return (await gateway(service).job(job_id)).job.status


async def _learn(service: Service, script: Script, hold: Hold | Crash, moment: str) -> None:
    """Have one job run, so that it is known how long they take; then let the next reach a moment."""
    await ended(service, (await service.submit(request(0))).id)
    script.at[moment] = hold


async def test_next_job_is_ready_when_the_engine_is_free(tmp_path: Path) -> None:
    hold, script = Hold(), Script()
    async with scripted_service(tmp_path, script) as service:
        await _learn(service, script, hold, "image 0")
        first, second, third = [await service.submit(request(seed)) for seed in (1, 2, 3)]
        await hold.reached.wait()
        await eventually(lambda: _is_generating(service, second.id))
        # The engine was not told of it, and only one job comes so early.
        assert seeds_run(script) == [0, 1]
        assert await _status(service, third.id) is Status.QUEUED
        hold.release.set()
        done = [await ended(service, job.id) for job in (first, second, third)]
    assert [rgb(job.images[0]) for job in done] == [pixels(seed, 64, 64) for seed in (1, 2, 3)]
    assert seeds_run(script) == [0, 1, 2, 3]


async def _is_generating(service: Service, job_id: str) -> bool:
    return await _status(service, job_id) is Status.GENERATING


async def test_where_decoding_takes_long_the_next_job_stays_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_runner, "SHORT_REST_SECONDS", -1.0)
    hold, script = Hold(), Script()
    async with scripted_service(tmp_path, script) as service:
        await _learn(service, script, hold, "image 0")
        first, second = [await service.submit(request(seed)) for seed in (1, 2)]
        await hold.reached.wait()
        assert await _status(service, first.id) is Status.GENERATING
        assert await _status(service, second.id) is Status.QUEUED
        hold.release.set()
        await ended(service, second.id)


async def test_a_death_of_the_last_job_costs_the_next_one_nothing(tmp_path: Path) -> None:
    hold, script = Hold(), Script()
    async with scripted_service(tmp_path, script) as service:
        await _learn(service, script, hold, "image 0")
        first, second = [await service.submit(request(seed)) for seed in (1, 2)]
        await hold.reached.wait()
        await eventually(lambda: _is_generating(service, second.id))
        script.current.die()
        done = [await ended(service, job.id) for job in (first, second)]
    assert [(job.status, job.engine_deaths) for job in done] == [(Status.COMPLETED, 1), (Status.COMPLETED, 0)]


async def test_the_next_job_can_be_cancelled_before_it_reaches_the_engine(tmp_path: Path) -> None:
    hold, script = Hold(), Script()
    async with scripted_service(tmp_path, script) as service:
        await _learn(service, script, hold, "image 0")
        first, second = [await service.submit(request(seed)) for seed in (1, 2)]
        await hold.reached.wait()
        await eventually(lambda: _is_generating(service, second.id))
        await service.cancel(second.id)
        hold.release.set()
        await ended(service, first.id)
        assert (await ended(service, second.id)).status is Status.CANCELLED
        sent = [command.seeds[0] for command in script.current.received if isinstance(command, Run)]
    assert sent == [0, 1]
