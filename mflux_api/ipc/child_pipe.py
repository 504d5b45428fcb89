"""The child's end of the pipes to its parent: frames in, frames out, and an end with its parent's."""

import os
import select
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from mflux_api.ipc import frames
from mflux_api.ipc.child_home import take_home
from mflux_api.system.native_libraries import search_without_programs

READ_SIZE = 1 << 20
_NICENESS = 5


class ChildPipe:
    """The child's end of the two pipes; writing is safe from both threads."""

    def __init__(self, incoming: int, outgoing: int, types: Mapping[str, type[Any]]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._types = types
        self._writing = threading.Lock()

    @property
    def incoming(self) -> int:
        """The descriptor that the parent's frames come on; its end of file is the parent's end."""
        return self._incoming

    def write(self, event: Any, blobs: Sequence[bytes] = ()) -> None:
        """Send one frame; a parent that is gone ends this process."""
        data = memoryview(frames.encode(event, blobs))
        with self._writing:
            while data:
                try:
                    written = os.write(self._outgoing, data)
                except BrokenPipeError:
                    os._exit(0)
                data = data[written:]

    def wait_readable(self, seconds: float) -> bool:
        """Wait until there is something to read, or the time is over."""
        return bool(select.select([self._incoming], [], [], seconds)[0])

    def read(self, count: int) -> bytes:
        """Read exactly that much; end-of-file ends this process, so that no orphan stays."""
        data = bytearray()
        while len(data) < count:
            chunk = os.read(self._incoming, min(count - len(data), READ_SIZE))
            if not chunk:
                os._exit(0)
            data += chunk
        return bytes(data)

    def read_frame(self) -> tuple[Any, tuple[bytes, ...]]:
        """Read one frame and the raw bytes that belong to it.

        Raises:
            ProtocolError: the parent sent something else.
        """
        length = frames.header_length(self.read(frames.PREFIX_LENGTH))
        header = frames.decode_header(self.read(length), self._types)
        return header.frame, tuple(self.read(size) for size in header.blob_lengths)


def take_standard_streams(types: Mapping[str, type[Any]]) -> ChildPipe:
    """Move standard input and output away before anything can use them, and make room for the parent's processes.

    Whatever prints from now on prints to standard error. A library that asks a question, or a process that it starts,
    gets an empty input and takes no frames. No search for a native library starts a program from now on. A user
    without a home gets one.

    Args:
        types: tag → class of every frame that the parent may send.
    """
    incoming, outgoing = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    if hasattr(sys.stdout, "reconfigure"):
        # A library's progress bar must not end its work over the terminal's encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.nice(_NICENESS)
    take_home()
    # Libraries that the child imports later search for others (httpcore imports Trio).
    search_without_programs()
    return ChildPipe(incoming, outgoing, types)
