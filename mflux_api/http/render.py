"""Jobs as JSON. A job's images are read once, as base64 that all who are sent them share."""

import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import attrs
import trio

from mflux_api.actors.messages import PARTIAL_IMAGES_WAITING
from mflux_api.errors import ServerBusy, ServiceError
from mflux_api.gateway.bytes_in_flight import Reservation
from mflux_api.gateway.gateway import Gateway
from mflux_api.gateway.jobs import JobView
from mflux_api.http.responses import Answer, to_json
from mflux_api.http.schemas import JobResponse, JobResult, StageName, WebhookResponse, WebhookState
from mflux_api.images.encode import ImageTarget, base64_length, target_of
from mflux_api.images.generation_record import request_fields
from mflux_api.images.rgb import CHANNELS
from mflux_api.jobs.job import Job, Stage, Status, StoredImage
from mflux_api.jobs.progress import Progress
from mflux_api.jobs.warnings import merge

logger = logging.getLogger(__name__)

CACHE_BYTES = 64 * 1024 * 1024
"""Images that no request uses any more are kept up to this, beside the bytes in flight."""
ROOM_SECONDS = 60.0
"""How long a call whose job is done waits for the room to be answered."""


def timestamp(moment: datetime) -> str:
    """Return a time as clients see it: UTC, seconds, ``Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def job_response(view: JobView, result: JobResult | None = None, warnings: Sequence[str] = ()) -> JobResponse:
    """Return a job as clients see it, with every key."""
    job, live = view.job, view.live
    progress = live.progress if live is not None else None
    return JobResponse(
        id=job.id,
        status=job.status.value,
        stage=_stage(job, progress),
        progress=progress.progress if progress is not None else job.progress,
        prompt=job.request.prompt,
        model=job.model,
        position=live.position if live is not None else None,
        eta_seconds=progress.eta_seconds if progress is not None else None,
        created_at=timestamp(job.created_at),
        started_at=None if job.started_at is None else timestamp(job.started_at),
        completed_at=None if job.completed_at is None else timestamp(job.completed_at),
        result=result,
        error=job.failure.message if job.failure is not None else None,
        code=job.failure.code if job.failure is not None else None,
        details=dict(job.failure.details) if job.failure is not None else None,
        request=_request(job),
        edit=job.request.image_strength is not None or job.request.upscaling is not None,
        webhook=_webhook(job, view.viewer),
        warnings=merge(job.warnings, () if live is None else live.warnings, warnings),
    )


def _request(job: Job) -> dict[str, Any]:
    count = {"num_images": job.request.num_images} if job.request.num_images > 1 else {}
    return request_fields(job.request, job.request.seed) | count


def _webhook(job: Job, viewer: str | None) -> WebhookResponse | None:
    webhook, delivery = job.request.webhook, job.delivery
    if webhook is None:
        return None
    state: WebhookState = "skipped" if job.status.terminal else "waiting"
    if delivery is not None:
        state = delivery.state.value
    return WebhookResponse(
        # It may hold a secret of the receiver's.
        url=webhook.url if viewer is not None and viewer == job.owner else None,
        events=webhook.events,
        state=state,
        attempts=0 if delivery is None else delivery.attempts,
        last_error=None if delivery is None else delivery.last_error,
        next_attempt_at=None if delivery is None or delivery.due is None else timestamp(delivery.due),
    )


def _stage(job: Job, progress: Progress | None) -> StageName | None:
    if job.status.terminal:
        return None
    return progress.stage.value if progress is not None else Stage.QUEUED.value


def with_images(
    build: Callable[[Sequence[str]], Any], images: Sequence[bytearray] | Sequence[tuple[bytes, ...]]
) -> Answer:
    """Return an object as JSON around images that are not copied.

    Args:
        build: makes the object; the texts that it is given stand for the images.
        images: the images as base64, each whole or in pieces.
    """
    # Random, so that no prompt can hold one.
    marks = [secrets.token_hex(16) for _ in images]
    rest = to_json(build(marks))
    segments = list[bytes | bytearray]()
    for mark, image in zip(marks, images, strict=True):
        before, _, rest = rest.partition(mark.encode())
        segments += [before, *(image if isinstance(image, tuple) else (image,))]
    return Answer(segments=(*segments, rest))


@attrs.define(eq=False)
class _Images:
    """A job's images as base64, or why one cannot be read."""

    parts: tuple[bytearray | ServiceError, ...]
    reservation: Reservation
    users: int = 0

    @property
    def size(self) -> int:
        return sum(len(part) for part in self.parts if isinstance(part, bytearray))

    @property
    def whole(self) -> bool:
        return all(isinstance(part, bytearray) for part in self.parts)


