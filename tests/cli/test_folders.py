"""Folders that cannot be written are found before the work, and each has one clear reason."""

import errno
import fcntl
import tempfile
from pathlib import Path

import pytest

from mflux_api.cli.folders import has_locks, temporary_problem, why_not_writable
from tests.support.disk_calls import refuse_with


def test_folder_that_can_be_made_is_fine_and_made_only_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert why_not_writable(folder) == ""
    assert not folder.exists()
    assert why_not_writable(folder, make=True) == ""
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("make", [True, False])
def test_file_in_the_place_of_a_folder_is_named(tmp_path: Path, make: bool) -> None:
    (tmp_path / "file").touch()
    assert "file" in why_not_writable(tmp_path / "file", make=make)
    assert "file" in why_not_writable(tmp_path / "file" / "below", make=make)


@pytest.mark.parametrize("make", [True, False])
def test_link_that_leads_nowhere_is_not_called_a_file(tmp_path: Path, make: bool) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "disk")
    assert why_not_writable(tmp_path / "link", make=make) == "a link in its path leads nowhere"
    assert why_not_writable(tmp_path / "link" / "below", make=make) == "a link in its path leads nowhere"


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.EACCES, "permission denied"),
        (errno.ENOSPC, "no space left on device"),
        (errno.EROFS, "read-only file system"),
    ],
)
def test_disk_that_takes_no_file_is_found_by_trying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, why: str
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse_with(number))
    assert why_not_writable(tmp_path) == why


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_disk_without_locks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    assert has_locks(tmp_path)
    assert has_locks(tmp_path / "gone")
    monkeypatch.setattr(fcntl, "flock", refuse_with(number))
    assert not has_locks(tmp_path)


def test_disk_without_nameless_files_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse_with(errno.EBUSY))
    assert why_not_writable(tmp_path) == ""


def test_folder_for_temporary_files_that_is_not_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert temporary_problem() is None
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    assert temporary_problem() == ("TMPDIR names a folder that cannot be written", "unset it, or name another folder")
    monkeypatch.setattr(tempfile, "gettempdir", refuse_with(errno.ENOENT))
    assert temporary_problem() == ("no folder can be written", "set TMPDIR to one that can")
