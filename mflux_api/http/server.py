"""Listening sockets and their options, and running a Quart-Trio app on them until it drains. No signals, no routes."""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final

import attrs
import trio
from attrs.validators import ge, gt
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import repr_socket_addr
from quart_trio import QuartTrio

from mflux_api.access.proxies import TrustedProxies
from mflux_api.http.accepting import Acceptor
from mflux_api.http.client_timeouts import ClientTimeouts
from mflux_api.http.connection import Connection, HTTPConnection
from mflux_api.http.half_close import SAYS
from mflux_api.http.open_connections import ConnectionLimits, OpenConnections, Place, connection_limits
from mflux_api.http.probes import PROBES
from mflux_api.http.turns import Turns
from mflux_api.system.nurseries import lone_error

_BACKLOG: Final = 4096
"""The system's own limit cuts it. Beyond it a client's connection is tried again a second later."""
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_HINTS: Final = {
    errno.EADDRINUSE: "choose another port with --port",
    errno.EACCES: "choose a port above 1023 with --port",
}


class BindError(OSError):
    """A server cannot listen on `bind`; `reason` says why and, where that is known, what to do."""

    def __init__(self, bind: str, reason: str) -> None:
        super().__init__(bind, reason)
        self.bind = bind
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot listen on {self.bind}: {self.reason}"


@attrs.frozen(kw_only=True)
class ServerOptions:
    """What a server does with its connections, in seconds."""

    keep_alive_seconds: float = attrs.field(default=20.0, validator=gt(0))
    """An idle connection is closed after this; longer than what HTTP clients themselves keep, so that they never reuse
    a connection that is just being closed."""

    graceful_seconds: float = attrs.field(default=3.0, validator=ge(0))
    """What running requests get to finish when the server ends; then they are cancelled."""

    send_stall_seconds: float = attrs.field(default=30.0, validator=gt(0))
    """A client that takes less than 64 KiB of what waits for it in this time is dropped. Long enough for a network
    that fails for a moment; it never prolongs the server's end, where `graceful_seconds` bounds the sends too."""

    linger_seconds: float = attrs.field(default=30.0, validator=ge(0))
    """How long a client that was answered before it had sent everything (413, 401) may go on sending into the void, so
    that it gets to read the answer. It never prolongs the server's end."""

    head_seconds: float = attrs.field(default=15.0, validator=gt(0))
    """How long a client may take from the first byte of a request to the end of its head."""

    limits: ConnectionLimits = attrs.field(factory=connection_limits)
    """How many connections there may be."""

    proxies: TrustedProxies = attrs.field(factory=lambda: TrustedProxies(()))
    """Whose connections are those of many clients."""


DEFAULT_OPTIONS: Final = ServerOptions()


def open_sockets(binds: Sequence[str]) -> list[socket.socket]:
    """Open one listening socket per "host:port" or "[IPv6 address]:port"; port 0 lets the system choose.

    A host name is looked up (this blocks) and listens on one address, IPv4 if it has one. "[::]" is IPv6 only: for both
    families give "0.0.0.0:port" as well. The caller closes the sockets.

    Raises:
        BindError: an address cannot be listened on; none of the sockets is left open.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(_open_socket(bind)) for bind in binds]
        stack.pop_all()
    return sockets


def urls_of(sockets: Sequence[socket.socket]) -> list[str]:
    """Return where a client on this machine reaches each socket: one on every interface is reached by loopback."""
    urls: list[str] = []
    for sock in sockets:
        host, *rest = sock.getsockname()
        urls.append("http://" + repr_socket_addr(sock.family, (_LOOPBACK.get(host, host), *rest)))
    return urls


async def serve(
    app: QuartTrio,
    sockets: Sequence[socket.socket],
    *,
    drain: trio.Event,
    config: ServerOptions = DEFAULT_OPTIONS,
    end_by: Callable[[], float] = lambda: math.inf,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run `app` on listening `sockets` until `drain` is set or the caller cancels; report the URLs when accepting.

    The sockets stay the caller's and go on listening: clients that connect between two servers wait in the backlog.
    Both ways of ending are the same: no more accepts, idle connections closed at once, running requests cancelled after
    `config.graceful_seconds`, or at `end_by()` (in Trio's time, asked at the end) if that is sooner, then the app's
    shutdown hooks (bounded by Quart's BACKGROUND_TASK_SHUTDOWN_TIMEOUT).

    What the app's startup, shutdown or background tasks raise passes: a lone error as itself, several as a group.

    Args:
        app: what answers; its `asgi_http_class` is `HTTPConnection`.
        sockets: listening sockets.
        drain: set by the caller to end the server.
        config: what the server does with its connections.
        end_by: when the last answer must have been sent.
        task_status: is told the URLs.

    Raises:
        TypeError: the app does not use `HTTPConnection`.
        OSError: a socket does not listen.
    """
    if not issubclass(app.asgi_http_class, HTTPConnection):
        raise TypeError("the app must have asgi_http_class = HTTPConnection")
    with lone_error():
        await _serve(app, sockets, drain, config, end_by, task_status)


