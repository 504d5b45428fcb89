"""Two engines of one service, in virtual time: which one a job goes to, and what the others see of it."""

from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from mflux_api.actors import messages as m
from mflux_api.actors.scheduler.entries import Entry, JobEvent
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.engine.protocol import LoadModel, UnloadModel
from mflux_api.errors import EngineUnavailable, ModelInUse
from mflux_api.http.app import create_app
from mflux_api.jobs.estimates import Estimates
from mflux_api.jobs.job import Job, Status
from mflux_api.service import Service
from tests.support.crew import a_job
from tests.support.harness import ended, eventually, gateway, request, run_inline, seeds_run, service_of
from tests.support.scripted_engine import Crash, Hold, Script, ScriptedEngine

READY, STARTING = m.EngineCondition.READY, m.EngineCondition.STARTING
DEGRADED, FAILED = m.EngineCondition.DEGRADED, m.EngineCondition.FAILED


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)


async def are(service: Service, *conditions: m.EngineCondition) -> bool:
    return tuple(each.status.condition for each in await gateway(service).engines()) == conditions


async def submit(service: Service, seed: int, model: str = "demo") -> Job:
    return await service.submit(attrs.evolve(request(seed), model=model))


def commands_of(script: Script, kind: type[LoadModel | UnloadModel]) -> list[str]:
    return [command.model for engine in script.engines for command in engine.received if isinstance(command, kind)]


# --- where a job goes ---


async def test_two_jobs_run_at_the_same_time_on_two_engines(tmp_path: Path, autojump_clock: MockClock) -> None:
    holds = {"0": Hold(), "1": Hold()}
    scripts = {engine: Script(at={"run": hold}) for engine, hold in holds.items()}
    async with service_of(tmp_path, scripts) as service:
        jobs = [await submit(service, seed) for seed in range(3)]
        for hold in holds.values():
            await hold.reached.wait()
        status = await gateway(service).status()
        assert (status.active, status.queued) == (2, 1)
        holds["1"].release.set()
        # The second ends before the first, and its engine takes the third.
        assert (await ended(service, jobs[2].id)).status is Status.COMPLETED
        assert (await service.job(jobs[0].id)).status is Status.GENERATING
        holds["0"].release.set()
        await ended(service, jobs[0].id)
    assert [sorted(seeds_run(script)) for script in scripts.values()] == [[0], [1, 2]]


async def test_job_goes_to_the_engine_that_has_its_model(tmp_path: Path, autojump_clock: MockClock) -> None:
    scripts = {"0": Script(), "1": Script()}
    async with service_of(tmp_path, scripts) as service:
        await eventually(lambda: are(service, READY, READY))
        scripts["0"].at["run"] = busy = Hold()
        first = await submit(service, 0, "demo")
        await busy.reached.wait()
        await ended(service, (await submit(service, 1, "demo-base")).id)
        busy.release.set()
        await ended(service, first.id)
        for seed in (2, 3):
            await ended(service, (await submit(service, seed, "demo-base")).id)
            await ended(service, (await submit(service, seed + 10, "demo")).id)
    assert [seeds_run(script) for script in scripts.values()] == [[0, 12, 13], [1, 2, 3]]
    assert [commands_of(script, LoadModel) for script in scripts.values()] == [["demo"], ["demo-base"]]


async def test_job_whose_engine_died_goes_to_another_engine(tmp_path: Path, autojump_clock: MockClock) -> None:
    scripts = {"0": Script(at={"step 0/2": Crash(times=5)}), "1": Script()}
    async with service_of(tmp_path, scripts) as service:
        await eventually(lambda: are(service, READY, READY))
        job = await ended(service, (await submit(service, 0)).id)
    assert (job.status, job.engine_deaths) == (Status.COMPLETED, 1)
    assert [seeds_run(script) for script in scripts.values()] == [[0], [0]]


async def test_it_waits_for_the_other_engine_while_that_one_is_busy(tmp_path: Path, autojump_clock: MockClock) -> None:
    hold, death = Hold(), Hold()
    scripts = {"0": Script(at={"step 0/2": death}), "1": Script(at={"run": hold})}
    async with service_of(tmp_path, scripts) as service:
        await eventually(lambda: are(service, READY, READY))
        job, other = await submit(service, 0), await submit(service, 1)
        await hold.reached.wait()
        await death.reached.wait()
        scripts["0"].current.die()
        await eventually(lambda: are(service, READY, READY))
        later = await ended(service, (await submit(service, 2)).id)
        assert later.status is Status.COMPLETED
        assert (await service.job(job.id)).status is Status.QUEUED
        hold.release.set()
        assert [(await ended(service, each.id)).status for each in (job, other)] == [Status.COMPLETED] * 2
    assert [seeds_run(script) for script in scripts.values()] == [[0, 2], [1, 0]]


