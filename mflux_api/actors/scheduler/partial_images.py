"""Partial images of one run: pixels become files for the job's followers beside the run, which never waits for them."""

import logging
from binascii import b2a_base64
from collections.abc import Callable
from typing import Final

import attrs
import trio

from mflux_api.actors.decoding import Decoding
from mflux_api.actors.mailbox import ActorGone
from mflux_api.engine import protocol as p
from mflux_api.errors import ServiceError
from mflux_api.images.encode import ImageTarget, target_of
from mflux_api.images.png import encode_png
from mflux_api.jobs.job import Job
from mflux_api.jobs.progress import PartialImage
from mflux_api.system.threads import read_in_thread

logger = logging.getLogger(__name__)

WAITING: Final = 2
"""Partial images that wait while one is encoded; what comes then is left out."""


@attrs.frozen
class _Pixels:
    made: p.PartialImageMade
    rgb: bytes = attrs.field(repr=False)


class PartialImages:
    """Those of one run of a job."""

    def __init__(
        self, job: Job, decoding: Decoding, encoders: trio.CapacityLimiter, show: Callable[[PartialImage], None]
    ) -> None:
        self._job = job
        self._decoding = decoding
        self._encoders = encoders
        self._show = show
        self._target = target_of(job.request)
        self._send, self._receive = trio.open_memory_channel[_Pixels](WAITING)

    def offer(self, made: p.PartialImageMade, rgb: bytes) -> None:
        """Have a partial image shown, unless too many wait."""
        try:
            self._send.send_nowait(_Pixels(made, rgb))
        except trio.WouldBlock:
            logger.debug("job %s: a partial image was left out", self._job.id)

    async def run(self) -> None:
        """Show what is offered, one after the other, until cancelled."""
        async for pixels in self._receive:
            try:
                text = await self._encode(pixels)
            except (ServiceError, ActorGone) as error:
                logger.debug("job %s: a partial image was not made (%r)", self._job.id, error)
                continue
            made = pixels.made
            self._show(
                PartialImage(
                    id=self._job.id,
                    image=made.index,
                    partial_image_index=made.number,
                    step=made.step,
                    steps=self._job.request.steps_run,
                    width=made.width,
                    height=made.height,
                    output_format=self._target.format,
                    base64=text,
                )
            )

    async def _encode(self, pixels: _Pixels) -> bytes:
        made = pixels.made
        png = await read_in_thread(
            lambda: encode_png(pixels.rgb, made.width, made.height, parameters=""), limiter=self._encoders
        )
        file = png if self._target == ImageTarget() else await self._decoding.convert_image(png, self._target)
        return await read_in_thread(lambda: b2a_base64(file, newline=False), limiter=self._encoders)
