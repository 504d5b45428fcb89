"""Work on one engine child: its commands go out, its frames come back as answers, and every wait for one has a bound.

What the child says of the work in hand is a sign of life; its heartbeat and frames of other work are not.
"""

import logging
import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import assert_never

import trio

from mflux_api.actors import messages as m
from mflux_api.actors.engine_disk import EngineDisk
from mflux_api.actors.generator.options import GeneratorOptions
from mflux_api.actors.generator.quarantine import ModelFiles, ReadLoras, Suspect
from mflux_api.actors.generator.run_commands import in_one_command, run_command
from mflux_api.actors.generator.run_frames import RunFrames
from mflux_api.actors.generator.work import RunAtWork, Runs, Work, fail_unanswered
from mflux_api.engine import protocol as p
from mflux_api.engine.interface import Engine, EngineDied, EngineId, Received
from mflux_api.errors import GenerationFailed, ServiceError, by_code
from mflux_api.ipc.child_process import SILENCE_GRACE_SECONDS
from mflux_api.ipc.frames import ProtocolError
from mflux_api.jobs.job import Timings
from mflux_api.storage.lora_folders import LoraFile
from mflux_api.system.nurseries import unwrapped_nursery

logger = logging.getLogger(__name__)


class EngineStopped(EngineDied):
    """The child goes on with what is not wanted any more, and has to be killed; that is not a failure of the engine."""


