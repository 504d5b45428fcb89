"""Files and folders that outlive a power cut: synced, named only when they are whole, and told from abandoned ones."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)
"""On macOS fsync alone leaves the data in the drive's cache (its fcntl(2))."""

NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOLCK, errno.ENOSYS)
"""Errors of a file system that has no such thing."""

_ABANDONED_AFTER_SECONDS = 24 * 3600.0
"""Where a file system knows no locks, a temporary file that no process has written to for so long is abandoned."""


def sync(descriptor: int) -> None:
    """Return when what was written to an open file, or the names in an open folder, are on the disk itself.

    Raises:
        OSError: the disk refuses it.
    """
    if _FULL_SYNC is not None:
        try:
            fcntl.fcntl(descriptor, _FULL_SYNC)
            return
        except OSError as error:
            # Network and foreign file systems do not have it.
            if error.errno not in NOT_SUPPORTED:
                raise
    os.fsync(descriptor)


def sync_file(path: Path) -> None:
    """Sync a file by its name.

    Raises:
        OSError: it cannot be opened, or the disk refuses it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Sync the names in a folder; where the file system cannot, it does so by itself.

    Raises:
        OSError: it cannot be opened, or the disk refuses it.
    """
    with _where_supported():
        sync_file(path)


@contextlib.contextmanager
def _where_supported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def sync_folders_below(path: Path) -> None:
    """Sync the names in a folder and in all folders below it.

    Raises:
        OSError: one of them cannot be opened, or the disk refuses it.
    """
    for folder, _, _ in os.walk(path, topdown=False):
        sync_folder(Path(folder))


def make_folder(path: Path) -> None:
    """Make a folder, and those above it; each is on disk when this returns.

    Raises:
        OSError: it cannot be made.
    """
    missing = [each for each in (path, *path.parents) if not each.is_dir()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def write_whole(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file whole or not at all; it is durable when this returns. The umask takes its part of the mode.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    with PendingFile(path.with_name(f".{path.name}.tmp"), mode) as pending:
        pending.write(data)
        pending.publish(path)


class PendingFile:
    """A file under a temporary name. Use it as a context manager: what is not published is removed.

    It is locked for as long as it is pending, so that no other process takes it for abandoned.

    Raises:
        OSError: it cannot be made, or another process writes it.
    """

    def __init__(self, path: Path, mode: int = 0o666) -> None:
        self._path = path
        # First: where descriptors are short, nothing is left behind.
        self._folder = os.open(path.parent, os.O_RDONLY)
        try:
            self._file = _open_locked(path, mode)
        except BaseException:
            os.close(self._folder)
            raise
        self._published = False

    def __enter__(self) -> "PendingFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if not self._published:
                self._path.unlink(missing_ok=True)
        finally:
            # Not before: the lock says whose it is.
            os.close(self._file)
            os.close(self._folder)

    @property
    def path(self) -> Path:
        """Its temporary name."""
        return self._path

    def write(self, data: bytes) -> None:
        """Add bytes.

        Raises:
            OSError: the disk is full.
        """
        with memoryview(data) as rest:
            written = 0
            while written < len(rest):
                written += os.write(self._file, rest[written:])

    def publish(self, path: Path, *, overwrite: bool = True) -> None:
        """Give the file its name in the same folder, once its content is on disk; durable when this returns.

        Raises:
            FileExistsError: the name is taken, and ``overwrite`` is ``False``.
            OSError: the folder cannot be written.
        """
        sync(self._file)
        if overwrite:
            os.replace(self._path, path)
        else:
            _rename_to_new(self._path, path)
        self._published = True
        with _where_supported():
            sync(self._folder)


def remove_abandoned(paths: Iterable[Path]) -> int:
    """Remove those pending files that no process writes any more; return how many there were.

    Raises:
        OSError: one of them cannot be opened or removed.
    """
    return sum(_remove_if_abandoned(path) for path in paths)


def _open_locked(path: Path, mode: int) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, mode)
        try:
            _lock(descriptor)
            if _is_still(path, descriptor):
                os.ftruncate(descriptor, 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Another process took it for abandoned before it was locked.
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock a file without waiting; return ``False`` where the file system has no locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        return False
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _rename_to_new(path: Path, target: Path) -> None:
    """Rename a file to a name that is free, in one step.

    Raises:
        FileExistsError: it is not free.
    """
    try:
        os.link(path, target)
    except OSError as error:
        if isinstance(error, FileExistsError) or error.errno not in (*NOT_SUPPORTED, errno.EPERM, errno.EMLINK):
            raise
        # No hard links there (FAT): the name is taken by an empty file first, and by one process only.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        os.replace(path, target)
    else:
        path.unlink()


def _remove_if_abandoned(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        with contextlib.suppress(BlockingIOError):
            if _lock(descriptor) or time.time() - os.fstat(descriptor).st_mtime > _ABANDONED_AFTER_SECONDS:
                path.unlink(missing_ok=True)
                return True
        return False
    finally:
        os.close(descriptor)
