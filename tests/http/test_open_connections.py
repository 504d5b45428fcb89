"""How many connections a server has, who gives way to a new one, and what a client without a place is told."""

from __future__ import annotations

import errno
import json
import logging
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial

import attrs
import pytest
import trio
import trio.lowlevel
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from mflux_api.config import ServerSettings
from mflux_api.errors import ServerBusy, TooManyConnections
from mflux_api.http import accepting
from mflux_api.http.open_connections import ConnectionLimits, OpenConnections, Place, connection_limits
from mflux_api.http.server import ServerOptions, open_sockets, serve
from mflux_api.system import descriptors
from tests.support.http_server import DEADLINE_SECONDS, App, Client, connect, serving

HELLO = b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n"


class Serving(App):
    def __init__(self) -> None:
        super().__init__(__name__)
        self.add_url_rule("/hello", view_func=self.hello)
        self.add_url_rule("/never", view_func=self.never)

    async def hello(self) -> str:
        return "hello"

    async def never(self) -> str:
        await trio.sleep_forever()
        raise AssertionError


def limits(total: int, per_address: int) -> ServerOptions:
    return ServerOptions(limits=ConnectionLimits(total=total, per_address=per_address), keep_alive_seconds=60)


async def refused(client: Client) -> tuple[int, str, bytes]:
    """Return status, code and head of the answer that a client without a place gets."""
    head, _, body = (await client.end_of_file()).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["code"], head.lower()


@pytest.mark.parametrize(
    ("total", "per_address", "expected"),
    [(3, 9, (503, "SERVER_BUSY")), (9, 3, (429, "TOO_MANY_CONNECTIONS"))],
)
async def test_client_without_a_place_is_told_so_and_the_others_go_on(
    total: int, per_address: int, expected: tuple[int, str]
) -> None:
    async with serving(Serving(), limits(total, per_address)) as server, AsyncExitStack() as stack:
        busy = [await stack.enter_async_context(connect(server.port)) for _ in range(3)]
        for client in busy:
            await client.send("/never")
        await trio.testing.wait_all_tasks_blocked(0.02)
        late = await stack.enter_async_context(connect(server.port))
        await late.stream.send_all(HELLO)
        status, code, head = await refused(late)
        assert (status, code) == expected
        assert b"retry-after: 5" in head
        assert b"connection: close" in head
        await busy[0].stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.02)
        next_one = await stack.enter_async_context(connect(server.port))
        assert await next_one.get("/hello") == (200, b"hello")


@pytest.mark.parametrize("sent", [b"", b"GET /hel", HELLO])
async def test_clients_that_only_open_connections_keep_no_other_out(sent: bytes) -> None:
    async with serving(Serving(), limits(5, 5)) as server, AsyncExitStack() as stack:
        for _ in range(20):
            idle = await stack.enter_async_context(connect(server.port))
            await idle.stream.send_all(sent)
        await trio.testing.wait_all_tasks_blocked(0.02)
        for _ in range(3):
            client = await stack.enter_async_context(connect(server.port))
            assert await client.get("/hello") == (200, b"hello")


async def test_connection_that_has_waited_longest_gives_way_first() -> None:
    async with (
        serving(Serving(), limits(2, 2)) as server,
        connect(server.port) as first,
        connect(server.port) as second,
    ):
        for client in (first, second, first):
            assert await client.get("/hello") == (200, b"hello")
        async with connect(server.port) as third:
            assert await third.get("/hello") == (200, b"hello")
            assert await second.end_of_file() == b""
            assert await first.get("/hello") == (200, b"hello")


