"""Compiled kernels from one engine child to the next, whatever became of the one that compiled them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mflux_api.engine import kernel_cache
from mflux_api.engine.kernel_cache import VARIABLE, KernelCache


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set and taken away, so that what a test sets is taken away as well.
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)


def cache(root: Path, process: int, device: str = "NVIDIA H200 (NVL)") -> KernelCache:
    """The cache of another process."""
    made = KernelCache(root, "0.32.2", device)
    made.own = made.folder / f"of-process-{process}"
    os.environ.pop(VARIABLE, None)
    return made


def compile_into(cache: KernelCache, name: str) -> None:
    """Leave the three files that MLX leaves."""
    for suffix in (".ptx", ".txt", ".cu"):
        (cache.own / f"{name}{suffix}").write_text(f"{name}{suffix}", "utf-8")


def test_next_child_finds_what_one_compiled(tmp_path: Path) -> None:
    first = cache(tmp_path, os.getpid())
    first.open()
    assert os.environ[VARIABLE] == str(first.own)
    assert first.folder.name == "mlx-0.32.2-nvidia-h200-nvl"
    compile_into(first, "norm")
    first.publish()
    second = cache(tmp_path, os.getppid())
    second.open()
    assert {file.name: file.read_text("utf-8") for file in second.own.iterdir()} == {
        "norm.ptx": "norm.ptx",
        "norm.txt": "norm.txt",
    }
    other = cache(tmp_path, os.getpid(), device="NVIDIA A100")
    other.open()
    assert list(other.own.iterdir()) == []


def test_what_a_killed_child_was_writing_is_not_used(tmp_path: Path) -> None:
    first = cache(tmp_path, os.getpid())
    first.open()
    (first.own / "half.ptx").write_bytes(b"half of")
    first.publish()
    assert not list(first.folder.glob("*.ptx"))
    # The names come first, so code without them was never published; and a rename that did not come is no code.
    (first.folder / "norm.txt").write_bytes(b"names")
    (first.folder / ".norm.ptx.tmp").write_bytes(b"half of")
    second = cache(tmp_path, os.getppid())
    second.open()
    assert list(second.own.iterdir()) == []


def test_what_is_kept_is_not_written_again(tmp_path: Path) -> None:
    first = cache(tmp_path, os.getpid())
    first.open()
    compile_into(first, "norm")
    first.publish()
    before = (first.folder / "norm.ptx").stat()
    (first.own / "norm.ptx").write_bytes(b"other")
    first.publish()
    assert (first.folder / "norm.ptx").stat().st_ino == before.st_ino


def test_folders_of_dead_children_go_when_they_are_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead, alive = cache(tmp_path, child.pid), cache(tmp_path, os.getppid())
    for each in (dead, alive):
        each.open()
        os.environ.pop(VARIABLE)
    cache(tmp_path, os.getpid()).open()
    assert dead.own.is_dir()
    monkeypatch.setattr(kernel_cache, "_ABANDONED_SECONDS", -1.0)
    cache(tmp_path, os.getpid()).open()
    assert not dead.own.exists()
    assert alive.own.is_dir()


def test_users_own_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = KernelCache(tmp_path, "0.32.2", "a GPU")
    monkeypatch.setenv(VARIABLE, "/mine")
    mine.open()
    assert os.environ[VARIABLE] == "/mine"
    assert list(tmp_path.iterdir()) == []
    mine.publish()
