"""The engine child's second thread: takes commands and cancels while the main thread computes, and beats."""

import os
import queue
import threading
import time
import traceback
from typing import NoReturn

from mflux_api import machine
from mflux_api.engine.protocol import (
    Cancel,
    CancelLoad,
    Heartbeat,
    LoadModel,
    Run,
    SharedRun,
    ShowPreviews,
    Shutdown,
    UnloadModel,
    Upscale,
)
from mflux_api.ipc.child_pipe import ChildPipe

BEAT_SECONDS = 1.0


class ControlThread(threading.Thread):
    """Obeys control frames at once and queues the others for the main thread."""

    def __init__(self, pipe: ChildPipe) -> None:
        super().__init__(name="control", daemon=True)
        self.work: queue.SimpleQueue[tuple[LoadModel | UnloadModel | Run | SharedRun | Upscale, tuple[bytes, ...]]] = (
            queue.SimpleQueue()
        )
        """Commands for the main thread, each with its blobs."""
        self.cancelled: set[int] = set()
        """The runs that are to stop."""
        self.previewed: set[int] = set()
        """The runs whose previews someone follows."""
        self.load_cancelled = False
        """Whether the load under way is to stop."""
        self.memory: tuple[int, int] = (0, 0)
        """Bytes of MLX's arrays now and at their peak; the main thread keeps it up to date."""
        self.device_bytes: int | None = None
        """The memory of a device that has its own."""
        self._pipe = pipe

    def run(self) -> None:
        """Read until the parent goes away. The process ends with this thread: without it a run could not be stopped."""
        try:
            self._serve()
        except Exception:  # noqa: BLE001 - a parent that talks nonsense; the debug log gets it
            traceback.print_exc()
        finally:
            os._exit(1)

    def _serve(self) -> NoReturn:
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
                case ShowPreviews(run_id=run_id), _:
                    self.previewed.add(run_id)
                case CancelLoad(), _:
                    self.load_cancelled = True
                case LoadModel() as command, blobs:
                    # There is one load at a time: a cancel that came before this one was for another.
                    self.load_cancelled = False
                    self.work.put((command, blobs))
                case ((UnloadModel() | Run() | SharedRun() | Upscale() as command), blobs):
                    self.work.put((command, blobs))

    def beat(self) -> None:
        """Say that the child lives, and what memory it has."""
        active, peak = self.memory
        self._pipe.write(Heartbeat(active_bytes=active, peak_bytes=peak, free_bytes=self.free_bytes()))

    def free_bytes(self) -> int | None:
        """Return what the device has left; ``None`` when it does not say."""
        return machine.available_bytes() if self.device_bytes is None else max(0, self.device_bytes - self.memory[0])