async def test_many_without_a_place_are_all_told_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "MOST_REFUSED", 2)
    async with serving(Serving(), limits(1, 9)) as server, connect(server.port) as busy:
        await busy.send("/never")
        await trio.testing.wait_all_tasks_blocked(0.02)
        tasks = trio.lowlevel.current_statistics().tasks_living
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connect(server.port)) for _ in range(10)]
            answers = [await client.end_of_file() for client in clients]
        assert all(answer.startswith(b"HTTP/1.1 503") for answer in answers)
        with trio.fail_after(DEADLINE_SECONDS):
            while trio.lowlevel.current_statistics().tasks_living > tasks:
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_refused_client_is_read_no_longer_than_it_is_there() -> None:
    async def serve(stream: trio.SocketStream, place: Place) -> None:
        raise AssertionError

    connections = OpenConnections(ConnectionLimits(total=1, per_address=1))
    acceptor = accepting.Acceptor(connections, serve)
    with trio.fail_after(DEADLINE_SECONDS), socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with connections.place("another", lambda: None) as place:
            place.serve_request()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(acceptor.run, listener, nursery)
                for _ in range(3):
                    async with await trio.open_tcp_stream(*listener.getsockname()) as client:
                        await client.send_all(HELLO)
                        assert b" 503 " in b"".join([data async for data in client])
                        assert acceptor._refused == 1
                    await trio.testing.wait_all_tasks_blocked(0.02)
                    assert acceptor._refused == 0, "further ones would be closed without a word in the end"
                nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class Listener:
    """Has no descriptor for so many connections."""

    failures: int
    accepts: int = 0

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        self.accepts += 1
        raise BlockingIOError if self.accepts > self.failures else OSError(errno.EMFILE, "Too many open files")


async def test_accept_without_descriptors_goes_on_and_the_log_says_so_once_a_minute(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(stream: trio.SocketStream, place: Place) -> None:
        raise AssertionError

    async def readable(sock: object) -> None:
        await trio.lowlevel.checkpoint()
        if listener.accepts > listener.failures:
            await trio.sleep_forever()

    monkeypatch.setattr(trio.lowlevel, "wait_readable", readable)
    closed: list[int] = []
    connections = OpenConnections(ConnectionLimits(total=9, per_address=9))
    listener = Listener(failures=1000)  # a hundred seconds
    with connections.place("here", lambda: closed.append(1)), caplog.at_level(logging.INFO):
        async with trio.open_nursery() as nursery:
            acceptor = accepting.Acceptor(connections, serve)
            nursery.start_soon(acceptor.run, listener, nursery)  # type: ignore[arg-type]
            await trio.sleep(200)
            nursery.cancel_scope.cancel()
    assert listener.accepts == 1001
    assert closed == [1]  # an idle connection has the descriptor that is missing
    assert (
        caplog.messages
        == ["accept returned EMFILE (Too many open files); new clients wait: raise the limit of open files (ulimit -n)"]
        * 2
    )
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    "before",
    [[b"/", b"/\r"], [b"/api/v1/health HTTP/1.1\r\nHost: a\r\n" + b"a:b\r\n" * 3000]],
    ids=["other requests", "heads of many headers"],
)
async def test_health_does_not_wait_behind_connections_that_came_before_it(before: list[bytes]) -> None:
    order = list[bytes]()
    all_served = trio.Event()

    async def serve(stream: trio.SocketStream, place: Place) -> None:
        order.append(bytes(await stream.receive_some(64)))
        if len(order) == 41:
            all_served.set()

    [sock] = open_sockets(["127.0.0.1:0"])
    async with AsyncExitStack() as stack:
        stack.enter_context(sock)
        for path in [*before * (40 // len(before)), b"/api/v1/health "]:
            client = await stack.enter_async_context(connect(sock.getsockname()[1]))
            await client.stream.send_all(b"GET " + path)
        async with trio.open_nursery() as nursery:
            acceptor = accepting.Acceptor(OpenConnections(ConnectionLimits(total=99, per_address=99)), serve)
            nursery.start_soon(acceptor.run, sock, nursery)
            with trio.fail_after(DEADLINE_SECONDS):
                await all_served.wait()
            nursery.cancel_scope.cancel()
    # It is accepted in its turn, and served before those that were.
    assert order.index(b"GET /api/v1/health ") < 20


async def test_client_that_says_nothing_is_left_in_time_and_at_the_end_of_accepting(autojump_clock: MockClock) -> None:
    async def serve(stream: trio.SocketStream, place: Place) -> None:
        raise AssertionError

    [sock] = open_sockets(["127.0.0.1:0"])
    connections = OpenConnections(ConnectionLimits(total=9, per_address=9))
    autojump_clock.autojump_threshold = 0.05
    with sock:
        async with trio.open_nursery() as nursery, trio.open_nursery() as accept:
            accept.start_soon(accepting.Acceptor(connections, serve, 2.0).run, sock, nursery)
            async with connect(sock.getsockname()[1]) as client:
                assert await client.end_of_file() == b""
            async with connect(sock.getsockname()[1]):
                await trio.sleep(1)
                assert len(connections) == 1
                accept.cancel_scope.cancel()
    assert len(connections) == 0


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["open", "idle", "busy", "leave"]), st.integers(0, 9)))
)
def test_limits_hold_whatever_clients_do(steps: list[tuple[str, str, int]]) -> None:
    connections = OpenConnections(ConnectionLimits(total=6, per_address=3))
    with ExitStack() as stack:
        open_now: dict[Place, tuple[str, ExitStack]] = {}
        busy: set[Place] = set()
        for address, what, index in steps:
            places = list(open_now)
            if what == "open":
                refusal = connections.refusal(address)
                alive = {place for place in open_now if place.open}
                own = {place for place in alive if open_now[place][0] == address}
                if isinstance(refusal, TooManyConnections):
                    assert len(own & busy) == 3
                elif isinstance(refusal, ServerBusy):
                    assert len(alive & busy) == 6
                else:
                    one = stack.enter_context(ExitStack())
                    open_now[one.enter_context(connections.place(address, lambda: None))] = address, one
            elif places:
                place = places[index % len(places)]
                if what == "leave":
                    open_now.pop(place)[1].close()
                elif what == "busy":
                    place.serve_request()
                    busy.add(place)
                else:
                    place.wait_for_request()
                    busy.discard(place)
            assert len(connections) == sum(place.open for place in open_now) <= 6
    assert len(connections) == 0
    assert not connections._addresses, "each address that was ever seen would stay in memory"


