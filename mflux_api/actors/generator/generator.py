"""The generator: starts and restarts one engine's child, gives it its work one by one, turns its frames into answers.

The child's death is not the death of this actor: it starts the next one, after a wait that grows while children die at
their start or without work. A death with work inside is that work's: it fails with :class:`EngineDied`, and what waited
goes to the next child, which starts at once.
"""

import logging
from collections import deque
from typing import NoReturn, assert_never

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.engine_disk import EngineDisk
from mflux_api.actors.generator.executor import EngineStopped, Executor
from mflux_api.actors.generator.options import GeneratorOptions
from mflux_api.actors.generator.quarantine import ReadLoras
from mflux_api.actors.generator.work import RunAtWork, Runs, Work, fail_unanswered, unanswered
from mflux_api.actors.mailbox import Address, Mailbox
from mflux_api.engine import protocol as p
from mflux_api.engine.interface import Engine, EngineDied, EngineId, EngineStarter, Received
from mflux_api.errors import EngineUnavailable, ServiceError
from mflux_api.supervisor import Started
from mflux_api.system.nurseries import unwrapped_nursery

logger = logging.getLogger(__name__)

RESPAWN_FIRST = 0.5
RESPAWN_MAXIMUM = 30.0
DEGRADED_AFTER = 3
"""Deaths in a row, at the start or without work, that make the engine degraded; a finished step ends the row."""


def respawn_delay(failures: int) -> float:
    """Return the wait before the next child: 0, 0, 0.5, 1, 2 … 30 s after 0, 1, 2, 3, 4 … failures in a row."""
    # The exponent is bounded too: a child that fails all night would overflow a float.
    return 0.0 if failures <= 1 else min(RESPAWN_MAXIMUM, RESPAWN_FIRST * 2.0 ** min(failures - 2, 16))


NEARLY_FULL = 0.05
"""A child that dies with less than this share of its device's memory left died of that."""

_OWN_ENDS = ("killed by", "exited with")
"""How the reasons of deaths begin that a process came to by itself, unlike those of one that was killed for a hang."""

TOGETHER_SECONDS = 0.1
"""How long a run waits for those that it is to share its passes with: they have their leases by then."""

_Question = m.LoadModel | m.UnloadModel | m.Run | m.AwaitEngine


