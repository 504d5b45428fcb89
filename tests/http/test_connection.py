"""Named for what a client or an operator would see if `connection.py` did not do its work."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator

import h11
import pytest
import trio
from quart import Response, request

from mflux_api.http.http1 import FREE_BODY_BYTES, HTTP1
from mflux_api.http.server import ServerOptions
from tests.support.http_server import DEADLINE_SECONDS, App, Client, connect, serving

pytestmark = pytest.mark.slow

BIG = bytes(6 * 1024 * 1024)
CLOSE = ("Connection", "close")


class Watched(App):
    """Counts the handlers that began and those that were cancelled."""

    def __init__(self) -> None:
        super().__init__(__name__)
        self.began = 0
        self.cancelled = 0
        self._change = trio.Event()
        self.add_url_rule("/hello", view_func=self.hello)
        self.add_url_rule("/upload", view_func=self.hello, methods=["POST"])
        self.add_url_rule("/big", view_func=self.big)
        self.add_url_rule("/never", view_func=self.never)
        self.add_url_rule("/endless", view_func=self.endless)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        self._count(began=1)
        try:
            yield
        except (trio.Cancelled, GeneratorExit):  # the latter in a response's body
            self._count(cancelled=1)
            raise

    def _count(self, began: int = 0, cancelled: int = 0) -> None:
        self.began += began
        self.cancelled += cancelled
        self._change.set()
        self._change = trio.Event()

    async def reached(self, *, began: int = 0, cancelled: int = 0) -> None:
        with trio.fail_after(DEADLINE_SECONDS):
            while self.began < began or self.cancelled < cancelled:
                await self._change.wait()

    async def hello(self) -> str:
        with self.watch():
            return "hello"

    async def big(self) -> Response:
        async def body() -> AsyncIterator[bytes]:
            with self.watch():
                yield BIG

        return Response(body(), headers={"Content-Length": str(len(BIG))})

    async def never(self) -> str:
        with self.watch():
            await trio.sleep_forever()
        raise AssertionError

    async def endless(self) -> Response:
        async def events() -> AsyncIterator[bytes]:
            with self.watch():
                while True:
                    yield b"data: %s\n\n" % (b"x" * 10_000)

        response = Response(events(), content_type="text/event-stream")
        response.timeout = None
        return response


class LoopTurns(trio.abc.Instrument):
    """Counts the turns of the loop."""

    count = 0

    def after_io_wait(self, timeout: float) -> None:
        self.count += 1


async def stop_reading(client: Client, path: str) -> None:
    """Ask for a path and wait until the answer has begun, without taking any of it."""
    await client.send(path)
    with trio.fail_after(DEADLINE_SECONDS):
        await trio.lowlevel.wait_readable(client.stream.socket)


async def test_client_that_asks_for_close_gets_end_of_file() -> None:
    async with serving(Watched()) as server, connect(server.port) as client:
        assert await client.get("/hello", CLOSE) == (200, b"hello")
        assert await client.end_of_file() == b""


async def test_http_1_0_client_gets_end_of_file() -> None:
    async with serving(Watched()) as server, connect(server.port) as client:
        await client.stream.send_all(b"GET /hello HTTP/1.0\r\n\r\n")
        assert (await client.end_of_file()).endswith(b"\r\n\r\nhello")


async def test_two_requests_use_one_connection() -> None:
    async with serving(Watched()) as server, connect(server.port) as client:
        for _ in range(2):
            assert await client.get("/hello") == (200, b"hello")


async def test_two_requests_sent_at_once_are_both_answered() -> None:
    async with serving(Watched()) as server, connect(server.port) as client:
        first = b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n"
        await client.stream.send_all(first + first.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (await client.end_of_file()).count(b"\r\n\r\nhello") == 2


@pytest.mark.parametrize("requests", [0, 1, 2])
async def test_idle_connection_is_closed_after_its_time(requests: int) -> None:
    async with serving(Watched(), ServerOptions(keep_alive_seconds=0.5)) as server, connect(server.port) as client:
        for _ in range(requests):
            assert await client.get("/hello") == (200, b"hello")
        assert await client.end_of_file() == b""


async def test_handler_is_cancelled_when_its_client_leaves_before_the_response() -> None:
    app = Watched()
    async with serving(app) as server:
        async with connect(server.port) as client:
            await client.send("/never")
            await app.reached(began=1)
            assert app.cancelled == 0
        await app.reached(cancelled=1)
        assert (app.began, app.cancelled) == (1, 1)


async def test_stream_is_cancelled_when_its_client_leaves() -> None:
    app = Watched()
    async with serving(app) as server:
        async with connect(server.port) as client:
            await stop_reading(client, "/endless")
        await app.reached(cancelled=1)
        assert (app.began, app.cancelled) == (1, 1)


async def test_client_that_leaves_after_the_end_causes_no_cancellation_and_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Watched()
    with caplog.at_level(logging.INFO):
        async with serving(app) as server:
            for _ in range(20):
                async with connect(server.port) as client:
                    assert await client.get("/hello") == (200, b"hello")
        assert app.cancelled == 0
    assert caplog.messages == []


@pytest.mark.parametrize("path", ["/big", "/endless"])
async def test_client_that_stopped_reading_is_dropped(path: str) -> None:
    app = Watched()
    async with serving(app, ServerOptions(send_stall_seconds=0.3)) as server, connect(server.port, 4096) as client:
        await stop_reading(client, path)
        await app.reached(cancelled=1)
        with pytest.raises(trio.BrokenResourceError):  # a reset: the answer is not taken for a whole one
            await client.end_of_file()


async def test_client_that_stopped_reading_and_sent_a_second_request_is_dropped() -> None:
    # Hypercorn parks the reading side of such a connection where closing the socket does not wake it.
    app = Watched()
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with serving(app, ServerOptions(send_stall_seconds=0.3, graceful_seconds=60)) as server:
        async with connect(server.port, 4096) as client:
            await client.stream.send_all(b"GET /endless HTTP/1.1\r\nHost: test\r\n\r\n" * 2)
            await app.reached(cancelled=1)
        with trio.fail_after(DEADLINE_SECONDS):
            await server.stop()
    assert trio.lowlevel.current_statistics().tasks_living == tasks


@pytest.mark.parametrize("requests", [0, 1])
async def test_one_idle_connection_does_not_hold_up_the_end(requests: int) -> None:
    options = ServerOptions(keep_alive_seconds=60, graceful_seconds=60)
    async with serving(Watched(), options) as server, connect(server.port) as client:
        for _ in range(requests):
            await client.get("/hello")
        with trio.fail_after(DEADLINE_SECONDS):
            await server.stop()
        assert await client.end_of_file() == b""


@pytest.mark.parametrize("path", ["/big", "/endless"])
async def test_client_that_stopped_reading_does_not_hold_up_the_end(path: str) -> None:
    options = ServerOptions(send_stall_seconds=60, graceful_seconds=0.2)
    async with serving(Watched(), options) as server, connect(server.port, 4096) as client:
        await stop_reading(client, path)
        with trio.fail_after(DEADLINE_SECONDS):
            await server.stop()
        assert server.ended.is_set()


async def test_fifty_clients_that_stopped_reading_do_not_disturb_a_healthy_one() -> None:
    app = Watched()
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(app, ServerOptions(send_stall_seconds=2)))
        for _ in range(50):
            await stop_reading(await stack.enter_async_context(connect(server.port, 4096)), "/endless")
        healthy = await stack.enter_async_context(connect(server.port))
        for _ in range(20):
            assert await healthy.get("/hello") == (200, b"hello")
        await app.reached(cancelled=50)
        assert await healthy.get("/hello") == (200, b"hello")


async def test_slow_but_alive_reader_gets_six_megabytes_whole() -> None:
    options = ServerOptions(send_stall_seconds=1)
    async with serving(Watched(), options) as server, connect(server.port, 65536) as client:
        began = trio.current_time()
        await client.send("/big")
        received = 0
        while received < len(BIG):
            event = client.http.next_event()
            if event is h11.NEED_DATA:
                await trio.sleep(0.02)  # the slowness itself
                client.http.receive_data(await client.stream.receive_some(65536))
            elif isinstance(event, h11.Data):
                received += len(event.data)
        assert client.http.next_event() == h11.EndOfMessage()
        assert trio.current_time() - began > 1  # longer than a stall may last


async def test_error_in_one_connection_leaves_the_others_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stock, a defect in the protocol's own code ends the whole server.
    create_stream = HTTP1._create_stream

    async def fail_at_upload(protocol: HTTP1, request: h11.Request) -> None:
        if request.target == b"/upload":
            raise KeyError("a defect")
        await create_stream(protocol, request)

    monkeypatch.setattr(HTTP1, "_create_stream", fail_at_upload)
    async with serving(Watched()) as server, connect(server.port) as other, connect(server.port) as client:
        assert await other.get("/hello") == (200, b"hello")
        await client.send("/upload")
        assert await client.end_of_file() == b""
        assert await other.get("/hello") == (200, b"hello")
    assert "a connection failed and was closed" in caplog.messages


async def test_request_that_fails_beyond_the_apps_handlers_gets_an_error_in_the_contracts_shape(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Watched()
    app.request_class = None  # type: ignore[assignment]  # it cannot even be made
    async with serving(app) as server, connect(server.port) as client:
        status, body = await client.get("/hello")
        assert (status, json.loads(body)["code"]) == (500, "INTERNAL_ERROR")
        assert await client.end_of_file() == b""
    assert caplog.messages == ["a request failed: TypeError"]
    assert not [record for record in caplog.records if record.exc_info]


async def test_many_large_bodies_at_full_speed_make_no_turn_of_the_loop_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clients, size = 5, 2 * 1024 * 1024
    turns, taken_at = LoopTurns(), list[int]()
    app = App(__name__)

    @app.post("/body")
    async def body() -> str:
        return str(len(await request.get_data()))

    let_others_read = HTTP1._let_others_read

    async def noted(self: HTTP1, size: int) -> None:
        beyond = self._body_bytes + size > FREE_BODY_BYTES
        await let_others_read(self, size)
        if beyond:
            taken_at.append(turns.count)

    monkeypatch.setattr(HTTP1, "_let_others_read", noted)

    async def send(port: int) -> None:
        head = f"POST /body HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
        async with connect(port) as client:
            await client.stream.send_all(head.encode() + bytes(size))
            assert b"".join([part async for part in client.stream]).endswith(str(size).encode())

    trio.lowlevel.add_instrument(turns)
    try:
        with trio.fail_after(DEADLINE_SECONDS):
            async with serving(app) as server, trio.open_nursery() as nursery:
                for _ in range(clients):
                    nursery.start_soon(send, server.port)
    finally:
        trio.lowlevel.remove_instrument(turns)
    assert len(taken_at) > clients * (size // (128 * 1024))
    assert len(taken_at) == len(set(taken_at)), "several large pieces were taken in one turn"
