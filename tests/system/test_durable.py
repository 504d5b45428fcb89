"""Files that outlive a power cut: what is synced, in which order, and what becomes of what was only begun."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mflux_api.system import durable
from mflux_api.system.durable import PendingFile, make_folder, remove_abandoned, write_whole
from tests.support.disk_calls import record_disk_calls
from tests.support.server import ROOT, clean_environment


def test_new_folders_are_on_disk_when_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_disk_calls(monkeypatch)
    make_folder(tmp_path / "state" / "inputs")
    assert calls.calls == [("fsync", tmp_path.stat().st_ino), ("fsync", (tmp_path / "state").stat().st_ino)]
    make_folder(tmp_path / "state" / "inputs")
    assert len(calls.calls) == 2


def test_folder_whose_place_is_taken_by_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        make_folder(tmp_path / "state" / "inputs")


def test_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_disk_calls(monkeypatch)
    write_whole(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    calls.check_synced_before_named(tmp_path / "file", folder_too=True)


def test_the_drives_cache_is_flushed_where_the_system_has_a_call_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS, where fsync alone does not."""
    flushed: list[int] = []
    monkeypatch.setattr(durable, "_FULL_SYNC", 51)
    monkeypatch.setattr(fcntl, "fcntl", lambda file, _: flushed.append(os.fstat(file).st_ino))
    write_whole(tmp_path / "file", b"content")
    assert flushed == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]


@pytest.mark.parametrize(("reason", "falls_back"), [(errno.ENOTSUP, True), (errno.EIO, False)])
def test_file_system_without_a_full_flush_gets_an_fsync_and_a_broken_disk_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int, falls_back: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    calls = record_disk_calls(monkeypatch)
    monkeypatch.setattr(durable, "_FULL_SYNC", 51)
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    if falls_back:
        write_whole(tmp_path / "file", b"content")
        calls.check_synced_before_named(tmp_path / "file", folder_too=True)
    else:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            write_whole(tmp_path / "file", b"content")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_of_two_files_for_one_name_exactly_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        # A FAT file system has none.
        monkeypatch.setattr(os, "link", _no_links)
    both = threading.Barrier(8)
    refused: list[int] = []

    def publish(number: int) -> None:
        with PendingFile(tmp_path / f".{number}.part") as pending:
            pending.write(b"%d" % number)
            both.wait()
            try:
                pending.publish(tmp_path / "name", overwrite=False)
            except FileExistsError:
                refused.append(number)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = set(range(8)) - set(refused)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("name", b"%d" % winner)]


def _no_links(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_file_that_another_process_writes_is_not_abandoned_until_that_process_has_ended(tmp_path: Path) -> None:
    path = tmp_path / ".upload.part"
    code = "import sys, pathlib; from mflux_api.system.durable import PendingFile\n"
    code += "file = PendingFile(pathlib.Path(sys.argv[1])); file.write(b'half'); print('writing', flush=True); input()"
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        assert remove_abandoned([path]) == 0
        assert path.read_bytes() == b"half"
        writer.kill()
        writer.wait()
    assert remove_abandoned([path]) == 1
    assert not path.exists()
    assert remove_abandoned([path]) == 0


def test_file_that_was_taken_for_abandoned_before_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock = tmp_path / ".part", fcntl.flock
    taken: list[Path] = []

    def slow(descriptor: int, operation: int) -> None:
        if not taken:
            taken.append(path)
            path.unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    with PendingFile(path) as pending:
        pending.write(b"content")
        pending.publish(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize(("age", "removed"), [(3600, 0), (2 * 24 * 3600, 1)])
def test_where_locks_are_not_known_only_old_files_are_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: int, removed: int
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    path = tmp_path / ".part"
    path.write_bytes(b"half")
    changed = path.stat().st_mtime - age
    os.utime(path, (changed, changed))
    monkeypatch.setattr(fcntl, "flock", unknown)
    assert remove_abandoned([path]) == removed
    assert path.exists() == (not removed)


def test_every_sync_is_the_helpers() -> None:
    """Any other one would leave the data in the drive's cache on macOS."""
    callers = [path for path in (ROOT / "mflux_api").rglob("*.py") if "fsync(" in path.read_text("utf-8")]
    assert [path.name for path in callers] == ["durable.py"]
