"""How long the parts of a run take, for the estimates."""

import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Address
from mflux_api.engine import protocol as p
from mflux_api.jobs.estimates import Estimates
from mflux_api.jobs.resolve import ResolvedRequest


class Stopwatch:
    """Measures one run for the estimates: what comes before its first step, each step, and what each image takes else.

    What was told to compile counts nowhere: the next run of its kind does not.
    """

    def __init__(
        self,
        estimates: Estimates,
        request: ResolvedRequest,
        device: str | None,
        stats: Address[m.StatsMessage],
    ) -> None:
        self._estimates = estimates
        self._request = request
        self._device = device
        self._stats = stats
        self._last = trio.current_time()
        self._image_began: float | None = None
        """When the image began that is saved next; ``None`` before the first step."""
        self._stepping = 0.0
        """Seconds of its steps so far."""
        self._compiling = self._shared = False

    def stage_began(self, stage: p.Stage) -> None:
        """The engine entered another stage."""
        if stage == "compiling":
            self._compiling = True
            return
        now = trio.current_time()
        if stage == "denoising" and self._image_began is None:
            if not self._compiling:
                self._estimates.add_start(self._request, self._device, now - self._last)
            self._image_began = now
        self._last, self._compiling = now, False

    def step_done(self, done: p.StepDone) -> None:
        """A denoising step ended."""
        now = trio.current_time()
        batch = max(done.images, done.batch)
        self._shared = batch > done.images
        if not self._compiling:
            seconds = now - self._last
            self._estimates.add_step(self._request, self._device, seconds / batch)
            width, height = self._request.size
            self._stats.tell_lossy(
                m.StepMeasured(model=self._request.model, width=width, height=height, seconds=seconds)
            )
        self._compiling = False
        self._stepping += now - self._last
        self._last = now

    def partial_image_made(self) -> None:
        """A partial image was decoded: the next run may make none, so that its time counts nowhere."""
        now = trio.current_time()
        self._stepping += now - self._last
        self._last = now

    def image_saved(self) -> None:
        """An image is on disk."""
        now = trio.current_time()
        if self._image_began is not None and not (self._compiling or self._shared):
            self._estimates.add_rest(self._request, self._device, now - self._image_began - self._stepping)
        self._image_began, self._stepping, self._compiling = now, 0.0, False
