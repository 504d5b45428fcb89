"""What retention removes, what stays, and which clock it goes by."""

import logging
import os
from datetime import timedelta
from pathlib import Path

import attrs
import pytest

from mflux_api.jobs.job import Job
from mflux_api.storage.image_files import ImageFiles
from mflux_api.storage.repository import Tombstone
from mflux_api.storage.retention import CLOCK_TOLERANCE, DOUBT, Retention, RetentionClock, expire, prune
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support.stored_jobs import NOW, completed, queued

HOUR = timedelta(hours=1)


class Clocks:
    """A wall clock that can be set, and one that cannot."""

    def __init__(self) -> None:
        self.wall, self.elapsed = NOW, 1000.0
        self.retention = RetentionClock(lambda: self.wall, lambda: self.elapsed)

    def pass_time(self, time: timedelta) -> None:
        self.wall += time
        self.elapsed += time.total_seconds()


def test_clock_that_is_set_forward_is_not_believed_for_a_day(caplog: pytest.LogCaptureFixture) -> None:
    clocks = Clocks()
    clocks.pass_time(HOUR)
    assert clocks.retention.now() == NOW + HOUR
    clocks.wall += timedelta(days=400)
    for _ in range(23):
        assert clocks.retention.now() <= NOW + 24 * HOUR
        clocks.pass_time(HOUR)
    assert caplog.text.count("the clock was set forward") == 1
    clocks.pass_time(DOUBT)
    assert clocks.retention.now() == clocks.wall


def test_clock_that_is_set_forward_and_back_changes_nothing() -> None:
    clocks = Clocks()
    clocks.wall += timedelta(days=400)
    assert clocks.retention.now() == NOW
    clocks.wall -= timedelta(days=400)
    clocks.pass_time(HOUR)
    assert clocks.retention.now() == NOW + HOUR


def test_clock_that_is_set_back_or_a_little_forward_is_believed_at_once() -> None:
    clocks = Clocks()
    for change in (timedelta(days=-1), CLOCK_TOLERANCE / 2, -HOUR):
        clocks.wall += change
        assert clocks.retention.now() == clocks.wall


@pytest.fixture
def repository(tmp_path: Path) -> SqliteRepository:
    return SqliteRepository(tmp_path / DATABASE_NAME)


def finished_with_image(repository: SqliteRepository, files: ImageFiles, name: str) -> Job:
    """Keep a completed job with one image on disk."""
    job = queued(name)
    repository.insert(job)
    image = files.save(job, 0, seed=1, width=8, height=8, rgb=bytes(8 * 8 * 3))
    done = completed(job, images=(image,))
    repository.replace(done)
    return done


@pytest.mark.parametrize("delete_images", [False, True])
def test_expired_job_leaves_its_images_and_a_tombstone_and_a_line_in_the_log(
    tmp_path: Path, repository: SqliteRepository, caplog: pytest.LogCaptureFixture, delete_images: bool
) -> None:
    files = ImageFiles(tmp_path / "output")
    retention = Retention(keep=1, ttl=timedelta.max, files=files, delete_images=delete_images)
    with repository, caplog.at_level(logging.INFO):
        old, _ = (finished_with_image(repository, files, name) for name in ("0123456789ab", "ba9876543210"))
        assert expire(repository, retention, now=NOW, spare={old.id}).jobs == ()
        assert expire(repository, retention, now=NOW).jobs == (old,)
        assert repository.get(old.id) == Tombstone(id=old.id, removed_at=NOW)
    assert Path(old.images[0].path).exists() is not delete_images
    fate = "were deleted" if delete_images else "stay"
    assert caplog.messages == [f"job {old.id}: its record was removed; 1 image(s) of it {fate}"]


def test_prune_takes_what_is_older_and_keeps_tombstones_for_their_time(
    tmp_path: Path, repository: SqliteRepository
) -> None:
    retention = Retention(keep=1000, ttl=100 * HOUR, files=ImageFiles(tmp_path / "output"))
    with repository:
        for age, name in ((50, "a"), (30, "b"), (10, "c")):
            repository.insert(completed(queued(name), at=NOW - age * HOUR))
        repository.expire(now=NOW - 60 * HOUR, keep=2, ttl=timedelta.max)
        arguments = {"now": NOW, "older_than": 20 * HOUR}
        would = prune(repository, retention, **arguments, dry_run=True)  # type: ignore[arg-type]
        assert [job.id for job in would.jobs] == ["b"]
        assert isinstance(repository.get("b"), Job)
        assert prune(repository, retention, **arguments, dry_run=False).jobs == would.jobs  # type: ignore[arg-type]
        assert isinstance(repository.get("b"), Tombstone)
        assert repository.get("a") == Tombstone(id="a", removed_at=NOW - 60 * HOUR)
        assert isinstance(repository.get("c"), Job)


def test_oldest_images_beyond_the_limit_go_and_no_other_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = ImageFiles(tmp_path)
    names = [f"{number:012x}" for number in range(4)]
    paths = []
    for age, name in enumerate(reversed(names)):
        image = files.save(queued(name), 0, seed=1, width=8, height=8, rgb=os.urandom(8 * 8 * 3))
        os.utime(image.path, (NOW.timestamp() - age, NOW.timestamp() - age))
        paths.append(Path(image.path))
    size = max(path.stat().st_size for path in paths)
    theirs = paths[0].with_name("holiday.png")
    theirs.write_bytes(bytes(10 * size))
    os.utime(theirs, (0, 0))
    with caplog.at_level(logging.INFO):
        assert files.remove_oldest(10 * size) == 0
        assert files.remove_oldest(2 * size, spare={names[0]}) == 2
    assert [path.exists() for path in paths] == [True, False, False, True]
    assert theirs.exists()
    assert caplog.text.count("all take more than jobs.max_images_gb") == 2
    assert str(tmp_path) not in caplog.text
    assert attrs.evolve(files, folder=tmp_path / "none").remove_oldest(0) == 0
