"""A child process that speaks frames over its standard input and output, seen from the service: start, talk, end."""

import fcntl
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import trio

from mflux_api.ipc import frames
from mflux_api.ipc.child_home import VARIABLE as HOME_VARIABLE
from mflux_api.ipc.frames import PREFIX_LENGTH, ProtocolError
from mflux_api.ipc.last_words import LastWords
from mflux_api.ipc.printable import printable

logger = logging.getLogger(__name__)

READ_SIZE = 1 << 20
WRITE_SIZE = 1 << 20

PIPE_SIZE = 1 << 20
"""Bytes that a pipe holds, where the system lets us say so: an image takes three turns of the reader, and not fifty."""

Blob = bytes | str
"""Raw bytes of a frame; a text must be ASCII, and is turned into bytes while it is sent."""

_SECRETS = re.compile(
    r"(?:^|_)(?:API_?KEYS?|KEY|TOKENS?|SECRETS?|PASSWORDS?|PASSWD|CREDENTIALS?)(?:_|$)", re.IGNORECASE
)
"""Names of environment variables whose values are for this process alone."""

_SHUTDOWN_SECONDS = 0.4
"""How long a child has after it was told to leave, and again after SIGTERM. It has nothing to save."""

_EXIT_WAIT_SECONDS = 1.0
"""How long to wait for the end of a process whose pipe is broken, or that was killed."""

_LAST_LINE_SECONDS = 0.3
"""How long to wait for what a dead child printed; a process that it started may hold the pipe open for ever."""

_COLOURS = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")

_MAX_LINE = 4096
"""Characters of one line that a child printed, in the debug log."""

SILENCE_GRACE_SECONDS = 0.2
"""How long a silence is doubted once its time is up: to a process that was itself stopped, frames are on their way."""


