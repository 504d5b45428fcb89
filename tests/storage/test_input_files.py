"""Init images of jobs that wait: kept across a restart, shared, and removed with their last job."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from mflux_api.errors import DiskFull, InternalError
from mflux_api.jobs import job as jobs
from mflux_api.jobs.job import Job
from mflux_api.storage.input_files import InputFiles
from mflux_api.storage.sqlite import DATABASE_NAME, INPUTS_FOLDER, SqliteRepository
from tests.support.disk_calls import record_disk_calls
from tests.support.requests import resolved_request

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def job(job_id: str, *images: str, synchronous: bool = False) -> Job:
    request = resolved_request(steps=1, init_images=images)
    return Job(id=job_id, request=request, created_at=NOW, synchronous=synchronous)


def ended(one: Job) -> Job:
    return jobs.cancel(one, NOW)


def files(folder: Path) -> int:
    return len(list((folder / INPUTS_FOLDER).glob("*")))


def test_inputs_of_a_waiting_job_come_back_in_their_order_after_a_restart(tmp_path: Path) -> None:
    with SqliteRepository(tmp_path / DATABASE_NAME) as first:
        first.insert(job("a" * 12, "encoded-2", "encoded-1", "encoded-2"))
    with SqliteRepository(tmp_path / DATABASE_NAME) as again:
        (waiting,) = again.unfinished()
        assert waiting == again.get("a" * 12) == job("a" * 12, "encoded-2", "encoded-1", "encoded-2")
        assert files(tmp_path) == 2
    assert b"encoded-" not in (tmp_path / DATABASE_NAME).read_bytes()


def test_waiting_job_keeps_its_loras_strength_and_size(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "lora_files": ("a.safetensors",),
        "lora_scales": (0.5,),
        "image_strength": 0.25,
        "width": 80,
        "height": 64,
    }
    one = job("a" * 12, "image")
    waiting = attrs.evolve(one, request=attrs.evolve(one.request, **fields))
    with SqliteRepository(tmp_path / DATABASE_NAME) as first:
        first.insert(waiting)
    with SqliteRepository(tmp_path / DATABASE_NAME) as again:
        assert again.unfinished() == (waiting,)


def test_inputs_go_with_their_last_job(tmp_path: Path) -> None:
    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        one, two = job("a" * 12, "shared", "own"), job("b" * 12, "shared")
        for each in (one, two):
            repository.insert(each)
        repository.replace(ended(one))
        repository.expire(now=NOW, keep=0, ttl=timedelta(hours=1))
        assert files(tmp_path) == 1
        assert repository.unfinished() == (two,)
        repository.replace(ended(two))
        repository.expire(now=NOW, keep=0, ttl=timedelta(hours=1))
        assert files(tmp_path) == 0


def test_a_finished_job_is_read_without_its_inputs(tmp_path: Path) -> None:
    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        repository.insert(job("a" * 12, "large"))
        repository.replace(ended(job("a" * 12, "large")))
        found = repository.get("a" * 12)
        assert isinstance(found, Job)
        assert found.request.init_images == ()


def test_inputs_of_a_synchronous_job_stay_in_memory(tmp_path: Path) -> None:
    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        waiting = job("a" * 12, "large", synchronous=True)
        repository.insert(waiting)
        assert repository.unfinished() == (waiting,)
        repository.replace(ended(waiting))
    assert not (tmp_path / INPUTS_FOLDER).exists()


def test_an_input_that_was_removed_by_hand_is_empty_and_harms_no_other_job(tmp_path: Path) -> None:
    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        repository.insert(job("a" * 12, "gone"))
        for path in (tmp_path / INPUTS_FOLDER).iterdir():
            path.unlink()
        repository.insert(job("b" * 12, "there"))
        assert repository.unfinished() == (job("a" * 12, ""), job("b" * 12, "there"))


def test_an_input_that_was_broken_by_hand_harms_only_its_own_job(tmp_path: Path) -> None:
    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        repository.insert(job("a" * 12, "broken"))
        for path in (tmp_path / INPUTS_FOLDER).iterdir():
            path.write_bytes(b"\xff\xfe")
        repository.insert(job("b" * 12, "there"))
        assert repository.unfinished() == (job("a" * 12, ""), job("b" * 12, "there"))


def test_an_input_that_cannot_be_removed_keeps_its_job_until_it_can(tmp_path: Path) -> None:
    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        repository.insert(job("a" * 12, "stuck"))
        repository.replace(ended(job("a" * 12, "stuck")))
        (path,) = (tmp_path / INPUTS_FOLDER).iterdir()
        path.unlink()
        path.mkdir()
        with pytest.raises(InternalError):
            repository.expire(now=NOW, keep=0, ttl=timedelta(hours=1))
        assert isinstance(repository.get("a" * 12), Job)
        path.rmdir()
        assert len(repository.expire(now=NOW, keep=0, ttl=timedelta(hours=1))) == 1


def test_a_full_disk_refuses_the_job_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: InputFiles, text: str) -> str:
        raise OSError(28, "No space left on device")

    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        with monkeypatch.context() as patched:
            patched.setattr(InputFiles, "keep", full)
            with pytest.raises(DiskFull):
                repository.insert(job("a" * 12, "large"))
        assert repository.unfinished() == ()
        assert repository.get("a" * 12) is None
        repository.insert(attrs.evolve(job("b" * 12, "large")))
        assert len(repository.unfinished()) == 1


def test_input_is_on_disk_before_it_has_its_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = record_disk_calls(monkeypatch)
    digest = InputFiles(tmp_path).keep("encoded")
    calls.check_synced_before_named(tmp_path / digest, folder_too=True)
