"""What the engine child says while its main thread is busy: that a load or a run goes on, how far, and whether to stop.

Every word comes from the work itself, so that a main thread that hangs falls silent, whatever the heartbeat says.
"""

import time
from typing import TYPE_CHECKING

from mflux_api.engine.protocol import LoadProgress, Stage, StageChanged, StillRunning

if TYPE_CHECKING:
    from mflux_api.engine.control_thread import ControlThread
    from mflux_api.ipc.child_pipe import ChildPipe

STILL_RUNNING_SECONDS = 5.0
PROGRESS_SECONDS = 0.5


class Reporter:
    """Speaks of the load or the run that the main thread has in hand."""

    def __init__(self, pipe: "ChildPipe", control: "ControlThread") -> None:
        self._pipe = pipe
        self._control = control
        self._run_id: int | None = None
        self._last_sign = 0.0
        self.stage: Stage | None = None
        """Where the run is."""

    def begin(self, run_id: int | None = None) -> None:
        """Take the next piece of work: a run, or a load where there is no id."""
        self._run_id, self.stage = run_id, None
        self._last_sign = time.monotonic()

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
        self._pipe.write(LoadProgress(component=component, bytes_done=done, bytes_total=total, run_id=self._run_id))
        if self._run_id is not None and self.stage is not None and done >= total:
            self._pipe.write(StageChanged(run_id=self._run_id, stage=self.stage))

    def should_stop(self) -> bool:
        """Whether the run is to end; in a long stage it also says that it goes on."""
        if self._run_id is not None and time.monotonic() - self._last_sign >= STILL_RUNNING_SECONDS:
            self._last_sign = time.monotonic()
            self._pipe.write(StillRunning(run_id=self._run_id))
        return self._cancelled()

    def _cancelled(self) -> bool:
        return self._control.load_cancelled if self._run_id is None else self._run_id in self._control.cancelled
