"""Files and folders for the user who runs the service alone: prompts, inputs, keys. Every one of them is made here."""

import logging
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mflux_api.system.durable import make_folder, sync_folder, write_whole

logger = logging.getLogger(__name__)

FILE_MODE = 0o600
FOLDER_MODE = 0o700


def open_private(path: Path, flags: int = os.O_RDWR) -> int:
    """Open a file, make it if need be, and return its descriptor; only its owner may read or write it.

    Raises:
        OSError: it cannot be opened or made.
    """
    descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    # It may have been made by an earlier version, or the mode may have lost more than it should to the umask.
    _set_mode(descriptor, os.fstat(descriptor), FILE_MODE, path.name)
    return descriptor


def make_private_file(path: Path) -> None:
    """Make an empty file that only its owner may read and write.

    Raises:
        FileExistsError: there is one.
        OSError: it cannot be made.
    """
    os.close(open_private(path, os.O_RDWR | os.O_EXCL))


def write_private(path: Path, data: bytes) -> None:
    """Write such a file whole or not at all; it is durable when this returns.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    write_whole(path, data, mode=FILE_MODE)


def make_private_folder(path: Path) -> None:
    """Make a folder that only its owner may enter, and those above it as the umask says; durable when this returns.

    Raises:
        OSError: it cannot be made.
    """
    if not path.is_dir():
        make_folder(path.parent)
        with suppress(FileExistsError):
            path.mkdir(FOLDER_MODE)
        sync_folder(path.parent)
    tighten([path])


def tighten(paths: Iterable[Path]) -> None:
    """Take every right to these from others, where an earlier version or a copy left some; what is missing is skipped.

    What belongs to another user, or lies on a disk without modes, is named in one warning.
    """
    for path in paths:
        with suppress(FileNotFoundError, NotADirectoryError):
            # The thing itself: following a link would change the mode of whatever it leads to.
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode):
                _set_mode(path, found, FOLDER_MODE, path.name)
            elif stat.S_ISREG(found.st_mode):
                _set_mode(path, found, FILE_MODE, path.name)


def _set_mode(file: int | Path, found: os.stat_result, mode: int, name: str) -> None:
    if stat.S_IMODE(found.st_mode) == mode:
        return
    try:
        os.chmod(file, mode)
    except OSError as error:
        if stat.S_IMODE(found.st_mode) & 0o077:
            logger.warning(
                "%s: others may read it, and its mode cannot be changed (%s); make it yours with chown, or move it to "
                "a disk that has modes",
                name,
                error.strerror or type(error).__name__,
            )
