"""One POST to a receiver that a stranger chose: the address that was checked is the one that is connected to."""

import contextlib
import ipaddress
import math
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import Final

import h11
import trio

from mflux_api.actors.webhooks.public_addresses import Address, is_public, parse
from mflux_api.actors.webhooks.target import Target
from mflux_api.jobs.webhook import Attempt
from mflux_api.system.threads import read_in_thread

CONNECT_SECONDS: Final = 5.0
"""For one address of several: another one may answer."""
MOST_ADDRESSES: Final = 4
RESOLVERS: Final = 16
"""Threads in which names are resolved: a resolver that does not answer keeps one, and no caller."""
MOST_ANSWER_BYTES: Final = 64 * 1024
"""Of an answer as a whole; only its head counts."""
REST_SECONDS: Final = 1.0
"""For the rest of an answer, so that a receiver is not cut off in the middle of it."""
_READ_BYTES: Final = 16 * 1024
_MOST_RETRY_AFTER: Final = 10
"""Digits."""

_CERTIFICATE: Final[Mapping[int, str]] = {
    10: "it has expired",
    18: "it is self-signed",
    19: "it is signed by an authority that this server does not know",
    20: "it is signed by an authority that this server does not know",
    62: "it is for another name",
    64: "it is for another address",
}
"""OpenSSL's numbers (X509_V_ERR_…) in words."""

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
Connect = Callable[[Address, int], Awaitable[trio.abc.Stream]]