def test_limits_follow_the_open_files_unless_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, expected in ((256, (64, 32)), (1024, (832, 416)), (65_536, (4096, 2048)), (64, (16, 8))):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        found = connection_limits()
        assert (found.total, found.per_address) == expected
    chosen = connection_limits(ServerSettings(max_connections=7, max_connections_per_address=3))
    assert (chosen.total, chosen.per_address) == (7, 3)
    assert connection_limits(ServerSettings(max_connections=1)).per_address == 1


@pytest.mark.parametrize(
    ("before", "refuses_above", "after"),
    [
        ((1024, 4096), None, 4096),
        ((256, resource.RLIM_INFINITY), None, 65_536),
        ((256, resource.RLIM_INFINITY), 10_240, 10_240),
        ((1024, 1_000_000), None, 65_536),
        ((100_000, 1_000_000), None, 65_536),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None, 65_536),
        ((256, 4096), 0, 256),
    ],
)
def test_soft_limit_of_descriptors_is_raised_and_never_lowered(
    before: tuple[int, int], refuses_above: int | None, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = before

    def setrlimit(_: int, wanted: tuple[int, int]) -> None:
        nonlocal now
        if refuses_above is not None and wanted[0] > refuses_above:
            raise ValueError("current limit exceeds maximum limit")
        assert before[0] != resource.RLIM_INFINITY
        assert wanted[0] > before[0]
        assert wanted[1] == before[1]
        now = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _: now)
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    assert descriptors.raise_descriptor_limit() == after


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00" + bytes(200), b"\0", b"\x80\xff"])
async def test_what_is_not_http_is_told_so_before_anything_is_made_for_it(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect_before_serving(data) as (sock, client):
        drain = trio.Event()
        async with trio.open_nursery() as nursery:
            monkeypatch.setattr(accepting.Acceptor, "_run", None)
            nursery.start_soon(partial(serve, Serving(), [sock], drain=drain))
            answer = await client.end_of_file()
            drain.set()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"INVALID_HTTP" in answer


@asynccontextmanager
async def connect_before_serving(data: bytes) -> AsyncIterator[tuple[socket.socket, Client]]:
    """A client that has sent its bytes before it is accepted, and the listening socket."""
    [sock] = open_sockets(["127.0.0.1:0"])
    with sock:
        async with connect(sock.getsockname()[1]) as client:
            await client.stream.send_all(data)
            yield sock, client
