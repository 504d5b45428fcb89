"""Finished images: whole files or none, and nothing left over."""

import hashlib
import os
import stat
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from mflux_api.jobs.job import StoredImage
from mflux_api.storage.image_files import ImageFiles
from mflux_api.system.durable import PendingFile
from tests.support.disk_calls import record_disk_calls
from tests.support.stored_jobs import queued, read_only_folder

JOB = queued("0123456789ab", created_at=datetime(2026, 3, 1, 23, 59, tzinfo=UTC))


def pixels(value: int = 0) -> bytes:
    return bytes((value + n) % 256 for n in range(8 * 4 * 3))


def save(files: ImageFiles, *, index: int = 0, value: int = 0) -> StoredImage:
    return files.save(JOB, index, seed=9, width=8, height=4, rgb=pixels(value))


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_image_is_at_its_path_with_its_digest_and_pixels(tmp_path: Path) -> None:
    stored = save(ImageFiles(tmp_path / "new" / "output"), index=1)
    path = tmp_path / "new" / "output" / "2026-03-01" / "0123456789ab-1.png"
    data = path.read_bytes()
    assert stored == StoredImage(path=str(path), seed=9, width=8, height=4, sha256=hashlib.sha256(data).hexdigest())
    with Image.open(BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (8, 4))
        assert image.tobytes() == pixels()


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    for index in range(3):
        save(ImageFiles(tmp_path), index=index)
    assert everything_below(tmp_path) == [f"2026-03-01/0123456789ab-{index}.png" for index in range(3)]


def test_the_mode_is_that_of_an_ordinary_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        stored = save(ImageFiles(tmp_path))
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path(stored.path).stat().st_mode) == 0o640


def test_the_name_never_shows_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save(ImageFiles(tmp_path))
    seen: list[tuple[list[str], str]] = []
    sync = os.fsync

    def watch(descriptor: int) -> None:
        seen.append((everything_below(tmp_path), hashlib.sha256(Path(first.path).read_bytes()).hexdigest()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    second = save(ImageFiles(tmp_path), value=1)
    assert first.sha256 != second.sha256
    # The data is synced under a temporary name, and the folder once the file has its own.
    (names, digest), (names_after, digest_after) = seen
    assert (len(names), digest) == (2, first.sha256)
    assert (names_after, digest_after) == (["2026-03-01/0123456789ab-0.png"], second.sha256)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(ImageFiles(tmp_path))
    assert everything_below(tmp_path) == []


@pytest.mark.parametrize("day_exists", [False, True])
def test_a_read_only_folder_is_an_os_error_and_stays_as_it_was(day_exists: bool, tmp_path: Path) -> None:
    # Load the encoder while the tests still may read the installation.
    save(ImageFiles(tmp_path))
    with read_only_folder() as folder:
        day = folder / "2026-03-01"
        if day_exists:
            folder.chmod(0o700)
            day.mkdir(mode=0o500)
        with pytest.raises(PermissionError):
            save(ImageFiles(folder))
        assert list(folder.rglob("*")) == ([day] if day_exists else [])


def test_discarding_removes_the_file_and_may_be_repeated(tmp_path: Path) -> None:
    files = ImageFiles(tmp_path)
    kept, dropped = save(files, index=0), save(files, index=1)
    files.discard(dropped)
    files.discard(dropped)
    assert everything_below(tmp_path) == ["2026-03-01/0123456789ab-0.png"]
    assert Path(kept.path).is_file()


def test_images_that_a_killed_process_generated_for_a_job_can_be_removed_without_their_row(tmp_path: Path) -> None:
    files = ImageFiles(tmp_path)
    job, other = queued("0" * 12), queued("1" * 12)
    for generated in (job, other):
        for index in range(2):
            files.save(generated, index, seed=1, width=16, height=16, rgb=bytes(16 * 16 * 3))
    files.discard_all(job.id, job.created_at, 2)
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == [f"{other.id}-0.png", f"{other.id}-1.png"]
    files.discard_all(job.id, job.created_at, 2)


def test_image_is_on_disk_before_it_has_its_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = record_disk_calls(monkeypatch)
    stored = save(ImageFiles(tmp_path))
    calls.check_synced_before_named(Path(stored.path), folder_too=True)


def test_new_days_folder_is_on_disk_when_the_image_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_disk_calls(monkeypatch)
    save(ImageFiles(tmp_path / "output"))
    for folder in (tmp_path, tmp_path / "output", tmp_path / "output" / "2026-03-01"):
        assert ("fsync", folder.stat().st_ino) in calls.calls, folder.name


def test_half_written_image_of_another_server_is_not_removed(tmp_path: Path) -> None:
    day = tmp_path / "2026-03-01"
    day.mkdir()
    with PendingFile(day / ".0123456789ab-0.png.tmp"):
        (day / ".0123456789ab-1.png.tmp").write_bytes(b"half")
        assert ImageFiles(tmp_path).remove_leftovers() == 1
        assert everything_below(tmp_path) == ["2026-03-01/.0123456789ab-0.png.tmp"]
