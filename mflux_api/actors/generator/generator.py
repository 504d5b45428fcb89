"""The generator: starts and restarts one engine's child, gives it its work one by one, turns its frames into answers.

The child's death is not the death of this actor: it starts the next one, after a wait that grows while no child
finishes a step. The work that was inside fails with :class:`EngineDied`; work that was waiting goes to the next child.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import NoReturn, assert_never

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.engine_disk import EngineDisk
from mflux_api.actors.generator.oom_evidence import OOMEvidence
from mflux_api.actors.generator.run_commands import run_command
from mflux_api.actors.generator.run_frames import RunFrames
from mflux_api.actors.mailbox import Address, Mailbox
from mflux_api.engine import protocol as p
from mflux_api.engine.interface import Engine, EngineDied, EngineId, EngineStarter, Received
from mflux_api.engine.protocol import Event
from mflux_api.errors import GenerationFailed, ServiceError, by_code
from mflux_api.ipc.child_process import SILENCE_GRACE_SECONDS
from mflux_api.ipc.frames import ProtocolError
from mflux_api.jobs.job import Timings
from mflux_api.supervisor import Started, unwrapped_nursery

logger = logging.getLogger(__name__)

RESPAWN_FIRST = 0.5
RESPAWN_MAXIMUM = 30.0
DEGRADED_AFTER = 3
"""Deaths in a row, without a finished step, that make the engine degraded."""


def respawn_delay(failures: int) -> float:
    """Return the wait before the next child: 0, 0, 0.5, 1, 2 … 30 s after 0, 1, 2, 3, 4 … failures in a row."""
    # The exponent is bounded too: a child that fails all night would overflow a float.
    return 0.0 if failures <= 1 else min(RESPAWN_MAXIMUM, RESPAWN_FIRST * 2.0 ** min(failures - 2, 16))


@attrs.frozen(kw_only=True)
class GeneratorOptions:
    """The limits a generator enforces."""

    step_timeout: float = 300.0
    """Seconds without a finished step after which a running child counts as hung."""
    cancel_grace: float = 10.0
    """Seconds a child has to stop a cancelled run."""
    oom_evidence: OOMEvidence = attrs.field(factory=OOMEvidence)
    """What the system killed for want of memory; one for all engines of a service."""
    previews: bool = True
    """Whether runs make previews."""


NEARLY_FULL = 0.05
"""A child that dies with less than this share of its device's memory left died of that."""

_Work = m.LoadModel | m.UnloadModel | m.Run | m.AwaitEngine


