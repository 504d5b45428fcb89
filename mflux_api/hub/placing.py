"""A downloaded file takes its place: the lock that huggingface_hub's own downloads hold, too, and the snapshot.

A snapshot holds links to blobs. Where links cannot be made (exFAT, some network disks) huggingface_hub copies every
blob, and each model lies on disk twice; here the blob is moved.
"""

import errno
import fcntl
import filecmp
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants

from mflux_api.system.durable import NOT_SUPPORTED, sync_file

_LOCK_SECONDS = 0.1
"""Between two tries for a lock that another process holds."""
_COPY_SUFFIX = ".mflux-api.incomplete"


class NoLocks(Exception):
    """The cache is on a file system without locks."""


@contextmanager
def locked(path: Path, stopped: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold the lock of one blob; yields ``False`` where it was not waited for to the end.

    Args:
        path: the lock's file, as huggingface_hub names it.
        stopped: whether there is no reason any more to wait.

    Raises:
        NoLocks: the file system has none.
        OSError: the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
        try:
            held = _wait_for_lock(descriptor, stopped)
            # Another process may have removed it between the two calls; then it locks nothing.
            if not held or _is_still(path, descriptor):
                yield held
                return
        finally:
            os.close(descriptor)


def _wait_for_lock(descriptor: int, stopped: Callable[[], bool]) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if stopped():
                return False
            time.sleep(_LOCK_SECONDS)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            raise NoLocks(error.strerror) from None
        else:
            return True


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def place(blob: Path, pointers: Sequence[Path], snapshots: Path) -> None:
    """Put a blob into its places in a snapshot: links to it, or else the blob itself; never a second copy of one file.

    The caller holds the blob's lock. Every step leaves a whole file under one of the names.

    Args:
        blob: the file; it may be gone where one of its places holds it.
        pointers: its places.
        snapshots: the folder of all snapshots of the repository.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    missing = [pointer for pointer in pointers if not pointer.is_file()]
    for pointer in missing:
        pointer.parent.mkdir(parents=True, exist_ok=True)
        # A link to what is not there any more.
        pointer.unlink(missing_ok=True)
    if blob.exists():
        missing = [pointer for pointer in missing if not _link(blob, pointer)]
    if not missing:
        _remove_double(blob, pointers, snapshots)
        return
    *others, last = missing
    whole = blob if blob.exists() else next(pointer for pointer in pointers if pointer.is_file())
    for pointer in others:
        _copy(whole, pointer)
    # A blob that others lead to, by a link, is theirs, too.
    if whole is blob and not blob.is_symlink() and not _is_linked(blob, snapshots):
        os.replace(blob, last)
    else:
        _copy(whole, last)


def _remove_double(blob: Path, pointers: Sequence[Path], snapshots: Path) -> None:
    """Remove a blob that nothing leads to, and whose places hold copies of it: another program made them."""
    if not blob.is_file() or blob.is_symlink() or any(pointer.is_symlink() for pointer in pointers):
        return
    # Byte by byte: what goes away is the one whose digest was checked.
    same = all(filecmp.cmp(blob, pointer, shallow=False) for pointer in pointers)
    if same and not _is_linked(blob, snapshots):
        blob.unlink()


def _link(blob: Path, pointer: Path) -> bool:
    if constants.HF_HUB_DISABLE_SYMLINKS:
        return False
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except FileExistsError:
        # Another program was faster.
        return pointer.is_file()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        return False
    return True


def _copy(file: Path, target: Path) -> None:
    unfinished = target.with_name(f".{target.name}{_COPY_SUFFIX}")
    shutil.copyfile(file, unfinished)
    sync_file(unfinished)
    unfinished.replace(target)


def _is_linked(blob: Path, snapshots: Path) -> bool:
    """Whether a link leads to the blob: it may have been made where links can be."""
    real = blob.resolve()
    return any(path.is_symlink() and path.resolve() == real for path in snapshots.rglob("*"))