class Renderer:
    """Renders finished jobs with their images; keeps the newest images within a number of bytes."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._images_of: OrderedDict[str, _Images] = OrderedDict()
        self._idle_bytes = 0
        self._reading: dict[str, trio.Event] = {}

    async def job(
        self, view: JobView, held: ExitStack, *, paths_below: str | None = None, warnings: Sequence[str] = ()
    ) -> Answer:
        """Return a job as JSON; a finished one with its result.

        Args:
            view: the job.
            held: keeps the images in memory until it is closed.
            paths_below: put the images' paths into the result, in place of base64; they begin with this.
            warnings: about the question, behind those of the job.

        Raises:
            ImageGone: an image's file was removed.
            InternalError: it cannot be read.
            ServerBusy: there is no room for the images now.
        """
        if paths_below is not None or not view.job.images or not view.job.status.terminal:
            return _without_images(view, paths_below or "", warnings)
        images = await self.images(view.job, held)
        return with_images(lambda marks: _with_result(view, marks, view.job.images, warnings), images)

    async def end(
        self,
        job: Job,
        held: ExitStack,
        *,
        paths_below: str | None = None,
        wait_seconds: float = 0.0,
        warnings: Sequence[str] = (),
    ) -> Answer:
        """Return a finished job with what can be read of its images, and a warning for each that cannot.

        Args:
            job: the job.
            held: keeps the images in memory until it is closed.
            paths_below: put the images' paths into the result, in place of base64; they begin with this.
            wait_seconds: how long to wait for room.
            warnings: about the question, behind those of the job.

        Raises:
            ServerBusy: there was no room for the images.
        """
        view = JobView(job=job, live=None)
        if paths_below is not None or not job.images:
            return _without_images(view, paths_below or "", warnings)
        parts = (await self._hold(job, held, wait_seconds)).parts
        pairs = list(zip(job.images, parts, strict=True))
        readable = [(image, part) for image, part in pairs if isinstance(part, bytearray)]
        missing = [
            f"Image {index} (seed {image.seed}) is not in the result: {part.message}"
            for index, (image, part) in enumerate(pairs)
            if isinstance(part, ServiceError)
        ]
        shown = [image for image, _ in readable]
        told = (*missing, *warnings)
        return with_images(lambda marks: _with_result(view, marks, shown, told), [part for _, part in readable])

    async def images(self, job: Job, held: ExitStack, *, wait_seconds: float = 0.0) -> list[bytearray]:
        """Return a finished job's images as base64.

        Args:
            job: the job.
            held: keeps the images in memory until it is closed.
            wait_seconds: how long to wait for room.

        Raises:
            ImageGone: an image's file was removed.
            InternalError: it cannot be read.
            ServerBusy: there was no room for them.
        """
        images = list[bytearray]()
        for part in (await self._hold(job, held, wait_seconds)).parts:
            if isinstance(part, ServiceError):
                # Not the shared one itself: each raise would add to its traceback.
                raise type(part)(part.message, part.details)
            images.append(part)
        return images

    async def _hold(self, job: Job, held: ExitStack, wait_seconds: float) -> _Images:
        """Have the images in memory, once for all who want them at one time."""
        key = job.id
        wait_until = trio.current_time() + wait_seconds
        while key not in self._images_of:
            if key in self._reading:
                await self._reading[key].wait()
                continue
            self._reading[key] = trio.Event()
            try:
                self._images_of[key] = await self._read(job)
            except ServerBusy:
                if trio.current_time() >= wait_until:
                    raise
            finally:
                self._reading.pop(key).set()
            if key not in self._images_of:
                # Only the wait has an end: a slow disk must not be read from the start again and again.
                with trio.move_on_at(wait_until):
                    await self._gateway.in_flight.wait_for_less()
        images = self._images_of[key]
        self._images_of.move_to_end(key)
        if not images.reservation.bytes:
            self._idle_bytes -= images.size
            images.reservation.grow_anyway(images.size)
        images.users += 1
        held.callback(self._let_go, key, images)
        return images

    async def _read(self, job: Job) -> _Images:
        sizes = [await self._size(image) for image in job.images]
        reservation = self._gateway.in_flight.open()
        try:
            reservation.grow(sum(base64_length(size) for size in sizes if isinstance(size, int)))
            target = target_of(job.request)
            pairs = zip(job.images, sizes, strict=True)
            parts = [await self._part(image, size, target, job.owner) for image, size in pairs]
        except BaseException:
            reservation.release()
            raise
        images = _Images(tuple(parts), reservation)
        # A conversion may be larger than its file.
        reservation.grow_anyway(max(0, images.size - reservation.bytes))
        return images

    async def _size(self, image: StoredImage) -> int | ServiceError:
        try:
            return await self._gateway.image_size(image)
        except ServiceError as error:
            return error

    async def _part(
        self, image: StoredImage, size: int | ServiceError, target: ImageTarget, owner: str
    ) -> bytearray | ServiceError:
        if isinstance(size, ServiceError):
            return size
        try:
            if target.as_stored:
                return await self._gateway.image_base64(image, size)
            return await self._gateway.image_as_base64(image, target, caller=owner)
        except ServiceError as error:
            return error

    def _let_go(self, key: str, images: _Images) -> None:
        images.users -= 1
        if images.users:
            return
        images.reservation.release()
        self._idle_bytes += images.size
        if not images.whole or images.size > CACHE_BYTES // 4:
            self._drop(key)
        for idle in [each for each, kept in self._images_of.items() if not kept.users]:
            if self._idle_bytes <= CACHE_BYTES:
                break
            self._drop(idle)

    def _drop(self, key: str) -> None:
        self._idle_bytes -= self._images_of.pop(key).size


def reserve_partial_images(job: Job, reservation: Reservation) -> bool:
    """Reserve room for those partial images of a job that may be in memory for one follower.

    It goes without them where there is none now: they are never what an answer is asked for.
    """
    if not job.request.partial_images or job.status.terminal:
        return False
    width, height = job.request.result_size
    try:
        # Those that wait, one that is sent, and one that comes meanwhile; a file is hardly larger than its pixels.
        reservation.grow((PARTIAL_IMAGES_WAITING + 2) * base64_length(width * height * CHANNELS))
    except ServerBusy:
        logger.debug("job %s: no room for partial images", job.id)
        return False
    return True


def image_path(job: Job, index: int) -> str:
    """Return the path of the route of one image of a job; clients see it below a proxy's prefix."""
    return f"/api/v1/jobs/{job.id}/images/{index}"