class Generator:
    """One engine child after another."""

    def __init__(
        self,
        engine: EngineId,
        mailbox: Mailbox[m.GeneratorMessage],
        start_engine: EngineStarter,
        options: GeneratorOptions,
        loader: Address[m.LoaderMessage],
        stats: Address[m.StatsMessage],
        disk: EngineDisk,
    ) -> None:
        self._engine = engine
        self._mailbox = mailbox
        self._start_engine = start_engine
        self._options = options
        self._loader = loader
        self._stats = stats
        self._disk = disk
        # Counted across restarts of this actor: a lease must never fit another child by accident.
        self._incarnation = 0
        self._reset()

    def _reset(self) -> None:
        self._waiting: deque[_Question] = deque()
        self._arrived = trio.Event()
        self._current: Work | m.AwaitEngine | None = None
        self._stop = trio.Event()
        self._info: p.Ready | None = None
        self._memory = p.Heartbeat(active_bytes=0, peak_bytes=0)
        self._executor: Executor | None = None
        self._failures = 0
        self._reason = ""
        self._measuring: list[m.MeasureMemory] = []

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
                        # News overtakes: that it is not wanted any more may have come before it.
                        self._drop_unwanted_loads()
                        self._refuse_if_degraded()
                        self._arrived.set()
                    case m.CancelRun():
                        at_work = self._at_work(message.run_id)
                        if at_work is not None:
                            at_work.stop.set()
                    case m.ShowPreviews():
                        self._note_follower(message.run_id)
                    case m.LoadAbandoned():
                        self._drop_unwanted_loads()
                    case m.GetEngine():
                        message.reply.ok(self._state())
                    case m.MeasureMemory() if self._info is None:
                        message.reply.fail(EngineDied(self._reason or "it is not up yet"))
                    case m.MeasureMemory():
                        self._measuring.append(message)
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
            reason="" if self._info is not None else self._reason,
        )

    async def _keep_engine(self) -> NoReturn:
        self._tell_loader()
        while True:
            await trio.sleep(respawn_delay(self._failures))
            self._incarnation += 1
            kills = self._options.oom_evidence.now()
            died = await self._live_once()
            out_of_memory = self._was_out_of_memory(died.reason, kills)
            self._info = None
            self._memory = p.Heartbeat(active_bytes=0, peak_bytes=0)
            if isinstance(self._current, Runs | m.LoadModel):
                # It came up and took work: whose death this was is that work's job or file, and never the engine's.
                self._failures = 0
            elif not isinstance(died, EngineStopped):
                self._failures += 1
            self._answer_for_the_dead(EngineDied(died.reason, out_of_memory=out_of_memory), died)
            self._current, self._reason = None, died.reason
            while self._measuring:
                self._measuring.pop().reply.fail(EngineDied(died.reason))
            logger.warning("engine died: %s; starting another (engine %s)", died.reason, self._engine)
            self._stats.tell_lossy(m.EngineRestarted(engine=self._engine))
            self._refuse_if_degraded()
            self._tell_loader()

    def _answer_for_the_dead(self, death: EngineDied, died: EngineDied) -> None:
        """Answer the work that was inside, and remember what the child was reading for it."""
        suspect = self._executor.suspect if self._executor is not None else None
        self._executor = None
        if self._current is None or not unanswered(self._current):
            return
        refused: ServiceError | None = None
        if not died.reason.startswith(_OWN_ENDS):
            logger.debug("what an engine was reading is not blamed: a hang may be the disk's")
        elif isinstance(suspect, ReadLoras):
            self._options.quarantine.note_death(suspect)
            refused = self._options.quarantine.lora_error(tuple(suspect.files))
        elif suspect is not None and not death.out_of_memory:
            # Memory that others had taken may be there the next time.
            self._options.quarantine.note_death(suspect)
        fail_unanswered(self._current, death if refused is None or death.out_of_memory else refused)

    def _was_out_of_memory(self, reason: str, kills_before: int) -> bool:
        """Whether there is evidence that the child was ended for want of memory."""
        if not reason.startswith("killed by"):
            return False
        if reason.startswith("killed by SIGKILL") and self._options.oom_evidence.claim(kills_before):
            return True
        free = self._memory.free_bytes
        return free is not None and self._info is not None and free < self._info.memory_bytes * NEARLY_FULL

    async def _live_once(self) -> EngineDied:
        """Run one child from start to death; return what it died of."""
        death = unknown = EngineDied("unknown")
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
                death = died
            finally:
                if engine is not None:
                    with trio.CancelScope(shield=True):
                        await engine.aclose(force=death is not unknown)
                nursery.cancel_scope.cancel()
        return death

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
                    while self._measuring:
                        self._measuring.pop().reply.ok(self._state())
                elif self._current is None:
                    # With no work they are about nothing, and a full channel would keep its death from being seen.
                    logger.debug("dropped a %s frame without work", type(received.event).__name__)
                else:
                    executor.note(received.event)
                    await frames_in.send(received)

        executor = self._executor = Executor(
            engine,
            frames,
            engine_id=self._engine,
            incarnation=self._incarnation,
            options=self._options,
            disk=self._disk,
            step_done=self._forgive,
        )
        async with unwrapped_nursery() as nursery:
            nursery.start_soon(pump)
            while True:
                work = self._current = await self._next_work()
                self._stop = trio.Event()
                if isinstance(work, m.AwaitEngine):
                    work.reply.ok(self._state())
                else:
                    await executor.execute(work, self._stop)
                self._current = None

    def _note_follower(self, run_id: int) -> None:
        """Have a run make previews, now or when it begins; one that is over needs none."""
        at_work = self._at_work(run_id)
        if at_work is not None:
            at_work.show.set()
        for place, work in enumerate(self._waiting):
            if isinstance(work, m.Run) and work.run_id == run_id:
                self._waiting[place] = attrs.evolve(work, previews=True)

    def _at_work(self, run_id: int) -> RunAtWork | None:
        return self._current.get(run_id) if isinstance(self._current, Runs) else None

    def _forgive(self) -> None:
        self._failures = 0

    def _drop_unwanted_loads(self) -> None:
        """Stop the load under way if it is not wanted any more; those that wait never begin."""
        if isinstance(self._current, m.LoadModel) and not self._current.wanted:
            self._stop.set()
        for work in [each for each in self._waiting if isinstance(each, m.LoadModel) and not each.wanted]:
            self._waiting.remove(work)
            work.reply.fail(m.LoadCancelled(work.command.model))

    async def _next_work(self) -> Work | m.AwaitEngine:
        while True:
            while self._waiting:
                work = self._waiting.popleft()
                if not work.reply.wanted:
                    work.reply.abandon()
                elif isinstance(work, m.Run):
                    return Runs(tuple(RunAtWork(run) for run in await self._with_companions(work)))
                else:
                    return work
            self._arrived = trio.Event()
            await self._arrived.wait()

    async def _with_companions(self, run: m.Run) -> list[m.Run]:
        """Return a run and those that share its passes and are here in time; taken out of what waits."""
        if run.together is None:
            return [run]
        self._waiting.appendleft(run)
        with trio.move_on_after(TOGETHER_SECONDS):
            while len(self._here(run.together.id)) < run.together.runs:
                self._arrived = trio.Event()
                await self._arrived.wait()
        wanted = list[m.Run]()
        for each in self._here(run.together.id):
            self._waiting.remove(each)
            if each.reply.wanted:
                wanted.append(each)
            else:
                each.reply.abandon()
        return wanted

    def _here(self, together: int) -> list[m.Run]:
        """Return the waiting runs that are together, in their order."""
        runs = [each for each in self._waiting if isinstance(each, m.Run)]
        placed = [(each.together.place, each) for each in runs if each.together and each.together.id == together]
        return [each for _, each in sorted(placed, key=lambda pair: pair[0])]

    def _refuse_if_degraded(self) -> None:
        """Answer those who wait for a child that keeps dying: that may take for ever."""
        while self._degraded() and self._waiting:
            work = self._waiting.popleft()
            if isinstance(work, m.UnloadModel):
                work.reply.fail(EngineDied(self._reason))
            else:
                work.reply.fail(EngineUnavailable.because(self._reason))

    def _degraded(self) -> bool:
        return self._info is None and self._failures >= DEGRADED_AFTER

    def _tell_loader(self) -> None:
        self._loader.tell_latest(m.GeneratorChanged(state=self._state()), key=m.GENERATOR)
