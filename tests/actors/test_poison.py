"""Jobs and files that kill every engine that takes them, in virtual time: they cost themselves, and no one else."""

import os
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mflux_api.actors import messages as m
from mflux_api.actors.generator import quarantine as quarantine_module
from mflux_api.actors.generator.options import GeneratorOptions
from mflux_api.actors.generator.quarantine import MODEL_DEATHS, ModelFiles, Quarantine
from mflux_api.engine import protocol as p
from mflux_api.engine.interface import EngineDied
from mflux_api.errors import GenerationFailed
from mflux_api.jobs.job import Job, Status
from mflux_api.jobs.request import GenerateRequest
from mflux_api.service import Service
from tests.support.harness import condition_of, ended, gateway, generator, request, run_inline, service_of
from tests.support.scripted_engine import Crash, Fail, Hang, Script

POISON = "poison.safetensors"
SOUND = "sound.safetensors"


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "loras").mkdir()
    for name in (POISON, SOUND):
        (tmp_path / "loras" / name).write_bytes(b"not read here")
    return tmp_path


def with_loras(*names: str, seed: int = 5) -> GenerateRequest:
    return attrs.evolve(request(seed), lora_files=names)


def is_poison(command: p.Command) -> bool:
    return isinstance(command, p.Run) and command.prompt == "poison"


async def end_of(service: Service, job: GenerateRequest) -> Job:
    with trio.fail_after(60):
        return await ended(service, (await service.submit(job)).id)


def code_of(job: Job) -> str:
    assert job.failure is not None
    return job.failure.code


async def test_jobs_that_kill_the_engine_cost_themselves_and_every_other_is_taken_and_served(
    folder: Path, autojump_clock: MockClock
) -> None:
    script = Script(deadly=is_poison)
    async with service_of(folder, {"0": script}) as service:
        began = trio.current_time()
        jobs = []
        for number in range(20):
            jobs.append(await service.submit(request(prompt="poison")))
            jobs.append(await service.submit(request(number)))
            assert await condition_of(service) is not m.EngineCondition.DEGRADED
        ends = [await ended(service, job.id) for job in jobs]
        assert [job.status for job in ends] == [Status.FAILED, Status.COMPLETED] * 20
        assert {(code_of(job), job.engine_deaths) for job in ends[::2]} == {("ENGINE_CRASHED", 2)}
        # Each of the 40 deaths was followed by a start at once.
        assert len(script.starts) == 41
        assert trio.current_time() - began < 5


async def test_deaths_with_a_job_inside_do_not_delay_the_next_start(folder: Path, autojump_clock: MockClock) -> None:
    script = Script(deadly=is_poison)
    async with service_of(folder, {"0": script}) as service:
        for _ in range(5):
            assert (await end_of(service, request(prompt="poison"))).status is Status.FAILED
        assert max(script.starts) - min(script.starts) < 1


async def test_lora_that_killed_engines_is_refused_by_its_name_until_it_changes(
    folder: Path, autojump_clock: MockClock
) -> None:
    script = Script(deadly_loras=frozenset({POISON}))
    async with service_of(folder, {"0": script}) as service:
        first = await end_of(service, with_loras(POISON))
        assert code_of(first) == "INVALID_PARAMETER"
        starts = len(script.starts)
        assert starts == 3
        for names in ((POISON,), (SOUND, POISON)):
            refused = await end_of(service, with_loras(*names))
            assert refused.failure is not None
            assert refused.failure.code == "INVALID_PARAMETER"
            assert POISON in refused.failure.message
            assert "replace the file" in refused.failure.message
            assert str(folder) not in refused.failure.message
            assert refused.failure.details["value"] == POISON
        assert (await end_of(service, with_loras(SOUND))).status is Status.COMPLETED
        assert len(script.starts) == starts
        os.utime(folder / "loras" / POISON, ns=(1, 1))
        script.deadly_loras = frozenset()
        assert (await end_of(service, with_loras(POISON))).status is Status.COMPLETED


async def test_lora_beside_the_one_that_kills_is_not_blamed(folder: Path, autojump_clock: MockClock) -> None:
    script = Script(deadly_loras=frozenset({POISON}))
    async with service_of(folder, {"0": script}) as service:
        for _ in range(3):
            assert (await end_of(service, with_loras(SOUND, POISON))).status is Status.FAILED
        assert (await end_of(service, with_loras(SOUND))).status is Status.COMPLETED


async def test_lora_of_others_is_not_refused_because_one_that_kills_was_named_before_it(
    folder: Path, autojump_clock: MockClock
) -> None:
    """Numbers of all are computed while the last is read: a caller could have had any LoRA refused for everybody."""
    script = Script(deadly_together=frozenset({POISON, SOUND}))
    async with service_of(folder, {"0": script}) as service:
        first = await end_of(service, with_loras(POISON, SOUND))
        starts = len(script.starts)
        for names in ((POISON, SOUND), (SOUND, POISON)):
            refused = await end_of(service, with_loras(*names))
            assert refused.failure is not None
            assert refused.failure == first.failure
            assert f"The LoRAs {POISON}, {SOUND} ended the engine 2 times" in refused.failure.message
        for name in (POISON, SOUND):
            assert (await end_of(service, with_loras(name))).status is Status.COMPLETED
        assert len(script.starts) == starts


