"""Jobs of several callers in one pass: who shares, each one's own progress, cancel, end and death."""

from pathlib import Path

import attrs
import pytest
import trio

from mflux_api.engine.protocol import Cancel, Run, SharedRun, ShowPreviews
from mflux_api.jobs.job import Job, Status
from mflux_api.jobs.progress import Finished, Progress
from mflux_api.jobs.request import GenerateRequest
from mflux_api.service import Service
from tests.support.harness import ended, eventually, gateway, request, rgb, scripted_service
from tests.support.scripted_engine import Crash, Fail, Hold, Script, pixels

WINDOW = 200
"""Milliseconds: longer than any of these tests needs to submit."""


def shared(script: Script) -> list[tuple[int, ...]]:
    """Return the first seeds of the runs of each shared run that the engines were sent."""
    sent = [command for engine in script.engines for command in engine.received]
    return [tuple(run.seeds[0] for run in command.runs) for command in sent if isinstance(command, SharedRun)]


def alone(script: Script) -> list[int]:
    """Return the seeds of the runs that the engines were sent alone."""
    sent = [command for engine in script.engines for command in engine.received]
    return [command.seeds[0] for command in sent if isinstance(command, Run)]


async def submit(service: Service, *requests: GenerateRequest) -> list[Job]:
    return [await service.submit(each) for each in requests]


async def all_ended(service: Service, jobs: list[Job]) -> list[Job]:
    return [await ended(service, job.id) for job in jobs]


async def test_jobs_with_other_prompts_and_seeds_share_a_pass_and_have_their_own_images(tmp_path: Path) -> None:
    script = Script()
    async with scripted_service(tmp_path, script, batch_window_ms=WINDOW) as service:
        jobs = await submit(service, *(request(seed, prompt=f"a house, number {seed}") for seed in (1, 2, 3, 4)))
        done = await all_ended(service, jobs)
    assert shared(script) == [(1, 2, 3, 4)]
    assert alone(script) == []
    assert [job.status for job in done] == [Status.COMPLETED] * 4
    assert [rgb(job.images[0]) for job in done] == [pixels(seed, 64, 64) for seed in (1, 2, 3, 4)]


async def test_no_stranger_shares_a_pass_by_default(tmp_path: Path) -> None:
    script = Script()
    async with scripted_service(tmp_path, script) as service:
        await all_ended(service, await submit(service, *(request(seed) for seed in range(4))))
    assert shared(script) == []
    assert alone(script) == [0, 1, 2, 3]


async def test_a_lone_job_runs_alone_when_its_time_is_over(tmp_path: Path) -> None:
    script = Script()
    async with scripted_service(tmp_path, script, batch_window_ms=20) as service:
        (job,) = await all_ended(service, await submit(service, request(1)))
    assert alone(script) == [1]
    assert rgb(job.images[0]) == pixels(1, 64, 64)


@pytest.mark.parametrize(
    "other",
    [
        attrs.evolve(request(2), width=128),
        attrs.evolve(request(2), steps=3),
        attrs.evolve(request(2), low_ram=True),
        attrs.evolve(request(2), partial_images=1),
        request(2, num_images=4),
    ],
    ids=["size", "steps", "low_ram", "partial images", "no room"],
)
async def test_jobs_that_differ_do_not_share(tmp_path: Path, other: GenerateRequest) -> None:
    script = Script()
    async with scripted_service(tmp_path, script, batch_window_ms=50) as service:
        done = await all_ended(service, await submit(service, request(1), other))
    assert shared(script) == []
    assert [job.status for job in done] == [Status.COMPLETED] * 2


async def test_a_pass_has_four_images_at_most(tmp_path: Path) -> None:
    script = Script()
    async with scripted_service(tmp_path, script, batch_window_ms=WINDOW) as service:
        jobs = await submit(service, request(10, num_images=3), request(20, num_images=2), request(30), request(40))
        done = await all_ended(service, jobs)
    assert shared(script) == [(10, 30), (20, 40)]
    assert [len(job.images) for job in done] == [3, 2, 1, 1]


async def test_what_waits_while_the_engine_works_sets_off_at_once_where_it_is_full(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"run": hold})
    async with scripted_service(tmp_path, script, batch_window_ms=10_000) as service:
        (first,) = await submit(service, request(0, num_images=4))
        await hold.reached.wait()
        jobs = await submit(service, *(request(seed) for seed in range(1, 5)))
        hold.release.set()
        # Long before the window is over.
        with trio.fail_after(5):
            await all_ended(service, [first, *jobs])
    assert shared(script) == [(1, 2, 3, 4)]


