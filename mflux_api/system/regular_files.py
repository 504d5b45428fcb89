"""Opening files that strangers put there: only a regular file of a bounded size is read, and no open waits."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class NotRegularFile(OSError):
    """It is a folder, a pipe, a socket or a device."""


class FileTooLarge(OSError):
    """It has more bytes than are read of such a file."""


@contextmanager
def open_regular(path: Path, most: int | None = None) -> Iterator[BinaryIO]:
    """Open a regular file for reading.

    Args:
        path: the file; a link is followed.
        most: how many bytes it may have; ``None`` for any number.

    Raises:
        NotRegularFile: it is something else.
        FileTooLarge: it is larger.
        OSError: it is missing or cannot be read; also where the path is not one.
    """
    try:
        # A pipe without a writer would keep a plain open waiting for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        # A NUL in the path.
        raise OSError(str(error)) from None
    # A folder cannot be opened as a file object, so it is looked at before.
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularFile(f"{path.name} is not a file")
        if most is not None and status.st_size > most:
            raise FileTooLarge(f"{path.name} has {status.st_size} bytes, and {most} are the most")
    except OSError:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most so many bytes.

    Raises:
        OSError: as :func:`open_regular`.
    """
    with open_regular(path, most) as file:
        return file.read(most)