_NO_TELEMETRY = {"DO_NOT_TRACK": "1", "DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Every name that huggingface_hub, and through it transformers, looks at before it reports anything."""


class ChildDied(Exception):
    """The child ended, fell silent or broke the protocol; ``reason`` says which, for a log line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ChildProcess:
    """One child process; its subclasses know what the frames mean."""

    kind = "child"
    """The child's name in log lines."""
    types: Mapping[str, type[Any]]
    """Tag → class of every frame that the child may send."""
    died: type[ChildDied] = ChildDied
    """The error when the child is gone."""
    inherits: frozenset[str] = frozenset()
    """Environment variables that hold a secret which the child needs."""

    def __init__(self, process: trio.Process) -> None:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise ValueError("the child needs pipes for all three streams")
        self._process = process
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self._buffer = bytearray()
        self._header: frames.Header | None = None
        """Of the frame whose blobs are on their way, and as much of them as has come."""
        self._blobs: list[BytesIO] = []
        self._sending = trio.Lock()
        self._last_words = LastWords()
        self._stderr_read = trio.Event()
        self._private = False
        """Whether what it prints from now on may hold a prompt, or bytes of strangers."""

    @classmethod
    async def launch(cls, command: Sequence[str], home: Path | None = None) -> trio.Process:
        """Start a process in a process group of its own, so that Ctrl-C does not reach it.

        Not in a session of its own: a group whose parent dies and leaves it alone in its session is woken up by the
        system if it is stopped (POSIX, orphaned process groups), and so a stopped child does not outlive its server.

        Args:
            command: the program and its arguments.
            home: the child's home where its user has none; the child makes it.

        Raises:
            ChildDied: it cannot be started.
        """
        try:
            process = await trio.lowlevel.open_process(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,
                env=_environment(cls.inherits, home),
            )
        except OSError as error:
            raise cls.died(f"it cannot be started ({error.strerror or type(error).__name__})") from None
        for pipe in (process.stdin, process.stdout):
            _widen(pipe)
        return process

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    async def send(self, frame: Any, blobs: Sequence[Blob] = ()) -> None:
        """Write one frame, and the raw bytes that belong to it.

        If it is cancelled in the middle, the child has an unfinished frame and is of no more use.

        Raises:
            ChildDied: the pipe is broken.
            ProtocolError: it cannot be put into a frame; nothing was sent.
        """
        head = frames.encode_head(frame, [len(blob) for blob in blobs])
        if not all(blob.isascii() for blob in blobs if isinstance(blob, str)):
            raise ProtocolError("a text that is not ASCII")
        async with self._sending:
            try:
                await self._stdin.send_all(head)
                # No copy of it all: 64 MB would hold up everything else for a while.
                for blob in blobs:
                    for start in range(0, len(blob), WRITE_SIZE):
                        piece = blob[start : start + WRITE_SIZE]
                        await self._stdin.send_all(piece.encode("ascii") if isinstance(piece, str) else piece)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise self.died(await self._exit_reason()) from None

    async def receive_within(self, silence: float) -> tuple[Any, tuple[bytes, ...]]:
        """Read one frame and its blobs; silence for longer than that is death. Cancelling it loses nothing.

        Raises:
            ChildDied: it is gone, silent, or broke the protocol.
        """
        header = self._header = self._header or await self._receive_header(silence)
        for blob, length in zip(self._blobs, header.blob_lengths, strict=True):
            while (missing := length - blob.tell()) > 0:
                await self._fill(1, silence)
                with memoryview(self._buffer)[:missing] as piece:
                    blob.write(piece)
                del self._buffer[:missing]
        # The stream gives its bytes away as they are: a copy of an image of 32 MP would hold up the loop for long.
        blobs = tuple(blob.getvalue() for blob in self._blobs)
        self._header, self._blobs = None, []
        return header.frame, blobs

    async def aclose(self, *, force: bool = False) -> None:
        """End the child: a shutdown frame, SIGTERM, SIGKILL; with ``force``, or when cancelled, SIGKILL at once."""
        try:
            if not force:
                with trio.move_on_after(_SHUTDOWN_SECONDS):
                    await self._ask_to_exit()
                    await self._stdin.aclose()
                    await self._process.wait()
                if self._process.returncode is None:
                    self._process.terminate()
                    with trio.move_on_after(_SHUTDOWN_SECONDS):
                        await self._process.wait()
        finally:
            with trio.CancelScope(shield=True):
                if self._process.returncode is None:
                    self._process.kill()
                with trio.move_on_after(_EXIT_WAIT_SECONDS):
                    await self._process.wait()
                if self._process.returncode is None:
                    # One that waits for a device that does not answer ends with that wait, and not before.
                    logger.warning("%s %d: it was killed and has not ended yet", self.kind, self.pid)
                for stream in (self._stdin, self._stdout, self._stderr):
                    await stream.aclose()

    async def log_stderr(self) -> None:
        """Pass on what the child prints, until it ends. It may hold a prompt, so it goes to the debug log only.

        Of a child that dies the last line is part of the reason, where it can hold no prompt.
        """
        rest = b""
        try:
            while chunk := await self._stderr.receive_some(READ_SIZE):
                *lines, rest = (rest + bytes(chunk)).split(b"\n")
                rest = rest[-_MAX_LINE:]
                for line in lines:
                    self._note_line(line)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            return
        finally:
            # Its last line need not have an end.
            self._note_line(rest)
            self._stderr_read.set()

    def _note_line(self, line: bytes) -> None:
        # Of a progress bar, which is drawn over one line, the last state; colours are for terminals.
        shown = _COLOURS.sub(b"", line.rstrip().rpartition(b"\r")[2])
        text = printable(shown.decode("utf-8", "replace"), _MAX_LINE)
        if text:
            self._last_words.note(text)
            logger.debug("%s %d: %s", self.kind, self.pid, text)

    def _may_send(self, frame: Any) -> bool:
        return True

    async def _ask_to_exit(self) -> None:
        """Tell the child to leave; end-of-file on its input does, too."""

    async def _receive_header(self, silence: float) -> frames.Header:
        """Read a frame up to its blobs, and make room for those; nothing leaves the buffer before it is whole."""
        try:
            await self._fill(PREFIX_LENGTH, silence)
            end = PREFIX_LENGTH + frames.header_length(bytes(self._buffer[:PREFIX_LENGTH]))
            await self._fill(end, silence)
            header = frames.decode_header(bytes(self._buffer[PREFIX_LENGTH:end]), self.types)
        except ProtocolError as error:
            raise self.died(f"it sent {error}") from None
        if not self._may_send(header.frame):
            raise self.died("it sent a command")
        del self._buffer[:end]
        self._blobs = [BytesIO() for _ in header.blob_lengths]
        return header

    async def _fill(self, count: int, silence: float) -> None:
        while len(self._buffer) < count:
            chunk = await self._receive_some(silence)
            if chunk is None:
                # This process may have been stopped all the time; then heartbeats of the child lie in the pipe.
                chunk = await self._receive_some(SILENCE_GRACE_SECONDS)
            if chunk is None:
                raise self.died(f"no sign of life for {silence:g} s")
            if not chunk:
                raise self.died(await self._exit_reason())
            self._buffer += chunk

    async def _receive_some(self, seconds: float) -> bytes | None:
        """Return what the child has sent: empty at its end, ``None`` if it sends nothing in that time."""
        with trio.move_on_after(seconds):
            try:
                return bytes(await self._stdout.receive_some(READ_SIZE))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return b""
        return None

    async def _exit_reason(self) -> str:
        # A broken pipe is seen a moment before the end of the process that held it.
        with trio.move_on_after(_EXIT_WAIT_SECONDS):
            await self._process.wait()
        code = self._process.returncode
        if code is None:
            return self._with_last_words("its pipe is closed")
        with trio.move_on_after(_LAST_LINE_SECONDS):
            await self._stderr_read.wait()
        if code < 0:
            return self._with_last_words(f"killed by {_signal_name(-code)}", killed=True)
        return self._with_last_words(f"exited with status {code}")

    def _with_last_words(self, reason: str, *, killed: bool = False) -> str:
        words = self._last_words.quote(private=self._private, killed=killed)
        return f"{reason}: {words}" if words else reason


def _widen(pipe: object) -> None:
    """Let a pipe hold an image, on Linux; within what a user may have in pipes."""
    if sys.platform == "linux" and isinstance(pipe, trio.lowlevel.FdStream):
        with suppress(OSError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_SIZE)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        # Most real-time signals have no name.
        return f"signal {number}"


def _environment(inherits: frozenset[str], home: Path | None) -> dict[str, str]:
    """Return the child's environment: it finds this very package, knows no secrets and reports nothing.

    In an uninstalled checkout it finds the package, too.
    """
    parent = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if name in inherits or not _SECRETS.search(name)}
    offered = {} if home is None else {HOME_VARIABLE: str(home.absolute())}
    return kept | _NO_TELEMETRY | offered | {"PYTHONPATH": parent if not path else f"{parent}{os.pathsep}{path}"}
