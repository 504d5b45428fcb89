"""A job's progress in the protocol's form: numbers that grow, and a few words."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from mflux_api.jobs.job import Stage
from mflux_api.jobs.progress import Progress

_LEAST_GROWTH: Final = 0.001
"""The protocol wants a larger number each time, also where only the words have changed."""

_WORDS: Final[Mapping[Stage, str]] = {
    Stage.QUEUED: "waiting in the queue",
    Stage.DOWNLOADING: "downloading the model",
    Stage.LOADING: "loading the model",
    Stage.ENCODING: "encoding the prompt",
    Stage.COMPILING: "compiling for this device",
    Stage.DECODING: "decoding the image",
    Stage.SAVING: "saving the image",
}


class Meter:
    """Reports one job."""

    def __init__(self, report: Callable[[float, float, str], Awaitable[None]]) -> None:
        """Take what sends a progress, a total and a message."""
        self._report = report
        self._last = 0.0
        self._message = ""

    async def show(self, progress: Progress) -> None:
        """Report where a job is; what says no more than the report before it is left out.

        The total is the number of steps of all images, and one for saving each.
        """
        total = float(progress.images * (progress.steps + 1))
        value, message = progress.progress * total, describe(progress)
        if message == self._message and value <= self._last:
            return
        self._last, self._message = round(max(value, self._last + _LEAST_GROWTH), 3), message
        await self._report(self._last, total, message)


def describe(progress: Progress) -> str:
    """Return in a few words where a job is; of a transfer in whole percent, so that there are few of them."""
    steps = f"step {progress.step} of {progress.steps}"
    words = _WORDS.get(progress.stage, steps)
    if progress.bytes_done is not None and progress.bytes_total:
        words += f": {100 * progress.bytes_done // progress.bytes_total}%"
    if progress.images > 1 and progress.stage in (Stage.DENOISING, Stage.DECODING, Stage.SAVING):
        words += f", image {min(progress.image + 1, progress.images)} of {progress.images}"
    return words
