"""Heads of HTTP/1.1 requests, read as h11 does and stricter: what two servers could read differently is refused.

h11 has no public hook between its parser and its state machine, so :class:`RequestParser` overrides internals of the
pinned version; ``tests/http/test_request_head.py`` fails when they change.
"""

from __future__ import annotations

import re
from typing import Any, Final

import h11
from h11._receivebuffer import ReceiveBuffer

_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_BARE: Final = re.compile(rb"[\r\n]")
_SLASHES: Final = re.compile(rb"/{2,}")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]*)((?:[/?#].*)?)", re.IGNORECASE)
# RFC 9110, 4.2.3 with RFC 3986's reg-name; no user name, which a Host header cannot have. Its labels have the
# lengths and the number of DNS (RFC 1035, 2.3.4): Werkzeug fails on others before any route or handler of errors.
_HOST: Final = re.compile(
    rb"(?:\[[0-9A-Za-z:.%_~-]+\]"
    rb"|(?:[0-9A-Za-z_~!$&'()*+,;=%-]{1,63}\.){0,126}[0-9A-Za-z_~!$&'()*+,;=%-]{1,63}\.?)"
    rb"(?::[0-9]{0,5})?"
)
_OTHER_PROTOCOLS: Final = (b"upgrade", b"http2-settings")

MOST_HEADERS: Final = 100
"""As other servers have it; thousands of empty ones fit into 16 KB, and take 30 ms of the loop."""

FREE_CHUNKS: Final = 4_000
LEAST_CHUNK_BYTES: Final = 256
"""So many chunks may have any size; of more than that each stands for so many bytes of the body, on average. A body of
64 MB in chunks of one byte takes minutes of a processor, and what fifty clients had sent in chunks of 64 bytes was
still being read ten seconds after they had left."""

JOINED_CHUNKS: Final = 64

_VERSION: Final = "This server speaks HTTP/1.1 only; send HTTP/1.1, or put a proxy that speaks HTTP/2 in front"
_LINES: Final = "A line of the request's head does not end with CR LF; end every line with both"
_CHUNK: Final = "A chunk's first line has a CR or LF of its own; end it with CR LF, once"
_TINY: Final = f"The body's chunks are too small; send chunks of at least {LEAST_CHUNK_BYTES} bytes, or Content-Length"
_HEADERS: Final = f"The request has over {MOST_HEADERS} headers; send fewer"
_TARGET: Final = "The request's target is not a path; send one that begins with a slash, such as GET /api/v1/health"
_NO_HOST: Final = "The Host header is missing or empty; send the server's name or address in it"
_BAD_HOST: Final = "The Host header is not a host and port; send a name or an address such as 127.0.0.1:8000"


class Refused(h11.LocalProtocolError):
    """A request that h11 would take; the text is what its client is told."""


class RequestParser(h11.Connection):
    """h11's connection of a server, which speaks HTTP/1.1 and nothing else."""

    def __init__(self, max_incomplete_event_size: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size)
        self._receive_buffer = _StrictBuffer()
        self.problem: str | None = None
        """Why a request was refused, in words for its client; ``None`` where h11 refused it."""
        self.ignored = False
        """Whether there was more to come after the last request of the connection."""
        self.joined = 0
        """How many pieces of a body the last event of it has."""
        self._next: list[Any] = []
        """What came behind joined chunks: an event, or the error that it is."""
        self._chunks = 0
        self._chunk_bytes = 0

    @property
    def in_head(self) -> bool:
        """Whether a part of a request's head is there, and the rest is not."""
        return self.their_state is h11.IDLE and len(self._receive_buffer) > 0

    def next_event(self) -> Any:
        """Return the next event; of chunks that have come, many are one.

        Raises:
            h11.RemoteProtocolError: it is not a request that is taken.
        """
        if self._next:
            return _unless_error(self._next.pop())
        event = super().next_event()
        if not isinstance(event, h11.Data):
            return event
        # Each event costs turns of the loop, which tiny chunks would take from everybody. Not too many at once: the
        # loop stands still meanwhile, 7 µs for each.
        pieces = [event.data]
        while len(pieces) < JOINED_CHUNKS:
            try:
                following = super().next_event()
            except h11.RemoteProtocolError as error:
                self._next.append(error)
                break
            if not isinstance(following, h11.Data):
                self._next.append(following)
                break
            pieces.append(following.data)
        self.joined = len(pieces)
        return event if self.joined == 1 else h11.Data(data=b"".join(pieces))

    def _extract_next_receive_event(self) -> Any:
        if self.their_state is h11.MUST_CLOSE and self._receive_buffer:
            # h11 would make an error of it, and the client would get that in place of its answer.
            self._receive_buffer = _StrictBuffer()
            self.ignored = True
        try:
            event = super()._extract_next_receive_event()
            if isinstance(event, h11.Request):
                self._chunks = self._chunk_bytes = 0
                return accept(event)
            if isinstance(event, h11.Data):
                self._count(event)
            return event
        except Refused as refused:
            self.problem = str(refused)
            raise

    def _count(self, event: h11.Data) -> None:
        self._chunks += event.chunk_start
        self._chunk_bytes += len(event.data)
        if self._chunks > FREE_CHUNKS + self._chunk_bytes // LEAST_CHUNK_BYTES:
            raise Refused(_TINY)


def _unless_error(event: Any) -> Any:
    if isinstance(event, h11.RemoteProtocolError):
        raise event
    return event


class _StrictBuffer(ReceiveBuffer):
    """h11 lets a line end with LF alone; a proxy that does not would see another request in the same bytes."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        if self._data.startswith(b"\r\n"):
            return super().maybe_extract_lines()
        blank = self._data.find(b"\r\n\r\n", max(0, self._multiple_lines_search - 2))
        end = len(self._data) if blank == -1 else blank
        if _BARE_LF.search(self._data, self._multiple_lines_search, end):
            raise Refused(_LINES)
        # Before they are parsed. The first line is not a header.
        if blank != -1 and self._data.count(b"\r\n", 0, blank) > MOST_HEADERS:
            raise Refused(_HEADERS, error_status_hint=431)
        return super().maybe_extract_lines()

    def maybe_extract_next_line(self) -> bytearray | None:
        line = super().maybe_extract_next_line()
        if line is not None and _BARE.search(line, 0, len(line) - 2):
            raise Refused(_CHUNK)
        return line


def accept(request: h11.Request) -> h11.Request:
    """Return the request as the app may see it: a path, one host, one framing, no other protocol.

    Raises:
        Refused: it is not a request of HTTP/1.1, or its head can be read in two ways.
    """
    # A minor version of the future has to be taken for the newest that is known (RFC 9110, 2.5).
    if not request.http_version.startswith(b"1."):
        raise Refused(_VERSION)
    target, authority = _target(request)
    headers = [(name, value) for name, value in request.headers if name not in _OTHER_PROTOCOLS]
    headers = _with_host(headers, authority, required=request.http_version > b"1.0")
    names = {name for name, _ in headers}
    if {b"transfer-encoding", b"content-length"} <= names:
        # The length does not count, and a proxy that believes it sees another request in the rest: the
        # connection ends with this one (RFC 9112, 6.1).
        headers = [(name, value) for name, value in headers if name != b"content-length"]
        headers.append((b"connection", b"close"))
    version = min(request.http_version, b"1.1")
    return h11.Request(method=request.method, target=target, headers=headers, http_version=version)


def _target(request: h11.Request) -> tuple[bytes, bytes | None]:
    """Return the path with its query, and the authority of a target in absolute form."""
    target, authority = request.target, None
    if target == b"*" and request.method == b"OPTIONS":
        return target, None
    if not target.startswith(b"/"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise Refused(_TARGET)
        authority, rest = absolute.groups()
        target = b"/" + rest
    path, mark, query = target.partition(b"?")
    # A route and every check by path see one spelling; a redirect to it would have to believe the Host header.
    return _SLASHES.sub(b"/", path) + mark + query, authority


def _with_host(
    headers: list[tuple[bytes, bytes]], authority: bytes | None, *, required: bool
) -> list[tuple[bytes, bytes]]:
    """Return the headers with one Host that is one, or with none; a target in absolute form has the last word."""
    host = authority if authority is not None else dict(headers).get(b"host", b"")
    if not host and (required or authority is not None):
        raise Refused(_NO_HOST)
    if host and _HOST.fullmatch(host) is None:
        raise Refused(_BAD_HOST)
    rest = [(name, value) for name, value in headers if name != b"host"]
    return [(b"host", host), *rest] if host else rest
