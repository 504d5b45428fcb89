"""Accepting connections: how it goes on when descriptors run out, and what a client that finds no place is told."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import trio

from mflux_api.access.addresses import client_of
from mflux_api.errors import InvalidHTTP, ServiceError
from mflux_api.http.http1 import NOT_HTTP, URGENT_BYTES, is_urgent, whole_error
from mflux_api.http.open_connections import OpenConnections, Place

logger = logging.getLogger("mflux_api.http")

_OUT_OF: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_OF_ONE_CLIENT: Final = (
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.EPERM,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ETIMEDOUT,
    errno.EINTR,
)
"""What accept(2) says of a client that is gone, or may not connect; the next one may."""

_METHOD: Final = re.compile(rb"[A-Za-z\r\n]")
"""How a request begins. TLS and most other protocols begin otherwise."""

MOST_ACCEPTED: Final = 16
"""How many connections are accepted in one turn of the loop that are done with at once: of clients that are gone, or
that speak another protocol."""
TASK_COST: Final = 4
"""As how many of those one counts that gets a task: it is let in, and waits in line, or is read after its refusal."""

HEAD_BYTES: Final = URGENT_BYTES + 1
"""What is looked at of a request to see whether it asks for health: a head that is longer is no monitor's, and in line
with all others."""

SILENCE_SECONDS: Final = 20.0

RETRY_SECONDS: Final = 0.1
LOG_SECONDS: Final = 60.0

MOST_REFUSED: Final = 64
"""Clients that are being told that there is no place for them; others beyond it are closed without a word."""
REFUSAL_SECONDS: Final = 1.0
REFUSAL_BYTES: Final = 64 * 1024
"""How long, and how much, such a client is read: a close with unread bytes would take the answer away from it."""

Serve = Callable[[trio.SocketStream, Place], Awaitable[None]]


class Acceptor:
    """Accepts for all sockets of one server."""

    def __init__(
        self,
        connections: OpenConnections,
        serve: Serve,
        silence_seconds: float = SILENCE_SECONDS,
        shared: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Take what serves a connection.

        Args:
            connections: those that are open.
            serve: runs until the connection has ended, or until it is cancelled because it has to give way.
            silence_seconds: a client that has said nothing for so long is left.
            shared: whether an address is that of many clients.
        """
        self._shared = shared
        self._connections = connections
        self._serve = serve
        self._silence_seconds = silence_seconds
        # A connection that begins takes part in the next turns of the loop, and makes all of them longer: one begins
        # in each turn, and one more that asks for health, which is to be heard in any crowd.
        self._lines = trio.Lock(), trio.Lock()
        self._silent = set[trio.CancelScope]()
        self._refused = 0
        self._logged = -LOG_SECONDS

    async def run(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        """Accept until cancelled; connections live in `nursery`.

        Raises:
            OSError: the socket does not listen.
        """
        try:
            while True:
                await trio.lowlevel.wait_readable(sock)
                # Clients that are gone are taken from the line many at a time, or the others would wait behind them.
                left = MOST_ACCEPTED
                while left > 0:
                    try:
                        client, address = sock.accept()
                    except BlockingIOError:
                        break
                    except OSError as error:
                        if error.errno in _OUT_OF:
                            self._log(error)
                            # One that waits for nothing may have the descriptor that is missing.
                            self._connections.close_oldest()
                            await trio.sleep(RETRY_SECONDS)
                            break
                        if error.errno not in _OF_ONE_CLIENT:
                            raise
                        left -= 1
                        continue
                    left -= self._welcome(client, address[0], nursery)
        finally:
            for scope in self._silent:
                scope.cancel("the server ends")

    def _welcome(self, client: socket.socket, peer: str, nursery: trio.Nursery) -> int:
        """Serve a client, refuse it, or close what it has left already; return the part of a turn that it costs."""
        begun = _first_bytes(client)
        if begun is None:
            client.close()
            return 1
        if (refusal := _refusal_of(begun)) is not None:
            # One hello, and all of it is read: no task need wait for the rest.
            _told_and_gone(client, refusal)
            client.close()
            return 1
        address = client_of(peer)
        refusal = self._connections.refusal(address, shared=self._shared(peer))
        if refusal is None:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
            nursery.start_soon(self._run, client, stream, address)
        elif not _told_and_gone(client, refusal) and self._refused < MOST_REFUSED:
            nursery.start_soon(self._read_on, trio.SocketStream(trio.socket.from_stdlib_socket(client)))
        else:
            client.close()
        return TASK_COST

    async def _run(self, client: socket.socket, stream: trio.SocketStream, address: str) -> None:
        scope = trio.CancelScope()
        try:
            with scope, self._connections.place(address, scope.cancel) as place:
                begun = await self._hear(client)
                if (refusal := _refusal_of(begun)) is not None:
                    _told_and_gone(client, refusal)
                elif begun and await self._has_its_turn(client, begun):
                    await self._serve(stream, place)
        finally:
            await trio.aclose_forcefully(stream)

    async def _hear(self, client: socket.socket) -> bytes:
        """Wait for a client's first bytes; none if it is gone or silent."""
        begun = _first_bytes(client)
        if begun == b"":
            with trio.move_on_after(self._silence_seconds) as scope:
                self._silent.add(scope)
                try:
                    await trio.lowlevel.wait_readable(client)
                finally:
                    self._silent.discard(scope)
            begun = _first_bytes(client)
        return begun or b""

    async def _has_its_turn(self, client: socket.socket, begun: bytes) -> bool:
        """Wait for a client's turn; return whether it is still there then."""
        async with self._lines[is_urgent(begun)]:
            return _first_bytes(client) is not None

    async def _read_on(self, stream: trio.SocketStream) -> None:
        """Read what a refused client still sends, for a while, so that it gets to read its answer."""
        self._refused += 1
        left = REFUSAL_BYTES
        try:
            with trio.move_on_after(REFUSAL_SECONDS), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while left > 0 and (data := await stream.receive_some(left)):
                    left -= len(data)
        finally:
            self._refused -= 1
            await trio.aclose_forcefully(stream)

    def _log(self, error: OSError) -> None:
        """Say it once a minute: it is tried ten times a second."""
        if trio.current_time() - self._logged >= LOG_SECONDS:
            self._logged = trio.current_time()
            name = errno.errorcode.get(error.errno or 0, "an error")
            logger.error(
                "accept returned %s (%s); new clients wait: raise the limit of open files (ulimit -n)",
                name,
                os.strerror(error.errno or 0),
            )


def _first_bytes(client: socket.socket) -> bytes | None:
    """Return the beginning of what a client has sent, none where nothing has come yet; ``None`` if it is gone."""
    client.setblocking(False)
    try:
        client.getpeername()  # fails where the client has reset the connection, also behind a request
        return client.recv(HEAD_BYTES, socket.MSG_PEEK) or None
    except BlockingIOError:
        return b""
    except OSError:
        return None


def _refusal_of(begun: bytes) -> ServiceError | None:
    """Return why no connection is made for what begins so."""
    return InvalidHTTP(NOT_HTTP) if begun and not _METHOD.match(begun) else None


def _told_and_gone(client: socket.socket, refusal: ServiceError) -> bool:
    """Send a refused client its answer; return whether it has gone already."""
    try:
        client.send(whole_error(refusal))
        client.shutdown(socket.SHUT_WR)
        return not client.recv(REFUSAL_BYTES) or not client.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True