def image_parameters(job: Job) -> dict[str, str]:
    """Return what asks there for the image as the job's answers have it."""
    target = target_of(job.request)
    parameters: dict[str, str] = {} if target.as_stored else {"format": target.format}
    if target.quality is not None:
        parameters["quality"] = str(target.quality)
    return parameters


def job_with_paths(view: JobView, below: str, warnings: Sequence[str] = ()) -> JobResponse:
    """Return a job with its images' paths in place of the images.

    Args:
        view: the job.
        below: what paths begin with for the client.
        warnings: about the question, behind those of the job.
    """
    job = view.job
    parameters = image_parameters(job)
    query = f"?{urlencode(parameters)}" if parameters else ""
    paths = [below + image_path(job, index) + query for index in range(len(job.images))]
    if job.status.terminal:
        return _with_result(view, paths, job.images, warnings)
    return job_response(view, warnings=warnings)


def job_with_images(view: JobView, images: Sequence[str]) -> JobResponse:
    """Return a finished job with a text in the place of each of its images."""
    return _with_result(view, images, view.job.images)


def _without_images(view: JobView, below: str, warnings: Sequence[str] = ()) -> Answer:
    return Answer(segments=(to_json(job_with_paths(view, below, warnings)),))


def _with_result(
    view: JobView, images: Sequence[str], stored: Sequence[StoredImage], warnings: Sequence[str] = ()
) -> JobResponse:
    job = view.job
    if job.status is not Status.COMPLETED and not images:
        return job_response(view, warnings=warnings)
    result = JobResult(images=tuple(images), seeds=tuple(image.seed for image in stored))
    return job_response(view, result, warnings)
