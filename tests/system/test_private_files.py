"""Prompts, inputs and keys are for their owner alone, whatever the umask and whatever an earlier version left."""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from mflux_api.config import GenerationSettings, JobSettings, Settings
from mflux_api.storage.backup import back_up
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from mflux_api.storage.state_lock import StateLock
from mflux_api.system import private_files
from mflux_api.system.private_files import make_private_file, make_private_folder, open_private, tighten
from tests.support.server import ROOT
from tests.support.stored_jobs import queued


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """The mode of everything in a folder and below, and of the folder itself."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in (folder, *folder.rglob("*"))}


def used_state(state: Path, output: Path, job_id: str = "0123456789ab") -> dict[str, int]:
    """Use a state directory as a server does, and return the modes while log, index and inputs are there."""
    settings = Settings(generation=GenerationSettings(output_dir=output), jobs=JobSettings(state_dir=state))
    with StateLock.from_settings(settings), SqliteRepository(settings.state_dir / DATABASE_NAME) as repository:
        job = queued(job_id)
        repository.insert(attrs.evolve(job, request=attrs.evolve(job.request, init_images=("iVBORwAA",))))
        back_up(state / DATABASE_NAME, state / "mflux-api.backup")
        return modes(state)


def private(inputs: int) -> dict[str, int]:
    """The modes of a used state directory with so many init images, whose names are left out."""
    parts = (DATABASE_NAME, f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm", "mflux-api.lock", "mflux-api.backup")
    return {**dict.fromkeys(parts, 0o600), "inputs": 0o700, **{f"inputs/{number}": 0o600 for number in range(inputs)}}


def numbered(found: dict[str, int]) -> dict[str, int]:
    """Modes with the init images numbered, and without the folder itself."""
    images = sorted(name for name in found if name.startswith("inputs/"))
    others = {name: mode for name, mode in found.items() if name not in images and name != "."}
    return {**others, **{f"inputs/{number}": found[name] for number, name in enumerate(images)}}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("apart", [True, False], ids=["apart", "beside images"])
def test_used_state_directory_is_its_owners_alone(tmp_path: Path, mask: int, apart: bool) -> None:
    with umask(mask):
        found = used_state(tmp_path / "state" if apart else tmp_path / "output", tmp_path / "output")
    assert numbered(found) == private(inputs=1)
    # Images follow the umask, and so does the folder that they are in.
    assert found["."] == (0o700 if apart else 0o777 & ~mask)


def test_looser_modes_of_an_earlier_version_are_tightened_at_the_start(tmp_path: Path) -> None:
    state = tmp_path / "state"
    used_state(state, tmp_path / "output")
    for path in (state, *state.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (state / "mflux-api.backup").unlink()
    found = used_state(state, tmp_path / "output", "ba9876543210")
    assert numbered(found) == private(inputs=1)
    assert found["."] == 0o700


def test_state_directory_that_holds_other_things_keeps_its_mode(tmp_path: Path) -> None:
    state = tmp_path / "home"
    state.mkdir()
    state.chmod(0o755)
    (state / "notes.txt").write_text("the user's", "utf-8")
    settings = Settings(jobs=JobSettings(state_dir=state))
    with StateLock.from_settings(settings):
        assert modes(state) == {".": 0o755, "notes.txt": stat.S_IMODE((state / "notes.txt").stat().st_mode)} | {
            "mflux-api.lock": 0o600
        }


def test_file_of_another_user_is_one_warning_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "theirs").touch(0o644)
    (tmp_path / "theirs").chmod(0o644)
    monkeypatch.setattr(os, "chmod", refuse)
    with caplog.at_level(logging.WARNING):
        tighten([tmp_path / "theirs", tmp_path / "missing"])
    assert caplog.messages == [
        "theirs: others may read it, and its mode cannot be changed (Operation not permitted); make it yours with "
        "chown, or move it to a disk that has modes"
    ]


def test_link_is_not_followed_to_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "elsewhere").chmod(0o644)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    tighten([tmp_path / "link"])
    assert modes(tmp_path)["elsewhere"] == 0o644


def test_new_files_and_folders_are_private_from_their_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not made first and tightened then: another program could open it in between."""
    monkeypatch.setattr(private_files, "_set_mode", lambda *_: None)
    with umask(0):
        make_private_folder(tmp_path / "a" / "folder")
        os.close(open_private(tmp_path / "a" / "opened"))
        make_private_file(tmp_path / "a" / "made")
    assert modes(tmp_path / "a") == {".": 0o777, "folder": 0o700, "opened": 0o600, "made": 0o600}
    with pytest.raises(FileExistsError):
        make_private_file(tmp_path / "a" / "made")


def test_every_mode_of_files_is_chosen_in_one_place() -> None:
    """So that no file of the state is made past it; models and images follow the umask."""
    texts = {path: path.read_text("utf-8") for path in (ROOT / "mflux_api").rglob("*.py")}
    chosen = {path.name for path, text in texts.items() if "0o600" in text or "0o700" in text or "chmod(" in text}
    assert chosen == {"private_files.py"}
    connects = {path.name for path, text in texts.items() if "sqlite3.connect(" in text}
    assert connects == {"backup.py", "database_file.py"}