class _NotSent(Exception):
    """Why an attempt came to nothing, in a sentence without addresses."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


async def connect(address: Address, port: int) -> trio.abc.Stream:
    """Connect to an address.

    Raises:
        OSError: it does not take the connection.
    """
    family = socket.AF_INET if isinstance(address, ipaddress.IPv4Address) else socket.AF_INET6
    end = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        await end.connect((str(address), port))
        return trio.SocketStream(end)
    except BaseException:
        end.close()
        raise


class HttpSender:
    """Sends over HTTP/1.1 and TLS, each message on a connection of its own; no proxy is asked."""

    def __init__(
        self,
        *,
        allow_private: bool,
        timeout: float,
        resolve: Resolve | None = None,
        connect: Connect = connect,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        """Take the rules.

        Args:
            allow_private: whether addresses that are not public may be connected to.
            timeout: seconds for an attempt as a whole.
            resolve: returns all addresses of a name.
            connect: connects to an address.
            tls: makes the context that certificates are verified with; called once, in a thread.
        """
        self._allow_private = allow_private
        self._timeout = timeout
        self._resolve = resolve or self._look_up
        self._connect = connect
        self._make_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._making_tls = trio.Lock()
        self._resolvers = trio.CapacityLimiter(RESOLVERS)

    async def send(self, target: Target, headers: Mapping[str, str], body: bytes) -> Attempt:
        """Send a body once, and return what became of it."""
        error = f"the receiver did not answer within {self._timeout:g} s"
        with trio.move_on_after(self._timeout):
            try:
                stream = await self._open(target)
                try:
                    return await _exchange(stream, target, headers, body)
                finally:
                    # Also at the end of a good exchange: a receiver could hold up TLS's own end.
                    await trio.aclose_forcefully(stream)
            except _NotSent as reason:
                return Attempt(error=str(reason), final=reason.final)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                error = "the connection was lost before the receiver had answered"
            except h11.RemoteProtocolError:
                error = "the receiver's answer is not HTTP"
        return Attempt(error=error)

    async def _open(self, target: Target) -> trio.abc.Stream:
        stream = await self._connect_to(await self._addresses(target), target.port)
        if not target.tls:
            return stream
        secured = trio.SSLStream(stream, await self._context(), server_hostname=target.host, https_compatible=True)
        try:
            await secured.do_handshake()
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(stream)
            raise _NotSent(_of_handshake(error.__cause__)) from None
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return secured

    async def _addresses(self, target: Target) -> Sequence[Address]:
        """Return the addresses of a target, every one of which may be connected to."""
        literal = parse(target.host)
        addresses = [literal] if literal is not None else await self._resolve(target.host, target.port)
        if not addresses:
            raise _NotSent("the receiver's name has no address")
        # One that is not public spoils all: who answers for such a name answers differently the next time.
        if not self._allow_private and not all(is_public(each) for each in addresses):
            raise _NotSent("the receiver's address is not public (webhooks.allow_private_addresses)", final=True)
        return addresses

    async def _look_up(self, host: str, port: int) -> Sequence[Address]:
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            found = await read_in_thread(ask, limiter=self._resolvers)
        except (socket.gaierror, UnicodeError):
            raise _NotSent("the receiver's name cannot be resolved") from None
        return list(dict.fromkeys(ipaddress.ip_address(sockaddr[0]) for *_, sockaddr in found))

    async def _connect_to(self, addresses: Sequence[Address], port: int) -> trio.abc.Stream:
        for address in addresses[:MOST_ADDRESSES]:
            with trio.move_on_after(CONNECT_SECONDS), contextlib.suppress(OSError):
                return await self._connect(address, port)
        raise _NotSent("the receiver does not take connections")

    async def _context(self) -> ssl.SSLContext:
        async with self._making_tls:
            if self._tls is None:
                # It reads the system's certificates: 20 ms.
                self._tls = await read_in_thread(self._make_tls)
        return self._tls


async def _exchange(stream: trio.abc.Stream, target: Target, headers: Mapping[str, str], body: bytes) -> Attempt:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_READ_BYTES)
    whole = {"Host": target.authority, **headers, "Content-Length": str(len(body)), "Connection": "close"}
    request = h11.Request(method="POST", target=target.path, headers=list(whole.items()))
    sent = [connection.send(event) for event in (request, h11.Data(data=body), h11.EndOfMessage())]
    await stream.send_all(b"".join(part for part in sent if part))
    reader = _Reader(stream, connection)
    while not isinstance(event := await reader.next(), h11.Response):
        if isinstance(event, h11.ConnectionClosed):
            raise _NotSent("the receiver closed the connection without an answer")
    with trio.move_on_after(REST_SECONDS), contextlib.suppress(_NotSent, trio.BrokenResourceError, h11.ProtocolError):
        while not isinstance(await reader.next(), h11.EndOfMessage | h11.ConnectionClosed):
            pass
    return _attempt(event)


class _Reader:
    """Reads an answer within its bounds."""

    def __init__(self, stream: trio.abc.Stream, connection: h11.Connection) -> None:
        self._stream = stream
        self._connection = connection
        self._left = MOST_ANSWER_BYTES

    async def next(self) -> h11.Event:
        """Return what comes next.

        Raises:
            _NotSent: it is too large, or nothing comes.
        """
        while (event := self._connection.next_event()) is h11.NEED_DATA:
            data = await self._stream.receive_some(_READ_BYTES)
            self._left -= len(data)
            if self._left < 0:
                raise _NotSent(f"the receiver's answer is over {MOST_ANSWER_BYTES // 1024} KB")
            if not data and self._connection.their_state is h11.SEND_RESPONSE:
                raise _NotSent("the receiver closed the connection without an answer")
            self._connection.receive_data(bytes(data))
        if not isinstance(event, h11.Event):
            # A protocol that was not asked for.
            raise _NotSent("the receiver's answer is not HTTP")
        return event


def _attempt(answer: h11.Response) -> Attempt:
    status = answer.status_code
    if 200 <= status < 300:
        return Attempt()
    error = f"the receiver answered {status}"
    if status == HTTPStatus.GONE:
        return Attempt(error=f"{error}: it wants no more", final=True)
    if 300 <= status < 400:
        return Attempt(error=f"{error}, and redirects are not followed; name the address that it leads to")
    asked = next((value for name, value in answer.headers if name == b"retry-after"), b"")
    return Attempt(error=error, retry_after=read_retry_after(asked.decode("latin-1"), time.time()))


def read_retry_after(text: str, now: float) -> timedelta | None:
    """Return how long a Retry-After header asks to wait, as seconds or a date; ``None`` where it cannot be read."""
    text = text.strip()
    try:
        if text.isascii() and text.isdigit():
            return timedelta(seconds=int(text[:_MOST_RETRY_AFTER]))
        seconds = parsedate_to_datetime(text).timestamp() - now
    except (ValueError, TypeError, OverflowError, OSError):
        return None
    return timedelta(seconds=max(0.0, seconds)) if math.isfinite(seconds) else None


def _of_handshake(cause: BaseException | None) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        why = _CERTIFICATE.get(cause.verify_code, "it is not valid")
        return f"the receiver's certificate cannot be verified: {why}"
    return "the receiver does not speak TLS as it should"
