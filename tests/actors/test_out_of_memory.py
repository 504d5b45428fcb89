"""Deaths for want of memory, told apart from others; what engines say at once; and jobs that overtake for memory."""

from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from mflux_api.actors import messages as m
from mflux_api.actors.generator.oom_evidence import OOMEvidence
from mflux_api.actors.generator.options import GeneratorOptions
from mflux_api.actors.scheduler.entries import JobEvent
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.engine import protocol as p
from mflux_api.engine.interface import EngineDied
from mflux_api.jobs.estimates import Estimates
from mflux_api.jobs.job import Job, Status
from tests.support.crew import a_job
from tests.support.harness import Bench, ended, generator, request, scripted_service
from tests.support.scripted_engine import Crash, Fail, Hold, Script

GB = 10**9


async def _death(bench: Bench) -> EngineDied:
    with pytest.raises(EngineDied) as caught:
        await bench.generate()
    return caught.value


class _Kills:
    """A count of the system's kills that a test moves."""

    def __init__(self) -> None:
        self.count = 3

    def __call__(self) -> int:
        return self.count


async def test_a_kill_that_the_system_counted_was_for_want_of_memory(autojump_clock: MockClock) -> None:
    kills = _Kills()
    script = Script(at={"step 0/1": Crash(times=3)})
    async with generator(script, GeneratorOptions(oom_evidence=OOMEvidence(kills))) as bench:
        assert not (await _death(bench)).out_of_memory
        await bench.load()
        kills.count += 1
        assert (await _death(bench)).out_of_memory
        # Counted once: the next death is just a death.
        assert not (await _death(bench)).out_of_memory


async def test_one_kill_is_evidence_for_one_of_two_engines(autojump_clock: MockClock) -> None:
    kills = _Kills()
    options = GeneratorOptions(oom_evidence=OOMEvidence(kills))
    scripts = [Script(at={"step 0/1": Crash(times=2)}) for _ in range(2)]
    async with generator(scripts[0], options) as first, generator(scripts[1], options) as second:
        for bench in (first, second):
            await bench.load()
        kills.count += 1
        deaths = [await _death(bench) for bench in (first, second)]
        assert [death.out_of_memory for death in deaths] == [True, False]
        # The next of each is judged by the kills since its own start.
        for bench in (first, second):
            await bench.load()
        kills.count += 2
        deaths = [await _death(bench) for bench in (second, first)]
        assert [death.out_of_memory for death in deaths] == [True, True]


async def test_a_crash_is_not_a_kill_whatever_the_system_counted(autojump_clock: MockClock) -> None:
    kills = _Kills()
    script = Script(at={"step 0/1": Crash(reason="killed by SIGSEGV")})
    async with generator(script, GeneratorOptions(oom_evidence=OOMEvidence(kills))) as bench:
        await bench.load()
        kills.count += 1
        assert not (await _death(bench)).out_of_memory


@pytest.mark.parametrize(
    ("free", "reason", "evidence"),
    [
        (4, "killed by SIGKILL", True),
        (4, "killed by SIGABRT", True),
        (6, "killed by SIGKILL", False),
        (None, "killed by SIGKILL", False),
        (4, "exited with status 1", False),
    ],
)
async def test_a_child_that_was_nearly_out_of_memory_at_its_last_heartbeat_died_of_it(
    autojump_clock: MockClock, free: int | None, reason: str, evidence: bool
) -> None:
    hold = Hold()
    script = Script(at={"run": hold, "step 0/1": Crash(reason=reason)}, memory_bytes=100)
    async with generator(script) as bench, trio.open_nursery() as nursery:

        async def starve() -> None:
            await hold.reached.wait()
            script.current.say(p.Heartbeat(active_bytes=1, peak_bytes=1, free_bytes=free))
            hold.release.set()

        nursery.start_soon(starve)
        assert (await _death(bench)).out_of_memory is evidence


async def _failed(folder: Path, script: Script) -> Job:
    async with scripted_service(folder, script, max_attempts=2) as service:
        job = await service.submit(request())
        return await ended(service, job.id)


