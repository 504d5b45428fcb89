"""The order in which files are synced and renamed, which decides what a power cut leaves."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pytest


@attrs.frozen
class DiskCalls:
    """Every fsync and rename so far, by the inode that it was for."""

    calls: list[tuple[str, int]] = attrs.field(factory=list)

    def check_synced_before_named(self, path: Path, *, folder_too: bool) -> None:
        """Assert that a file's content was on disk before it got its name, and the name when the call returned."""
        inode = path.stat().st_ino
        named = self.calls.index(("rename", inode))
        assert ("fsync", inode) in self.calls[:named], "the file has its name before its content is on disk"
        if folder_too:
            folder = path.parent.stat().st_ino
            assert ("fsync", folder) in self.calls[named:], "the name may be lost with the power"


def record_disk_calls(monkeypatch: pytest.MonkeyPatch) -> DiskCalls:
    """Record the calls from now on, and carry each of them out."""
    record = DiskCalls()
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        record.calls.append(("fsync", os.fstat(descriptor).st_ino))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("replace", "rename", "link"):
        _record_renames(record, name, monkeypatch)
    return record


def _record_renames(record: DiskCalls, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(os, name)

    def rename(source: Any, target: Any, **options: Any) -> None:
        inode = os.stat(source).st_ino
        original(source, target, **options)
        record.calls.append(("rename", inode))

    monkeypatch.setattr(os, name, rename)


def refuse_with(number: int) -> Callable[..., NoReturn]:
    """Return a system call that a file system does not have."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return refuse
