"""Start, end and sockets of `serve`; named for what an operator would see if they went wrong."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator

import h11
import pytest
import trio
from quart import Response
from quart_trio import QuartTrio

from mflux_api.http.server import BindError, ServerOptions, open_sockets, serve, urls_of
from tests.support.http_server import DEADLINE_SECONDS, App, connect, serving

LOOPBACK = "127.0.0.1:0"


def ipv6_works() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


class Gated(App):
    """`/gated` answers when the gate opens."""

    def __init__(self) -> None:
        super().__init__(__name__)
        self.entered = trio.Event()
        self.gate = trio.Event()
        self.cancelled = trio.Event()
        self.answer = "through"
        self.add_url_rule("/hello", view_func=self.hello)
        self.add_url_rule("/gated", view_func=self.gated)
        self.add_url_rule("/big", view_func=self.big)

    async def hello(self) -> str:
        return "hello"

    async def gated(self) -> str:
        self.entered.set()
        try:
            await self.gate.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return self.answer

    async def big(self) -> Response:
        return Response(bytes(4_000_000))


async def test_reports_the_bound_url_and_answers_there() -> None:
    async with serving(Gated()) as server, connect(server.port) as client:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert await client.get("/hello") == (200, b"hello")


async def test_client_that_reads_no_late_answer_does_not_hold_up_the_end() -> None:
    app = Gated()
    app.answer = "x" * 4_000_000
    options = ServerOptions(send_stall_seconds=60, graceful_seconds=0.5)
    async with serving(app, options) as server, connect(server.port, 4096) as client, connect(server.port) as idle:
        await idle.get("/hello")
        await client.send("/gated")
        await app.entered.wait()
        server.drain.set()
        await idle.end_of_file()  # the end has begun: the answer is sent within it
        app.gate.set()
        with trio.fail_after(DEADLINE_SECONDS):
            await server.ended.wait()
        assert not app.cancelled.is_set()


async def test_running_request_may_finish_while_the_server_ends() -> None:
    app = Gated()
    async with serving(app, ServerOptions(graceful_seconds=60)) as server, connect(server.port) as client:
        await client.send("/gated")
        await app.entered.wait()
        server.drain.set()
        app.gate.set()
        assert await client.answer() == (200, b"through")
        assert await client.end_of_file() == b""
        with trio.fail_after(DEADLINE_SECONDS):
            await server.ended.wait()


async def test_running_request_is_cancelled_after_the_graceful_time() -> None:
    app = Gated()
    async with serving(app, ServerOptions(graceful_seconds=0.1)) as server, connect(server.port) as client:
        await client.send("/gated")
        await app.entered.wait()
        with trio.fail_after(DEADLINE_SECONDS):
            await server.stop()
        assert app.cancelled.is_set()


async def test_cancelled_server_lets_a_running_request_finish() -> None:
    app = Gated()
    with open_sockets([LOOPBACK])[0] as sock:
        async with connect(sock.getsockname()[1]) as client, trio.open_nursery() as nursery:
            await nursery.start(start, app, sock, ServerOptions(graceful_seconds=60))
            await client.send("/gated")
            await app.entered.wait()
            nursery.cancel_scope.cancel()
            app.gate.set()
            with trio.CancelScope(shield=True):
                assert await client.answer() == (200, b"through")


async def start(
    app: QuartTrio,
    sock: socket.socket,
    options: ServerOptions,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serve(app, [sock], drain=trio.Event(), config=options, task_status=task_status)


async def test_cancelled_server_leaves_no_task_and_no_file() -> None:
    with open_sockets([LOOPBACK])[0] as sock:
        for _ in range(2):  # the first round opens what the process keeps
            gc.collect()
            tasks, files = trio.lowlevel.current_statistics().tasks_living, len(os.listdir("/dev/fd"))
            app = Gated()
            async with (
                connect(sock.getsockname()[1]) as busy,
                connect(sock.getsockname()[1]) as idle,
                trio.open_nursery() as nursery,
            ):
                await nursery.start(start, app, sock, ServerOptions(graceful_seconds=0.1))
                assert await idle.get("/hello") == (200, b"hello")
                await busy.send("/gated")
                await app.entered.wait()
                nursery.cancel_scope.cancel()
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert len(os.listdir("/dev/fd")) == files


async def test_second_server_on_the_same_sockets_serves_clients_that_connected_in_between() -> None:
    with open_sockets([LOOPBACK])[0] as sock:
        for _ in range(3):
            async with connect(sock.getsockname()[1]) as client, trio.open_nursery() as nursery:
                await client.send("/hello")
                await nursery.start(start, Gated(), sock, ServerOptions())
                assert await client.answer() == (200, b"hello")
                nursery.cancel_scope.cancel()


async def test_error_at_startup_is_raised_and_the_sockets_survive() -> None:
    app = Gated()

    @app.before_serving
    async def broken() -> None:
        raise ValueError("no database")

    with open_sockets([LOOPBACK])[0] as sock:
        with pytest.raises(ValueError, match="no database"):
            await serve(app, [sock], drain=trio.Event())
        async with connect(sock.getsockname()[1]), trio.open_nursery() as nursery:
            await nursery.start(start, Gated(), sock, ServerOptions())
            nursery.cancel_scope.cancel()


async def test_error_of_a_background_task_is_raised_at_once_even_with_a_client_that_stopped_reading() -> None:
    app, stuck = Gated(), trio.Event()

    async def background() -> None:
        await stuck.wait()
        raise ValueError("background")

    async def stop_reading(port: int) -> None:
        async with connect(port, 4096) as client:
            await client.send("/big")
            await trio.lowlevel.wait_readable(client.stream.socket)
            stuck.set()
            await trio.sleep_forever()

    @app.before_serving
    async def begin() -> None:
        app.nursery.start_soon(background)

    with open_sockets([LOOPBACK])[0] as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_reading, sock.getsockname()[1])
            with trio.fail_after(DEADLINE_SECONDS), pytest.raises(ValueError, match="background"):
                await start(app, sock, ServerOptions(graceful_seconds=60, send_stall_seconds=60))
            nursery.cancel_scope.cancel()


async def test_error_at_the_end_is_raised() -> None:
    app, drain = Gated(), trio.Event()

    @app.after_serving
    async def broken() -> None:
        raise ValueError("cannot close")

    drain.set()
    with open_sockets([LOOPBACK])[0] as sock, pytest.raises(ValueError, match="cannot close"):
        await serve(app, [sock], drain=drain)


async def test_app_that_would_hang_its_connections_is_refused() -> None:
    with pytest.raises(TypeError, match="HTTPConnection"):
        await serve(QuartTrio(__name__), [], drain=trio.Event())


async def test_server_says_nothing_and_leaves_signals_alone(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with caplog.at_level(logging.INFO):
        async with serving(Gated()) as server, connect(server.port) as client:
            await client.get("/hello")
            assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")


async def test_error_in_a_handler_is_a_500_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    app = Gated()

    @app.get("/broken-body")
    async def broken() -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"half"
            raise ValueError("body")

        return Response(body())

    async with serving(app) as server, connect(server.port) as client:
        with pytest.raises(h11.RemoteProtocolError):  # cut short, never taken for whole
            await client.get("/broken-body")
    assert [record.name for record in caplog.records] == ["mflux_api.http"]


def test_taken_port_is_a_clear_error_and_nothing_stays_open() -> None:
    files = len(os.listdir("/dev/fd"))
    with open_sockets([LOOPBACK])[0] as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(BindError) as caught:
            open_sockets([LOOPBACK, bind])
    assert str(caught.value) == f"cannot listen on {bind}: address already in use; choose another port with --port"
    assert (caught.value.bind, isinstance(caught.value, OSError)) == (bind, True)
    assert len(os.listdir("/dev/fd")) == files


@pytest.mark.parametrize(
    "bind",
    ["", "7861", ":7861", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "::1:80", "[::1]", "[a]:1"],
)
def test_bind_that_cannot_be_read_is_a_clear_error(bind: str) -> None:
    with pytest.raises(BindError, match="expected"):
        open_sockets([bind])


def test_unknown_host_is_a_clear_error() -> None:
    with pytest.raises(BindError, match=r"cannot listen on no\.invalid:80: the host 'no\.invalid' is not known"):
        open_sockets(["no.invalid:80"])


def test_localhost_and_every_interface_have_urls_that_a_client_can_open() -> None:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(sock) for sock in open_sockets(["localhost:0", "0.0.0.0:0"])]
        assert urls_of(sockets) == [f"http://127.0.0.1:{sock.getsockname()[1]}" for sock in sockets]


@pytest.mark.skipif(not ipv6_works(), reason="this machine has no IPv6 loopback")
def test_both_families_listen_on_one_port() -> None:
    with open_sockets(["[::]:0"])[0] as six:
        port = six.getsockname()[1]
        with open_sockets([f"0.0.0.0:{port}"])[0] as four:
            assert urls_of([six, four]) == [f"http://[::1]:{port}", f"http://127.0.0.1:{port}"]
