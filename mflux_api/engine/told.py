"""What the service was told of a run that has no end yet."""

import attrs

from mflux_api.engine.protocol import (
    ImageDone,
    PartialImageMade,
    PreviewMade,
    RunDone,
    RunWarning,
    StageChanged,
    StepDone,
)
from mflux_api.engine.runs import PassFrame
from mflux_api.engine.sampling.passes import DoneEvent
from mflux_api.jobs.warnings import MAX_WARNINGS


@attrs.define(eq=False)
class Told:
    """The news of one run: each is told once, also where the run begins anew because a pass that it shared failed."""

    run_id: int
    images: int
    """How many it has to have."""
    _done: set[int] = attrs.field(factory=set)
    _seen: set[tuple[object, ...]] = attrs.field(factory=set)
    _warnings: set[str] = attrs.field(factory=set)
    _seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def is_news(self, frame: PassFrame) -> bool:
        """Note a frame that is about to be told; return whether it was not told before."""
        match frame:
            case StageChanged():
                return True
            case RunWarning(message=message):
                if message in self._warnings or len(self._warnings) == MAX_WARNINGS:
                    return False
                self._warnings.add(message)
                return True
            case ImageDone(index=index):
                self._done.add(index)
                key: tuple[object, ...] = (ImageDone, index)
            case StepDone(image=image, step=step):
                key = (StepDone, image, step)
            case PreviewMade(index=index, step=step):
                key = (PreviewMade, index, step)
            case PartialImageMade(index=index, number=number):
                key = (PartialImageMade, index, number)
        is_news = key not in self._seen
        self._seen.add(key)
        return is_news

    def add_seconds(self, event: DoneEvent) -> None:
        """Count a pass that had images of the run."""
        encode, denoise, decode = self._seconds
        self._seconds = (encode + event.encode_s, denoise + event.denoise_s, decode + event.decode_s)

    @property
    def is_whole(self) -> bool:
        """Whether it has all its images."""
        return len(self._done) == self.images

    def done(self) -> RunDone:
        """Return the end of a whole run."""
        encode, denoise, decode = self._seconds
        return RunDone(run_id=self.run_id, encode_seconds=encode, denoise_seconds=denoise, decode_seconds=decode)
