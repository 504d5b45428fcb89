"""A job's progress: one line that is drawn over on a terminal; in a file or a pipe a line now and then."""

import shutil
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from mflux_api.jobs.job import Stage
from mflux_api.jobs.progress import Progress

_BAR_WIDTH = 20
_LINE_SECONDS = 30.0
"""Between two lines where no person looks on: an hour's download is a hundred lines, and a short job none."""

_NOTES = {
    Stage.QUEUED: "waiting",
    Stage.DOWNLOADING: "downloading the model",
    Stage.LOADING: "loading the model",
    Stage.ENCODING: "reading the prompt",
    Stage.COMPILING: "compiling for this GPU",
    Stage.DENOISING: "generating",
    Stage.DECODING: "decoding",
    Stage.SAVING: "saving",
}


class ProgressBar:
    """Draws over one line on a terminal; elsewhere writes a line every 30 s, while something changes."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._clock = clock
        self._last = ""
        self._started = self._written = clock()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._terminal and self._last:
            self._stream.write("\n")
            self._stream.flush()

    def note(self, text: str) -> None:
        """Show what is going on before there is anything to measure."""
        self._show(0.0, text)

    def update(self, progress: Progress) -> None:
        """Show the job's progress."""
        text = _NOTES[progress.stage]
        if progress.stage is Stage.DOWNLOADING and progress.bytes_total:
            self.transfer(text, progress.bytes_done or 0, progress.bytes_total)
            return
        if progress.stage is Stage.DENOISING and progress.step:
            text += f", step {progress.step}/{progress.steps}"
        if progress.images > 1:
            text += f" (image {min(progress.image + 1, progress.images)}/{progress.images})"
        if (progress.eta_seconds or 0) >= 1 and progress.stage is not Stage.QUEUED:
            text += f", {clock_text(progress.eta_seconds or 0)} left"
        self._show(progress.progress, text)

    def transfer(self, text: str, done: int, total: int, bytes_per_second: float | None = None) -> None:
        """Show how far a download is."""
        text = f"{text}, {_bytes(done)} of {_bytes(total)}"
        if bytes_per_second:
            text += f", {_bytes(bytes_per_second)}/s, {clock_text((total - done) / bytes_per_second)} left"
        self._show(done / total if total else 1.0, text)

    def _show(self, ratio: float, text: str) -> None:
        filled = round(ratio * _BAR_WIDTH)
        line = f"[{'█' * filled}{'·' * (_BAR_WIDTH - filled)}] {ratio:4.0%} {text}"
        if line == self._last:
            return
        self._last = line
        now = self._clock()
        timed = f"{line} ({now - self._started:.1f} s)"
        if self._terminal:
            width = shutil.get_terminal_size().columns
            self._stream.write(f"\r{timed[: width - 1]:<{width - 1}}")
        elif now - self._written >= _LINE_SECONDS:
            self._written = now
            self._stream.write(timed + "\n")
        self._stream.flush()


def _bytes(count: float) -> str:
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def clock_text(seconds: float) -> str:
    """Return a length of time as ``1:15`` or ``1:00:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
