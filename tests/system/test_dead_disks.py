"""A disk that does not answer keeps those who ask for what is on it, and no others."""

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mflux_api.actors.scheduler import scheduler
from mflux_api.catalog import Model
from mflux_api.jobs import job as jobs
from mflux_api.jobs.job import Job, Status, StoredImage
from mflux_api.service import open_service
from mflux_api.storage.checkpoints import Checkpoints
from mflux_api.storage.image_files import ImageFiles
from mflux_api.storage.in_memory import InMemoryRepository
from mflux_api.system.threads import read_in_thread
from tests.support.harness import (
    DEADLINE_SECONDS,
    RESOLVED,
    ended,
    eventually,
    gateway,
    images,
    request,
    scripted_service,
    settings,
)
from tests.support.scripted_engine import Crash, Hold, Script

ANSWER_SECONDS = 5.0


async def test_start_on_a_dead_disk_with_images_leaves_the_loop_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a job left that was inside is removed first; signals are heard meanwhile."""
    now = datetime.now(UTC)
    left = jobs.start(Job(id="0123456789ab", request=RESOLVED, created_at=now), now)
    repository = InMemoryRepository()
    repository.insert(left)
    answers, asked = threading.Event(), threading.Event()
    in_time = list[bool]()

    def discard_all(*_: object) -> None:
        asked.set()
        in_time.append(answers.wait(ANSWER_SECONDS))

    monkeypatch.setattr(ImageFiles, "discard_all", discard_all)
    with trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                await eventually(asked.is_set)
                answers.set()

            nursery.start_soon(answer)
            async with open_service(settings(tmp_path), repository=repository, start_engine=Script().start) as service:
                assert (await ended(service, left.id)).status is Status.COMPLETED
    assert in_time == [True]


async def test_dead_disk_with_models_keeps_no_image_and_no_other_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked = threading.Event(), threading.Event()

    def folder(self: Checkpoints, model: Model) -> Path | None:
        asked.set()
        answers.wait(2 * ANSWER_SECONDS)
        return None

    async with scripted_service(tmp_path, Script()) as service:
        of = gateway(service)
        job = await ended(service, (await service.submit(request())).id)
        remote = next(model for model in of.catalog if model.remote)
        monkeypatch.setattr(Checkpoints, "folder", folder)
        try:
            async with trio.open_nursery() as nursery:
                # More than there are threads by default.
                for _ in range(50):
                    nursery.start_soon(of.load_model, remote)
                    nursery.start_soon(of.download, remote)
                await eventually(asked.is_set)
                await trio.testing.wait_all_tasks_blocked(0.05)
                with trio.fail_after(ANSWER_SECONDS):
                    assert await of.image_bytes(job.images[0])
                    assert await read_in_thread(len, "abc") == 3
                nursery.cancel_scope.cancel()
        finally:
            answers.set()


async def test_retry_that_waits_for_a_dead_disk_does_not_hold_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked = threading.Event(), threading.Event()
    discard = ImageFiles.discard

    def discarding(self: ImageFiles, image: StoredImage) -> None:
        asked.set()
        answers.wait(2 * DEADLINE_SECONDS)
        discard(self, image)

    monkeypatch.setattr(ImageFiles, "discard", discarding)
    monkeypatch.setattr(scheduler, "DISCARD_SECONDS", 0.05)
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"step 1/1": hold, "image 1": Crash()})) as service:
        job = await service.submit(request(num_images=2))
        other = await service.submit(request())
        await eventually(lambda: images(tmp_path) == [f"{job.id}-0.png"])
        hold.release.set()
        await eventually(asked.is_set)
        try:
            assert (await ended(service, other.id)).status is Status.COMPLETED
        finally:
            answers.set()
        assert (await ended(service, job.id)).status is Status.COMPLETED


async def test_image_that_is_saved_as_its_engine_dies_does_not_hold_the_engine_on_a_dead_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, died, asked, answers = (threading.Event() for _ in range(4))
    save, discard = ImageFiles.save, ImageFiles.discard

    def saving(self: ImageFiles, *arguments: Any, **options: Any) -> StoredImage:
        stored = save(self, *arguments, **options)
        if not saved.is_set():
            saved.set()
            died.wait(DEADLINE_SECONDS)
        return stored

    def discarding(self: ImageFiles, image: StoredImage) -> None:
        asked.set()
        answers.wait(2 * DEADLINE_SECONDS)
        discard(self, image)

    monkeypatch.setattr(ImageFiles, "save", saving)
    monkeypatch.setattr(ImageFiles, "discard", discarding)
    monkeypatch.setattr(scheduler, "DISCARD_SECONDS", 0.05)
    script = Script(at={"image 1": Crash()})
    async with scripted_service(tmp_path, script) as service:
        job = await service.submit(request(num_images=2))
        other = await service.submit(request())
        await eventually(saved.is_set)
        await eventually(lambda: len(script.starts) == 2)
        died.set()
        await eventually(asked.is_set)
        try:
            assert (await ended(service, other.id)).status is Status.COMPLETED
        finally:
            answers.set()
        assert (await ended(service, job.id)).status is Status.COMPLETED
        assert images(tmp_path) == sorted([f"{job.id}-0.png", f"{job.id}-1.png", f"{other.id}-0.png"])


async def test_job_that_is_cancelled_while_its_images_are_being_removed_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers, asked = threading.Event(), threading.Event()
    discard = ImageFiles.discard

    def discarding(self: ImageFiles, image: StoredImage) -> None:
        asked.set()
        answers.wait(ANSWER_SECONDS)
        discard(self, image)

    monkeypatch.setattr(ImageFiles, "discard", discarding)
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"step 1/1": hold, "image 1": Crash()})) as service:
        job = await service.submit(request(num_images=2))
        await eventually(lambda: images(tmp_path) == [f"{job.id}-0.png"])
        await trio.testing.wait_all_tasks_blocked(0.05)
        hold.release.set()
        await eventually(asked.is_set)
        assert (await service.cancel(job.id)).status is Status.CANCELLED
        answers.set()
        await eventually(lambda: images(tmp_path) == [])
        assert (await ended(service, (await service.submit(request())).id)).status is Status.COMPLETED
    assert "'scheduler' failed" not in caplog.text
