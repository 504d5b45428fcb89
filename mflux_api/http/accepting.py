"""Accepting connections: how it goes on when descriptors run out, and what a client that finds no place is told."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import trio

from mflux_api.errors import ServiceError
from mflux_api.http.http1 import whole_error
from mflux_api.http.open_connections import OpenConnections, Place, caller_of

logger = logging.getLogger("mflux_api.http")

_OUT_OF: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
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

    def __init__(self, connections: OpenConnections, serve: Serve) -> None:
        """Take what serves a connection.

        Args:
            connections: those that are open.
            serve: runs until the connection has ended, or until it is cancelled because it has to give way.
        """
        self._connections = connections
        self._serve = serve
        self._refused = 0
        self._logged = -LOG_SECONDS

    async def run(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Accept until cancelled; connections live in `nursery`.

        Raises:
            OSError: the socket does not listen.
        """
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in _OUT_OF:
                    raise
                self._log(error)
                # One that waits for nothing may have the descriptor that is missing.
                self._connections.close_oldest()
                await trio.sleep(RETRY_SECONDS)
            else:
                nursery.start_soon(self._run, stream)

    async def _run(self, stream: trio.SocketStream) -> None:
        try:
            # A client may be gone before it is looked at.
            with suppress(OSError):
                await self._serve_or_refuse(stream, caller_of(stream.socket.getpeername()[0]))
        finally:
            await trio.aclose_forcefully(stream)

    async def _serve_or_refuse(self, stream: trio.SocketStream, address: str) -> None:
        refusal = self._connections.refusal(address)
        if refusal is not None:
            await self._refuse(stream, refusal)
            return
        scope = trio.CancelScope()
        with scope, self._connections.place(address, scope.cancel) as place:
            await self._serve(stream, place)

    async def _refuse(self, stream: trio.SocketStream, refusal: ServiceError) -> None:
        if self._refused >= MOST_REFUSED:
            return
        self._refused += 1
        try:
            with trio.move_on_after(REFUSAL_SECONDS), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await stream.send_all(whole_error(refusal))
                await stream.send_eof()
                left = REFUSAL_BYTES
                while left > 0 and (data := await stream.receive_some(left)):
                    left -= len(data)
        finally:
            self._refused -= 1

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