class Generator:
    """One engine child after another."""

    def __init__(
        self,
        engine: EngineId,
        mailbox: Mailbox[m.GeneratorMessage],
        start_engine: EngineStarter,
        options: GeneratorOptions,
        loader: Address[m.LoaderMessage],
        disk: EngineDisk,
    ) -> None:
        self._engine = engine
        self._mailbox = mailbox
        self._start_engine = start_engine
        self._options = options
        self._loader = loader
        self._disk = disk
        # Counted across restarts of this actor: a lease must never fit another child by accident.
        self._incarnation = 0
        self._reset()

    def _reset(self) -> None:
        self._waiting: deque[_Work] = deque()
        self._arrived = trio.Event()
        self._current: _Work | None = None
        self._stop = trio.Event()
        self._info: p.Ready | None = None
        self._memory = p.Heartbeat(active_bytes=0, peak_bytes=0)
        self._failures = 0

    async def run(self, status: Started) -> None:
        """Serve the mailbox and keep a child alive until cancelled."""
        self._reset()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_engine)
            status.started()
            while True:
                message = await self._mailbox.receive()
                match message:
                    case m.LoadModel() | m.UnloadModel() | m.Run() | m.AwaitEngine():
                        self._waiting.append(message)
                        self._arrived.set()
                    case m.CancelRun():
                        if isinstance(self._current, m.Run) and self._current.run_id == message.run_id:
                            self._stop.set()
                    case m.GetEngine():
                        message.reply.ok(self._state())
                    case _:
                        assert_never(message)

    def _state(self) -> m.EngineState:
        return m.EngineState(
            engine=self._engine,
            incarnation=self._incarnation,
            info=self._info,
            degraded=self._degraded(),
            active_bytes=self._memory.active_bytes,
            peak_bytes=self._memory.peak_bytes,
            free_bytes=self._memory.free_bytes,
        )

    async def _keep_engine(self) -> NoReturn:
        self._tell_loader()
        while True:
            await trio.sleep(respawn_delay(self._failures))
            self._incarnation += 1
            kills = self._options.oom_evidence.now()
            reason = await self._live_once()
            out_of_memory = self._was_out_of_memory(reason, kills)
            self._info = None
            self._memory = p.Heartbeat(active_bytes=0, peak_bytes=0)
            self._failures += 1
            if self._current is not None and not self._current.reply.answered:
                self._current.reply.fail(EngineDied(reason, out_of_memory=out_of_memory))
            self._current = None
            logger.warning("engine died: %s; starting another (engine %s)", reason, self._engine)
            self._tell_loader()

    def _was_out_of_memory(self, reason: str, kills_before: int) -> bool:
        """Whether there is evidence that the child was ended for want of memory."""
        if not reason.startswith("killed by"):
            return False
        if reason == "killed by SIGKILL" and self._options.oom_evidence.claim(kills_before):
            return True
        free = self._memory.free_bytes
        return free is not None and self._info is not None and free < self._info.memory_bytes * NEARLY_FULL

    async def _live_once(self) -> str:
        """Run one child from start to death; return why it died."""
        reason = "unknown"
        async with trio.open_nursery() as nursery:
            engine: Engine | None = None
            try:
                engine = await self._start_engine(nursery)
                self._info = engine.info
                # A load that waits for the child is answered before its first beat is read.
                self._memory = p.Heartbeat(active_bytes=0, peak_bytes=0, free_bytes=engine.info.free_bytes)
                self._tell_loader()
                await self._serve(engine)
            except EngineDied as died:
                reason = died.reason
            finally:
                if engine is not None:
                    with trio.CancelScope(shield=True):
                        await engine.aclose(force=reason != "unknown")
                nursery.cancel_scope.cancel()
        return reason

    async def _serve(self, engine: Engine) -> NoReturn:
        """Give the child its work.

        Raises:
            EngineDied: it died, hung, or had to be killed.
        """
        # When the frames are not taken the pipe fills up and the child waits; it is given no work then either.
        frames_in, frames = trio.open_memory_channel[Received](1024)

        async def pump() -> NoReturn:
            while True:
                received = await engine.receive()
                if isinstance(received.event, p.Heartbeat):
                    self._memory = received.event
                elif self._current is None:
                    # With no work they are about nothing, and a full channel would keep its death from being seen.
                    logger.debug("dropped a %s frame without work", type(received.event).__name__)
                else:
                    await frames_in.send(received)

        async with unwrapped_nursery() as nursery:
            nursery.start_soon(pump)
            while True:
                self._current = await self._next_work()
                self._stop = trio.Event()
                await self._execute(engine, self._current, frames)
                self._current = None

    async def _next_work(self) -> _Work:
        while True:
            while self._waiting:
                work = self._waiting.popleft()
                if work.reply.wanted:
                    return work
                work.reply.abandon()
            self._arrived = trio.Event()
            await self._arrived.wait()

    async def _execute(self, engine: Engine, work: _Work, frames: trio.MemoryReceiveChannel[Received]) -> None:
        try:
            match work:
                case m.LoadModel():
                    await self._load(engine, work, frames)
                case m.UnloadModel():
                    await self._unload(engine, work, frames)
                case m.AwaitEngine():
                    work.reply.ok(self._state())
                case m.Run():
                    await self._run(engine, work, frames)
                case _:
                    assert_never(work)
        except ProtocolError as error:
            # Nothing was sent: it is this request that cannot be said, and the engine is as good as before.
            logger.warning("a request cannot be passed to the engine: %s", error)
            work.reply.fail(GenerationFailed("The request cannot be passed to the engine; check its text"))

    async def _load(self, engine: Engine, work: m.LoadModel, frames: trio.MemoryReceiveChannel[Received]) -> None:
        await engine.send(work.command)
        while True:
            match (await frames.receive()).event:
                case p.Loaded() as loaded:
                    work.reply.ok(
                        m.Resident(
                            engine=self._engine,
                            incarnation=self._incarnation,
                            seconds=loaded.seconds,
                            warning=loaded.warning,
                        )
                    )
                    return
                case p.LoadFailed() as failed:
                    work.reply.fail(by_code(failed.code)(failed.message, {"model": work.command.model}))
                    return
                case other:
                    logger.debug("dropped a late %s frame", type(other).__name__)

    async def _unload(self, engine: Engine, work: m.UnloadModel, frames: trio.MemoryReceiveChannel[Received]) -> None:
        await engine.send(work.command)
        while not isinstance((event := (await frames.receive()).event), p.Unloaded):
            logger.debug("dropped a late %s frame", type(event).__name__)
        work.reply.ok(None)

    async def _run(self, engine: Engine, work: m.Run, frames: trio.MemoryReceiveChannel[Received]) -> None:
        if (work.lease.engine, work.lease.incarnation) != (self._engine, self._incarnation):
            work.reply.fail(m.StaleLease())
            return
        try:
            lora_paths = await self._disk.locate_loras(work.request.lora_files)
        except ServiceError as error:
            work.reply.fail(error)
            return
        command, images = run_command(work, lora_paths=lora_paths, previews=self._options.previews)
        await engine.send(command, [image.rgb for image in images])
        with work.events:
            async with unwrapped_nursery() as nursery:
                nursery.start_soon(self._stop_when_told, engine, work, nursery)
                await self._follow(work, frames)
                nursery.cancel_scope.cancel()
        if not work.reply.answered:
            raise EngineDied(f"it did not stop a cancelled run within {self._options.cancel_grace:g} s")

    async def _stop_when_told(self, engine: Engine, work: m.Run, nursery: trio.Nursery) -> None:
        await self._stop.wait()
        try:
            await engine.send(p.Cancel(run_id=work.run_id))
        except EngineDied:
            logger.debug("the engine died before it could be told to stop")
        await trio.sleep(self._options.cancel_grace)
        # Killing the child is all that is left; that costs no attempt, because no job waits for it.
        nursery.cancel_scope.cancel()

    async def _follow(self, work: m.Run, frames: trio.MemoryReceiveChannel[Received]) -> None:
        sent = RunFrames(work.request)
        deadline = trio.current_time() + self._options.step_timeout
        while True:
            received = await _next_frame(frames, deadline, lambda event: getattr(event, "run_id", None) == work.run_id)
            if received is None:
                raise EngineDied(f"no step for {self._options.step_timeout:g} s")
            deadline = trio.current_time() + self._options.step_timeout
            if not work.reply.wanted:
                self._stop.set()
            sent.check(received)
            if self._handle(work, received):
                return

    def _handle(self, work: m.Run, received: Received) -> bool:
        """Pass one frame of the current run on; return whether it was its last."""
        match received.event:
            case p.StepDone():
                self._failures = 0
                _pass_on(work, received)
            case p.StageChanged() | p.PreviewMade() | p.ImageDone():
                _pass_on(work, received)
            case p.StillRunning():
                logger.debug("run %d goes on", work.run_id)
            case p.RunDone() as done:
                work.reply.ok(
                    Timings(
                        load=work.lease.load_seconds,
                        encode=done.encode_seconds,
                        denoise=done.denoise_seconds,
                        decode=done.decode_seconds,
                    )
                )
                return True
            case p.RunFailed() as failed:
                work.reply.fail(by_code(failed.code)(failed.message, failed.details))
                return True
            case p.RunStopped():
                work.reply.abandon()
                return True
            case other:
                logger.debug("dropped an unexpected %s frame", type(other).__name__)
        return False

    def _degraded(self) -> bool:
        return self._info is None and self._failures >= DEGRADED_AFTER

    def _tell_loader(self) -> None:
        self._loader.tell_latest(m.GeneratorChanged(state=self._state()), key=m.GENERATOR)


def _pass_on(work: m.Run, received: Received) -> None:
    """Hand an event to the run's follower."""
    try:
        work.events.send_nowait(received)
    except trio.BrokenResourceError:
        logger.debug("a run has no follower any more")
    except trio.WouldBlock:
        # There was room for all that a run can report.
        raise EngineDied("it sent more frames than a run has") from None


async def _next_frame(
    frames: trio.MemoryReceiveChannel[Received], deadline: float, about_it: Callable[[Event], bool]
) -> Received | None:
    """Return the next frame that is about the work in hand; ``None`` if there is none by then."""
    while True:
        received: Received | None = None
        with trio.move_on_at(deadline):
            received = await frames.receive()
        if received is None:
            # It may be this process that was stopped all the time; then the frames are on their way.
            with trio.move_on_after(SILENCE_GRACE_SECONDS):
                received = await frames.receive()
        if received is None or about_it(received.event):
            return received
        logger.debug("dropped a %s frame of other work", type(received.event).__name__)
        if trio.current_time() > deadline + SILENCE_GRACE_SECONDS:
            # However many of them come, they are not a sign of life.
            return None