async def test_each_job_of_a_pass_has_its_own_progress(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"encoding": hold})
    async with scripted_service(tmp_path, script, batch_window_ms=WINDOW) as service:
        jobs = await submit(service, request(1), request(2, num_images=2))
        seen: dict[str, list[object]] = {job.id: [] for job in jobs}

        async def follow(job: Job) -> None:
            async with service.events(job.id) as events:
                async for event in events:
                    seen[job.id].append(event)

        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(follow, job)
            await hold.reached.wait()
            hold.release.set()
            await all_ended(service, jobs)
    for job, images in zip(jobs, (1, 2), strict=True):
        steps = [event for event in seen[job.id] if isinstance(event, Progress) and event.step]
        assert {event.id for event in steps} == {job.id}
        assert {event.images for event in steps} == {images}
        assert isinstance(seen[job.id][-1], Finished)


async def test_a_cancelled_job_leaves_the_others_of_its_pass_alone(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"step 0/2": hold})
    async with scripted_service(tmp_path, script, batch_window_ms=WINDOW) as service:
        first, second, third = await submit(service, *(request(seed) for seed in (1, 2, 3)))
        await hold.reached.wait()
        cancelled = await service.cancel(second.id)
        await eventually(lambda: any(isinstance(each, Cancel) for each in script.current.received))
        hold.release.set()
        done = await all_ended(service, [first, third])
    assert cancelled is not None
    assert cancelled.status is Status.CANCELLED
    assert [job.status for job in done] == [Status.COMPLETED] * 2
    assert shared(script) == [(1, 2, 3)]
    assert alone(script) == []


async def test_a_job_that_is_cancelled_while_others_are_awaited_is_not_waited_for(tmp_path: Path) -> None:
    script = Script()
    async with scripted_service(tmp_path, script, batch_window_ms=WINDOW) as service:
        first, second, third = await submit(service, *(request(seed) for seed in (1, 2, 3)))
        await service.cancel(first.id)
        done = await all_ended(service, [second, third])
    assert [job.status for job in done] == [Status.COMPLETED] * 2
    assert shared(script) == [(2, 3)]


async def test_after_a_death_each_job_of_the_pass_runs_alone(tmp_path: Path) -> None:
    script = Script(at={"step 0/2": Crash()})
    async with scripted_service(tmp_path, script, batch_window_ms=WINDOW) as service:
        done = await all_ended(service, await submit(service, *(request(seed) for seed in (1, 2, 3))))
    assert shared(script) == [(1, 2, 3)]
    assert sorted(alone(script)) == [1, 2, 3]
    assert [(job.status, job.engine_deaths) for job in done] == [(Status.COMPLETED, 1)] * 3
    assert [rgb(job.images[0]) for job in done] == [pixels(seed, 64, 64) for seed in (1, 2, 3)]


async def test_a_deadly_job_costs_those_that_share_its_pass_one_attempt(tmp_path: Path) -> None:
    script = Script(deadly=lambda command: isinstance(command, Run) and command.seeds[0] == 2)
    async with scripted_service(tmp_path, script, batch_window_ms=WINDOW) as service:
        done = await all_ended(service, await submit(service, *(request(seed) for seed in (1, 2, 3))))
    assert [job.status for job in done] == [Status.COMPLETED, Status.FAILED, Status.COMPLETED]
    assert [job.engine_deaths for job in done] == [1, 2, 1]


async def test_an_error_of_the_pass_is_the_error_of_each_job(tmp_path: Path) -> None:
    script = Script(at={"denoising": Fail()})
    async with scripted_service(tmp_path, script, batch_window_ms=WINDOW) as service:
        done = await all_ended(service, await submit(service, request(1), request(2)))
    assert [job.failure.code if job.failure else None for job in done] == ["GENERATION_FAILED"] * 2


async def test_previews_are_made_for_the_job_that_is_followed(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"encoding": hold})
    async with scripted_service(tmp_path, script, batch_window_ms=WINDOW) as service:
        first, second = await submit(service, request(1), request(2))
        await hold.reached.wait()
        async with service.events(second.id, previews=True):
            await eventually(lambda: bool(script.current.previewed))
            hold.release.set()
        await all_ended(service, [first, second])
    (sent,) = [command for command in script.current.received if isinstance(command, SharedRun)]
    shown = [command.run_id for command in script.current.received if isinstance(command, ShowPreviews)]
    assert shown == [sent.runs[1].run_id]


async def test_the_end_of_a_running_pass_is_the_same_for_all_its_jobs(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(step_seconds=0.01)
    async with scripted_service(tmp_path, script, batch_window_ms=WINDOW) as service:
        # What a step takes is known from this one.
        await all_ended(service, await submit(service, request(0, num_images=4)))
        script.at["step 0/2"] = hold
        jobs = await submit(service, *(request(seed) for seed in (1, 2, 3, 4)))
        await hold.reached.wait()
        found = await gateway(service).snapshots()
        hold.release.set()
        await all_ended(service, jobs)
    assert len(found) == 4
    assert len({each.progress.eta_seconds for each in found.values()} - {None}) == 1
