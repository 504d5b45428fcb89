"""An engine without a process or a model: it follows a script, in virtual time where the test has a mock clock.

A test names moments of an engine's life and what happens there::

    script = Script(at={"step 0/2": Crash()})
    async with open_service(settings, start_engine=script.start) as service: ...

The moments: ``start``, ``load``, ``unload``, ``run``, ``encoding``, ``denoising``, ``decoding``, ``step I/S`` (first
image I of a pass, before step S, counted from 1), ``image I`` (before it is sent) and ``done`` (before the run's last
frame).
"""

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import attrs
import trio

from mflux_api.engine.interface import EngineDied, Received
from mflux_api.engine.protocol import (
    Cancel,
    CancelLoad,
    Command,
    Event,
    Heartbeat,
    ImageDone,
    Loaded,
    LoadFailed,
    LoadModel,
    LoadProgress,
    LoadStopped,
    PartialImageMade,
    PreviewMade,
    ReadingLora,
    Ready,
    Run,
    RunDone,
    RunFailed,
    RunStopped,
    RunWarning,
    SharedRun,
    ShowPreviews,
    Shutdown,
    Stage,
    StageChanged,
    StepDone,
    Unloaded,
    UnloadModel,
)
from mflux_api.engine.run_images import WrongImages, from_blobs
from mflux_api.images.run_inputs import RunInputs
from mflux_api.ipc import frames
from mflux_api.jobs.schedule import partial_steps, steps_to_run

PREVIEW = b"\xff\xd8 what every scripted engine's preview is"
PARTIAL = 1_000_000
"""Times the step, added to the seed of a partial image's pixels."""
FOREIGN = 1_000_000
"""Added to the id of stale frames."""


@attrs.define
class Crash:
    """The engine dies there, that many times in all."""

    times: int = 1
    reason: str = "killed by SIGKILL"


@attrs.define
class Hang:
    """The engine never gets on from there and takes no cancel; it lives."""


@attrs.define(eq=False)
class Hold:
    """The engine waits there, the first time only, until the test lets it go or the run is cancelled."""

    reached: trio.Event = attrs.field(factory=trio.Event)
    release: trio.Event = attrs.field(factory=trio.Event)


@attrs.define
class Fail:
    """The load or the run ends there with an error frame, that many times."""

    code: str = "GENERATION_FAILED"
    times: int = 1


Action = Crash | Hang | Hold | Fail


def pixels(seed: int, width: int, height: int) -> bytes:
    """What every scripted engine generates for a seed."""
    return random.Random(seed).randbytes(width * height * 3)


@attrs.define(kw_only=True, eq=False)
class Script:
    """How the engines started from it behave, and what became of them."""

    at: dict[str, Action] = attrs.field(factory=dict)
    step_seconds: float = 0.0
    seconds: Callable[[str, LoadModel | Run], float] = lambda part, command: 0.0
    """What a ``load``, ``encoding``, each ``step`` of an image, and each ``image`` behind its steps take."""
    compiles: bool = False
    """Tell the first run as one that compiles; its parts take the seconds of ``compiling`` more."""
    per_pass: int = 1
    """How many images of a run share their steps."""
    ignore_cancel: bool = False
    warnings: tuple[str, ...] = ()
    """What every pass of a run warns of while it reads the prompt."""
    stale_frames: bool = False
    """Send every frame of a run twice, first under the id of a run that never was."""
    tamper: Callable[[Event, tuple[bytes, ...]], tuple[Event, tuple[bytes, ...]]] = lambda event, blobs: (event, blobs)
    """Changes what is sent."""
    deadly: Callable[[Command], bool] = lambda command: False
    """The loads and runs that it dies over."""
    deadly_loras: frozenset[str] = frozenset()
    """Names of the LoRA files that it dies over."""
    deadly_together: frozenset[str] = frozenset()
    """Names of LoRA files that it dies over when it has read all of them, and then while it reads the last."""
    device: str = "cpu"
    memory_bytes: int = 0
    free_bytes: int | None = None
    """The memory of its machine, and what is left of it."""
    engines: list["ScriptedEngine"] = attrs.field(factory=list)
    starts: list[float] = attrs.field(factory=list)
    """When each start was tried."""

    @property
    def current(self) -> "ScriptedEngine":
        """The newest engine."""
        return self.engines[-1]

    @property
    def alive(self) -> int:
        """Engines that were not closed."""
        return sum(engine.closed is None for engine in self.engines)

    async def start(self, nursery: trio.Nursery) -> "ScriptedEngine":
        """Start an engine: the script as an ``EngineStarter``."""
        self.starts.append(trio.current_time())
        action = self.at.get("start")
        if isinstance(action, Crash) and action.times > 0:
            action.times -= 1
            raise EngineDied(action.reason)
        if isinstance(action, Hold):
            action.reached.set()
            await action.release.wait()
        engine = ScriptedEngine(self, number=len(self.engines) + 1)
        await nursery.start(engine.work)
        self.engines.append(engine)
        return engine


