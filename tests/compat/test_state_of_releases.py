"""What an earlier release left on disk opens with this one, and nothing in it is lost.

`record.py` made the folders; in each, the release's server was killed while a job ran.
"""

import hashlib
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio

from mflux_api.config import Settings, load_settings
from mflux_api.jobs.job import Job, Status, StoredImage
from mflux_api.service import Service, open_service
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support.harness import DEADLINE_SECONDS, ended, eventually, settled
from tests.support.scripted_engine import Script

RECORDED = sorted(path.parent for path in Path(__file__).parent.glob("*/*/recorded.json"))


@pytest.fixture(params=RECORDED, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a recorded folder."""
    shutil.copytree(request.param, tmp_path / "moved")
    return tmp_path / "moved"


@pytest.fixture
def said(folder: Path) -> dict[str, Any]:
    """What the release said of it."""
    recorded: dict[str, Any] = json.loads((folder / "recorded.json").read_text("utf-8"))
    return recorded


def recorded_settings(folder: Path) -> Settings:
    """The settings of the recording, under which the jobs do not expire, however long ago they were recorded."""
    settings = load_settings(folder / "config.toml", environ={})
    return attrs.evolve(settings, jobs=attrs.evolve(settings.jobs, ttl_hours=1e9))


@asynccontextmanager
async def reopened(folder: Path) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """A service on the folder over a scripted engine, and a client of its HTTP API."""
    settings = recorded_settings(folder)
    with trio.fail_after(DEADLINE_SECONDS), SqliteRepository(settings.state_dir / DATABASE_NAME) as repository:
        async with (
            open_service(settings, repository=repository, start_engine=Script().start) as service,
            trio.open_nursery() as nursery,
        ):
            [url] = await nursery.start(service.serve_http, ["127.0.0.1:0"])
            headers = {"X-API-Key": settings.security.api_keys[0]}
            async with httpx.AsyncClient(base_url=url, headers=headers) as client:
                yield service, client
            nursery.cancel_scope.cancel()


async def job_as_said(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """A job in the form of the recording: a digest in place of each image."""
    job: dict[str, Any] = (await client.get(f"/api/v1/jobs/{job_id}")).raise_for_status().json()
    if job["result"] is not None:
        for place in range(len(job["result"]["images"])):
            image = (await client.get(f"/api/v1/jobs/{job_id}/images/{place}")).raise_for_status()
            job["result"]["images"][place] = hashlib.sha256(image.content).hexdigest()
    return job


def test_something_is_recorded() -> None:
    assert {folder.name for folder in RECORDED} == {"synchronous", "asynchronous"}


def test_config_file_of_a_release_gives_the_same_settings(folder: Path, said: dict[str, Any]) -> None:
    def plain(_: object, __: object, value: Any) -> Any:
        return value.relative_to(folder).as_posix() if isinstance(value, Path) else value

    now = attrs.asdict(load_settings(folder / "config.toml", environ={}), value_serializer=plain)
    now = json.loads(json.dumps(now))
    for section, keys in said["settings"].items():
        assert {key: now[section][key] for key in keys} == keys


@pytest.mark.slow
async def test_finished_jobs_of_a_release_say_the_same_and_have_their_images(
    folder: Path, said: dict[str, Any]
) -> None:
    async with reopened(folder) as (_, client):
        for before in said["finished"]:
            now = await job_as_said(client, before["id"])
            assert {name: now[name] for name in before} == before
        for job_id in said["removed"]:
            assert (await client.get(f"/api/v1/jobs/{job_id}")).json()["code"] == "JOB_GONE"


@pytest.mark.slow
async def test_unfinished_jobs_of_a_release_run_to_their_end(folder: Path, said: dict[str, Any]) -> None:
    async with reopened(folder) as (service, client):
        for before in said["unfinished"]:
            job = await ended(service, before["id"])
            assert job.status is Status.COMPLETED
            now = await job_as_said(client, job.id)
            assert {name: now[name] for name in before} == before
        assert await settled(service, len(said["finished"]) + len(said["unfinished"]))


@pytest.mark.slow
async def test_totals_of_a_release_go_on(folder: Path, said: dict[str, Any]) -> None:
    async with reopened(folder) as (service, client):
        for before in said["unfinished"]:
            await ended(service, before["id"])
        stats = (await client.get("/api/v1/stats")).raise_for_status().json()
        assert stats["total_generations"] == said["stats"]["total_generations"] + len(said["unfinished"])


@pytest.mark.slow
async def test_synchronous_job_in_which_a_release_was_killed_is_gone_with_its_images(
    folder: Path, said: dict[str, Any]
) -> None:
    killed = [said["synchronous_run"]] if said["synchronous_run"] is not None else []
    with SqliteRepository(folder / "images" / DATABASE_NAME) as repository:
        abandoned = repository.abandoned()
    assert [job.id for job in abandoned] == killed
    orphans = [folder / "images" / f"{job.created_at:%Y-%m-%d}" / f"{job.id}-0.png" for job in abandoned]
    for orphan in orphans:
        orphan.write_bytes(b"an image that the killed server had saved")
    async with reopened(folder) as (_, client):
        for job in abandoned:
            assert (await client.get(f"/api/v1/jobs/{job.id}")).status_code == 404
        await eventually(lambda: not any(orphan.exists() for orphan in orphans))
    with SqliteRepository(folder / "images" / DATABASE_NAME) as repository:
        assert repository.abandoned() == ()


@pytest.mark.slow
async def test_idempotency_keys_of_a_release_answer_with_its_jobs(folder: Path, said: dict[str, Any]) -> None:
    async with reopened(folder) as (_, client):
        for key, sent in said["keys"].items():
            headers = {"Idempotency-Key": key}
            again = await client.post("/api/v1/generate", json=sent["body"], headers=headers)
            if sent["job"] in said["removed"]:
                assert again.json()["code"] == "JOB_GONE"
                continue
            assert again.raise_for_status().json()["job_id"] == sent["job"]
            other = await client.post("/api/v1/generate", json={**sent["body"], "seed": 8}, headers=headers)
            assert other.json()["code"] == "IDEMPOTENCY_CONFLICT"


def test_jobs_of_a_release_are_read_whole(folder: Path, said: dict[str, Any]) -> None:
    with SqliteRepository(folder / "images" / DATABASE_NAME) as repository:
        jobs = [repository.get(before["id"]) for before in said["finished"]]
        unfinished = repository.unfinished()
        assert [job.id for job in unfinished] == [before["id"] for before in said["unfinished"]]
        edit = next(job for job in unfinished if job.request.init_images)
        assert len(edit.request.init_images) == 2
        assert all(repository.inputs(edit.id)())
        assert (edit.request.image_strength, edit.request.width) == (0.75, 64)
        by_prompt = {job.request.prompt: job for job in jobs if isinstance(job, Job)}
        assert len(by_prompt) == len(jobs)
        if "a failed job" in by_prompt:
            request = by_prompt["a failed job"].request
            assert (request.lora_files, request.lora_scales) == (("broken.safetensors",), (0.5,))
            assert request.low_ram
            request = by_prompt["Grüße, 世界"].request
            assert (request.negative_prompt, request.guidance) == ("rain", 3.5)
        assert all(exists(image) for job in by_prompt.values() for image in job.images)


def exists(image: StoredImage) -> bool:
    """Whether the file is there as it was saved."""
    return hashlib.sha256(Path(image.path).read_bytes()).hexdigest() == image.sha256
