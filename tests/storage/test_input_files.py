"""Init images of jobs that wait: kept across a restart, shared, and removed with their last job."""

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pytest

from mflux_api.errors import DiskFull, QueueFull
from mflux_api.jobs import job as jobs
from mflux_api.jobs.job import Failure, Job, Timings
from mflux_api.storage.input_files import InputFiles, digest_of
from mflux_api.storage.job_inputs import JobInputs
from mflux_api.storage.sqlite import DATABASE_NAME, INPUTS_FOLDER, SqliteRepository
from tests.support.disk_calls import record_disk_calls
from tests.support.requests import resolved_request

NOW = datetime(2026, 11, 22, tzinfo=UTC)


MAGIC = b"\x89PNG"
"""The first bytes of an image are no base64, which tells it from what 2.0.0 kept."""


def base64_of(content: str) -> str:
    """Return a file with that content as a client sends it."""
    return base64.b64encode(MAGIC + content.encode()).decode()


def job(job_id: str, *images: str, synchronous: bool = False) -> Job:
    """A job whose init images are files of these contents."""
    request = resolved_request(steps=1, init_images=tuple(map(base64_of, images)))
    return Job(id=job_id, request=request, created_at=NOW, synchronous=synchronous)


def whole(repository: SqliteRepository) -> tuple[Job, ...]:
    """The unfinished jobs as they were submitted, with their init images."""
    found = [(each, repository.inputs(each.id)()) for each in repository.unfinished()]
    assert all(len(each.request.init_images) == len(images) for each, images in found)
    return tuple(attrs.evolve(each, request=each.request.with_inputs(images)) for each, images in found)


def ended(one: Job) -> Job:
    return jobs.cancel(one, NOW)


def files(folder: Path) -> int:
    return len(list((folder / INPUTS_FOLDER).glob("*")))


def test_inputs_of_a_waiting_job_come_back_in_their_order_after_a_restart(tmp_path: Path) -> None:
    with SqliteRepository(tmp_path / DATABASE_NAME) as first:
        first.insert(job("a" * 12, "content-2", "content-1", "content-2"))
    with SqliteRepository(tmp_path / DATABASE_NAME) as again:
        (waiting,) = whole(again)
        assert waiting == job("a" * 12, "content-2", "content-1", "content-2")
        assert files(tmp_path) == 2
    assert b"content-" not in (tmp_path / DATABASE_NAME).read_bytes()


@pytest.mark.parametrize(
    "sent",
    ["iVBORwAA", "iVBORwAA=", " iVBO\nRw\tAA " + " " * 1000, "data:image/png;base64,iVBORwAA%3D"],
)
def test_what_is_kept_is_the_bytes_of_the_file_and_not_the_text_as_sent(tmp_path: Path, sent: str) -> None:
    one = job("a" * 12)
    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        repository.insert(attrs.evolve(one, request=attrs.evolve(one.request, init_images=(sent,))))
        (kept,) = (tmp_path / INPUTS_FOLDER).iterdir()
        assert kept.read_bytes() == MAGIC + b"\0\0"
        assert kept.name == hashlib.sha256(MAGIC + b"\0\0").hexdigest()
        (waiting,) = whole(repository)
        assert waiting.request.init_images == ("iVBORwAA",)


@pytest.mark.parametrize("sent", ["iVBORw0KGgo=", " \n" * 100 + "iVBORw0KGgo=", "data:image/png;base64,iVBORw0KGgo="])
def test_input_that_2_0_0_kept_as_it_was_sent_is_read_as_it_was_sent(tmp_path: Path, sent: str) -> None:
    digest = hashlib.sha256(sent.encode()).hexdigest()
    (tmp_path / digest).write_text(sent, "utf-8")
    assert InputFiles(tmp_path).read(digest) == sent


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
def test_inputs_are_gone_with_the_end_of_their_job_whatever_end(tmp_path: Path, end: str) -> None:
    one = job("a" * 12, "large")
    failure = Failure(message="", code="INTERNAL_ERROR", details={})
    ends = {
        "completed": jobs.complete(jobs.start(one, NOW), (), Timings(), NOW),
        "failed": jobs.fail(jobs.start(one, NOW), failure, NOW),
        "cancelled": ended(one),
    }
    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        repository.insert(one)
        repository.replace(jobs.start(one, NOW))
        assert files(tmp_path) == 1
        repository.replace(ends[end])
        assert files(tmp_path) == 0


def test_failed_insert_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> NoReturn:
        raise DiskFull("scripted")

    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        repository.insert(job("a" * 12, "shared"))
        monkeypatch.setattr(SqliteRepository, "_keep_key", full)
        with pytest.raises(DiskFull):
            repository.insert(job("b" * 12, "shared", "own"))
        assert files(tmp_path) == 1
        assert whole(repository) == (job("a" * 12, "shared"),)


def test_orphans_and_half_written_files_are_removed_at_the_start_and_nothing_else(tmp_path: Path) -> None:
    """A killed process leaves them between the file and the commit, or between the end and the file's removal."""
    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        repository.insert(job("a" * 12, "needed"))
    (needed,) = (tmp_path / INPUTS_FOLDER).iterdir()
    others = [needed.with_name(name) for name in ("notes.txt", ".notes.tmp", "F" * 64)]
    for path in (*others, needed.with_name("f" * 64), needed.with_name(f".{'e' * 64}.tmp")):
        path.write_bytes(b"content")
    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        assert set((tmp_path / INPUTS_FOLDER).iterdir()) == {needed, *others}
        assert whole(repository) == (job("a" * 12, "needed"),)


