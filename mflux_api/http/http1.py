"""HTTP/1 where Hypercorn answers without the app, or an answer comes before its request has arrived."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import h11
from hypercorn.protocol.events import Event, Response
from hypercorn.protocol.h11 import H11Protocol

from mflux_api.errors import InvalidHTTP
from mflux_api.http.responses import to_json
from mflux_api.http.schemas import ErrorBody

if TYPE_CHECKING:
    from hypercorn.protocol import ProtocolWrapper

_MESSAGES: Final = {
    431: "The request's line and headers are over 16 KB; send fewer or shorter headers",
    501: "This Transfer-Encoding is not supported; send the body with Content-Length or chunked",
}
_BROKEN_BODY: Final = "The request's body is broken off or badly chunked; send it again"
_NOT_HTTP: Final = (
    "This is not an HTTP/1.1 request that can be read; check the client, and that it does not speak HTTPS"
)


class HTTP1(H11Protocol):
    """Hypercorn's protocol with errors in the contract's shape, and with the truth about what it will close."""

    @classmethod
    def within(cls, wrapper: ProtocolWrapper) -> HTTP1:
        """Return what takes the place of the wrapper's own protocol, before the first byte."""
        return cls(
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

    @property
    def client_may_be_sending(self) -> bool:
        """Whether there may be more to come of the last request, which no handler will read."""
        return self.connection.their_state in (h11.SEND_BODY, h11.ERROR)

    async def stream_send(self, event: Event) -> None:
        """Send a part of an answer."""
        early = self.connection.their_state is h11.SEND_BODY
        if early and isinstance(event, Response) and event.status_code >= 200:
            # The connection ends with this answer. A client that is not told would send its next request on it.
            headers = [*event.headers, (b"connection", b"close")]
            event = Response(stream_id=event.stream_id, headers=headers, status_code=event.status_code)
        await super().stream_send(event)

    async def _send_error_response(self, status_code: int) -> None:
        message = _MESSAGES.get(status_code, _NOT_HTTP if self.stream is None else _BROKEN_BODY)
        body = to_json(ErrorBody(error=message, code=InvalidHTTP.code, details={}))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", secrets.token_hex(8).encode()),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())
