"""The service's side of a local engine child: start it, talk to it, end it."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import trio

from mflux_api.engine import protocol
from mflux_api.engine.interface import EngineDied, Received
from mflux_api.engine.protocol import PREFIX_LENGTH, Beat, Command, Event, ProtocolError, Ready, Shutdown

logger = logging.getLogger(__name__)

READ_SIZE = 1 << 20
SHUTDOWN_SECONDS = 0.4
"""How long a child has after the shutdown frame, and again after SIGTERM. It has nothing to save."""

EPITAPH_SECONDS = 1.0
"""How long to wait for the end of a process whose pipe is broken."""


@attrs.frozen(kw_only=True)
class LocalEngineOptions:
    """How to start a child and when to give it up."""

    start_timeout: float = 60.0
    """Seconds from the start to the handshake."""
    heartbeat_timeout: float = 10.0
    """Seconds of silence after which it counts as dead."""
    command: tuple[str, ...] = (sys.executable, "-P", "-m", "mflux_api.engine.worker")


class LocalEngine:
    """An engine in a child process, spoken to over its standard input and output."""

    def __init__(self, process: trio.Process, options: LocalEngineOptions) -> None:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise ValueError("the child needs pipes for all three streams")
        self._process = process
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self._options = options
        self._buffer = bytearray()
        self._sending = trio.Lock()
        self._info: Ready | None = None

    @classmethod
    async def start(cls, nursery: trio.Nursery, options: LocalEngineOptions = LocalEngineOptions()) -> "LocalEngine":
        """Start a child and wait for its handshake.

        Raises:
            EngineDied: it cannot be started, or ended or stayed silent before the handshake.
        """
        try:
            process = await trio.lowlevel.open_process(
                list(options.command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=_environment(),
            )
        except OSError as error:
            raise EngineDied(f"it cannot be started ({error.strerror or type(error).__name__})") from None
        engine = cls(process, options)
        nursery.start_soon(engine._log_stderr, name=f"engine {process.pid} stderr")
        try:
            with trio.fail_after(options.start_timeout):
                info = await engine._handshake()
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await engine.aclose(force=True)
            if isinstance(error, trio.TooSlowError):
                raise EngineDied(f"no handshake within {options.start_timeout:g} s") from None
            raise
        engine._info = info
        logger.info("engine %d is ready on %s", process.pid, info.device_name)
        return engine

    @property
    def info(self) -> Ready:
        """What the child said of itself."""
        if self._info is None:
            raise RuntimeError("the handshake is not over")
        return self._info

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    async def send(self, command: Command) -> None:
        """Write one frame.

        Raises:
            EngineDied: the pipe is broken.
            ProtocolError: the command cannot be put into a frame; nothing was sent.
        """
        data = protocol.encode(command)
        async with self._sending:
            try:
                await self._stdin.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise EngineDied(await self._epitaph()) from None

    async def receive(self) -> Received:
        """Read one frame; silence for longer than the heartbeat allows is death. Cancelling it loses nothing.

        Raises:
            EngineDied: it is gone, silent, or broke the protocol.
        """
        return await self._receive(self._options.heartbeat_timeout)

    async def aclose(self, *, force: bool = False) -> None:
        """End the child: shutdown frame, SIGTERM, SIGKILL; with ``force``, or when cancelled, SIGKILL at once."""
        try:
            if not force:
                with trio.move_on_after(SHUTDOWN_SECONDS):
                    await self._ask_to_leave()
                if self._process.returncode is None:
                    self._process.terminate()
                    with trio.move_on_after(SHUTDOWN_SECONDS):
                        await self._process.wait()
        finally:
            with trio.CancelScope(shield=True):
                if self._process.returncode is None:
                    self._process.kill()
                await self._process.wait()
                for stream in (self._stdin, self._stdout, self._stderr):
                    await stream.aclose()

    async def _handshake(self) -> Ready:
        silence = float("inf")
        while True:
            match (await self._receive(silence)).event:
                case Ready() as ready:
                    return ready
                case Beat():
                    # It beats from its first moment on, long before its imports are done.
                    silence = self._options.heartbeat_timeout
                case _:
                    raise EngineDied("it did not begin with a handshake")

    async def _ask_to_leave(self) -> None:
        try:
            await self.send(Shutdown())
        except EngineDied:
            logger.debug("engine %d was gone before it was told to leave", self.pid)
        await self._stdin.aclose()
        await self._process.wait()

    async def _receive(self, silence: float = float("inf")) -> Received:
        # Nothing leaves the buffer before the whole frame is there.
        try:
            await self._fill(PREFIX_LENGTH, silence)
            end = PREFIX_LENGTH + protocol.header_length(bytes(self._buffer[:PREFIX_LENGTH]))
            await self._fill(end, silence)
            header = protocol.decode_header(bytes(self._buffer[PREFIX_LENGTH:end]))
        except ProtocolError as error:
            raise EngineDied(f"it sent {error}") from None
        if not isinstance(header.frame, Event):
            raise EngineDied("it sent a command")
        await self._fill(end + sum(header.blob_lengths), silence)
        blobs = []
        for length in header.blob_lengths:
            with memoryview(self._buffer) as view:
                blobs.append(bytes(view[end : end + length]))
            end += length
        del self._buffer[:end]
        return Received(header.frame, tuple(blobs))

    async def _fill(self, count: int, silence: float) -> None:
        while len(self._buffer) < count:
            chunk: bytes | None = None
            with trio.move_on_after(silence):
                try:
                    chunk = bytes(await self._stdout.receive_some(READ_SIZE))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    chunk = b""
            if chunk is None:
                raise EngineDied(f"no sign of life for {silence:g} s")
            if not chunk:
                raise EngineDied(await self._epitaph())
            self._buffer += chunk

    async def _log_stderr(self) -> None:
        # What the child's libraries print may hold a prompt, so it goes to the debug log only.
        rest = b""
        while True:
            try:
                chunk = await self._stderr.receive_some(READ_SIZE)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                return
            if not chunk:
                return
            *lines, rest = (rest + bytes(chunk)).split(b"\n")
            rest = rest[-4096:]
            for line in lines:
                logger.debug("engine %d: %s", self.pid, line.decode("utf-8", "replace").rstrip())

    async def _epitaph(self) -> str:
        # A broken pipe is seen a moment before the end of the process that held it.
        with trio.move_on_after(EPITAPH_SECONDS):
            await self._process.wait()
        code = self._process.returncode
        if code is None:
            return "its pipe is closed"
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exited with status {code}"


def _environment() -> dict[str, str]:
    """Return the child's environment: it finds this very package, also in an uninstalled checkout."""
    parent = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": parent if not path else f"{parent}{os.pathsep}{path}"}
