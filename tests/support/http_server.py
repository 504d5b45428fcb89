"""Real sockets against `serve`: a running server, and a client that sees the bytes and the end of file."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import h11
import trio
from quart_trio import QuartTrio

from mflux_api.http.connection import HTTPConnection
from mflux_api.http.server import DEFAULT_OPTIONS, ServerOptions, open_sockets, serve

DEADLINE_SECONDS = 10.0
"""Deadline of anything that is expected to happen at once: only a failure waits so long."""


class App(QuartTrio):
    asgi_http_class = HTTPConnection


@attrs.frozen
class Server:
    url: str
    port: int
    drain: trio.Event
    ended: trio.Event

    async def stop(self) -> None:
        self.drain.set()
        await self.ended.wait()


@asynccontextmanager
async def serving(app: QuartTrio, options: ServerOptions = DEFAULT_OPTIONS) -> AsyncIterator[Server]:
    """Run a server on a free port of 127.0.0.1; it is drained when the block ends."""
    [sock] = open_sockets(["127.0.0.1:0"])
    drain, ended = trio.Event(), trio.Event()

    async def run(*, task_status: trio.TaskStatus[list[str]]) -> None:
        await serve(app, [sock], drain=drain, config=options, task_status=task_status)
        ended.set()

    with sock:
        async with trio.open_nursery() as nursery:
            [url] = await nursery.start(run)
            yield Server(url, sock.getsockname()[1], drain, ended)
            drain.set()


@attrs.frozen
class Client:
    stream: trio.SocketStream
    http: h11.Connection = attrs.field(factory=lambda: h11.Connection(h11.CLIENT))

    async def send(self, path: str, *headers: tuple[str, str]) -> None:
        request = h11.Request(method="GET", target=path, headers=[("Host", "test"), *headers])
        await self.stream.send_all((self.http.send(request) or b"") + (self.http.send(h11.EndOfMessage()) or b""))

    async def answer(self) -> tuple[int, bytes]:
        """Return status and body of the next whole response.

        Raises:
            h11.RemoteProtocolError: it is cut short.
        """
        status, body = 0, bytearray()
        with trio.fail_after(DEADLINE_SECONDS):
            while True:
                event = self.http.next_event()
                if event is h11.NEED_DATA:
                    self.http.receive_data(await self.stream.receive_some())
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    return status, bytes(body)
                else:
                    raise AssertionError(event)

    async def get(self, path: str, *headers: tuple[str, str]) -> tuple[int, bytes]:
        """Send a request and return its answer; a further call uses the same connection."""
        if self.http.our_state is h11.DONE:
            self.http.start_next_cycle()
        await self.send(path, *headers)
        return await self.answer()

    async def end_of_file(self) -> bytes:
        """Return everything that comes until the server closes."""
        data = bytearray()
        with trio.fail_after(DEADLINE_SECONDS):
            async for some in self.stream:
                data += some
        return bytes(data)


@asynccontextmanager
async def connect(port: int, receive_buffer: int | None = None) -> AsyncIterator[Client]:
    sock = trio.socket.socket()
    if receive_buffer is not None:  # it must be set before the connection negotiates its window
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    async with trio.SocketStream(sock) as stream:
        await sock.connect(("127.0.0.1", port))
        yield Client(stream)