class Executor:
    """Does one piece of work after another on one child."""

    def __init__(
        self,
        engine: Engine,
        frames: trio.MemoryReceiveChannel[Received],
        *,
        engine_id: EngineId,
        incarnation: int,
        options: GeneratorOptions,
        disk: EngineDisk,
        step_done: Callable[[], None],
    ) -> None:
        """Take what the work needs.

        Args:
            engine: the child.
            frames: what it says, without heartbeats.
            engine_id: the engine that the child belongs to.
            incarnation: the child's number.
            options: the bounds.
            disk: knows where the engine finds LoRAs.
            step_done: called at every finished step.
        """
        self._engine = engine
        self._frames = frames
        self._id = engine_id
        self._incarnation = incarnation
        self._options = options
        self._disk = disk
        self._step_done = step_done
        self._open: dict[int, tuple[RunAtWork, RunFrames]] = {}
        self._loras: tuple[LoraFile, ...] = ()
        self.suspect: Suspect | None = None
        """What the child is reading, and would die over."""

    async def execute(self, work: Work, stop: trio.Event) -> None:
        """Do it, and answer; where it is not wanted any more the child is told to stop, and has its grace.

        Args:
            work: what to do.
            stop: set when a load is not wanted any more; each run has an event of its own.

        Raises:
            EngineDied: the child died, hung or broke the protocol; :class:`EngineStopped` when it ignored the stop.
        """
        self._rest()
        try:
            match work:
                case m.LoadModel():
                    await self._load(work, stop)
                case m.UnloadModel():
                    await self._unload(work)
                case Runs():
                    await self._run(work)
                case _:
                    assert_never(work)
        except ProtocolError as error:
            # Nothing was sent: it is this request that cannot be said, and the engine is as good as before.
            logger.warning("a request cannot be passed to the engine: %s", error)
            told = "The request cannot be passed to the engine; shorten its text, or use a smaller image"
            fail_unanswered(work, GenerationFailed(told))
        # Not where the child died: then it tells what it died over.
        self._rest()

    def note(self, event: p.Event) -> None:
        """Look at a frame as it arrives: after a death those that lie in the channel are not read any more."""
        match event:
            case p.ReadingLora(run_id=run_id) if run_id not in self._open:
                logger.debug("dropped a %s frame of another run", type(event).__name__)
            case p.ReadingLora(index=None):
                self._options.quarantine.note_success(ReadLoras(frozenset(self._loras)))
                self.suspect = None
            case p.ReadingLora(index=int() as index) if index < len(self._loras):
                self.suspect = ReadLoras(frozenset(self._loras[: index + 1]))

    def _rest(self) -> None:
        """Nothing is read now: a death from here on is the engine's own."""
        self._open, self._loras, self.suspect = {}, (), None

    async def _load(self, work: m.LoadModel, stop: trio.Event) -> None:
        files = ModelFiles(self._id, work.command.model, work.command.path, work.command.bits)
        refused = self._options.quarantine.model_error(files)
        if refused is not None:
            work.reply.fail(refused)
            return
        self.suspect = files
        await self._engine.send(work.command)
        async with unwrapped_nursery() as nursery:
            nursery.start_soon(self._stop_when_told, p.CancelLoad(), stop, self._options.cancel_grace, nursery)
            await self._follow_load(work)
            nursery.cancel_scope.cancel()
        if not work.reply.answered:
            raise EngineStopped(f"it did not stop an unwanted load within {self._options.cancel_grace:g} s")

    async def _follow_load(self, work: m.LoadModel) -> None:
        model, silence = work.command.model, self._options.silence
        while True:
            match (await self._next_frame(silence, _is_about_load, f"no word of a load for {silence:g} s")).event:
                case p.LoadProgress() as progress:
                    work.tell(progress)
                case p.Loaded() as loaded:
                    if self.suspect is not None:
                        self._options.quarantine.note_success(self.suspect)
                    work.reply.ok(
                        m.Resident(
                            engine=self._id,
                            incarnation=self._incarnation,
                            seconds=loaded.seconds,
                            weights_bytes=loaded.weights_bytes,
                            warning=loaded.warning,
                        )
                    )
                    return
                case p.LoadStopped():
                    work.reply.fail(m.LoadCancelled(model))
                    return
                case p.LoadFailed() as failed:
                    work.reply.fail(by_code(failed.code)(failed.message, {"model": model}))
                    return

    async def _unload(self, work: m.UnloadModel) -> None:
        await self._engine.send(work.command)
        silence = self._options.silence
        await self._next_frame(silence, lambda event: isinstance(event, p.Unloaded), f"no unload for {silence:g} s")
        work.reply.ok(None)

    async def _run(self, work: Runs) -> None:
        runs = [each for each in work.runs if self._is_of_this_child(each.run)]
        if not runs:
            return
        first = runs[0].run
        refused: ServiceError | None = None
        try:
            # Runs that share their passes have the same ones.
            self._loras = await self._disk.locate_loras(first.request.lora_files)
            refused = self._options.quarantine.lora_error(self._loras)
        except ServiceError as error:
            refused = error
        if refused is not None:
            fail_unanswered(work, refused)
            return
        self._open = {each.run.run_id: (each, RunFrames(each.run.request)) for each in runs}
        lora_paths = [file.path for file in self._loras]
        commands = [
            run_command(each.run, lora_paths=lora_paths, previews=self._options.previews and each.show.is_set())
            for each in runs
        ]
        await self._engine.send(*in_one_command(commands))
        async with AsyncExitStack() as stack:
            for each in runs:
                stack.enter_context(each.run.events)
            nursery = await stack.enter_async_context(unwrapped_nursery())
            for each in runs:
                grace = math.inf if each.run.is_warm_up else self._options.cancel_grace
                nursery.start_soon(self._stop_when_told, p.Cancel(run_id=each.run.run_id), each.stop, grace, nursery)
                if self._options.previews and not each.show.is_set():
                    nursery.start_soon(self._show_when_told, p.ShowPreviews(run_id=each.run.run_id), each.show)
            await self._follow_runs()
            nursery.cancel_scope.cancel()
        if self._open:
            raise EngineStopped(f"it did not stop a cancelled run within {self._options.cancel_grace:g} s")

    def _is_of_this_child(self, run: m.Run) -> bool:
        is_valid = (run.lease.engine, run.lease.incarnation) == (self._id, self._incarnation)
        if not is_valid:
            run.reply.fail(m.StaleLease())
        return is_valid

    async def _follow_runs(self) -> None:
        """Follow the runs until each has its answer."""
        bound, what = self._options.step_timeout, "no step"
        while self._open:
            received = await self._next_frame(
                bound, lambda event: getattr(event, "run_id", None) in self._open, f"{what} for {bound:g} s"
            )
            at_work, frames = self._open[getattr(received.event, "run_id")]  # noqa: B009 - it was looked for above
            if not at_work.run.reply.wanted:
                at_work.stop.set()
            frames.check(received)
            # While a component is read or kernels are compiled no step can be done: then it is silence that counts.
            match received.event:
                case p.LoadProgress() as reading if reading.bytes_done < reading.bytes_total:
                    bound, what = self._options.silence, "no word of a component that is read"
                case p.StageChanged(stage="compiling"):
                    # What follows is a step, too: it gets no less time than one that compiles nothing.
                    bound = max(self._options.silence, self._options.step_timeout)
                    what = "no word of kernels that are compiled"
                case p.StillRunning():
                    # Whatever it does, it goes on with that.
                    pass
                case _:
                    bound, what = self._options.step_timeout, "no step"
            if self._handle(at_work.run, received):
                del self._open[at_work.run.run_id]
                at_work.run.events.close()

    def _handle(self, work: m.Run, received: Received) -> bool:
        """Pass one frame of the current run on; return whether it was its last."""
        match received.event:
            case p.StepDone():
                self._step_done()
                _pass_on(work, received)
            case p.StageChanged() | p.RunWarning() | p.PreviewMade() | p.ImageDone():
                _pass_on(work, received)
            case p.PartialImageMade():
                # It may be lost, and megabytes of it must not wait.
                if work.events.statistics().current_buffer_used < p.MOST_BEFORE_PARTIAL_IMAGE:
                    _pass_on(work, received)
            case p.LoadProgress():
                # It may be lost, and must not take the room of what may not.
                if work.events.statistics().current_buffer_used < p.LOSSY_EVENTS:
                    _pass_on(work, received)
            case p.ReadingLora():
                logger.debug("run %d reads its LoRAs", work.run_id)
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

    async def _stop_when_told(self, command: p.Command, stop: trio.Event, grace: float, nursery: trio.Nursery) -> None:
        await stop.wait()
        try:
            await self._engine.send(command)
        except EngineDied:
            logger.debug("the engine died before it could be told to stop")
        await trio.sleep(grace)
        # Killing the child is all that is left; that costs an attempt of those jobs alone that share a run's passes.
        nursery.cancel_scope.cancel()

    async def _show_when_told(self, command: p.ShowPreviews, show: trio.Event) -> None:
        await show.wait()
        try:
            await self._engine.send(command)
        except EngineDied:
            logger.debug("the engine died before it could be told to make previews")

    async def _next_frame(self, seconds: float, about_it: Callable[[p.Event], bool], otherwise: str) -> Received:
        """Return the next frame that is about the work in hand.

        Raises:
            EngineDied: there is none within ``seconds``; ``otherwise`` says what that means.
        """
        deadline = trio.current_time() + seconds
        while True:
            received: Received | None = None
            with trio.move_on_at(deadline):
                received = await self._frames.receive()
            if received is None:
                # It may be this process that was stopped all the time; then the frames are on their way.
                with trio.move_on_after(SILENCE_GRACE_SECONDS):
                    received = await self._frames.receive()
            if received is not None and about_it(received.event):
                return received
            if received is None or trio.current_time() > deadline + SILENCE_GRACE_SECONDS:
                raise EngineDied(otherwise)
            logger.debug("dropped a %s frame of other work", type(received.event).__name__)


def _is_about_load(event: p.Event) -> bool:
    if isinstance(event, p.LoadProgress):
        return event.run_id is None
    return isinstance(event, p.Loaded | p.LoadFailed | p.LoadStopped)


def _pass_on(work: m.Run, received: Received) -> None:
    """Hand an event to the run's follower."""
    try:
        work.events.send_nowait(received)
    except trio.BrokenResourceError:
        logger.debug("a run has no follower any more")
    except trio.WouldBlock:
        # There was room for all that a run can report.
        raise EngineDied("it sent more frames than a run has") from None
