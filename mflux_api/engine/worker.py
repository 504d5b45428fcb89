"""The engine child: reads commands, runs the model on its main thread, writes events.

Started as ``python -P -m mflux_api.engine.worker`` by :mod:`mflux_api.engine.local`; never by hand.
"""

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mflux_api import machine
from mflux_api.engine.protocol import (
    ENGINE_TYPES,
    Cancel,
    Heartbeat,
    ImageDone,
    Loaded,
    LoadFailed,
    LoadModel,
    PreviewMade,
    Ready,
    Run,
    RunDone,
    RunFailed,
    RunStopped,
    Shutdown,
    StageChanged,
    StepDone,
    StillRunning,
    Unloaded,
    UnloadModel,
    Upscale,
)
from mflux_api.ipc.child_pipe import ChildPipe, take_standard_streams

if TYPE_CHECKING:
    from mflux_api.engine.device import Device
    from mflux_api.engine.sampling.passes import Event as PassEvent
    from mflux_api.engine.sampling.pipeline import Pipeline
    from mflux_api.engine.upscaling.upscaler import Upscaler

Blobs = tuple[bytes, ...]

BEAT_SECONDS = 1.0
STILL_RUNNING_SECONDS = 5.0


class Reader(threading.Thread):
    """Takes control frames at once, passes work on, and beats; it runs beside a busy main thread."""

    def __init__(self, pipe: ChildPipe) -> None:
        super().__init__(name="control", daemon=True)
        self.work: queue.SimpleQueue[tuple[LoadModel | UnloadModel | Run | Upscale, Blobs]] = queue.SimpleQueue()
        self.cancelled: set[int] = set()
        self.memory: tuple[int, int] = (0, 0)
        self.device_bytes: int | None = None
        """The memory of a device that has its own."""
        self._pipe = pipe

    def run(self) -> None:
        """Read until the parent goes away; whatever else ends this thread ends the process: nobody else would."""
        try:
            self._control()
        except Exception:  # noqa: BLE001 - a parent that talks nonsense; the debug log gets it
            traceback.print_exc()
        finally:
            os._exit(1)

    def _control(self) -> NoReturn:
        next_beat = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= next_beat:
                self.beat()
                next_beat = now + BEAT_SECONDS
            if not self._pipe.wait_readable(next_beat - now if next_beat > now else 0.0):
                continue
            match self._pipe.read_frame():
                case Shutdown(), _:
                    os._exit(0)
                case Cancel(run_id=run_id), _:
                    self.cancelled.add(run_id)
                case ((LoadModel() | UnloadModel() | Run() | Upscale() as command), blobs):
                    self.work.put((command, blobs))

    def beat(self) -> None:
        """Say that the child lives, and what memory it has."""
        active, peak = self.memory
        free = machine.available_bytes() if self.device_bytes is None else max(0, self.device_bytes - active)
        self._pipe.write(Heartbeat(active_bytes=active, peak_bytes=peak, free_bytes=free))