class _Stopped(Exception):
    pass


class _Failed(Exception):
    pass


class ScriptedEngine:
    """One incarnation."""

    def __init__(self, script: Script, number: int) -> None:
        self._script = script
        self._inbox, self._commands = trio.open_memory_channel[tuple[Command, Sequence[bytes]]](math.inf)
        self._outbox, self._frames = trio.open_memory_channel[Received](math.inf)
        self._cancelled: set[int] = set()
        self._stop = trio.Event()
        self._running: int | None = None
        self._loading = self._load_cancelled = False
        self._models: set[str] = set()
        self._scope = trio.CancelScope()
        self._compiled = False
        self.previewed = set[int]()
        """The runs that were told to make previews."""
        self._death: str | None = None
        self.received: list[Command] = []
        """Every command it was sent."""
        self.blobs: list[tuple[bytes, ...]] = []
        """What came with each of them."""
        self.closed: str | None = None
        """How it was closed: ``politely`` or ``by force``."""
        self.info = Ready(
            pid=number,
            device=script.device,
            device_name="scripted",
            precision="float32",
            blas="none",
            blas_fast=True,
            versions={"script": "1"},
            memory_bytes=script.memory_bytes,
            free_bytes=script.free_bytes,
        )

    async def send(self, command: Command, blobs: Sequence[bytes] = ()) -> None:
        # As the real one does: what cannot be put into a frame is not sent.
        frames.encode(command, blobs)
        await trio.lowlevel.checkpoint()
        if self._death is not None:
            raise EngineDied(self._death)
        self.received.append(command)
        self.blobs.append(tuple(blobs))
        match command:
            case Cancel(run_id=run_id):
                if not self._script.ignore_cancel:
                    self._cancelled.add(run_id)
                    if run_id == self._running:
                        self._stop.set()
            case ShowPreviews(run_id=run_id):
                self.previewed.add(run_id)
            case CancelLoad():
                if not self._script.ignore_cancel and self._loading:
                    self._load_cancelled = True
                    self._stop.set()
            case Shutdown():
                self.die("exited with status 0")
            case _:
                self._inbox.send_nowait((command, blobs))

    async def receive(self) -> Received:
        try:
            return await self._frames.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise EngineDied(self._death or "closed") from None

    async def aclose(self, *, force: bool = False) -> None:
        self.closed = self.closed or ("by force" if force else "politely")
        self.die("closed")
        await trio.lowlevel.checkpoint()

    def die(self, reason: str = "killed by SIGKILL") -> None:
        """End at once, as if killed from outside."""
        if self._death is None:
            self._death = reason
            self._outbox.close()
            self._scope.cancel()

    def say(self, event: Event, blobs: tuple[bytes, ...] = ()) -> None:
        """Send a frame out of turn."""
        event, blobs = self._script.tamper(event, blobs)
        run_id = getattr(event, "run_id", None)
        if self._script.stale_frames and run_id is not None:
            stale = attrs.evolve(event, run_id=run_id + FOREIGN)
            self._outbox.send_nowait(Received(stale, blobs))
        self._outbox.send_nowait(Received(event, blobs))

    async def work(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow commands until the end."""
        with self._scope:
            self.say(Heartbeat(active_bytes=1, peak_bytes=2, free_bytes=self._script.free_bytes))
            task_status.started()
            async for command, blobs in self._commands:
                match command:
                    case LoadModel():
                        await self._load(command)
                    case Run():
                        await self._run(command, blobs)
                    case SharedRun():
                        await self._run_shared(command)
                    case UnloadModel(model=model):
                        await self._reach("unload")
                        self._models = self._models - {model}
                        self.say(Unloaded())

    async def _load(self, command: LoadModel) -> None:
        self._loading, self._load_cancelled, self._stop = True, False, trio.Event()
        try:
            await self._answer_load(command)
        finally:
            self._loading = False

    async def _answer_load(self, command: LoadModel) -> None:
        try:
            await self._survive(deadly=self._script.deadly(command))
            await self._reach("load")
            if self._load_cancelled:
                self.say(LoadStopped(model=command.model))
                return
        except _Failed as failed:
            self._models.discard(command.model)
            self.say(LoadFailed(model=command.model, code=str(failed), message="scripted"))
            return
        if not Path(command.path).is_dir():  # noqa: ASYNC240
            self.say(LoadFailed(model=command.model, code="GENERATION_FAILED", message="no such folder"))
            return
        began = trio.current_time()
        for done in (0, 1):
            self.say(LoadProgress(component="transformer", bytes_done=done, bytes_total=1))
            if done == 0:
                await self._take("load", command)
        self._models.add(command.model)
        self.say(Loaded(model=command.model, seconds=(trio.current_time() - began) or 0.5, active_bytes=1))

    async def _run(self, command: Run, blobs: Sequence[bytes]) -> None:
        self._running, self._stop = command.run_id, trio.Event()
        try:
            try:
                inputs = from_blobs(command, blobs)
            except WrongImages:
                raise _Failed("GENERATION_FAILED") from None
            await self._generate(command, inputs)
        except _Stopped:
            self.say(RunStopped(run_id=command.run_id))
        except _Failed as failed:
            self.say(RunFailed(run_id=command.run_id, code=str(failed), message="scripted"))
        finally:
            self._running = None
            self._cancelled.discard(command.run_id)

    async def _generate(self, command: Run, inputs: RunInputs) -> None:
        if command.model not in self._models:
            raise _Failed("GENERATION_FAILED")
        await self._survive(deadly=self._script.deadly(command))
        await self._reach("run", command)
        steps = steps_to_run(command.steps, command.image_strength)
        compiling, self._compiled = self._script.compiles and not self._compiled, True
        for first in range(0, len(command.seeds), self._script.per_pass):
            seeds = command.seeds[first : first + self._script.per_pass]
            for stage in ("encoding", "denoising", "decoding"):
                self.say(StageChanged(run_id=command.run_id, stage=_stage(stage)))
                for warning in self._script.warnings if stage == "encoding" else ():
                    self.say(RunWarning(run_id=command.run_id, message=warning))
                if stage == "encoding" and command.lora_paths:
                    await self._read_loras(command)
                await self._reach(stage, command)
                if compiling:
                    self.say(StageChanged(run_id=command.run_id, stage="compiling"))
                    await self._take("compiling", command)
                if stage == "encoding" and first == 0:
                    # The engine keeps what it made of a prompt.
                    await self._take("encoding", command)
                for step in range(1, steps + 1) if stage == "denoising" else ():
                    await self._reach(f"step {first}/{step}", command)
                    if self._script.step_seconds:
                        await trio.sleep(self._script.step_seconds)
                    for _ in seeds:
                        await self._take("step", command)
                    done = StepDone(run_id=command.run_id, image=first, step=step, steps=steps, images=len(seeds))
                    self.say(done)
                    shown = command.previews or command.run_id in self.previewed
                    for index in range(first, first + len(seeds) if shown else first):
                        preview = PreviewMade(run_id=command.run_id, index=index, step=step, width=8, height=8)
                        self.say(preview, (PREVIEW,))
                    self._say_partial_images(command, inputs, first, step, seeds)
            for index, seed in enumerate(seeds, first):
                await self._reach(f"image {index}", command)
                await self._take("image", command)
                size, rgb = _image(command, inputs, seed)
                image = ImageDone(run_id=command.run_id, index=index, seed=seed, width=size[0], height=size[1])
                self.say(image, (rgb,))
        await self._reach("done", command)
        self.say(RunDone(run_id=command.run_id, encode_seconds=0.1, denoise_seconds=0.2, decode_seconds=0.3))

    async def _run_shared(self, command: SharedRun) -> None:
        """All runs in one pass; one that is cancelled leaves the others."""
        self._stop = trio.Event()
        wanted = {run.run_id: run for run in command.runs}
        try:
            await self._survive(deadly=any(self._script.deadly(run) for run in command.runs))
            for stage in ("encoding", "denoising", "decoding"):
                self._end_cancelled(wanted)
                for run in wanted.values():
                    self.say(StageChanged(run_id=run.run_id, stage=_stage(stage)))
                await self._reach(stage)
                for step in range(1, command.runs[0].steps + 1) if stage == "denoising" else ():
                    await self._reach(f"step 0/{step}")
                    if self._script.step_seconds:
                        await trio.sleep(self._script.step_seconds)
                    self._end_cancelled(wanted)
                    self._say_shared_step(wanted, step)
            for run in wanted.values():
                for index, seed in enumerate(run.seeds):
                    await self._reach(f"image {index}")
                    rgb = pixels(seed, run.width, run.height)
                    size = (run.width, run.height)
                    image = ImageDone(run_id=run.run_id, index=index, seed=seed, width=size[0], height=size[1])
                    self.say(image, (rgb,))
                self.say(RunDone(run_id=run.run_id, encode_seconds=0.1, denoise_seconds=0.2, decode_seconds=0.3))
        except _Failed as failed:
            for run_id in wanted:
                self.say(RunFailed(run_id=run_id, code=str(failed), message="scripted"))

    def _end_cancelled(self, wanted: dict[int, Run]) -> None:
        for run_id in [run_id for run_id in wanted if run_id in self._cancelled]:
            del wanted[run_id]
            self.say(RunStopped(run_id=run_id))

    def _say_shared_step(self, wanted: dict[int, Run], step: int) -> None:
        batch = sum(len(run.seeds) for run in wanted.values())
        for run in wanted.values():
            images = len(run.seeds)
            self.say(StepDone(run_id=run.run_id, image=0, step=step, steps=run.steps, images=images, batch=batch or 1))
            if run.previews or run.run_id in self.previewed:
                for index in range(images):
                    self.say(PreviewMade(run_id=run.run_id, index=index, step=step, width=8, height=8), (PREVIEW,))

    def _say_partial_images(self, command: Run, inputs: RunInputs, first: int, step: int, seeds: Sequence[int]) -> None:
        at = partial_steps(steps_to_run(command.steps, command.image_strength), command.partial_images)
        for index, seed in enumerate(seeds if step in at else (), first):
            (width, height), rgb = _image(command, inputs, seed + PARTIAL * step)
            made = PartialImageMade(
                run_id=command.run_id, index=index, number=at.index(step), step=step, width=width, height=height
            )
            self.say(made, (rgb,))

    async def _read_loras(self, command: Run) -> None:
        for index, path in enumerate(command.lora_paths):
            self.say(ReadingLora(run_id=command.run_id, index=index))
            read = {Path(each).name for each in command.lora_paths[: index + 1]}
            together = self._script.deadly_together
            await self._survive(
                deadly=Path(path).name in self._script.deadly_loras or (bool(together) and together <= read)
            )
        self.say(ReadingLora(run_id=command.run_id, index=None))

    async def _take(self, part: str, command: LoadModel | Run) -> None:
        seconds = self._script.seconds(part, command)
        if seconds:
            await trio.sleep(seconds)

    async def _survive(self, *, deadly: bool) -> None:
        await trio.lowlevel.checkpoint()
        if deadly:
            self.die("killed by SIGSEGV")
            await trio.sleep_forever()

    async def _reach(self, moment: str, run: Run | None = None) -> None:
        await trio.lowlevel.checkpoint()
        match self._script.at.get(moment):
            case Crash(times=times, reason=reason) as crash if times > 0:
                crash.times -= 1
                self.die(reason)
                await trio.sleep_forever()
            case Hang():
                await trio.sleep_forever()
            case Hold() as hold if not hold.reached.is_set():
                hold.reached.set()
                await _first(hold.release.wait, self._stop.wait)
            case Fail(code=code, times=times) as fail if times > 0:
                fail.times -= 1
                raise _Failed(code)
        if run is not None and run.run_id in self._cancelled:
            raise _Stopped


def _image(command: Run, inputs: RunInputs, seed: int) -> tuple[tuple[int, int], bytes]:
    """Return an image's size and pixels; of an inpainting the overlay, with other pixels where its mask is not 0.

    Without numpy and Pillow: scripted engines also stand in a process that must not import them.
    """
    inpainting = inputs.inpainting
    if inpainting is None:
        return (command.width, command.height), pixels(seed, command.width, command.height)
    left, top, columns, rows = inpainting.box
    width, height = inpainting.overlay.size
    generated, result = pixels(seed, columns, rows), bytearray(inpainting.overlay.rgb)
    for row in range(rows):
        start = (top + row) * width + left
        shares = inpainting.blurred_mask[start : start + columns]
        if not any(shares):
            continue
        for byte in range(columns * 3):
            share, place = shares[byte // 3], start * 3 + byte
            result[place] = (result[place] * (255 - share) + generated[row * columns * 3 + byte] * share + 127) // 255
    return (width, height), bytes(result)


def _stage(name: str) -> Stage:
    return name  # type: ignore[return-value]


async def _first(*waits: Callable[[], Awaitable[object]]) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(each: Callable[[], Awaitable[object]]) -> None:
            await each()
            nursery.cancel_scope.cancel()

        for each in waits:
            nursery.start_soon(wait, each)
