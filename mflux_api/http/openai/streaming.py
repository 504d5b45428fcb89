"""OpenAI's event stream of a call: its images on the way, where they are asked for, then each finished one."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from types import TracebackType

import attrs
import trio
from quart import Response
from quart.wrappers.response import ResponseBody

from mflux_api.errors import JobCancelled, ServiceError
from mflux_api.gateway.event_stream import EventStream
from mflux_api.http.openai.answers import Answers, size_of, usage_of
from mflux_api.http.openai.call import Call
from mflux_api.http.openai.schemas import CompletedEvent, ErrorEvent, PartialImageEvent
from mflux_api.http.openai_errors import body_of
from mflux_api.http.responses import Answer, ending_in_text, to_json
from mflux_api.http.sse import KEEP_ALIVE, KEEP_ALIVE_SECONDS, event, event_stream
from mflux_api.jobs.job import Job, Status
from mflux_api.jobs.progress import PartialImage
from mflux_api.system.nurseries import unwrapped_nursery


@attrs.frozen(kw_only=True)
class StreamedCall:
    """A call whose job is accepted."""

    call: Call
    under_way: Callable[[], AbstractAsyncContextManager[None]]
    """Is entered while the stream lasts."""
    follow: Callable[[], Awaitable[EventStream]]
    """Follows the job's partial images."""
    end: Callable[[], Awaitable[Job]]
    """Waits for the job's end."""
    allowed: Callable[[], bool]
    """Whether the client would still be let in."""


def stream(streamed: StreamedCall, answers: Answers, held: ExitStack) -> Response:
    """Return the response that streams a call's events until its job's end.

    Args:
        streamed: the call.
        answers: renders the finished images.
        held: is closed at the end of the request.
    """
    return event_stream(_Body(streamed, answers, held))


class _Body(ResponseBody):
    def __init__(self, streamed: StreamedCall, answers: Answers, held: ExitStack) -> None:
        self._streamed = streamed
        self._answers = answers
        self._held = held
        self._pieces: Iterator[bytes] = iter(())
        # Whole events: what is cancelled on its way into the channel is not sent at all, and never in part.
        self._told, self._events = trio.open_memory_channel[Answer](0)
        self._nursery = trio.open_nursery()

    async def __aenter__(self) -> "_Body":
        self._tasks = await self._nursery.__aenter__()
        self._tasks.start_soon(self._tell)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The frames of a cancelled send are a cycle: its megabytes would wait for the garbage collector.
        self._pieces = iter(())
        self._tasks.cancel_scope.cancel("the stream has ended")
        with self._events:
            await self._nursery.__aexit__(kind, error, traceback)

    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes:
        piece = next(self._pieces, None)
        if piece is not None:
            return piece
        told: Answer | None = None
        with trio.move_on_after(KEEP_ALIVE_SECONDS):
            try:
                told = await self._events.receive()
            except trio.EndOfChannel:
                raise StopAsyncIteration from None
        if not self._streamed.allowed():
            raise StopAsyncIteration
        if told is None:
            return KEEP_ALIVE
        self._pieces = told.pieces()
        return next(self._pieces)

    async def _tell(self) -> None:
        """Tell everything, and the end last."""
        streamed = self._streamed
        with self._told:
            try:
                async with streamed.under_way(), self._partial_images_beside():
                    job = await streamed.end()
                if job.status is Status.CANCELLED:
                    raise JobCancelled("The job was cancelled", {"job_id": job.id})
                await self._tell_completed(job)
            except ServiceError as error:
                data = ErrorEvent(error=body_of(error).error)
                await self._told.send(event("error", "", Answer((to_json(data),))))

    @asynccontextmanager
    async def _partial_images_beside(self) -> AsyncIterator[None]:
        async with unwrapped_nursery() as nursery:
            if self._streamed.call.request.partial_images:
                nursery.start_soon(self._tell_partial_images)
            yield
            nursery.cancel_scope.cancel("the job has ended")

    async def _tell_partial_images(self) -> None:
        # Without them the end still comes.
        with suppress(ServiceError):
            async with await self._streamed.follow() as events:
                async for logged in events:
                    if isinstance(logged.event, PartialImage):
                        await self._told.send(self._partial_image(logged.event))

    def _partial_image(self, image: PartialImage) -> Answer:
        call = self._streamed.call
        name = f"{call.prefix}.partial_image"
        data = PartialImageEvent(
            type=name,
            partial_image_index=image.partial_image_index,
            image_index=image.image,
            created_at=int(time.time()),
            size=f"{image.width}x{image.height}",
            quality=call.quality,
            output_format=image.output_format,
        )
        return event(name, "", ending_in_text(data, image.base64))

    async def _tell_completed(self, job: Job) -> None:
        call = self._streamed.call
        name = f"{call.prefix}.completed"
        images = await self._answers.images(job, self._held)
        for index, (stored, image) in enumerate(zip(job.images, images, strict=True)):
            data = CompletedEvent(
                type=name,
                image_index=index,
                created_at=int((job.completed_at or job.created_at).timestamp()),
                size=size_of(job),
                quality=call.quality,
                output_format=call.output_format,
                seed=stored.seed,
                warnings=job.warnings,
                usage=usage_of(job, len(call.request.init_images)),
            )
            await self._told.send(event(name, "", ending_in_text(data, image)))
