"""The engine child's main thread: loads and unloads models, runs commands on them, measures memory, writes events.

Started as ``python -P -m mflux_api.engine.worker`` by :mod:`mflux_api.engine.local`; never by hand.
"""

import os
import queue
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

from mflux_api.engine.control_thread import ControlThread
from mflux_api.engine.kernel_cache import KernelCache
from mflux_api.engine.protocol import (
    ENGINE_TYPES,
    FAST_PATH,
    KERNELS,
    Event,
    Loaded,
    LoadFailed,
    LoadModel,
    LoadStopped,
    NotReady,
    Ready,
    Run,
    RunDone,
    RunFailed,
    RunStopped,
    SharedRun,
    Unloaded,
    UnloadModel,
    Upscale,
)
from mflux_api.engine.reporting import Reporter
from mflux_api.engine.run_images import WrongImages
from mflux_api.ipc.child_pipe import ChildPipe, take_standard_streams
from mflux_api.ipc.frames import ProtocolError
from mflux_api.machine import Devices
from mflux_api.system.network_variables import drop_unreadable

if TYPE_CHECKING:
    from mflux_api.engine.device import Device
    from mflux_api.engine.runs import Owners
    from mflux_api.engine.sampling.passes import Event as PassEvent
    from mflux_api.engine.sampling.pipeline import Pipeline
    from mflux_api.engine.told import Told
    from mflux_api.engine.upscaling.upscaler import Upscaler

Blobs = tuple[bytes, ...]

IDLE_SECONDS = 0.05
"""Between two runs of a queue there is less."""

_UNSAYABLE = "The engine's answer cannot be passed to the service; the debug log has the details"


