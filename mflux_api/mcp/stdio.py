"""The protocol's lines on standard input and output, which are its own: whatever else prints goes to standard error."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import attrs

from mflux_api.system.threads import read_in_thread

MAX_MESSAGE_BYTES: Final = 128 * 2**20
"""Longest line that is read: the largest body of the REST API twice."""
_READ_BYTES: Final = 2**20


@attrs.frozen
class Descriptors:
    """Where a client is read from and written to."""

    reading: int
    writing: int


@contextmanager
def standard_streams() -> Iterator[Descriptors]:
    """Have standard input and output for the protocol alone while the block runs.

    Child processes and libraries find an empty input, and what they print lands in standard error.
    """
    sys.stdout.flush()
    held = Descriptors(*(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3) for number in (0, 1)))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    try:
        yield held
    finally:
        sys.stdout.flush()
        os.dup2(held.reading, 0)
        os.dup2(held.writing, 1)
        # They stay open: a thread may still wait at one of them, whose number must not become another file's.


class InputLines:
    """The lines of a descriptor, read in a thread that a cancelled reader leaves to itself."""

    def __init__(self, descriptor: int, most: int = MAX_MESSAGE_BYTES) -> None:
        self._descriptor = descriptor
        self._most = most
        self._bytes = bytearray()

    def __aiter__(self) -> "InputLines":
        return self

    async def __anext__(self) -> str:
        """Return the next line; a last one without its end is none.

        Raises:
            ConnectionError: a line is longer than it may be.
        """
        start = 0
        while (end := self._bytes.find(b"\n", start)) < 0:
            start = len(self._bytes)
            if start > self._most:
                raise ConnectionError(f"a message of the client is longer than {self._most // 2**20} MB; send less")
            data = await read_in_thread(os.read, self._descriptor, _READ_BYTES)
            if not data:
                raise StopAsyncIteration
            self._bytes += data
        line = self._bytes[:end].decode("utf-8", "replace")
        del self._bytes[: end + 1]
        return line


class Output:
    """A descriptor that text is written to, in a thread that a cancelled writer leaves to itself."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def write(self, text: str) -> None:
        """Write all of a text.

        Raises:
            OSError: the client does not read any more.
        """
        await read_in_thread(self._write, text.encode())

    async def flush(self) -> None:
        """Do nothing: nothing is kept back."""

    def _write(self, data: bytes) -> None:
        with memoryview(data) as rest:
            written = 0
            while written < len(rest):
                written += os.write(self._descriptor, rest[written:])
