"""What the engine child says while its main thread is busy: that a load or a run goes on, how far, and whether to stop.

Every word comes from the work itself, so that a main thread that hangs falls silent, whatever the heartbeat says. Only
a compiler cannot be asked: while one may be at work, the time that it takes from the CPU speaks for it, up to a limit.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mflux_api.engine.protocol import LoadProgress, ReadingLora, Stage, StageChanged, StillRunning

if TYPE_CHECKING:
    from mflux_api.engine.control_thread import ControlThread
    from mflux_api.ipc.child_pipe import ChildPipe

STILL_RUNNING_SECONDS = 5.0
PROGRESS_SECONDS = 0.5
COMPILING_SECONDS = 900.0
"""How long the first pass of a kind is believed to compile (an H200 took 142 s for the kernels of 8 bits)."""
_BUSY_SHARE = 0.1
"""How much of one core a compiler takes at the least; a main thread that waits takes next to nothing."""


class Reporter:
    """Speaks of the load or the runs that the main thread has in hand."""

    def __init__(self, pipe: "ChildPipe", control: "ControlThread") -> None:
        self._pipe = pipe
        self._control = control
        self._run_ids: tuple[int, ...] = ()
        self._last_sign = 0.0
        self.stage: Stage | None = None
        """Where the run is."""

    def begin(self, run_ids: Sequence[int] = ()) -> None:
        """Take the next piece of work: runs that share it, or a load where there is no id."""
        self._run_ids, self.stage = tuple(run_ids), None
        self._last_sign = time.monotonic()

    def forget(self, run_id: int) -> None:
        """Say no more of one of several runs: it has ended."""
        self._run_ids = tuple(each for each in self._run_ids if each != run_id)

    def read(self, component: str, done: int, total: int) -> None:
        """Report that so many bytes of a reading are done, at its begin and end and now and then between.

        Raises:
            Stopped: what it is read for is not wanted any more.
        """
        from mflux_api.engine.sampling.passes import Stopped

        if self._cancelled():
            raise Stopped
        if 0 < done < total and time.monotonic() - self._last_sign < PROGRESS_SECONDS:
            return
        self._last_sign = time.monotonic()
        for run_id in self._run_ids or (None,):
            self._pipe.write(LoadProgress(component=component, bytes_done=done, bytes_total=total, run_id=run_id))
            if run_id is not None and self.stage is not None and done >= total:
                self._pipe.write(StageChanged(run_id=run_id, stage=self.stage))

    def reading_lora(self, index: int | None) -> None:
        """Say which of the run's LoRAs is read now; ``None`` when all are."""
        # Runs that share a pass have the same ones.
        if self._run_ids:
            self._pipe.write(ReadingLora(run_id=self._run_ids[0], index=index))

    def should_stop(self) -> bool:
        """Whether the run is to end; in a long stage it also says that it goes on."""
        if self._run_ids and time.monotonic() - self._last_sign >= STILL_RUNNING_SECONDS:
            self._last_sign = time.monotonic()
            self._pipe.write(StillRunning(run_id=self._run_ids[0]))
        return self._cancelled()

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Say for the length of the block that the run goes on, for as long as this process computes."""
        over = threading.Event()
        watch = threading.Thread(target=self._watch_cpu, args=(self._run_ids[0], over), name="compiling", daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()

    def _watch_cpu(self, run_id: int, over: threading.Event) -> None:
        end, used = time.monotonic() + COMPILING_SECONDS, _cpu_seconds()
        while not over.wait(STILL_RUNNING_SECONDS) and time.monotonic() < end:
            now = _cpu_seconds()
            if now - used >= _BUSY_SHARE * STILL_RUNNING_SECONDS:
                self._pipe.write(StillRunning(run_id=run_id))
            used = now

    def _cancelled(self) -> bool:
        if not self._run_ids:
            return self._control.load_cancelled
        return all(run_id in self._control.cancelled for run_id in self._run_ids)


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of the ended processes that it started."""
    return sum(os.times()[:4])
