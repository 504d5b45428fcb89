"""What jobs are told they will take against what they take, in virtual time: within a fifth from the second job on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from mflux_api.config import CustomModel, MemorySettings
from mflux_api.engine.protocol import LoadModel, Run
from mflux_api.jobs.progress import Progress
from mflux_api.jobs.request import GenerateRequest
from mflux_api.service import Service, open_service
from mflux_api.storage.checkpoints import EMBEDDED
from tests.support.harness import ended, loads_of, request, run_inline, settings
from tests.support.scripted_engine import Script

TOLERANCE = 0.2
LORA = "slow.safetensors"
ONE_MODEL, BOTH_MODELS = 0.1, 1.0
"""Gigabytes: the demo model takes 0.07."""

Seconds = Callable[[str, LoadModel | Run], float]


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)


def h200(part: str, command: LoadModel | Run) -> float:
    """Klein 4B as docs/performance.md has it: steps 18.3 ms at 512² and 59.9 at 1024², decoding 12.8 and 30.5."""
    if isinstance(command, LoadModel):
        return 5.0 if command.model == "demo" else 9.0
    megapixels = command.width * command.height / 1e6
    slower = 1.5 if command.lora_paths else 1.0
    return {
        "encoding": 0.02,
        "step": slower * (0.0052 + 0.0457 * megapixels + 0.0062 * megapixels**2),
        "image": 0.022 + 0.024 * megapixels,
        "compiling": 20.0,
    }[part]


def cpu(part: str, command: LoadModel | Run) -> float:
    """The demo model on two cores: everything grows with the pixels."""
    if isinstance(command, LoadModel):
        return 0.4
    parts = command.width * command.height / 512**2
    return {"encoding": 0.05, "step": 0.03 + 0.26 * parts, "image": 0.86 * parts, "compiling": 0.0}[part]


def asked(
    side: int = 512, *, steps: int = 4, images: int = 1, model: str = "demo", lora: bool = False
) -> GenerateRequest:
    return attrs.evolve(
        request(num_images=images), width=side, height=side, steps=steps, model=model, lora_files=(LORA,) * lora
    )


@asynccontextmanager
async def service_with(script: Script, folder: Path, budget_gb: float = ONE_MODEL) -> AsyncIterator[Service]:
    (folder / "loras").mkdir()
    (folder / "loras" / LORA).write_bytes(b"not read here")
    plain = settings(folder)
    other = CustomModel(name="other", base="demo", path=EMBEDDED)
    changed = attrs.evolve(
        plain,
        models=attrs.evolve(plain.models, custom=(other,)),
        memory=MemorySettings(budget_gb=budget_gb),
    )
    async with open_service(changed, start_engine=script.start) as service:
        yield service


class Watched:
    """Jobs that are followed to their ends, with what they were told."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.told: list[tuple[str, float, float | None]] = []
        """A job, when it was told, and what."""
        self.ends: dict[str, float] = {}

    async def submit(self, *requests: GenerateRequest) -> None:
        """Submit jobs one after the other, and note at once what each is told."""
        for each in requests:
            job = await self.service.submit(each)
            await self.note(job.id)

    async def note(self, job_id: str) -> None:
        live = (await self.service.view(job_id)).live
        if live is not None:
            self.told.append((job_id, trio.current_time(), live.progress.eta_seconds))

    async def finish(self) -> None:
        """Wait for the end of each job."""

        async def wait(job_id: str) -> None:
            async with self.service.events(job_id) as events:
                async for event in events:
                    if isinstance(event, Progress) and event.eta_seconds is not None:
                        self.told.append((job_id, trio.current_time(), event.eta_seconds))
            self.ends[job_id] = trio.current_time()

        async with trio.open_nursery() as nursery:
            for job_id in {job_id for job_id, _, _ in self.told}:
                nursery.start_soon(wait, job_id)

    def errors(self) -> list[float]:
        """How far each told time was off, as a share of what it should have been."""
        shares = []
        for job_id, at, eta in self.told:
            took = self.ends[job_id] - at
            assert eta is not None
            # Times are told in hundredths of a second.
            shares.append(max(0.0, abs(eta - took) - 0.02) / took if took > 0 else 0.0)
        return shares


async def run_once(service: Service, *requests: GenerateRequest) -> None:
    for each in requests:
        await ended(service, (await service.submit(each)).id)


async def at_submission(service: Service, *requests: GenerateRequest) -> list[float]:
    """Submit jobs, and return how far off it was what they were told at once."""
    watched = Watched(service)
    await watched.submit(*requests)
    told = list(watched.told)
    await watched.finish()
    watched.told = told
    return watched.errors()


async def once_all_are_there(service: Service, *requests: GenerateRequest) -> list[float]:
    """Submit jobs, and return how far off it was what they were told then: later ones may go before others."""
    watched = Watched(service)
    await watched.submit(*requests)
    jobs = [job_id for job_id, _, _ in watched.told]
    watched.told.clear()
    for job_id in jobs:
        await watched.note(job_id)
    told = list(watched.told)
    await watched.finish()
    watched.told = told
    return watched.errors()


