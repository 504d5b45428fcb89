"""The engine child: reads commands, runs the model on its main thread, writes events.

Started as ``python -P -m mflux_api.engine.worker`` by :mod:`mflux_api.engine.local`; never by hand.
"""

import os
import queue
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mflux_api import machine
from mflux_api.engine import protocol
from mflux_api.engine.protocol import (
    PREFIX_LENGTH,
    Cancel,
    Command,
    Heartbeat,
    ImageDone,
    Load,
    Loaded,
    LoadFailed,
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
    Unload,
    Unloaded,
    Upscale,
)

if TYPE_CHECKING:
    from mflux_api.engine.device import Device
    from mflux_api.engine.sampling.passes import Event as PassEvent
    from mflux_api.engine.sampling.pipeline import Pipeline
    from mflux_api.engine.upscaling.upscaler import Upscaler

Blobs = tuple[bytes, ...]

BEAT_SECONDS = 1.0
STILL_RUNNING_SECONDS = 5.0
READ_SIZE = 1 << 20
NICENESS = 5


class Pipe:
    """The child's end of the two pipes; writing is safe from both threads."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._writing = threading.Lock()

    def write(self, event: Any, blobs: Sequence[bytes] = ()) -> None:
        """Send one frame; a parent that is gone ends this process."""
        data = memoryview(protocol.encode(event, blobs))
        with self._writing:
            while data:
                try:
                    written = os.write(self._outgoing, data)
                except BrokenPipeError:
                    os._exit(0)
                data = data[written:]

    def wait_readable(self, seconds: float) -> bool:
        """Wait until there is something to read, or the time is over."""
        return bool(select.select([self._incoming], [], [], seconds)[0])

    def read(self, count: int) -> bytes:
        """Read exactly that much; end-of-file ends this process, so that no orphan stays."""
        data = bytearray()
        while len(data) < count:
            chunk = os.read(self._incoming, min(count - len(data), READ_SIZE))
            if not chunk:
                os._exit(0)
            data += chunk
        return bytes(data)

    def read_command(self) -> tuple[Command, Blobs]:
        """Read one frame and the raw bytes that belong to it."""
        length = protocol.header_length(self.read(PREFIX_LENGTH))
        header = protocol.decode_header(self.read(length))
        return header.frame, tuple(self.read(size) for size in header.blob_lengths)


class Reader(threading.Thread):
    """Takes control frames at once, passes work on, and beats; it runs beside a busy main thread."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__(name="control", daemon=True)
        self.work: queue.SimpleQueue[tuple[Load | Unload | Run | Upscale, Blobs]] = queue.SimpleQueue()
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
            match self._pipe.read_command():
                case Shutdown(), _:
                    os._exit(0)
                case Cancel(attempt=attempt), _:
                    self.cancelled.add(attempt)
                case ((Load() | Unload() | Run() | Upscale() as command), blobs):
                    self.work.put((command, blobs))

    def beat(self) -> None:
        """Say that the child lives, and what memory it has."""
        active, peak = self.memory
        free = machine.available_bytes() if self.device_bytes is None else max(0, self.device_bytes - active)
        self._pipe.write(Heartbeat(active_bytes=active, peak_bytes=peak, free_bytes=free))


class Worker:
    """The main thread: the resident models, one command at a time."""

    def __init__(self, pipe: Pipe, reader: Reader, device: "Device") -> None:
        self._pipe = pipe
        self._reader = reader
        self._device = device
        self._resident: dict[str, Pipeline | Upscaler] = {}

    def serve(self) -> NoReturn:
        """Work until the process ends."""
        while True:
            match self._reader.work.get():
                case Load() as command, _:
                    self._load(command)
                case Unload(model=model), _:
                    self._unload(model)
                    self._pipe.write(Unloaded())
                case ((Run() | Upscale() as command), blobs):
                    self._run(command, blobs)
            self._reader.memory = self._memory()

    def _load(self, command: Load) -> None:
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

    def _opened(self, command: Load, warn: Callable[[str], None]) -> "Pipeline | Upscaler":
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

    def _unload(self, model: str | None) -> None:
        from mflux_api.engine import device as memory

        if model is None:
            self._resident.clear()
        else:
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
            self._pipe.write(RunStopped(attempt=command.attempt))
        except LoraError as error:
            details: dict[str, str | None] = {
                "field": "lora_files",
                "value": None,
                "limit": "whole LoRAs made for this model",
            }
            self._pipe.write(
                RunFailed(attempt=command.attempt, code="INVALID_PARAMETER", message=str(error), details=details)
            )
        except CheckpointError as error:
            # A component that was freed and cannot be read again.
            self._pipe.write(RunFailed(attempt=command.attempt, code="GENERATION_FAILED", message=str(error)))
        except Exception as error:  # noqa: BLE001 - whatever a library raises must reach the parent as a frame
            code, message = _classified(error, "The engine failed while generating")
            self._pipe.write(RunFailed(attempt=command.attempt, code=code, message=message))
        finally:
            self._reader.cancelled.discard(command.attempt)
            memory.release()

    def _generate(self, command: Run | Upscale, blobs: Blobs) -> None:
        from mflux_api.engine.sampling.pipeline import DoneEvent, ImageEvent, PreviewEvent, StageEvent, StepEvent

        seconds = [0.0, 0.0, 0.0]
        for first, events in self._passes(command, blobs):
            for event in events:
                match event:
                    case StageEvent(stage=stage):
                        self._pipe.write(StageChanged(attempt=command.attempt, stage=stage))
                    case StepEvent(step=step, steps=steps, image=offset, images=images):
                        self._reader.memory = self._memory()
                        self._pipe.write(
                            StepDone(
                                attempt=command.attempt, image=first + offset, step=step, steps=steps, images=images
                            )
                        )
                    case PreviewEvent(index=index, step=step, width=width, height=height, jpeg=jpeg):
                        preview = PreviewMade(
                            attempt=command.attempt, index=first + index, step=step, width=width, height=height
                        )
                        self._pipe.write(preview, [jpeg])
                    case ImageEvent(index=index, seed=seed, pixels=pixels):
                        height, width, _ = pixels.shape
                        image = ImageDone(
                            attempt=command.attempt, index=first + index, seed=seed, width=width, height=height
                        )
                        self._pipe.write(image, [pixels.tobytes()])
                    case DoneEvent(encode_s=encode, denoise_s=denoise, decode_s=decode):
                        seconds = [a + b for a, b in zip(seconds, (encode, denoise, decode), strict=True)]
        encode, denoise, decode = seconds
        self._pipe.write(
            RunDone(attempt=command.attempt, encode_seconds=encode, denoise_seconds=denoise, decode_seconds=decode)
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
                self._pipe.write(StillRunning(attempt=command.attempt))
            return command.attempt in self._reader.cancelled

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
    """Set up the pipes before anything can print, then import the model code, then serve."""
    incoming, outgoing = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    # A library that asks a question, or a process it starts, must not take frames.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.nice(NICENESS)
    pipe = Pipe(incoming, outgoing)
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
