"""HTTP/1 where Hypercorn answers without the app, or an answer comes before its request has arrived."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import h11
import trio
from hypercorn.events import Closed, RawData
from hypercorn.protocol.events import Body, EndBody, Event, Request, Response
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.typing import ConnectionState, H11SendableEvent

from mflux_api.errors import InternalError, InvalidHTTP, RequestTimeout, ServiceError
from mflux_api.http.half_close import CLIENT, ClientInput
from mflux_api.http.probes import Probes
from mflux_api.http.request_head import RequestParser
from mflux_api.http.responses import INTERNAL_ERROR, to_json
from mflux_api.http.schemas import ErrorBody
from mflux_api.http.turns import Turn

if TYPE_CHECKING:
    from hypercorn.protocol import ProtocolWrapper

NOSNIFF: Final = (b"x-content-type-options", b"nosniff")
"""In every answer: a browser takes an image for an image and JSON for JSON, whatever the bytes look like."""

TURN: Final = "turn"
"""Key of a request's ASGI state: the :class:`Turn` of its connection."""

MANY_CHUNKS: Final = 16
"""A connection whose chunks come so many at a time is one that others have to be protected from."""

FREE_BODY_BYTES: Final = 64 * 1024
"""The beginning of a body that waits in no line: most bodies are no larger."""

SMALL_ANSWER_BYTES: Final = 64 * 1024
"""An answer up to this is sent at once, as a part of the work."""

_URGENT: Final = re.compile(rb"GET (?:/api/v1/health|/livez|/readyz) ")
URGENT_BYTES: Final = 2048
"""A monitor's head is a tenth of it; one of 16 KB takes milliseconds to read."""

_MESSAGES: Final = {
    408: "The request's line and headers did not arrive in time; send them at once",
    431: "The request's line and headers are over 16 KB; send fewer or shorter headers",
    501: "This Transfer-Encoding is not supported; send the body with Content-Length or chunked",
}
_BROKEN_BODY: Final = "The request's body is broken off or badly chunked; send it again"
NOT_HTTP: Final = "This is not an HTTP/1.1 request that can be read; check the client, and that it does not speak HTTPS"


