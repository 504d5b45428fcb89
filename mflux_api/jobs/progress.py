"""A job's events: its progress, and its one end. Pure values, no I/O, no clock of its own."""

from collections.abc import Mapping
from typing import Any

import attrs

from mflux_api.jobs.job import Job, Stage, Status
from mflux_api.jobs.request import ImageFormat


@attrs.frozen(kw_only=True)
class Progress:
    """The state of a job that is not finished, or one step of its way."""

    id: str
    status: Status
    stage: Stage
    progress: float
    """0.0 to 1.0; never decreases, also not across attempts."""
    step: int = 0
    """Steps finished for the current image."""
    steps: int = 0
    image: int = 0
    """While steps are done, the first image that they are for (from 0); else how many images are saved."""
    images: int = 1
    attempt: int = 1
    eta_seconds: float | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    preview: str | None = None
    """A small JPEG in base64 of image number ``image``; only in events for subscribers that asked for previews."""

    def supersedes(self, before: "StreamEvent") -> bool:
        """Whether this says no more than the event before it, but for how many bytes have arrived since."""
        if not isinstance(before, Progress) or before.bytes_done is None or self.bytes_done is None:
            return False
        return attrs.evolve(before, **_transfer(self)) == self


@attrs.frozen(kw_only=True, eq=False)
class PartialImage:
    """What an image is coming to, decoded as a finished one is; followers that ask for it get it, and no log has it."""

    id: str
    image: int
    """The image's number, from 0."""
    partial_image_index: int
    """Which of the image's partial ones, from 0."""
    step: int
    """After how many steps of :attr:`steps`."""
    steps: int
    width: int
    height: int
    output_format: ImageFormat
    base64: bytes = attrs.field(repr=False)
    """The file."""


@attrs.frozen(kw_only=True)
class Finished:
    """The one terminal event of a job: ``complete``, ``failed`` or ``cancelled``."""

    job: Job

    @property
    def event_id(self) -> str:
        """Id on the wire, made of the job alone: the same on every open, after a restart and without a log."""
        return f"{self.job.id}-{self.job.status.value}"


JobEvent = Progress | Finished
"""What a subscriber of one job receives: any number of :class:`Progress`, then one :class:`Finished`."""
StreamEvent = JobEvent | PartialImage
"""What a subscriber receives that asked for partial images, too."""


_NO_TRANSFER: Mapping[str, Any] = {"bytes_done": None, "bytes_total": None, "eta_seconds": None}


def _transfer(progress: Progress) -> Mapping[str, Any]:
    return {name: getattr(progress, name) for name in _NO_TRANSFER}


class ProgressTracker:
    """Turns what the engine reports into :class:`Progress` values whose ``progress`` never decreases."""

    def __init__(self, job: Job) -> None:
        self._latest = Progress(
            id=job.id,
            status=job.status,
            stage=Stage.QUEUED,
            progress=0.0,
            steps=job.request.steps_run,
            images=job.request.num_images,
            attempt=job.engine_deaths + 1,
        )
        self._count(steps=0, pass_end=0, saved=0)

    def _count(self, *, steps: int, pass_end: int, saved: int) -> None:
        self._steps_done = steps
        """Steps of all images together."""
        self._pass_end = pass_end
        """Number of the first image without a step so far."""
        self._saved = saved

    @property
    def images_saved(self) -> int:
        """Images on disk."""
        return self._saved

    @property
    def steps_ahead(self) -> int:
        """Steps done of images that are not saved yet, all together."""
        return self._steps_done - self._saved * self._latest.steps

    @property
    def latest(self) -> Progress:
        """The newest event."""
        return self._latest

    def begin_attempt(self, attempt: int) -> None:
        """Start counting from the first step again; ``progress`` keeps its highest value."""
        self._count(steps=0, pass_end=0, saved=0)
        self._latest = attrs.evolve(
            self._latest,
            status=Status.GENERATING,
            stage=Stage.LOADING,
            attempt=attempt,
            step=0,
            image=0,
            **_NO_TRANSFER,
        )

    def back_to_queue(self) -> Progress:
        """The job waits again."""
        self._count(steps=0, pass_end=0, saved=0)
        self._latest = attrs.evolve(
            self._latest, status=Status.QUEUED, stage=Stage.QUEUED, step=0, image=0, **_NO_TRANSFER
        )
        return self._latest

    def downloading(self, done: int, total: int | None, eta_seconds: float | None) -> Progress:
        """The model is being downloaded; the job keeps its place in the queue meanwhile."""
        self._latest = attrs.evolve(
            self._latest, stage=Stage.DOWNLOADING, bytes_done=done, bytes_total=total, eta_seconds=eta_seconds
        )
        return self._latest

    def loading(self, done: int, total: int) -> Progress:
        """The model's files are being read; a total of 0 says only that it goes on."""
        bytes_done, bytes_total = (done, total) if total else (None, None)
        self._latest = attrs.evolve(self._latest, stage=Stage.LOADING, bytes_done=bytes_done, bytes_total=bytes_total)
        return self._latest

    def stage(self, stage: Stage) -> Progress:
        """Another kind of work began."""
        return self._advance(stage=stage, image=self._saved, **_NO_TRANSFER)

    def step(self, step: int, steps: int, *, image: int, images: int = 1) -> Progress:
        """Step ``step`` of ``steps`` is done (1-based) of ``images`` images from number ``image`` on.

        Those before have all their steps behind them, whether they are saved or not.
        """
        images = min(images, self._latest.images - image)
        self._count(steps=image * steps + step * images, pass_end=image + images, saved=self._saved)
        return self._advance(stage=Stage.DENOISING, step=step, steps=steps, image=image, **_NO_TRANSFER)

    def preview(self, jpeg: str) -> Progress:
        """Return an event with a preview of image number ``latest.image``, in base64; no later event repeats it."""
        return attrs.evolve(self._latest, preview=jpeg)

    def image_saved(self, count: int) -> Progress:
        """``count`` images are on disk."""
        self._saved = count
        nothing_yet = self._pass_end <= count < self._latest.images
        return self._advance(stage=Stage.SAVING, image=count, step=0 if nothing_yet else self._latest.steps)

    def _advance(self, **changes: Any) -> Progress:
        changed = attrs.evolve(self._latest, **changes)
        ratio = (self._steps_done + self._saved) / (changed.images * (changed.steps + 1))
        self._latest = attrs.evolve(changed, progress=max(self._latest.progress, min(ratio, 1.0)))
        return self._latest