def test_orphan_that_cannot_be_removed_keeps_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / INPUTS_FOLDER
    (folder / ("c" * 64)).mkdir(parents=True)
    for digit in "abdef":
        (folder / (digit * 64)).touch()
    (folder / ("9" * 64)).symlink_to("nowhere")
    SqliteRepository(tmp_path / DATABASE_NAME).close()
    assert [path.name for path in folder.iterdir()] == ["c" * 64]
    assert "cannot be removed" in caplog.text


def test_inputs_that_an_older_release_kept_of_finished_jobs_are_removed_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SqliteRepository(tmp_path / DATABASE_NAME) as repository, monkeypatch.context() as patched:
        patched.setattr(JobInputs, "job_ended", lambda *_: None)
        repository.insert(job("a" * 12, "old"))
        repository.replace(ended(job("a" * 12, "old")))
        assert files(tmp_path) == 1
    with SqliteRepository(tmp_path / DATABASE_NAME):
        assert files(tmp_path) == 0


def test_quota_counts_each_content_once_and_says_which_setting_it_is(tmp_path: Path) -> None:
    with SqliteRepository(tmp_path / DATABASE_NAME, max_input_bytes=20) as repository:
        repository.insert(job("a" * 12, "12345"))
        repository.insert(job("b" * 12, "12345", "12345", "678"))
        with pytest.raises(QueueFull, match=r"scheduler\.max_inputs_gb"):
            repository.insert(job("c" * 12, "ab"))
        assert files(tmp_path) == 2
        repository.insert(job("d" * 12, ""))
        repository.replace(ended(job("b" * 12)))
        repository.insert(job("e" * 12, "abc"))
    with SqliteRepository(tmp_path / DATABASE_NAME, max_input_bytes=20) as again, pytest.raises(QueueFull):
        again.insert(job("f" * 12, "x"))


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
        assert whole(again) == (waiting,)


def test_inputs_go_with_their_last_job(tmp_path: Path) -> None:
    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        one, two = job("a" * 12, "shared", "own"), job("b" * 12, "shared")
        for each in (one, two):
            repository.insert(each)
        repository.replace(ended(one))
        assert files(tmp_path) == 1
        assert whole(repository) == (two,)
        repository.replace(ended(two))
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
        assert whole(repository) == (waiting,)
        repository.replace(ended(waiting))
    assert not (tmp_path / INPUTS_FOLDER).exists()


def without_its_image(job_id: str) -> Job:
    """The job as it is read when its image is gone: it fails when it runs, and says why."""
    one = job(job_id)
    return attrs.evolve(one, request=attrs.evolve(one.request, init_images=("",)))


def test_an_input_that_was_removed_by_hand_is_empty_and_harms_no_other_job(tmp_path: Path) -> None:
    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        repository.insert(job("a" * 12, "gone"))
        for path in (tmp_path / INPUTS_FOLDER).iterdir():
            path.unlink()
        repository.insert(job("b" * 12, "there"))
        assert whole(repository) == (without_its_image("a" * 12), job("b" * 12, "there"))


def test_an_input_that_was_broken_by_hand_harms_only_its_own_job(tmp_path: Path) -> None:
    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        repository.insert(job("a" * 12, "broken"))
        for path in (tmp_path / INPUTS_FOLDER).iterdir():
            path.write_bytes(b"\xff\xfe")
        repository.insert(job("b" * 12, "there"))
        assert whole(repository) == (without_its_image("a" * 12), job("b" * 12, "there"))


def test_input_that_cannot_be_removed_does_not_hold_up_its_jobs_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        repository.insert(job("a" * 12, "stuck"))
        (path,) = (tmp_path / INPUTS_FOLDER).iterdir()
        path.unlink()
        path.mkdir()
        repository.replace(ended(job("a" * 12, "stuck")))
        found = repository.get("a" * 12)
        assert isinstance(found, Job)
        assert found.status.terminal
    assert "stay until the next start" in caplog.text
    with SqliteRepository(tmp_path / DATABASE_NAME) as again:
        assert again.get("a" * 12) == found
    path.rmdir()


def test_a_full_disk_refuses_the_job_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: InputFiles, digest: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with SqliteRepository(tmp_path / DATABASE_NAME) as repository:
        with monkeypatch.context() as patched:
            patched.setattr(InputFiles, "keep", full)
            with pytest.raises(DiskFull):
                repository.insert(job("a" * 12, "large"))
        assert whole(repository) == ()
        assert repository.get("a" * 12) is None
        repository.insert(attrs.evolve(job("b" * 12, "large")))
        assert len(whole(repository)) == 1


def test_input_is_on_disk_before_it_has_its_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = record_disk_calls(monkeypatch)
    digest = digest_of(b"content")
    InputFiles(tmp_path).keep(digest, b"content")
    calls.check_synced_before_named(tmp_path / digest, folder_too=True)