async def test_it_runs_on_the_same_one_where_there_is_no_other(tmp_path: Path, autojump_clock: MockClock) -> None:
    scripts = {"0": Script(at={"step 0/2": Crash()}), "1": Script(at={"start": Crash(times=1000)})}
    async with service_of(tmp_path, scripts) as service:
        await eventually(lambda: are(service, READY, DEGRADED))
        job = await ended(service, (await submit(service, 0)).id)
    assert (job.status, job.engine_deaths) == (Status.COMPLETED, 1)
    assert seeds_run(scripts["0"]) == [0, 0]


async def test_job_that_waits_for_an_engine_that_does_not_come_up_goes_to_another(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    starting = Hold()
    scripts = {"0": Script(at={"start": starting}), "1": Script(at={"start": Crash(times=1000)})}
    async with service_of(tmp_path, scripts) as service:
        jobs = [(await gateway(service).submit(request(seed), synchronous=True)).job for seed in range(2)]
        await starting.reached.wait()
        starting.release.set()
        ends = [await ended(service, job.id) for job in jobs]
        assert [(job.status, job.engine_deaths, job.service_deaths) for job in ends] == [(Status.COMPLETED, 0, 0)] * 2
        assert await are(service, READY, DEGRADED)
    assert sorted(seeds_run(scripts["0"])) == [0, 1]


async def test_it_goes_there_also_when_the_other_one_comes_up_later(tmp_path: Path, autojump_clock: MockClock) -> None:
    scripts = {"0": Script(at={"start": Crash(times=6)}), "1": DyingSlowly(at={"start": Crash(times=1000)})}
    async with service_of(tmp_path, scripts) as service:
        jobs = [await submit(service, seed) for seed in range(2)]
        await eventually(lambda: are(service, DEGRADED, STARTING))
        await eventually(lambda: are(service, DEGRADED, DEGRADED))
        assert [(await service.job(job.id)).status for job in jobs] == [Status.QUEUED] * 2
        with trio.fail_after(60):
            ends = [await ended(service, job.id) for job in jobs]
        assert [(job.status, job.engine_deaths) for job in ends] == [(Status.COMPLETED, 0)] * 2
        assert await are(service, READY, DEGRADED)


class DyingSlowly(Script):
    """An engine that takes a second to fail at its start."""

    async def start(self, nursery: trio.Nursery) -> ScriptedEngine:
        await trio.sleep(1.0)
        return await super().start(nursery)


async def test_job_waits_for_an_engine_that_does_not_come_up_where_there_is_no_other(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    scripts = {engine: Script(at={"start": Crash(times=6)}) for engine in "01"}
    async with service_of(tmp_path, scripts) as service:
        jobs = [await submit(service, seed) for seed in range(2)]
        await eventually(lambda: are(service, DEGRADED, DEGRADED))
        with pytest.raises(EngineUnavailable):
            await submit(service, 2)
        ends = [await ended(service, job.id) for job in jobs]
        assert [(job.status, job.engine_deaths) for job in ends] == [(Status.COMPLETED, 0)] * 2


async def test_cancel_and_halt_find_the_job_on_whichever_engine_it_runs(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    holds = {"0": Hold(), "1": Hold()}
    scripts = {engine: Script(at={"step 0/1": hold}) for engine, hold in holds.items()}
    async with service_of(tmp_path, scripts) as service:
        jobs = [await submit(service, seed) for seed in range(2)]
        for hold in holds.values():
            await hold.reached.wait()
        assert (await service.cancel(jobs[1].id)).status is Status.CANCELLED
        assert (await service.job(jobs[0].id)).status is Status.GENERATING
        await service.drain(halt=True)
        assert (await service.job(jobs[0].id)).status is Status.QUEUED


# --- the queue with two engines ---


def status(engine: str, *models: str) -> m.EngineStatus:
    return m.EngineStatus(id=engine, condition=READY, models=models, device=f"device of {engine}")


def queue_of(*models: str, estimates: Estimates | None = None) -> tuple[JobQueue, list[Entry]]:
    queue = JobQueue(estimates or Estimates())
    entries = []
    for model in models:
        entry = queue.add(a_job(model=model))
        entry.on(JobEvent.KEPT)
        queue.enqueue(entry)
        entries.append(entry)
    return queue, entries


def taken(queue: JobQueue, engines: list[m.EngineStatus], max_skips: int) -> list[tuple[str, str]]:
    chosen = []
    while (choice := queue.next(engines, {each.id for each in engines}, max_skips)) is not None:
        chosen.append((choice[0].job.model, choice[1].id))
    return chosen


def test_a_job_is_overtaken_so_often_and_no_more_also_with_two_engines() -> None:
    engines = [status("0", "a"), status("1", "b")]
    queue, _ = queue_of("c", "b", "a", "b")
    assert taken(queue, engines, 2) == [("b", "1"), ("a", "0"), ("c", "0"), ("b", "1")]
    queue, _ = queue_of("c", "b", "a")
    assert taken(queue, engines, 0) == [("c", "0"), ("b", "1"), ("a", "0")]


def test_a_job_that_failed_on_one_engine_takes_no_other_jobs_turn() -> None:
    queue, (failed, _) = queue_of("a", "b")
    failed.failed_on = "0"
    assert queue.next([status("0")], {"0", "1"}) is not None, "the second goes first"
    assert queue.next([status("0")], {"0", "1"}) is None, "it waits for the other"
    chosen = queue.next([status("0")], {"0"})
    assert chosen is not None
    assert chosen[0] is failed
    assert failed.overtaken == 0


def test_etas_are_those_of_two_engines_side_by_side() -> None:
    estimates = Estimates()
    job = a_job(steps=4).request
    for device, seconds in (("device of 0", 1.0), ("device of 1", 2.0)):
        estimates.add_step(job, device, seconds)
        estimates.add_rest(job, device, 0.0)
    queue, entries = queue_of("demo", "demo", "demo", "demo", estimates=estimates)
    both = [status("0", "demo"), status("1", "demo")]
    assert list(queue.etas(both).values()) == [4.0, 8.0, 8.0, 12.0]
    assert list(queue.etas(both[:1]).values()) == [4.0, 8.0, 12.0, 16.0]
    # What runs is counted on the engine that runs it, and what waits goes to the one that is free first.
    chosen = queue.next(both[1:], {"0", "1"})
    assert chosen is not None
    entries[0].engine = chosen[1]
    entries[0].on(JobEvent.DISPATCHED)
    assert list(queue.etas(both).values()) == [8.0, 4.0, 8.0, 12.0]


# --- what the gateway does with several ---


async def both_have_the_model(service: Service, scripts: dict[str, Script]) -> None:
    holds = [Hold(), Hold()]
    for script, hold in zip(scripts.values(), holds, strict=True):
        script.at["run"] = hold
    jobs = [await submit(service, seed) for seed in range(2)]
    for hold in holds:
        await hold.reached.wait()
        hold.release.set()
    for job in jobs:
        await ended(service, job.id)


async def test_unloading_a_model_frees_it_on_every_engine(tmp_path: Path, autojump_clock: MockClock) -> None:
    scripts = {"0": Script(), "1": Script()}
    async with service_of(tmp_path, scripts) as service:
        await both_have_the_model(service, scripts)
        assert [engine.models for engine in await gateway(service).engines()] == [("demo",), ("demo",)]
        model = gateway(service).catalog.get("demo")
        assert model is not None
        scripts["1"].at["step 0/1"] = hold = Hold()
        scripts["0"].at["step 0/1"] = Hold()
        await submit(service, 5)
        await submit(service, 6)
        await hold.reached.wait()
        with pytest.raises(ModelInUse):
            await gateway(service).unload_model(model)
        for script in scripts.values():
            script.at["step 0/1"].release.set()  # type: ignore[union-attr]
        await eventually(lambda: idle(service))
        await gateway(service).unload_model(model)
        assert [engine.models for engine in await gateway(service).engines()] == [(), ()]
    assert [commands_of(script, UnloadModel) for script in scripts.values()] == [["demo"], ["demo"]]


async def idle(service: Service) -> bool:
    return (await gateway(service).status()).active == 0


async def test_loading_a_model_chooses_an_engine_that_is_up(tmp_path: Path, autojump_clock: MockClock) -> None:
    scripts = {"0": Script(at={"start": Crash(times=1000)}), "1": Script()}
    async with service_of(tmp_path, scripts) as service:
        await eventually(lambda: are(service, DEGRADED, READY))
        model = gateway(service).catalog.get("demo")
        assert model is not None
        with trio.fail_after(20):
            await gateway(service).load_model(model)
        assert [engine.models for engine in await gateway(service).engines()] == [(), ("demo",)]


async def test_system_lists_every_engine(tmp_path: Path, autojump_clock: MockClock) -> None:
    scripts = {"0": Script(), "1": Script(at={"start": Crash(times=1000)})}
    async with service_of(tmp_path, scripts) as service:
        await eventually(lambda: are(service, READY, DEGRADED))
        await ended(service, (await submit(service, 0)).id)
        app = create_app(gateway(service))
        answer = await app.test_client().get("/api/v1/system")
        engines = (await answer.get_json())["engines"]
    assert [(engine["id"], engine["status"], engine["models"]) for engine in engines] == [
        ("0", "ready", ["demo"]),
        ("1", "degraded", []),
    ]
