"""One client connection: timeouts, keep-alive, lingering, its end; Hypercorn and Quart-Trio corrected by subclassing.

`HTTPConnection` belongs to the app (`app.asgi_http_class = HTTPConnection`), `Connection` to the server.
"""

from __future__ import annotations

import logging
import math
import socket
import struct
from contextlib import nullcontext, suppress
from typing import Final, cast

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import TrioSingleTask, WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    HTTPScope,
    LifespanState,
)
from quart import Quart
from quart.asgi import ASGIHTTPConnection
from quart.wrappers import Request
from quart_trio.asgi import TrioASGIHTTPConnection

from mflux_api.http.body_limits import LIMITS, BodyLimit, IgnoredBody
from mflux_api.http.client_timeouts import ClientTimeouts
from mflux_api.http.held import IN_FLIGHT, Held, MeteredBody, ServiceRequest
from mflux_api.http.http1 import HTTP1, TURN, is_urgent
from mflux_api.http.idle_timer import IdleTimer
from mflux_api.http.open_connections import Place
from mflux_api.http.pace import Pace, PacedBody
from mflux_api.http.probes import Probes
from mflux_api.http.root_path import ROOT_PATH
from mflux_api.http.turns import Turn
from mflux_api.http.uploads import UploadBody

logger = logging.getLogger("mflux_api.http")

SEND_CHUNK_BYTES: Final = 64 * 1024
"""A client is alive as long as it takes this much within `ClientTimeouts.stall_seconds`, and keeps its pace."""

LINGER_BYTES: Final = 1024 * 1024 * 1024
LINGER_SILENCE_SECONDS: Final = 2.0
"""How much, and how long in silence, a client that goes on sending after its answer is read: see `Connection`."""

RECEIVE_BYTES: Final = 64 * 1024
"""What is taken from a socket at one time."""

