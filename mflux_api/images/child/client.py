"""The service's side of a decoder's child: start it, have one order done within its limits, end it."""

import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import psutil
import trio

from mflux_api.errors import ServiceError, by_code
from mflux_api.images.child import protocol as p
from mflux_api.ipc.child_process import Blob, ChildDied, ChildProcess
from mflux_api.machine import total_bytes
from mflux_api.system.nurseries import unwrapped_nursery
from mflux_api.system.threads import move_on_after_real

TOO_LONG = "takes too long to decode"


_WATCH_SECONDS = 0.25
_LEAVE_SECONDS = 1.0
"""What an order may go on for whose asker is gone: a new child costs about as much."""
_MEMORY_BYTES = 1536 * 2**20
"""Enough for 32 MP with 16 bits a channel, which takes 0.7 GB at its peak."""
_LEAST_MEMORY_BYTES = 768 * 2**20


def _memory_bytes() -> int:
    return max(_LEAST_MEMORY_BYTES, min(_MEMORY_BYTES, total_bytes() // 4))


@attrs.frozen(kw_only=True)
class DecoderOptions:
    """How to start children, and what they may take for one image."""

    command: tuple[str, ...] = (sys.executable, "-P", "-m", "mflux_api.images.child.worker")
    home: Path | None = None
    """A child's home where the user has none."""
    start_seconds: float = 60.0
    cpu_seconds: int = 10
    """An image of 32 MP takes 1 to 3."""
    wall_seconds: int = 30
    memory_bytes: int = attrs.field(factory=_memory_bytes)


@attrs.frozen
class Decoded:
    """What became of an order."""

    result: p.Result
    blobs: tuple[bytes, ...] = attrs.field(default=(), repr=False)


class Abandoned(Exception):
    """The asker of an order is gone."""


@attrs.define
class _Usage:
    """What the child has taken since its order was sent, or since it began with a part of it."""

    _process: psutil.Process
    _limits: DecoderOptions
    index: int = 0
    began: bool = False
    _since: float = attrs.field(init=False, default=0.0)
    _cpu: float = attrs.field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        # What it took for the orders before is not this one's.
        self._restart()

    def begin(self, index: int) -> None:
        self.index, self.began = index, True
        self._restart()

    def _restart(self) -> None:
        # The system's clock: a test's jumps while a process works.
        self._since, self._cpu = time.monotonic(), self._cpu_seconds()

    def wall_seconds(self) -> float:
        return time.monotonic() - self._since

    def too_much(self) -> str | None:
        """Return what it takes too much of, as the end of a sentence."""
        try:
            if self._process.memory_info().rss > self._limits.memory_bytes:
                return p.TOO_MUCH_MEMORY
            if self._cpu_seconds() - self._cpu > self._limits.cpu_seconds:
                return TOO_LONG
        except psutil.Error:
            # It ended meanwhile, which its pipe tells.
            return None
        return TOO_LONG if self.wall_seconds() > self._limits.wall_seconds else None

    def _cpu_seconds(self) -> float:
        try:
            times = self._process.cpu_times()
        except psutil.Error:
            return self._cpu
        return float(times.user + times.system)


class DecoderChild(ChildProcess):
    """One child; it does one order at a time."""

    kind = "decoder"
    types = p.RESULT_TYPES

    def __init__(self, process: trio.Process, options: DecoderOptions) -> None:
        super().__init__(process)
        self._options = options
        self._gone = False
        self.orders = 0
        """Orders that it has taken."""

    @classmethod
    async def start(cls, nursery: trio.Nursery, options: DecoderOptions) -> "DecoderChild":
        """Start a child and wait until it takes orders.

        Raises:
            ChildDied: it does not come up.
        """
        limits = (options.memory_bytes, options.cpu_seconds, options.wall_seconds)
        child = cls(await cls.launch([*options.command, *map(str, limits)], options.home), options)
        nursery.start_soon(child.log_stderr, name=f"decoder {child.pid} stderr")
        try:
            await child._handshake(options.start_seconds)
        except BaseException:
            with trio.CancelScope(shield=True):
                await child.aclose(force=True)
            raise
        return child

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return not self._gone and self._process.poll() is None

    @property
    def resident_bytes(self) -> int:
        """Memory that it has in use."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0

    async def perform(
        self, order: p.Order, blobs: Sequence[Blob], wanted: Callable[[], bool]
    ) -> Decoded | ServiceError:
        """Have an order done, or learn why it cannot be: an error that was raised would hold its blobs for a while.

        Args:
            order: what to do.
            blobs: the bytes that belong to it; a text must be ASCII.
            wanted: whether the asker still waits.

        Raises:
            Abandoned: the asker is gone.
            ChildDied: the child was gone before it began.
            ProtocolError: the order cannot be sent.
        """
        self.orders += 1
        # From here on it may print what is in the files.
        self._private = True
        try:
            usage = _Usage(psutil.Process(self.pid), self._options)
        except psutil.Error:
            raise ChildDied("it is gone") from None
        problem: str | None = None
        abandoned = False

        async def watch() -> None:
            nonlocal problem, abandoned
            while True:
                await trio.sleep(_WATCH_SECONDS)
                problem = usage.too_much()
                abandoned = not wanted() and usage.wall_seconds() > _LEAVE_SECONDS
                if problem is not None or abandoned:
                    self._gone = True
                    self._process.kill()
                    return

        async with unwrapped_nursery() as nursery:
            nursery.start_soon(watch)
            # Nothing is raised through the nursery: an exception and its group hold each other.
            outcome = await self._outcome(order, blobs, usage)
            nursery.cancel_scope.cancel()
        if not isinstance(outcome, str):
            return outcome
        self._gone = True
        if abandoned:
            raise Abandoned
        if not usage.began:
            # It was stopped or short of time: it had not looked at the order yet.
            raise ChildDied(outcome if problem is None else f"it did not begin with its order: it {problem}")
        if self._process.returncode in (-signal.SIGXCPU, -signal.SIGALRM):
            problem = TOO_LONG
        # Else by itself, in a codec.
        return order.refuse(usage.index, problem or "cannot be decoded")

    async def _outcome(self, order: p.Order, blobs: Sequence[Blob], usage: _Usage) -> Decoded | ServiceError | str:
        """Return what the child answers; how it ended, if it did."""
        try:
            await self.send(order, blobs)
            return await self._follow(order, usage)
        except ChildDied as died:
            return died.reason

    async def _follow(self, order: p.Order, usage: _Usage) -> Decoded | ServiceError:
        while True:
            # Silence is bounded by the watch.
            frame, blobs = await self.receive_within(math.inf)
            match frame:
                case p.Working(index=index):
                    usage.begin(index)
                case p.OrderFailed():
                    return by_code(frame.code)(frame.message, frame.details)
                case p.OutOfBounds():
                    return order.refuse(frame.index, frame.problem)
                case p.Ready():
                    raise ChildDied("it sent a second handshake")
                case result:
                    return Decoded(result, blobs)

    async def _handshake(self, seconds: float) -> None:
        frame: object = None
        with move_on_after_real(seconds):
            frame, _ = await self.receive_within(math.inf)
        if not isinstance(frame, p.Ready):
            raise ChildDied("it did not begin with a handshake" if frame else f"no handshake within {seconds:g} s")