class Worker:
    """The main thread: the resident models, one command at a time."""

    def __init__(self, pipe: ChildPipe, reader: Reader, device: "Device") -> None:
        self._pipe = pipe
        self._reader = reader
        self._device = device
        self._resident: dict[str, Pipeline | Upscaler] = {}

    def serve(self) -> NoReturn:
        """Work until the process ends."""
        while True:
            match self._reader.work.get():
                case LoadModel() as command, _:
                    self._load(command)
                case UnloadModel(model=model), _:
                    self._unload(model)
                    self._pipe.write(Unloaded())
                case ((Run() | Upscale() as command), blobs):
                    self._run(command, blobs)
            self._reader.memory = self._memory()

    def _load(self, command: LoadModel) -> None:
        from mflux_api.engine.weights.components import CheckpointError

        started = time.monotonic()
        warnings: list[str] = []
        try:
            if command.model not in self._resident:
                self._resident[command.model] = self._opened(command, warnings.append)
            if not command.component_offload:
                self._resident[command.model].components.load_all()
        except Exception as error:  # noqa: BLE001 - whatever a library raises must reach the parent as a frame
            if isinstance(error, CheckpointError):
                code, message = "GENERATION_FAILED", str(error)
            else:
                code, message = _classified(error, "The model cannot be loaded")
        else:
            self._measure()
            active, _ = self._reader.memory
            self._pipe.write(
                Loaded(
                    model=command.model,
                    seconds=time.monotonic() - started,
                    active_bytes=active,
                    warning="; ".join(warnings),
                )
            )
            return
        # Only now: the exception held what was loaded up to there.
        self._unload(command.model)
        self._pipe.write(LoadFailed(model=command.model, code=code, message=message))

    def _opened(self, command: LoadModel, warn: Callable[[str], None]) -> "Pipeline | Upscaler":
        from mflux_api.engine.sampling.pipeline import Pipeline
        from mflux_api.engine.upscaling.components import UpscalerComponents, is_upscaler
        from mflux_api.engine.upscaling.upscaler import Upscaler
        from mflux_api.engine.weights.components import load_components
        from mflux_api.engine.weights.quantization import load_quantized

        folder = Path(command.path)
        if is_upscaler(folder):
            return Upscaler(UpscalerComponents(folder))
        if command.bits is None:
            components = load_components(folder, component_offload=command.component_offload)
        else:
            entry = Path(command.entry)
            components = load_quantized(
                folder, command.bits, entry, component_offload=command.component_offload, warn=warn
            )
        return Pipeline(components, self._device)

    def _unload(self, model: str) -> None:
        from mflux_api.engine import device as memory

        self._resident.pop(model, None)
        memory.release()
        self._measure()

    def _measure(self) -> None:
        """Tell the parent at once what memory there is: it decides by that what to load next."""
        self._reader.memory = self._memory()
        self._reader.beat()

    def _run(self, command: Run | Upscale, blobs: Blobs) -> None:
        from mflux_api.engine import device as memory
        from mflux_api.engine.sampling.pipeline import LoraError, Stopped
        from mflux_api.engine.weights.components import CheckpointError

        try:
            self._generate(command, blobs)
        except Stopped:
            self._pipe.write(RunStopped(run_id=command.run_id))
        except LoraError as error:
            details: dict[str, str | None] = {
                "field": "lora_files",
                "value": None,
                "limit": "whole LoRAs made for this model",
            }
            self._pipe.write(
                RunFailed(run_id=command.run_id, code="INVALID_PARAMETER", message=str(error), details=details)
            )
        except CheckpointError as error:
            # A component that was freed and cannot be read again.
            self._pipe.write(RunFailed(run_id=command.run_id, code="GENERATION_FAILED", message=str(error)))
        except Exception as error:  # noqa: BLE001 - whatever a library raises must reach the parent as a frame
            code, message = _classified(error, "The engine failed while generating")
            self._pipe.write(RunFailed(run_id=command.run_id, code=code, message=message))
        finally:
            self._reader.cancelled.discard(command.run_id)
            memory.release()

    def _generate(self, command: Run | Upscale, blobs: Blobs) -> None:
        from mflux_api.engine.sampling.pipeline import DoneEvent, ImageEvent, PreviewEvent, StageEvent, StepEvent

        seconds = [0.0, 0.0, 0.0]
        for first, events in self._passes(command, blobs):
            for event in events:
                match event:
                    case StageEvent(stage=stage):
                        self._pipe.write(StageChanged(run_id=command.run_id, stage=stage))
                    case StepEvent(step=step, steps=steps, image=offset, images=images):
                        self._reader.memory = self._memory()
                        self._pipe.write(
                            StepDone(run_id=command.run_id, image=first + offset, step=step, steps=steps, images=images)
                        )
                    case PreviewEvent(index=index, step=step, width=width, height=height, jpeg=jpeg):
                        preview = PreviewMade(
                            run_id=command.run_id, index=first + index, step=step, width=width, height=height
                        )
                        self._pipe.write(preview, [jpeg])
                    case ImageEvent(index=index, seed=seed, pixels=pixels):
                        height, width, _ = pixels.shape
                        image = ImageDone(
                            run_id=command.run_id, index=first + index, seed=seed, width=width, height=height
                        )
                        self._pipe.write(image, [pixels.tobytes()])
                    case DoneEvent(encode_s=encode, denoise_s=denoise, decode_s=decode):
                        seconds = [a + b for a, b in zip(seconds, (encode, denoise, decode), strict=True)]
        encode, denoise, decode = seconds
        self._pipe.write(
            RunDone(run_id=command.run_id, encode_seconds=encode, denoise_seconds=denoise, decode_seconds=decode)
        )

    def _passes(self, command: Run | Upscale, blobs: Blobs) -> "Iterator[tuple[int, Iterator[PassEvent]]]":
        """The first image of each pass, and its events."""
        from mflux_api.engine.runs import passes, upscaled_images
        from mflux_api.engine.sampling.pipeline import Pipeline
        from mflux_api.engine.upscaling.upscaler import Upscaler

        said_at = time.monotonic()

        def stopped() -> bool:
            nonlocal said_at
            if time.monotonic() - said_at >= STILL_RUNNING_SECONDS:
                said_at = time.monotonic()
                self._pipe.write(StillRunning(run_id=command.run_id))
            return command.run_id in self._reader.cancelled

        match command, self._resident.get(command.model):
            case Run() as run, Pipeline() as pipeline:
                for first, request in passes(run, blobs, pipeline):
                    yield first, pipeline.run(request, stopped)
            case Upscale() as upscale, Upscaler() as upscaler:
                for first, upscaled_image in upscaled_images(upscale, blobs):
                    yield first, upscaler.run(upscaled_image, stopped)
            case _:
                raise RuntimeError("no model that can do it is resident under that name")

    def _memory(self) -> tuple[int, int]:
        from mflux_api.engine import device as memory

        return memory.active_bytes(), memory.peak_bytes()