async def test_lora_is_not_blamed_for_a_death_after_it_was_read(folder: Path, autojump_clock: MockClock) -> None:
    """Else a caller could have another's LoRA refused, by jobs that are too large for the engine."""
    script = Script(at={"step 0/3": Crash(times=6)})
    async with service_of(folder, {"0": script}) as service:
        for _ in range(3):
            job = await end_of(service, attrs.evolve(with_loras(SOUND), steps=3))
            assert code_of(job) == "ENGINE_CRASHED"
        assert (await end_of(service, attrs.evolve(with_loras(SOUND), steps=3))).status is Status.COMPLETED


async def test_model_that_kills_the_engine_while_it_is_loaded_costs_its_jobs_and_no_others(
    folder: Path, autojump_clock: MockClock
) -> None:
    script = Script(deadly=lambda command: isinstance(command, p.LoadModel) and command.model == "demo-base")
    async with service_of(folder, {"0": script}) as service:
        base = attrs.evolve(request(), model="demo-base")
        for _ in range(2):
            assert code_of(await end_of(service, base)) == "ENGINE_CRASHED"
        starts = len(script.starts)
        for number in range(5):
            refused = await end_of(service, base)
            assert refused.failure is not None
            assert (refused.failure.code, refused.engine_deaths) == ("GENERATION_FAILED", 0)
            assert "'demo-base' ended the engine 4 times while it was loaded" in refused.failure.message
            assert (await end_of(service, request(number))).status is Status.COMPLETED
            assert await condition_of(service) is m.EngineCondition.READY
        assert len(script.starts) == starts


async def test_model_that_killed_the_engine_is_tried_again_after_a_while(
    folder: Path, autojump_clock: MockClock
) -> None:
    script = Script(deadly=lambda command: isinstance(command, p.LoadModel))
    async with service_of(folder, {"0": script}) as service:
        codes = [code_of(await end_of(service, request())) for _ in range(3)]
        assert codes == ["ENGINE_CRASHED", "ENGINE_CRASHED", "GENERATION_FAILED"]
        await trio.sleep(61)
        script.deadly = lambda command: False
        for _ in range(2):
            assert (await end_of(service, request())).status is Status.COMPLETED


async def test_file_is_not_blamed_for_a_hang(autojump_clock: MockClock) -> None:
    """It may be the disk's, and then it would be every file's."""
    quarantine = Quarantine()
    script = Script(at={"load": Hang()})
    async with generator(script, GeneratorOptions(silence=1.0, quarantine=quarantine)) as bench:
        for _ in range(5):
            with pytest.raises(EngineDied, match="no word of a load"):
                await bench.load()
    assert quarantine._records == {}


@pytest.mark.parametrize("failing", ["load", "encoding"])
async def test_death_without_work_is_not_blamed_on_what_was_read_before(
    autojump_clock: MockClock, failing: str
) -> None:
    quarantine = Quarantine()
    script = Script(at={failing: Fail(times=1)})
    async with generator(script, GeneratorOptions(quarantine=quarantine)) as bench:
        with pytest.raises(GenerationFailed):
            await bench.generate()
        script.current.die()
        await wait_all_tasks_blocked()
        await bench.up()
        assert len(script.starts) == 2
    assert quarantine._records == {}


async def test_model_that_one_engine_dies_over_runs_on_another(folder: Path, autojump_clock: MockClock) -> None:
    scripts = {"0": Script(deadly=lambda command: isinstance(command, p.LoadModel)), "1": Script()}
    async with service_of(folder, scripts) as service:
        jobs = [await service.submit(request(number)) for number in range(12)]
        ends = [await ended(service, job.id) for job in jobs]
        assert {job.status for job in ends} == {Status.COMPLETED}


async def test_model_that_every_engine_dies_over_fails_its_job(folder: Path, autojump_clock: MockClock) -> None:
    dies = Script(deadly=lambda command: isinstance(command, p.LoadModel))
    async with service_of(folder, {"0": dies, "1": attrs.evolve(dies, engines=[], starts=[])}) as service:
        codes = [code_of(await end_of(service, request(number))) for number in range(6)]
        assert codes[-1] == "GENERATION_FAILED"
        assert set(codes) == {"ENGINE_CRASHED", "GENERATION_FAILED"}
        assert not (await gateway(service).status()).degraded


async def test_only_so_many_files_are_remembered_and_the_one_longest_without_a_death_is_forgotten(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine_module, "MAX_SUSPECTS", 2)
    quarantine = Quarantine()
    first, second, third = (ModelFiles("0", name, "a folder", None) for name in ("one", "two", "three"))
    for suspect in (first, second, first, third):
        for _ in range(MODEL_DEATHS):
            quarantine.note_death(suspect)
    assert [quarantine.model_error(each) is not None for each in (first, second, third)] == [True, False, True]