class Worker:
    """The main thread's work: the resident models, and one command at a time."""

    def __init__(
        self, pipe: ChildPipe, control: ControlThread, device: "Device", kernels: KernelCache | None = None
    ) -> None:
        self._kernels = kernels
        self._pipe = pipe
        self._control = control
        self._device = device
        self._reporter = Reporter(pipe, control)
        self._resident: dict[str, Pipeline | Upscaler] = {}
        self._is_unclean = False
        """Whether a run may have left something that is not given back yet."""
        self._compiled: set[tuple[object, ...]] = set()
        """The kinds of passes that ran; MLX keeps their kernels in this process when the model leaves its memory."""

    def serve(self) -> NoReturn:
        """Work until the process ends."""
        while True:
            match self._next_command():
                case LoadModel() as command, _:
                    self._load(command)
                case UnloadModel(model=model), _:
                    self._unload(model)
                    self._pipe.write(Unloaded())
                case ((Run() | SharedRun() | Upscale() as command), blobs):
                    self._run(command, blobs)

    def _next_command(self) -> tuple[LoadModel | UnloadModel | Run | SharedRun | Upscale, Blobs]:
        """Wait for a command; a CUDA device cleans up only where none comes at once, or what comes is no run."""
        if not self._is_unclean:
            return self._control.work.get()
        try:
            command = self._control.work.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            self._clean_up()
            return self._control.work.get()
        if isinstance(command[0], LoadModel | UnloadModel):
            self._clean_up()
        return command

    def _clean_up(self) -> None:
        """Give back what runs left, and tell what memory there is."""
        from mflux_api.engine import device as memory

        memory.release()
        self._measure()
        self._is_unclean = False

    def _rest(self, ends: "Sequence[RunDone | RunStopped | RunFailed]") -> None:
        """Clean up after a run.

        A CUDA device is the child's alone: after a run that went well it does so when it has nothing else to do.
        """
        self._is_unclean = True
        went_well = bool(ends) and not any(isinstance(end, RunFailed) for end in ends)
        if self._device.kind != "cuda" or not went_well:
            self._clean_up()

    def _load(self, command: LoadModel) -> None:
        from mflux_api.engine.sampling.passes import Stopped
        from mflux_api.engine.sampling.pipeline import Pipeline
        from mflux_api.engine.weights.components import CheckpointError

        started = time.monotonic()
        warnings: list[str] = []
        end: LoadFailed | LoadStopped
        self._reporter.begin()
        try:
            if command.model not in self._resident:
                self._resident[command.model] = self._open(command, warnings.append)
            model = self._resident[command.model]
            if not command.component_offload:
                model.components.load_all()
            if command.unpack and isinstance(model, Pipeline):
                model.unpack_weights()
            weights_bytes = 0 if command.component_offload else model.components.resident_bytes
        except Stopped:
            end = LoadStopped(model=command.model)
        except CheckpointError as error:
            end = LoadFailed(model=command.model, code="GENERATION_FAILED", message=str(error))
        except BaseException as error:  # noqa: BLE001 - see _ends_of
            code, message = _classify(error, "The model cannot be loaded")
            end = LoadFailed(model=command.model, code=code, message=message)
        else:
            self._measure()
            active, _ = self._control.memory
            loaded = Loaded(
                model=command.model,
                seconds=time.monotonic() - started,
                active_bytes=active,
                weights_bytes=weights_bytes,
                warning="; ".join(warnings),
            )
            self._answer(loaded, LoadFailed(model=command.model, code="GENERATION_FAILED", message=_UNSAYABLE))
            return
        # Only now: the exception held what was loaded up to there.
        self._unload(command.model)
        self._answer(end, LoadFailed(model=command.model, code="GENERATION_FAILED", message=_UNSAYABLE))

    def _open(self, command: LoadModel, warn: Callable[[str], None]) -> "Pipeline | Upscaler":
        from mflux_api.engine.kernels.cuda_kernels import checked
        from mflux_api.engine.kernels.pinned_reading import read_pinned
        from mflux_api.engine.sampling.pipeline import Pipeline
        from mflux_api.engine.stored_tensors import read_by_mlx
        from mflux_api.engine.upscaling.seedvr2_components import UpscalerComponents, is_upscaler
        from mflux_api.engine.upscaling.upscaler import Upscaler
        from mflux_api.engine.weights.components import load_components
        from mflux_api.engine.weights.quantized_cache import load_quantized

        folder = Path(command.path)
        if is_upscaler(folder):
            return Upscaler(UpscalerComponents(folder, report=self._reporter.read))
        self._device = checked(self._device, warn)
        # With kernels alone: it copies with one.
        reader = read_pinned if self._device.kind == "cuda" and self._device.fast_path else read_by_mlx
        offload, report = command.component_offload, self._reporter.read
        if command.bits is None:
            components = load_components(folder, component_offload=offload, report=report, tensor_reader=reader)
        else:
            entry = Path(command.entry)
            components = load_quantized(
                folder, command.bits, entry, component_offload=offload, warn=warn, report=report, tensor_reader=reader
            )
        return Pipeline(components, self._device, reading_lora=self._reporter.reading_lora)

    def _unload(self, model: str) -> None:
        from mflux_api.engine import device as memory

        self._resident.pop(model, None)
        memory.release()
        self._measure()

    def _measure(self) -> None:
        """Tell the parent at once what memory there is: it decides by that what to load next."""
        self._control.memory = self._memory()
        self._control.beat()

    def _run(self, command: Run | SharedRun | Upscale, blobs: Blobs) -> None:
        from mflux_api.engine.told import Told

        runs = command.runs if isinstance(command, SharedRun) else (command,)
        self._control.previewed |= {run.run_id for run in runs if isinstance(run, Run) and run.previews}
        open_runs = {run.run_id: Told(run.run_id, len(run.seeds)) for run in runs}
        # Its exception, and what that held, is gone before the memory is released and measured.
        ends = self._ends_of(command, blobs, open_runs)
        self._rest(ends)
        for end in ends:
            self._end(end, open_runs)
        for run in runs:
            # What they shared failed, and it need not be for each of them.
            if run.run_id in open_runs:
                (end,) = self._ends_of(run, blobs, {run.run_id: open_runs[run.run_id]})
                self._rest([end])
                self._end(end, open_runs)

    def _end(self, end: RunDone | RunStopped | RunFailed, open_runs: "dict[int, Told]") -> None:
        """Tell the end of a run."""
        del open_runs[end.run_id]
        self._control.cancelled.discard(end.run_id)
        self._control.previewed.discard(end.run_id)
        self._answer(end, RunFailed(run_id=end.run_id, code="GENERATION_FAILED", message=_UNSAYABLE))

    def _answer(self, answer: Event, otherwise: Event) -> None:
        """Send the last frame of some work, or another where that one cannot be put into a frame."""
        try:
            self._pipe.write(answer)
        except ProtocolError as error:
            print(f"an answer was not sent: {error}", file=sys.stderr)  # noqa: T201 - the parent's debug log
            self._pipe.write(otherwise)

    def _ends_of(
        self, command: Run | SharedRun | Upscale, blobs: Blobs, open_runs: "dict[int, Told]"
    ) -> list[RunDone | RunStopped | RunFailed]:
        """Run, and return the end of each run that has none yet; where what several share fails, they get none."""
        from mflux_api.engine.sampling.pipeline import Stopped

        try:
            self._generate(command, blobs, open_runs)
        except Stopped:
            return [RunStopped(run_id=run_id) for run_id in open_runs]
        except BaseException as error:  # noqa: BLE001 - what any library raises must reach the parent as a frame
            # All of it: a panic of a library in Rust (tokenizers, safetensors) is not an Exception.
            if isinstance(command, SharedRun):
                print(f"runs go on alone: {error!r}", file=sys.stderr)  # noqa: T201 - the parent's debug log
                return []
            return [self._failure(command, error)]
        return [told.done() for told in open_runs.values()]

    def _failure(self, command: Run | Upscale, error: BaseException) -> RunFailed:
        from mflux_api.engine.sampling.pipeline import LoraError, NotFiniteError
        from mflux_api.engine.weights.components import CheckpointError

        code, details = "GENERATION_FAILED", dict[str, str | None]()
        match error:
            case LoraError():
                code, message = "INVALID_PARAMETER", str(error)
                details = {"field": "lora_files", "value": None, "limit": "whole LoRAs made for this model"}
            case WrongImages() | CheckpointError():
                # A component that was freed and cannot be read again, or images that are not what the frame says.
                message = str(error)
            case NotFiniteError():
                message = (
                    f"The numbers of an image overflowed in '{command.model}' ({self._device.precision} on "
                    f"{self._device.kind}), so it was not saved; try another size or seed, the model in more bits, or "
                    'engine.devices = "cpu"; if all images fail, delete the model and download it again'
                )
            case _:
                code, message = _classify(error, "The engine failed while generating")
        return RunFailed(run_id=command.run_id, code=code, message=message, details=details)

    def _generate(self, command: Run | SharedRun | Upscale, blobs: Blobs, open_runs: "dict[int, Told]") -> None:
        """Tell what comes of a command; runs that end before its last pass are taken out of ``open_runs``."""
        from mflux_api.engine.runs import to_frames
        from mflux_api.engine.sampling.passes import DoneEvent, StageEvent, StepEvent

        self._reporter.begin(tuple(open_runs))
        for owners, events in self._passes(command, blobs, open_runs):
            for event in events:
                if isinstance(event, DoneEvent):
                    for run_id in open_runs.keys() & {owner.run_id for owner in owners}:
                        open_runs[run_id].add_seconds(event)
                    continue
                if isinstance(event, StageEvent):
                    self._reporter.stage = event.stage
                if isinstance(event, StepEvent):
                    self._control.memory = self._memory()
                self._end_cancelled(open_runs)
                for frame, pixels in to_frames(event, owners):
                    if frame.run_id in open_runs and open_runs[frame.run_id].is_news(frame):
                        self._pipe.write(frame, pixels)
            for told in [told for told in open_runs.values() if told.is_whole][: len(open_runs) - 1]:
                self._end(told.done(), open_runs)

    def _end_cancelled(self, open_runs: "dict[int, Told]") -> None:
        """Tell the ends of those runs that are not wanted any more while others, which share their pass, go on."""
        for run_id in [run_id for run_id in open_runs if run_id in self._control.cancelled][: len(open_runs) - 1]:
            self._end(RunStopped(run_id=run_id), open_runs)
            self._reporter.forget(run_id)

    def _passes(
        self, command: Run | SharedRun | Upscale, blobs: Blobs, open_runs: "dict[int, Told]"
    ) -> "Iterator[tuple[Owners, Iterator[PassEvent]]]":
        """Yield each pass: whose its images are, and its events."""
        from mflux_api.engine.runs import pass_kind, passes, shared_passes, upscale_passes
        from mflux_api.engine.sampling.pipeline import Pipeline
        from mflux_api.engine.upscaling.upscaler import Upscaler

        should_stop = self._reporter.should_stop
        model = command.runs[0].model if isinstance(command, SharedRun) else command.model
        match command, self._resident.get(model):
            case ((Run() | SharedRun()), Pipeline() as pipeline):
                if isinstance(command, Run):
                    requests = passes(command, blobs, pipeline)
                else:
                    requests = shared_passes(command, pipeline, open_runs.__contains__)
                for owners, request in requests:
                    events = pipeline.run(
                        request,
                        should_stop,
                        partial(_is_of, owners, self._control.previewed),
                        partial(_is_of, owners, open_runs),
                    )
                    yield owners, self._announced(pass_kind(model, request), events)
            case Upscale() as upscale, Upscaler() as upscaler:
                for owners, image in upscale_passes(upscale, blobs):
                    kind = (upscale.model, image.image.size, image.resolution)
                    yield owners, self._announced(kind, upscaler.run(image, should_stop))
            case _:
                raise RuntimeError("no resident model of that name can do this")

    def _announced(self, kind: tuple[object, ...], events: "Iterator[PassEvent]") -> "Iterator[PassEvent]":
        """Pass a pass's events on; where it is the first of its kind on a GPU, say that each of its stages compiles."""
        from mflux_api.engine.sampling.passes import StageEvent

        if not self._device.is_gpu or kind in self._compiled:
            yield from events
            return
        with self._reporter.compiling():
            for event in events:
                yield event
                # Told before the stage's work begins: text encoder, transformer and VAE have kernels of their own.
                if isinstance(event, StageEvent):
                    yield StageEvent("compiling")
        self._compiled.add(kind)
        self._keep_kernels()

    def _keep_kernels(self) -> None:
        try:
            if self._kernels is not None:
                self._kernels.publish()
        except OSError as error:
            _say_not_kept(error)
            self._kernels = None

    def _memory(self) -> tuple[int, int]:
        from mflux_api.engine import device as memory

        return memory.active_bytes(), memory.peak_bytes()


