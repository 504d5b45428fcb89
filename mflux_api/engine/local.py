"""The service's side of a local engine child: its handshake, its heartbeat and its end."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

from mflux_api.engine import protocol
from mflux_api.engine.interface import EngineDied, Received
from mflux_api.engine.protocol import Event, Heartbeat, NotReady, Ready, Run, Shutdown, Upscale
from mflux_api.engine.start_advice import with_advice
from mflux_api.ipc.child_process import Blob, ChildProcess
from mflux_api.machine import Devices

logger = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class LocalEngineOptions:
    """How to start a child and when to give it up."""

    start_timeout: float = 60.0
    """Seconds from the start to the handshake."""
    heartbeat_timeout: float = 10.0
    """Seconds of silence after which it counts as dead."""
    devices: Devices = "auto"
    """What the child is to compute on."""
    fast_path: bool = True
    """Whether it uses the project's own ways of computing, where they are faster."""
    kernels: Path | None = None
    """The folder where it keeps what CUDA compiles; MLX's own, where there is none."""
    command: tuple[str, ...] = (sys.executable, "-P", "-m", "mflux_api.engine.worker")
    home: Path | None = None
    """Its home where the user has none."""


class LocalEngine(ChildProcess):
    """An engine in a child process, spoken to over its standard input and output."""

    kind = "engine"
    types = protocol.ENGINE_TYPES
    died = EngineDied

    def __init__(self, process: trio.Process, options: LocalEngineOptions) -> None:
        super().__init__(process)
        self._options = options
        self._info: Ready | None = None

    @classmethod
    async def start(cls, nursery: trio.Nursery, options: LocalEngineOptions = LocalEngineOptions()) -> "LocalEngine":
        """Start a child and wait for its handshake.

        Raises:
            EngineDied: it cannot be started, or ended or stayed silent before the handshake.
        """
        arguments = [options.devices, *([protocol.FAST_PATH] if options.fast_path else [])]
        if options.kernels is not None:
            arguments.append(f"{protocol.KERNELS}{options.kernels}")
        engine = cls(await cls.launch([*options.command, *arguments], options.home), options)
        nursery.start_soon(engine.log_stderr, name=f"engine {engine.pid} stderr")
        try:
            with trio.fail_after(options.start_timeout):
                info = await engine._handshake()
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await engine.aclose(force=True)
            if isinstance(error, trio.TooSlowError):
                silent = engine._with_last_words(f"no handshake within {options.start_timeout:g} s")
                raise EngineDied(with_advice(silent)) from None
            if isinstance(error, EngineDied):
                raise EngineDied(with_advice(error.reason)) from None
            raise
        engine._info = info
        logger.info("engine %d is ready on %s", engine.pid, info.device_name)
        if info.advice:
            logger.warning("engine %d: %s", engine.pid, info.advice)
        return engine

    @property
    def info(self) -> Ready:
        """What the child said of itself."""
        if self._info is None:
            raise RuntimeError("the handshake is not over")
        return self._info

    async def send(self, frame: Any, blobs: Sequence[Blob] = ()) -> None:
        """Pass a command on; once a prompt was in one, nothing that the child prints is quoted to clients.

        Raises:
            EngineDied: it is gone.
            ProtocolError: it cannot be put into a frame; nothing was sent.
        """
        self._private = self._private or isinstance(frame, Run | Upscale)
        await super().send(frame, blobs)

    async def receive(self) -> Received:
        """Read one frame; silence for longer than the heartbeat allows is death. Cancelling it loses nothing.

        Raises:
            EngineDied: it is gone, silent, or broke the protocol.
        """
        return Received(*await self.receive_within(self._options.heartbeat_timeout))

    async def _handshake(self) -> Ready:
        silence = float("inf")
        while True:
            # The time limit of the whole start is all the patience there is, until the first beat.
            frame, _ = await self.receive_within(silence)
            match frame:
                case Ready() as ready:
                    return ready
                case NotReady(message=message):
                    raise EngineDied(message)
                case Heartbeat():
                    # It beats from its first moment on, long before its imports are done.
                    silence = self._options.heartbeat_timeout
                case _:
                    raise EngineDied("it did not begin with a handshake")

    def _may_send(self, frame: object) -> bool:
        return isinstance(frame, Event)

    async def _ask_to_exit(self) -> None:
        try:
            await self.send(Shutdown())
        except EngineDied:
            logger.debug("engine %d was gone before it was told to leave", self.pid)
