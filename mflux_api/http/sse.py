"""Server-sent events: their form, and one job's stream as a Quart response body.

Clients differ in what they survive: the keep-alive is a comment line that ends with ONE newline, no
event is called ``error``, and the server ends the stream after the terminal event.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType

import attrs
import trio
from quart import Response
from quart.wrappers.response import ResponseBody

from mflux_api.actors.messages import LogEntry
from mflux_api.errors import ServiceError
from mflux_api.gateway.event_stream import EventStream
from mflux_api.http.render import Renderer
from mflux_api.http.responses import Answer, ending_in_text, to_json
from mflux_api.http.schemas import PartialImageResponse
from mflux_api.jobs.job import Status
from mflux_api.jobs.progress import Finished, PartialImage, Progress

KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b": keep-alive\n"
CONTENT_TYPE = "text/event-stream; charset=utf-8"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Of every stream: no cache and no proxy keeps events back."""

NAMES = {Status.COMPLETED: "complete", Status.FAILED: "failed", Status.CANCELLED: "cancelled"}


def stream_response(
    stream: EventStream,
    renderer: Renderer,
    held: ExitStack,
    *,
    paths_below: str | None,
    allowed: Callable[[], bool],
    warnings: Sequence[str] = (),
    head_only: bool = False,
) -> Response:
    """Return the response that streams a job's events until its end; an empty one to a client that has had the end.

    Args:
        stream: the job's events.
        renderer: renders the job's end.
        held: is closed at the end of the request.
        paths_below: what the images' paths begin with, which the result has in place of base64; ``None``: base64.
        allowed: whether the follower may still follow; asked at every event and every keep-alive.
        warnings: about the question; the job's end has them.
        head_only: whether only the head is asked for: a connection must not wait for the end of the job then.
    """
    held.callback(stream.close)
    if stream.ended or head_only:
        # An EventSource does not connect again after a 204. Other clients insist on the type.
        response = Response(b"", status=204 if stream.ended else 200, content_type=CONTENT_TYPE)
        response.headers.pop("Content-Length", None)
        return response
    return event_stream(_Body(stream, renderer, held, paths_below=paths_below, allowed=allowed, warnings=warnings))


def event_stream(body: ResponseBody) -> Response:
    """Return a response that streams events, however long that takes."""
    response = Response(body, content_type=CONTENT_TYPE, headers=HEADERS)
    response.timeout = None
    return response


def event(name: str, event_id: str, data: Answer) -> Answer:
    """Return one event; without an id it is none to come back with."""
    identity = f"id: {event_id}\n".encode() if event_id else b""
    return Answer((identity + b"event: " + name.encode() + b"\ndata: ", *data.segments, b"\n\n"))


def _on_the_way(event_id: str, happened: Progress | PartialImage) -> Answer:
    if isinstance(happened, PartialImage):
        values = attrs.asdict(happened, filter=lambda attribute, _: attribute.name != "base64")
        return event("partial_image", event_id, ending_in_text(PartialImageResponse(**values), happened.base64))
    return event("progress", event_id, Answer((to_json(happened),)))


class _Body(ResponseBody):
    def __init__(
        self,
        stream: EventStream,
        renderer: Renderer,
        held: ExitStack,
        *,
        paths_below: str | None,
        allowed: Callable[[], bool],
        warnings: Sequence[str],
    ) -> None:
        self._stream = stream
        self._renderer = renderer
        self._held = held
        self._paths_below = paths_below
        self._allowed = allowed
        self._warnings = warnings
        self._pieces: Iterator[bytes] = iter(())
        self._end: Finished | None = None
        """The end, once it has come."""
        self._rendered = trio.Event()
        self._nursery = trio.open_nursery()

    async def __aenter__(self) -> "_Body":
        await self._stream.__aenter__()
        # Read in a task of its own: cancelled every 15 s, a slow disk would be read from the start again and again.
        self._tasks = await self._nursery.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The frames of a cancelled send are a cycle: its megabytes would wait for the garbage collector.
        self._pieces, self._end = iter(()), None
        self._tasks.cancel_scope.cancel("the stream has ended")
        try:
            await self._nursery.__aexit__(kind, error, traceback)
        finally:
            await self._stream.__aexit__(kind, error, traceback)

    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes:
        piece = next(self._pieces, None)
        if piece is not None:
            return piece
        if self._rendered.is_set():
            raise StopAsyncIteration
        if self._end is None:
            logged: LogEntry | None = None
            with trio.move_on_after(KEEP_ALIVE_SECONDS):
                logged = await self._next()
            if not self._allowed():
                # Its key was removed; a client that comes back with it gets 401.
                raise StopAsyncIteration
            if logged is None:
                return KEEP_ALIVE
            if not isinstance(logged.event, Finished):
                self._pieces = _on_the_way(logged.id, logged.event).pieces()
                return next(self._pieces)
            self._end = logged.event
            self._tasks.start_soon(self._render, logged.event)
        with trio.move_on_after(KEEP_ALIVE_SECONDS):
            await self._rendered.wait()
        return next(self._pieces, KEEP_ALIVE)

    async def _render(self, end: Finished) -> None:
        """Have the end's images in memory, however long there is no room for them, or their disk takes."""
        answer = await self._renderer.end(
            end.job, self._held, paths_below=self._paths_below, wait_seconds=math.inf, warnings=self._warnings
        )
        self._pieces = event(NAMES[end.job.status], end.event_id, answer).pieces()
        self._rendered.set()

    async def _next(self) -> LogEntry:
        try:
            return await self._stream.__anext__()
        except ServiceError:
            # The client reconnects with Last-Event-ID, and the new hub takes it from there; or its answer says why not.
            raise StopAsyncIteration from None