def _is_of(owners: "Owners", runs: Container[int], index: int) -> bool:
    """Whether an image of a pass belongs to one of some runs."""
    return owners[index].run_id in runs


def _classify(error: BaseException, what: str) -> tuple[str, str]:
    """Return a code and a sentence without the error's own text, which may hold paths or prompts."""
    from mflux_api.engine.device import is_out_of_memory

    print(f"{what}: {error!r}", file=sys.stderr)  # noqa: T201 - the parent's debug log
    if is_out_of_memory(error):
        return "OOM_ERROR", "Insufficient memory"
    return "GENERATION_FAILED", f"{what} ({type(error).__name__}); the debug log has the details"


def _ready(device: "Device", blas_name: str, *, blas_fast: bool, free_bytes: int | None, may_use_gpu: bool) -> Ready:
    from importlib.metadata import version

    from mflux_api.engine import builds
    from mflux_api.engine.device import memory_bytes

    return Ready(
        pid=os.getpid(),
        device=device.kind,
        device_name=device.name,
        precision=device.precision,
        blas=blas_name if device.kind == "cpu" else "",
        blas_fast=blas_fast,
        versions={name: version(name) for name in ("mlx", "mflux")},
        memory_bytes=memory_bytes(device),
        free_bytes=free_bytes,
        advice=builds.advise(builds.installed(), on_gpu=device.is_gpu, may_use_gpu=may_use_gpu),
    )