class HTTP1(H11Protocol):
    """Hypercorn's protocol with errors in the contract's shape, and with the truth about what it will close.

    It is the only one: nothing that a client sends makes Hypercorn change to HTTP/2 or to a WebSocket.
    """

    def __init__(
        self,
        wrapper: ProtocolWrapper,
        read_ahead: Callable[[HTTP1], Awaitable[None]],
        turn: Turn,
        probes: Probes | None,
        *,
        needs_clients: bool = True,
    ) -> None:
        """Take the place of the wrapper's own protocol, before the first byte.

        Args:
            wrapper: has a protocol that has seen nothing yet.
            read_ahead: runs while a request waits for the answer to the one before, and sees the client leave.
            turn: says when a request may be worked on.
            probes: answers health without the app.
            needs_clients: whether every answer is for clients that do not close their side for writing.
        """
        super().__init__(
            wrapper.app,
            wrapper.config,
            wrapper.context,
            wrapper.task_group,
            wrapper.state,
            wrapper.ssl,
            wrapper.client,
            wrapper.server,
            wrapper.send,
        )
        self._turn = turn
        self._probes = probes
        self._needs_clients = needs_clients
        self._client_input: ClientInput | None = None
        self._joins = False
        self._unsent = b""
        self._body_bytes = 0
        self._parser = RequestParser(self.config.h11_max_incomplete_size)
        self.connection = self._parser
        self.can_read = _CanRead(partial(read_ahead, self))

    @property
    def in_head(self) -> bool:
        """Whether a part of a request's head is there, and the rest is not."""
        return self._parser.in_head

    @property
    def before_body(self) -> bool:
        """Whether the next bytes are a request's head."""
        return self._parser.their_state is h11.IDLE

    @property
    def client_may_be_sending(self) -> bool:
        """Whether there may be more to come after the last request, or of it, which no handler will read."""
        return self.connection.their_state in (h11.SEND_BODY, h11.ERROR) or self._parser.ignored

    async def answered_without_input(self) -> bool:
        """Wait for the answer to a request whose client will send no more; return whether it is sent.

        It is not where there is none, or where it needs a client that stays.
        """
        whole = self.connection.their_state in (h11.DONE, h11.MUST_CLOSE)
        return whole and self._client_input is not None and await self._client_input.answered()

    async def stream_send(self, event: Event) -> None:
        """Send a part of an answer."""
        if isinstance(event, Response) and event.status_code >= 200:
            if self._client_input is not None:
                self._client_input.begin_answer()
            length = dict(event.headers).get(b"content-length", b"")
            self._joins = length.isdigit() and int(length) <= SMALL_ANSWER_BYTES
            if not self._joins:
                # What is left is to wait for the client.
                self._turn.release()
            headers = [*event.headers, NOSNIFF]
            if self.connection.their_state is h11.SEND_BODY:
                # The connection ends with this answer. A client that is not told would send its next request on it.
                headers.append((b"connection", b"close"))
            event = Response(stream_id=event.stream_id, headers=headers, status_code=event.status_code)
        await super().stream_send(event)

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """Send an event; of a small answer head and body together: each sending takes turns of the loop."""
        if not self._joins:
            await super()._send_h11_event(event)
            return
        try:
            self._unsent += self.connection.send(event) or b""
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
        if isinstance(event, h11.EndOfMessage) or self.connection.our_state is h11.ERROR:
            self._joins = False
            data, self._unsent = self._unsent, b""
            await self.send(RawData(data=data))

    async def _answer_probe(self, request: h11.Request) -> bool:
        """Answer a plain question for health at once; return whether it was one."""
        if self._probes is None or self.keep_alive_requests >= self.config.keep_alive_max_requests:
            return False
        found = await self._probes.answer(request)
        if found is None or self.context.terminated.is_set():
            return False
        headers, body = found
        # It has no body: this is its end.
        self.connection.next_event()
        self.keep_alive_requests += 1
        self._joins = True
        await super().stream_send(Response(stream_id=STREAM_ID, headers=[*headers, NOSNIFF], status_code=200))
        await super().stream_send(Body(stream_id=STREAM_ID, data=body))
        await super().stream_send(EndBody(stream_id=STREAM_ID))
        await self._maybe_recycle()
        return True

    async def _check_protocol(self, event: h11.Request) -> None:
        """Offer no other protocol: a client that asks for one with ``Upgrade`` is answered in HTTP/1.1."""

    async def _create_stream(self, request: h11.Request) -> None:
        probe = self._probes is not None and self._probes.know(request)
        await self._turn.take(urgent=probe)
        if probe and await self._answer_probe(request):
            return
        self.stream = _Stream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        self._body_bytes = 0
        self.stream.before_body = self._let_others_read
        self._client_input = ClientInput(needed=self._needs_clients)
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=ConnectionState({TURN: self._turn, CLIENT: self._client_input}),
            )
        )
        self.keep_alive_requests += 1
        await self.context.mark_request()

    async def _let_others_read(self, size: int) -> None:
        """Wait before a further piece of a large body, or one of many chunks, is taken."""
        self._body_bytes += size
        if self._body_bytes > FREE_BODY_BYTES or self._parser.joined >= MANY_CHUNKS:
            await self._turn.let_others_read()

    async def _close_stream(self) -> None:
        self._turn.release()
        await super()._close_stream()
        if self._client_input is not None:
            self._client_input.end_answer()
            self._client_input = None

    async def refuse_slow_head(self) -> None:
        """Answer a client that takes too long with a request's head, and close."""
        self._parser.ignored = True
        await self._send_error_response(RequestTimeout.status)
        await self.send(Closed())

    async def _send_error_response(self, status_code: int) -> None:
        known = _MESSAGES.get(status_code, NOT_HTTP if self.stream is None else _BROKEN_BODY)
        code = RequestTimeout.code if status_code == RequestTimeout.status else InvalidHTTP.code
        headers, body = _error(self._parser.problem or known, code)
        headers += [NOSNIFF, *self.config.response_headers("h11")]
        self._joins = True
        await self._send_h11_event(h11.Response(status_code=status_code, headers=headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


class _CanRead:
    """Hypercorn reads nothing until the answer before is sent, and would not see that its client is gone."""

    def __init__(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._meanwhile = meanwhile
        self._event = trio.Event()

    async def clear(self) -> None:
        self._event = trio.Event()

    async def wait(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._meanwhile)
            await self._event.wait()
            nursery.cancel_scope.cancel("the answer before is sent")

    async def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()


class _Stream(HTTPStream):
    """One request, which is answered in the contract's shape also where the app gives no answer."""

    before_body: Callable[[int], Awaitable[None]]

    async def handle(self, event: Event) -> None:
        if isinstance(event, Body):
            await self.before_body(len(event.data))
        await super().handle(event)

    async def _send_error_response(self, status_code: int) -> None:
        headers, body = _error(INTERNAL_ERROR, InternalError.code)
        await self.send(Response(stream_id=self.stream_id, headers=headers, status_code=status_code))
        if self.scope["method"] != "HEAD":
            await self.send(Body(stream_id=self.stream_id, data=body))
        await self.send(EndBody(stream_id=self.stream_id))
        self.state = ASGIHTTPState.CLOSED


def whole_error(error: ServiceError) -> bytes:
    """Return an answer to a client that is told of an error before it is read, and that its connection ends."""
    headers, body = _error(error.message, error.code)
    headers.append(NOSNIFF)
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    lines = [b"HTTP/1.1 %d %s" % (error.status, HTTPStatus(error.status).phrase.encode())]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join([*lines, b"", body])


def _error(message: str, code: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of an error that the app has no part in."""
    body = to_json(ErrorBody(error=message, code=code, details={}))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"x-request-id", secrets.token_hex(8).encode()),
        (b"connection", b"close"),
    ]
    return headers, body


def is_urgent(begun: bytes) -> bool:
    """Whether a request that begins so asks for what tells an operator that the service lives."""
    return len(begun) <= URGENT_BYTES and _URGENT.match(begun) is not None
