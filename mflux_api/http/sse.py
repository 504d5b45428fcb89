"""Server-sent events: one job's stream as a Quart response body.

Clients differ in what they survive: the keep-alive is a comment line that ends with ONE newline, no
event is called ``error``, and the server ends the stream after the terminal event.
"""

from types import TracebackType

import trio
from quart import Response
from quart.wrappers.response import ResponseBody

from mflux_api.actors.messages import LogEntry
from mflux_api.errors import ImageGone, ServiceRestarting, ShuttingDown
from mflux_api.gateway.event_stream import EventStream
from mflux_api.gateway.gateway import JobView
from mflux_api.http.render import Renderer
from mflux_api.http.responses import to_json
from mflux_api.jobs.job import Status
from mflux_api.jobs.progress import Finished

KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b": keep-alive\n"
CONTENT_TYPE = "text/event-stream; charset=utf-8"

_NAMES = {Status.COMPLETED: "complete", Status.FAILED: "failed", Status.CANCELLED: "cancelled"}


def stream_response(stream: EventStream, renderer: Renderer, *, urls: bool) -> Response:
    """Return the response that streams a job's events until its end; an empty one to a client that has had the end."""
    if stream.ended:
        stream.close()
        # An EventSource does not connect again after a 204. Other clients insist on the type.
        response = Response(b"", status=204, content_type=CONTENT_TYPE)
        response.headers.pop("Content-Length", None)
        return response
    response = Response(
        _Body(stream, renderer, urls=urls),
        content_type=CONTENT_TYPE,
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )
    response.timeout = None
    return response


class _Body(ResponseBody):
    def __init__(self, stream: EventStream, renderer: Renderer, *, urls: bool) -> None:
        self._stream = stream
        self._renderer = renderer
        self._urls = urls

    async def __aenter__(self) -> "_Body":
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(kind, error, traceback)

    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes:
        logged: LogEntry | None = None
        with trio.move_on_after(KEEP_ALIVE_SECONDS):
            try:
                logged = await self._stream.__anext__()
            except (ServiceRestarting, ShuttingDown):
                # The client reconnects with Last-Event-ID, and the new hub takes it from there.
                raise StopAsyncIteration from None
        return KEEP_ALIVE if logged is None else await self._render(logged)

    async def _render(self, logged: LogEntry) -> bytes:
        if not isinstance(logged.event, Finished):
            return _event("progress", logged.id, to_json(logged.event))
        job = logged.event.job
        try:
            data = await self._renderer.job(JobView(job=job, live=None), urls=self._urls)
        except ImageGone:
            # The end must be told, even when the images were removed since.
            data = await self._renderer.job(JobView(job=job, live=None), urls=True)
        return _event(_NAMES[job.status], logged.id, data)


def _event(name: str, event_id: str, data: bytes) -> bytes:
    identity = f"id: {event_id}\n".encode() if event_id else b""
    return identity + b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