async def _serve(
    app: QuartTrio,
    sockets: Sequence[socket.socket],
    drain: trio.Event,
    options: ServerOptions,
    end_by: Callable[[], float],
    task_status: trio.TaskStatus[list[str]],
) -> None:
    config = _hypercorn_config(options)
    context = WorkerContext(None)
    limit = ClientTimeouts(options.send_stall_seconds, options.linger_seconds, options.head_seconds)
    turns = Turns()
    probes, needs_clients = app.config.get(PROBES), not app.config.get(SAYS)

    async def connected(stream: trio.SocketStream, place: Place) -> None:
        connection = Connection(
            ASGIWrapper(app),
            config,
            context,
            {},
            limit,
            stream,
            place,
            turns.turn(),
            probes,
            needs_clients=needs_clients,
        )
        await connection.run()

    open_connections = OpenConnections(options.limits)
    acceptor = Acceptor(open_connections, connected, options.keep_alive_seconds, options.proxies.trusts)
    closing = trio.Event()
    with ExitStack() as stack:
        listeners = [stack.enter_context(sock.dup()) for sock in sockets]
        async with trio.open_nursery() as nursery:
            # Cancellation must reach the accepting, but not the connections: these live in a shielded task.
            connections = await nursery.start(_run_app, app, context, limit, options.graceful_seconds, end_by, closing)
            try:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(acceptor.run, listener, connections)
                    task_status.started(urls_of(sockets))
                    await drain.wait()
                    accepting.cancel_scope.cancel("the server drains")
            finally:
                closing.set()


async def _run_app(
    app: QuartTrio,
    context: WorkerContext,
    limit: ClientTimeouts,
    graceful_seconds: float,
    end_by: Callable[[], float],
    closing: trio.Event,
    *,
    task_status: trio.TaskStatus[trio.Nursery],
) -> None:
    """Run the app's lifespan around the connections; Hypercorn's own would hide the errors of the app's hooks."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as background:
            app.nursery = background
            await app.startup()
            scope.shield = True  # from here the end is orderly, and bounded
            async with trio.open_nursery() as connections:
                task_status.started(connections)
                try:
                    await closing.wait()
                except trio.Cancelled:  # a background task of the app failed
                    limit.finish_by(trio.current_time())
                    raise
                await context.terminated.set()  # closes the idle connections
                deadline = min(trio.current_time() + graceful_seconds, end_by())
                limit.finish_by(deadline)
                connections.cancel_scope.deadline = deadline
            await app.shutdown()


def _hypercorn_config(options: ServerOptions) -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("mflux_api.http")
    config.include_server_header = False
    config.keep_alive_timeout = options.keep_alive_seconds
    return config


def _open_socket(bind: str) -> socket.socket:
    host, port = _parse(bind)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise BindError(bind, f"the host {host!r} is not known") from error
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    sock: socket.socket | None = None
    try:
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # the same on every system
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise BindError(bind, _reason(error)) from error
    return sock


def _parse(bind: str) -> tuple[str, int]:
    host, _, port = bind.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not host or (":" in host) != bracketed or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise BindError(bind, 'expected "host:port" or "[IPv6 address]:port"')
    return host, int(port)


def _reason(error: OSError) -> str:
    text = os.strerror(error.errno) if error.errno else str(error)
    text = text[:1].lower() + text[1:]
    hint = _HINTS.get(error.errno or 0)
    return f"{text}; {hint}" if hint else text