def _classified(error: Exception, what: str) -> tuple[str, str]:
    """Return a code and a sentence without the error's own text, which may hold paths or prompts."""
    from mflux_api.engine.device import is_out_of_memory

    print(f"{what}: {error!r}", file=sys.stderr)  # noqa: T201 - the parent's debug log
    if is_out_of_memory(error):
        return "OOM_ERROR", "Insufficient memory"
    return "GENERATION_FAILED", f"{what} ({type(error).__name__}); the debug log has the details"


def _ready(device: "Device", blas_name: str, *, blas_fast: bool) -> Ready:
    from importlib.metadata import version

    from mflux_api.engine.device import memory_bytes

    return Ready(
        pid=os.getpid(),
        device=device.kind,
        device_name=device.name,
        precision="float32" if device.kind == "cpu" else "bfloat16",
        blas=blas_name if device.kind == "cpu" else "",
        blas_fast=blas_fast,
        versions={name: version(name) for name in ("mlx", "mflux")},
        memory_bytes=memory_bytes(device),
    )


def main() -> None:
    """Set up the pipe before anything can print, then import the model code, then serve."""
    pipe = take_standard_streams(ENGINE_TYPES)
    reader = Reader(pipe)
    reader.start()
    # Loading a checkpoint from disk must never reach for the network.
    os.environ["HF_HUB_OFFLINE"] = "1"

    from mflux_api.engine import blas

    library = blas.preload()
    from mflux_api.engine import device as memory

    device = memory.detect_device()
    memory.configure(device)
    if device.kind == "cuda":
        reader.device_bytes = memory.memory_bytes(device)
    import mflux_api.engine.sampling.pipeline  # noqa: F401 - the slow imports belong before the handshake

    pipe.write(_ready(device, library.name, blas_fast=library.fast))
    Worker(pipe, reader, device).serve()


if __name__ == "__main__":
    main()