@pytest.mark.parametrize("device", [h200, cpu])
async def test_second_job_of_a_kind_is_told_how_long_it_takes(
    device: Seconds, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with service_with(Script(seconds=device), tmp_path) as service:
        await run_once(service, asked())
        assert max(await at_submission(service, asked())) < TOLERANCE


@pytest.mark.parametrize("device", [h200, cpu])
async def test_queue_of_sizes_steps_and_images_is_told_at_submission(
    device: Seconds, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with service_with(Script(seconds=device), tmp_path) as service:
        await run_once(service, asked(512), asked(1024))
        queue = [asked(512, steps=8), asked(1024), asked(512, images=4), asked(768), asked(1024, steps=2), asked(256)]
        assert max(await at_submission(service, *queue)) < TOLERANCE


@pytest.mark.parametrize("device", [h200, cpu])
@pytest.mark.parametrize(("known", "new"), [(512, 1024), (1024, 512), (512, 768), (768, 512), (512, 256)])
async def test_size_that_was_never_run_is_scaled_from_another(
    device: Seconds, known: int, new: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with service_with(Script(seconds=device), tmp_path) as service:
        # The demo's prompts are short, so that the size of an image counts for more.
        model = "demo" if device is cpu else "other"
        await run_once(service, asked(known, model=model))
        (error,) = await at_submission(service, asked(new, model=model))
        assert error < TOLERANCE


async def test_images_of_one_job_are_counted_each_and_its_prompt_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    def slow_prompt(part: str, command: LoadModel | Run) -> float:
        return {"encoding": 10.0, "step": 1.0, "image": 2.0}.get(part, 0.0)

    async with service_with(Script(seconds=slow_prompt), tmp_path) as service:
        await run_once(service, asked(64))
        assert max(await at_submission(service, asked(64, images=4))) < 0.01


@pytest.mark.parametrize("device", [h200, cpu])
async def test_job_is_told_right_at_every_event_of_its_way(
    device: Seconds, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with service_with(Script(seconds=device), tmp_path) as service:
        await run_once(service, asked(512))
        watched = Watched(service)
        await watched.submit(*[asked(512, steps=steps, images=2) for steps in (4, 20, 4)])
        await watched.finish()
        assert len(watched.told) > 50
        assert max(watched.errors()) < TOLERANCE


async def test_waiting_job_is_told_right_also_in_the_middle_of_what_runs(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A step may take minutes: what of it is over counts."""

    def slow(part: str, command: LoadModel | Run) -> float:
        return {"encoding": 40.0, "step": 100.0, "image": 70.0}.get(part, 0.0)

    async with service_with(Script(seconds=slow), tmp_path) as service:
        await run_once(service, asked(64, steps=2))
        watched = Watched(service)
        await watched.submit(asked(64, steps=2), asked(64, steps=1))
        waiting = watched.told[-1][0]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched.finish)
            for _ in range(50):
                await trio.sleep(9.9)
                await watched.note(waiting)
        assert max(watched.errors()) < 0.05


async def test_runs_with_a_lora_are_measured_apart(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with service_with(Script(seconds=h200), tmp_path) as service:
        await run_once(service, asked(1024), asked(1024, lora=True))
        plain_first = [asked(1024, steps=20), asked(1024, steps=20, lora=True), asked(1024, steps=20)]
        assert max(await at_submission(service, *plain_first)) < 0.1


@pytest.mark.parametrize("device", [h200, cpu])
@pytest.mark.parametrize("budget_gb", [ONE_MODEL, BOTH_MODELS])
async def test_loads_between_jobs_on_two_models_count(
    device: Seconds, budget_gb: float, tmp_path: Path, autojump_clock: MockClock
) -> None:
    script = Script(seconds=device)
    async with service_with(script, tmp_path, budget_gb) as service:
        await run_once(service, asked(), asked(model="other"))
        before = loads_of(script)
        queue = [asked(model=model) for _ in range(8) for model in ("demo", "other")]
        assert max(await once_all_are_there(service, *queue)) < TOLERANCE
        assert (loads_of(script) > before + 2) is (budget_gb == ONE_MODEL)


async def test_long_queue_on_two_models_counts_the_loads_of_those_that_are_not_planned_one_by_one(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with service_with(Script(seconds=h200), tmp_path) as service:
        await run_once(service, asked(), asked(model="other"))
        queue = [asked(model=model) for _ in range(35) for model in ("demo", "other")]
        assert max(await once_all_are_there(service, *queue)) < TOLERANCE


async def test_job_that_loads_its_model_is_told_how_much_of_that_is_left(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with service_with(Script(seconds=h200), tmp_path) as service:
        await run_once(service, asked(), asked(model="other"))
        watched = Watched(service)
        await watched.submit(asked())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched.finish)
            for _ in range(4):
                await trio.sleep(1)
                await watched.note(watched.told[0][0])
        assert max(watched.errors()) < TOLERANCE


async def test_what_was_compiled_for_the_first_job_is_not_told_to_the_second(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with service_with(Script(seconds=h200, compiles=True), tmp_path) as service:
        await run_once(service, asked(steps=4, images=2))
        assert max(await at_submission(service, asked(steps=20), asked(steps=20, images=2))) < TOLERANCE
