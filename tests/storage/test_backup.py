"""What a copy of the job database has, made by hand or by the command, whatever the server does meanwhile."""

import errno
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mflux_api.errors import ConfigError, DiskFull
from mflux_api.storage.backup import back_up
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support.stored_jobs import completed, queued


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / DATABASE_NAME


def jobs_in(file: Path) -> list[str]:
    """The jobs of a file alone, in a folder of its own."""
    alone = file.parent / "alone" / DATABASE_NAME
    shutil.rmtree(alone.parent, ignore_errors=True)
    alone.parent.mkdir()
    shutil.copy(file, alone)
    with SqliteRepository(alone) as repository:
        return [job.id for job in repository.page(limit=100, cursor=None, status=None).jobs]


def test_copy_of_the_main_file_alone_has_what_was_kept_at_the_last_checkpoint(path: Path) -> None:
    with SqliteRepository(path) as repository:
        assert jobs_in(path) == [], "a new file is a job store without its log, too"
        repository.insert(queued("a"))
        assert jobs_in(path) == []
        repository.checkpoint()
        assert jobs_in(path) == ["a"]
        repository.insert(queued("b"))
        with SqliteRepository(path):
            # What a killed server left in the log is in the file after the next start.
            assert jobs_in(path) == ["b", "a"]


def test_backup_of_a_store_that_is_written_to_is_whole_and_one_file(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup.sqlite3"
    stop = threading.Event()
    with SqliteRepository(path) as repository:
        repository.insert(queued("first"))

        def write() -> None:
            for number in range(10_000):
                if stop.is_set():
                    return
                repository.insert(completed(queued(f"{number:012x}")))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            count = back_up(path, target)
        finally:
            stop.set()
            writer.join()
    with closing(sqlite3.connect(target)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert copy.execute("SELECT count(*) FROM jobs").fetchone() == (count,)
        assert copy.execute("SELECT id FROM jobs ORDER BY number").fetchone() == ("first",)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["backup.sqlite3", "state"]


def test_backup_has_what_is_only_in_the_log_of_a_killed_server(path: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    with SqliteRepository(path) as repository:
        repository.insert(queued("a"))
        shutil.copytree(path.parent, killed)
    assert back_up(killed / DATABASE_NAME, tmp_path / "backup") == 1
    assert jobs_in(tmp_path / "backup") == ["a"]


def test_backup_without_room_names_the_copy_and_leaves_nothing(path: Path) -> None:
    with SqliteRepository(path) as repository:
        repository.insert(queued("a"))
    full = path.parent / "backup"
    copied = sqlite3.OperationalError("database or disk is full")
    copied.sqlite_errorname = "SQLITE_FULL"
    for error in (copied, OSError(errno.ENOSPC, "No space left on device", str(full))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mflux_api.storage.backup.sync_file", _raise(error))
            with pytest.raises(DiskFull, match=r"^backup: no space left for the copy"):
                back_up(path, full)
        assert not list(path.parent.glob("*backup*"))


def _raise(error: Exception) -> Callable[[Path], None]:
    def refuse(_: Path) -> None:
        raise error

    return refuse


def test_backup_overwrites_nothing_and_copies_no_other_programs_database(path: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"x")
    with pytest.raises(ConfigError, match="there is none in the state directory"):
        back_up(path, tmp_path / "new")
    SqliteRepository(path).close()
    with pytest.raises(ConfigError, match="there already; choose another name"):
        back_up(path, there)
    with pytest.raises(ConfigError, match=r"^\.: it is there already"):
        back_up(path, Path("."))
    assert there.read_bytes() == b"x"
    with pytest.raises(ConfigError, match=r"folder: cannot be written: No such file or directory; name a file in"):
        back_up(path, tmp_path / "no" / "folder")
    other = tmp_path / "other"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(ConfigError, match="another program's"):
        back_up(other, tmp_path / "new")
    assert not list(tmp_path.glob("*new*"))