async def test_only_the_last_attempt_decides_between_a_crash_and_want_of_memory(tmp_path: Path) -> None:
    for name, free, code in (("starved", 20, "OOM_ERROR"), ("crashed", 500, "ENGINE_CRASHED")):
        script = Script(at={"step 0/1": Crash(times=2)}, memory_bytes=1000 * GB, free_bytes=free * GB)
        job = await _failed(tmp_path / name, script)
        assert job.failure is not None
        assert (job.status, job.failure.code) == (Status.FAILED, code)
        assert job.failure.details["attempts"] == job.engine_deaths == 2
        assert ("suggestion" in job.failure.details) == (code == "OOM_ERROR")


async def test_a_job_that_was_killed_for_memory_once_is_retried_like_any_other(tmp_path: Path) -> None:
    script = Script(at={"step 0/1": Crash()}, memory_bytes=1000 * GB, free_bytes=GB)
    job = await _failed(tmp_path, script)
    assert (job.status, job.engine_deaths) == (Status.COMPLETED, 1)


@pytest.mark.parametrize("moment", ["load", "step 0/1"])
async def test_what_the_engine_says_of_its_memory_fails_the_job_at_once_with_a_suggestion(
    tmp_path: Path, moment: str
) -> None:
    job = await _failed(tmp_path, Script(at={moment: Fail(code="OOM_ERROR")}))
    assert job.failure is not None
    assert (job.failure.code, job.engine_deaths) == ("OOM_ERROR", 0)
    assert job.failure.message == "Insufficient memory. Try using a quantized model or low_ram mode"
    assert job.failure.details == {"model": "demo", "suggestion": "Set low_ram=true"}


# --- affinity ---


def _taken(queue: JobQueue, resident: set[str], max_skips: int) -> list[str]:
    taken = []
    engine = m.EngineStatus(id="0", condition=m.EngineCondition.READY, models=tuple(resident))
    while (chosen := queue.next([engine], {"0"}, max_skips)) is not None:
        taken.append(chosen[0].job.model)
    return taken


def _queue(*models: str) -> JobQueue:
    queue = JobQueue(Estimates())
    for model in models:
        entry = queue.add(a_job(model=model))
        entry.on(JobEvent.KEPT)
        queue.enqueue(entry)
    return queue


def test_a_job_whose_model_is_in_memory_overtakes_so_often_and_no_more() -> None:
    assert _taken(_queue("a", "b", "b", "b"), {"b"}, 2) == ["b", "b", "a", "b"]
    assert _taken(_queue("a", "c", "b", "b"), {"b"}, 1) == ["b", "a", "c", "b"]
    assert _taken(_queue("a", "b", "a", "b"), {"a", "b"}, 4) == ["a", "b", "a", "b"]
    assert _taken(_queue("a", "b"), {"b"}, 0) == ["a", "b"]
    assert _taken(_queue("a", "b"), set(), 4) == ["a", "b"]


def test_alternating_stream_over_two_models_costs_few_loads_and_starves_none() -> None:
    """There is room for one of them: each change is a load."""
    queue, most = _queue(*["a", "b"] * 10), 4
    numbers, loads, resident = list[int](), 0, ""
    while True:
        engine = m.EngineStatus(id="0", condition=m.EngineCondition.READY, models=(resident,) if resident else ())
        chosen = queue.next([engine], {"0"}, most)
        if chosen is None:
            break
        entry, _ = chosen
        loads += entry.job.model != resident
        resident = entry.job.model
        numbers.append(entry.number)
    assert sorted(numbers) == list(range(20))
    assert loads <= 4
    # No job's turn comes later than that of those that may overtake it.
    assert max(turn - number for turn, number in enumerate(numbers)) <= most


async def test_jobs_on_the_resident_model_go_first_and_no_job_waits_for_ever(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"run": hold})
    async with scripted_service(tmp_path, script, max_affinity_skips=2) as service:
        jobs = [await service.submit(request(0))]
        await hold.reached.wait()
        other = attrs.evolve(request(1), model="demo-base")
        jobs += [await service.submit(job) for job in (other, request(2), request(3), request(4))]
        hold.release.set()
        for job in jobs:
            assert (await ended(service, job.id)).status is Status.COMPLETED
    runs = [command.seeds[0] for command in script.current.received if isinstance(command, p.Run)]
    assert runs == [0, 2, 3, 1, 4]
