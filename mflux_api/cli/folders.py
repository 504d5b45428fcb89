"""Whether a folder that a command writes to can be written, before anything that takes long."""

import errno
import fcntl
import os
import tempfile
from pathlib import Path

from mflux_api.config import Settings
from mflux_api.errors import ConfigError
from mflux_api.system.durable import NOT_SUPPORTED, make_folder

_TELLING = (
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


def why_not_writable(folder: Path, *, make: bool = False) -> str:
    """Return why a folder cannot be written, or made where it is not there yet; empty when it can.

    Args:
        folder: the folder.
        make: make it, so that it is known and not guessed.
    """
    try:
        if make:
            make_folder(folder)
        if folder.is_dir():
            # What rights, quotas and mounts come to only a file can tell; this one has no name.
            with tempfile.TemporaryFile(dir=folder):
                return ""
        nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not nearest.is_dir():
            return _obstacle(nearest, folder)
        if os.access(nearest, os.W_OK | os.X_OK):
            return ""
        read_only = os.statvfs(nearest).f_flag & os.ST_RDONLY
    except (FileExistsError, NotADirectoryError):
        return _obstacle(next(path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    except OSError as error:
        # Others may be about files without names, which some network disks do not have.
        return (error.strerror or type(error).__name__).lower() if error.errno in _TELLING else ""
    return "its file system is read-only" if read_only else "permission denied"


def require_output_dir(settings: Settings) -> None:
    """Make the folder for images, which every image would fail at in the end.

    Raises:
        ConfigError: it cannot be written.
    """
    why = why_not_writable(settings.generation.output_dir, make=True)
    if why:
        raise ConfigError(
            f"generation.output_dir cannot be written ({why}): choose another folder with --output-dir, "
            "or change its permissions"
        )


def _obstacle(nearest: Path, folder: Path) -> str:
    if nearest.is_symlink() and not nearest.exists():
        return "a link in its path leads nowhere"
    return "a file is in its place" if nearest == folder else "a folder above it is a file"


def has_locks(folder: Path) -> bool:
    """Whether the file system of a folder has locks; one that is not there, or cannot be written, counts as such."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NOT_SUPPORTED
    return True


def temporary_problem() -> tuple[str, str] | None:
    """Return what is wrong with the folder for temporary files, and what to do; ``None`` when nothing is."""
    named = os.environ.get("TMPDIR")
    try:
        used = tempfile.gettempdir()
    except OSError:
        return "no folder can be written", "set TMPDIR to one that can"
    if named and os.path.abspath(named) != os.path.abspath(used):
        return "TMPDIR names a folder that cannot be written", "unset it, or name another folder"
    return None