READ_AHEAD_BYTES: Final = 64 * 1024
"""How much of further requests is taken while one is answered; a client that leaves behind more is seen later."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class HTTPConnection(TrioASGIHTTPConnection):
    """One request: cancelled when its client leaves early, left alone once its answer is complete.

    Hypercorn says `http.disconnect` at the end of every request, from inside the app's last `send`. Cancelling then, as
    Quart-Trio does, cancels Hypercorn's own work of closing or recycling the connection.
    """

    def __init__(self, app: Quart, scope: HTTPScope) -> None:
        super().__init__(app, scope)
        self._answered = False
        self._held: Held | None = None

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve the request; whatever it holds is let go at its end."""
        in_flight = self.app.config.get(IN_FLIGHT)
        try:
            with nullcontext() if in_flight is None else Held(in_flight) as self._held:
                await super().__call__(receive, send)
        except Exception as error:
            # Beyond the app's own handlers, such as a body that fails half-way. Hypercorn would log a traceback.
            logger.error("a request failed: %s", type(error).__name__)
            logger.debug("a request failed", exc_info=error)

    def _create_request_from_scope(self, send: ASGISendCallable) -> Request:
        root_path = self.app.config.get(ROOT_PATH)
        if root_path is not None:
            self.scope["path"] = root_path.strip(self.scope["path"])
        request = super()._create_request_from_scope(send)
        limits = self.app.config.get(LIMITS)
        limit = limits.of(request.method, request.path) if limits else BodyLimit(self.app.config["MAX_CONTENT_LENGTH"])
        request.max_content_length = limit.most
        if not limit.most:
            request.body = IgnoredBody(None, None)
        elif limit.streams:
            request.body = UploadBody(request.content_length, limit.most)
        elif self._held is not None:
            request.body = MeteredBody(request.content_length, limit.most, self._held)
        if isinstance(request.body, PacedBody):
            request.body.turn = self.scope.get("state", {}).get(TURN)
            # A large one may take its time; the body itself watches for a client that is too slow.
            request.body_timeout = None
        if self._held is not None and isinstance(request, ServiceRequest):
            request.held = self._held
        return request

    async def handle_messages(  # type: ignore[override]  # Quart-Trio's own signature differs from Quart's
        self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable
    ) -> None:
        """Feed the request's body; cancel `nursery` if the client leaves before the answer is complete."""
        if isinstance(request.body, UploadBody):
            receive = _wait_for_room(receive, request.body)
        await ASGIHTTPConnection.handle_messages(self, request, receive)
        if not self._answered:
            nursery.cancel_scope.cancel("the client disconnected")

    async def handle_request(  # type: ignore[override]  # Quart-Trio's own signature differs from Quart's
        self, nursery: trio.Nursery, request: Request, send: ASGISendCallable
    ) -> None:
        """Run the handler and send its response."""

        async def watched_send(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self._answered = True  # before the send: the disconnect arrives inside it
                if isinstance(request.body, UploadBody):
                    request.body.discard()
            await send(message)

        try:
            await super().handle_request(nursery, request, watched_send)
        finally:
            # A request lies in a cycle of references: its megabytes would wait for the garbage collector.
            request.body.clear()


def _wait_for_room(receive: ASGIReceiveCallable, body: UploadBody) -> ASGIReceiveCallable:
    async def receive_with_room() -> ASGIReceiveEvent:
        await body.room()
        return await receive()

    return receive_with_room


class Connection(TCPServer):
    """Hypercorn's connection, which a client that stopped reading can neither block nor keep from being cancelled.

    A client that is answered while it is still sending is read on for a while: a close would reset the connection, and
    the client would never see the answer. An error inside one connection is logged and closes that connection only.
    """

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        state: LifespanState,
        limit: ClientTimeouts,
        stream: trio.SocketStream,
        place: Place,
        turn: Turn,
        probes: Probes | None = None,
        *,
        needs_clients: bool = True,
    ) -> None:
        # Hypercorn's annotation names the SSL stream only; it takes either.
        super().__init__(app, config, context, state, cast("trio.SSLStream[trio.SocketStream]", stream))
        self._limit = limit
        self._place = place
        self._turn = turn
        self._probes = probes
        self._needs_clients = needs_clients
        # Hypercorn's annotation names its own class only.
        self.idle_task = cast("TrioSingleTask", IdleTimer())
        self._pace = Pace()
        self._socket_stream = stream
        self._scope = trio.CancelScope()
        self._requests = trio.CancelScope()

    async def run(self) -> None:
        """Serve the connection until either side closes it; nothing but cancellation is raised."""
        try:
            with self._scope:
                await super().run()
        except* Exception as errors:
            # The boundary of one client: without it a broken peer would take down every other connection.
            logger.error("a connection failed and was closed", exc_info=errors)

    async def protocol_send(self, event: Event) -> None:
        """Send bytes, or pass Hypercorn's other events on."""
        protocol = self.protocol.protocol
        if isinstance(event, Closed) and isinstance(protocol, HTTP1) and protocol.client_may_be_sending:
            await self._half_close()
            return
        if isinstance(event, Updated):
            (self._place.wait_for_request if event.idle else self._place.serve_request)()
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            try:
                alive = await self._send(event.data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self._leave()
                return
            if not alive:
                await self._drop()

    async def _read_data(self) -> None:
        """Feed the protocol until the client's end of file, or until no handler will read what it sends."""
        protocol = self.protocol.protocol = HTTP1(
            self.protocol,
            self._read_ahead,
            self._turn,
            self._probes,
            needs_clients=self._needs_clients,
        )
        with self._requests:
            await self._read_requests(protocol)
        # Also after a cancellation: a request that was begun just before it would wait for a body that no one reads.
        await protocol.handle(Closed())
        if self._requests.cancelled_caught:
            await self._linger()
        # Hypercorn would keep the socket of a client that is gone for as long as that of an idle one.
        await self.idle_task.stop()

    async def _read_requests(self, protocol: HTTP1) -> None:
        head_by, requests = math.inf, 0
        while True:
            data: bytes | None = None
            with trio.move_on_at(head_by) as waiting:
                data = await self._receive(RECEIVE_BYTES)
            if waiting.cancelled_caught:
                await protocol.refuse_slow_head()
                continue  # into the cancellation that is its end
            if data and protocol.before_body:
                await self._turn.read_head(urgent=is_urgent(data))
            if data == b"":
                # Its answer may be all that the client still wants.
                await protocol.answered_without_input()
            await protocol.handle(RawData(data or b""))
            if not data:
                return
            if not protocol.in_head:
                head_by = math.inf
            elif head_by == math.inf or protocol.keep_alive_requests > requests:
                head_by = trio.current_time() + self._limit.head_seconds
                # The time of an idle connection is over; the end of the server still closes it.
                await self.idle_task.restart(self._task_group, self._close_at_the_end)
            requests = protocol.keep_alive_requests

    async def _close_at_the_end(self) -> None:
        await self.context.terminated.wait()
        with trio.CancelScope(shield=True):
            await self._initiate_server_close()

    async def _read_ahead(self, protocol: HTTP1) -> None:
        """Take what comes behind a request, within a limit, until the client leaves."""
        left = READ_AHEAD_BYTES
        while left > 0:
            data = await self._receive(left)
            if not data:
                if data is None or not await protocol.answered_without_input():
                    await self._leave()
                return
            protocol.connection.receive_data(data)
            left -= len(data)

    async def _receive(self, most: int) -> bytes | None:
        """Return what has come; nothing at the end of the client's input, and ``None`` where the client is gone."""
        try:
            return bytes(await self._socket_stream.receive_some(most))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return None

    async def _leave(self) -> None:
        """End what runs for a client that is gone, and what would have waited for it to be done."""
        await self.protocol.handle(Closed())
        self._requests.cancel("the client left")

    async def _half_close(self) -> None:
        """Tell the client that this was the last answer, and take no more requests."""
        async with self.send_lock:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._socket_stream.send_eof()
        await self.protocol.handle(Closed())
        self._requests.cancel("the client was answered before it had sent everything")

    async def _linger(self) -> None:
        """Read and throw away, within limits, until the client has understood."""
        left = LINGER_BYTES
        with self._limit.linger(), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while left > 0:
                data = b""
                with trio.move_on_after(LINGER_SILENCE_SECONDS):
                    data = bytes(await self._socket_stream.receive_some(SEND_CHUNK_BYTES))
                if not data:
                    return
                left -= len(data)
                # Many that send megabytes into the void would be most of what the server does.
                await self._turn.let_others_read()

    async def _send(self, data: bytes) -> bool:
        """Send all of `data`; False if the client stopped taking it. The shield keeps the framing whole."""
        view = memoryview(data)
        for start in range(0, len(view), SEND_CHUNK_BYTES):
            piece = view[start : start + SEND_CHUNK_BYTES]
            # A stream's events have no rate: its client may have nothing to take for hours.
            whole = len(piece) == SEND_CHUNK_BYTES
            with self._limit.shield() as scope, self._pace.waiting() if whole else trio.CancelScope() as slow:
                await self._socket_stream.send_all(piece)
            if scope.cancelled_caught or slow.cancelled_caught:
                return False
            self._pace.moved(len(piece))
        return True

    async def _drop(self) -> None:
        """Close at once and end everything that runs for this client."""
        logger.info("dropped a client that stopped reading")
        with suppress(OSError):  # it may be closed already
            # A reset frees the unsent bytes in the kernel and tells the client that the answer was cut.
            self._socket_stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._scope.cancel("the client stopped reading")
        await trio.aclose_forcefully(self._socket_stream)
