"""A warning of the engine about a run reaches everyone who is told of the job, once, however often the run is made."""

import json
from functools import partial
from pathlib import Path

import pytest

from mflux_api.ipc.printable import MAX_SENTENCE
from mflux_api.jobs.job import Status
from mflux_api.jobs.warnings import MAX_WARNINGS
from mflux_api.service import Service, open_service
from mflux_api.storage.sqlite import SqliteRepository
from tests.support.harness import ended, eventually, gateway, request, scripted_service, settings
from tests.support.scripted_api import scripted_api
from tests.support.scripted_engine import Crash, Fail, Hold, Script

CUT = "The prompt has 631 tokens, and this model reads 512"
LEFT = "2 keys of the LoRA are not known"


async def has_warned(service: Service, job_id: str) -> bool:
    return (await gateway(service).snapshots())[job_id].warnings == (CUT,)


async def test_warning_of_a_run_is_in_its_job_and_in_the_result(tmp_path: Path) -> None:
    async with scripted_service(tmp_path, Script(warnings=(CUT, LEFT))) as service:
        job = await service.submit(request(num_images=3))
        assert (await ended(service, job.id)).warnings == (CUT, LEFT)
        assert (await service.result(job.id)).warnings == (CUT, LEFT)


async def test_run_that_is_repeated_after_a_death_warns_once(tmp_path: Path) -> None:
    script = Script(warnings=(CUT,), at={"step 0/2": Crash()})
    async with scripted_service(tmp_path, script) as service:
        job = await ended(service, (await service.submit(request())).id)
    assert (job.status, job.engine_deaths, job.warnings) == (Status.COMPLETED, 1, (CUT,))


@pytest.mark.parametrize("end", ["failed", "cancelled"])
async def test_job_that_does_not_complete_keeps_its_warnings(tmp_path: Path, end: str) -> None:
    hold = Hold()
    script = Script(warnings=(CUT,), at={"denoising": hold, "decoding": Fail()})
    async with scripted_service(tmp_path, script) as service:
        job = await service.submit(request())
        await eventually(partial(has_warned, service, job.id))
        if end == "cancelled":
            await service.cancel(job.id)
        hold.release.set()
        last = await ended(service, job.id)
    assert (last.status, last.warnings) == (Status(end), (CUT,))


async def test_job_that_runs_shows_what_its_run_has_warned_of(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(warnings=(CUT,), at={"step 0/1": hold})) as api:
        job = await api.service.submit(request())
        await eventually(partial(has_warned, api.service, job.id))
        shown = (await api.http.get(f"/api/v1/jobs/{job.id}")).json()
        assert (shown["status"], shown["warnings"]) == ("generating", [CUT])
        hold.release.set()
        await ended(api.service, job.id)


async def test_every_answer_about_the_job_has_the_warning_of_its_run(tmp_path: Path) -> None:
    body = {"prompt": "a red house", "model": "demo", "width": 64, "height": 64, "steps": 1}
    async with scripted_api(tmp_path, Script(warnings=(CUT,))) as api:
        for fields in ({}, {"batch_size": 1}):
            answer = (await api.http.post("/sdapi/v1/txt2img", json=body | fields)).json()
            assert (len(answer["images"]), answer["warnings"]) == (1, [CUT])
        job_id = (await api.http.post("/api/v1/generate", json=body)).json()["job_id"]
        await ended(api.service, job_id)
        terminal = (await api.stream(job_id))[-1]
        assert (terminal.name, json.loads(terminal.data)["warnings"]) == ("complete", [CUT])
        assert (await api.http.get(f"/api/v1/jobs/{job_id}")).json()["warnings"] == [CUT]
        assert [job["warnings"] for job in (await api.http.get("/api/v1/jobs")).json()["jobs"]] == [[CUT]] * 3


async def test_warnings_are_there_after_a_restart(tmp_path: Path) -> None:
    options = settings(tmp_path)
    (tmp_path / "output").mkdir()
    with SqliteRepository(tmp_path / "output" / "jobs.sqlite3") as first:
        async with open_service(options, repository=first, start_engine=Script(warnings=(CUT,)).start) as service:
            done = await service.submit(request(), synchronous=True)
            queued = await service.submit(request())
            assert {(await ended(service, job.id)).warnings for job in (done, queued)} == {(CUT,)}
    with SqliteRepository(tmp_path / "output" / "jobs.sqlite3") as second:
        async with open_service(options, repository=second, start_engine=Script().start) as service:
            assert [view.job.warnings for view in (await gateway(service).jobs())[0]] == [(CUT,), (CUT,)]


async def test_engine_that_warns_of_too_much_is_cut_short(tmp_path: Path) -> None:
    script = Script(warnings=tuple(f"{number} {'x' * 2 * MAX_SENTENCE}" for number in range(MAX_WARNINGS + 5)))
    async with scripted_service(tmp_path, script) as service:
        job = await ended(service, (await service.submit(request())).id)
    assert (job.status, len(job.warnings)) == (Status.COMPLETED, MAX_WARNINGS)
    assert max(map(len, job.warnings)) == MAX_SENTENCE
