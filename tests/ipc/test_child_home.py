"""A home for children whose user has none."""

import os
import stat
from pathlib import Path

import pytest

from mflux_api.ipc.child_home import VARIABLE, has_home, take_home


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))


@pytest.mark.parametrize("home", ["", None, "/nonexistent/home", "relative", "/proc/version"])
def test_user_without_a_home_that_can_be_written_gets_one_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    # As of a user id without an entry in the system's table.
    monkeypatch.setattr(os.path, "expanduser", lambda path: os.environ.get("HOME") or path)
    os.environ.pop("HOME", None)
    if home is not None:
        os.environ["HOME"] = home
    own = tmp_path / "state" / "mflux-api.home"
    os.environ[VARIABLE] = str(own)
    take_home()
    assert os.environ["HOME"] == str(own)
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert VARIABLE not in os.environ


def test_home_that_can_be_written_stays(tmp_path: Path) -> None:
    os.environ |= {"HOME": str(tmp_path), VARIABLE: str(tmp_path / "own")}
    take_home()
    assert os.environ["HOME"] == str(tmp_path)
    assert not (tmp_path / "own").exists()
    assert has_home()


def test_home_that_cannot_be_made_is_named_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.environ |= {"HOME": "/nonexistent", VARIABLE: str(tmp_path / "file" / "own")}
    take_home()
    assert os.environ["HOME"] == str(tmp_path / "file" / "own")


def test_relative_xdg_folders_are_not_passed_on(tmp_path: Path) -> None:
    os.environ |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "/data"}
    take_home()
    assert "XDG_CACHE_HOME" not in os.environ
    assert os.environ["XDG_DATA_HOME"] == "/data"