def _devices(arguments: Sequence[str]) -> Devices:
    return next((kind for kind in get_args(Devices) if kind in arguments[1:]), "auto")


def _open_kernels(arguments: Sequence[str], device: "Device") -> KernelCache | None:
    """Return the compiled kernels of earlier children, found by MLX from now on; none where they cannot be kept."""
    from importlib.metadata import version

    folders = [each.removeprefix(KERNELS) for each in arguments[1:] if each.startswith(KERNELS)]
    if not folders:
        return None
    kernels = KernelCache(Path(folders[0]), version("mlx"), device.name)
    try:
        kernels.open()
    except OSError as error:
        _say_not_kept(error)
        return None
    return kernels


def _say_not_kept(error: OSError) -> None:
    print(f"compiled kernels are not kept: {error!r}", file=sys.stderr)  # noqa: T201 - the parent's debug log


def main() -> None:
    """Set up the pipe before anything can print, then import the model code, then serve."""
    pipe = take_standard_streams(ENGINE_TYPES)
    control = ControlThread(pipe)
    control.start()
    # Loading a checkpoint from disk must never reach for the network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    drop_unreadable(os.environ)

    from mflux_api.engine import blas

    library = blas.preload()
    from mflux_api.engine import device as memory

    try:
        devices = memory.devices_to_use(_devices(sys.argv))
        device = memory.select(devices, fast_path=FAST_PATH in sys.argv[1:])
    except memory.NoSuchDevice as error:
        pipe.write(NotReady(message=str(error)))
        sys.exit(1)
    kernels = None
    if device.kind == "cuda":
        control.device_bytes = memory.memory_bytes(device)
        kernels = _open_kernels(sys.argv, device)
    import mflux_api.engine.sampling.pipeline  # noqa: F401 - the slow imports belong before the handshake

    ready = _ready(
        device,
        library.name,
        blas_fast=library.fast,
        free_bytes=control.free_bytes(),
        may_use_gpu=devices != "cpu",
    )
    memory.settle()
    pipe.write(ready)
    Worker(pipe, control, device, kernels).serve()


if __name__ == "__main__":
    main()
