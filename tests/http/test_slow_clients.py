"""Clients that trickle: a head that takes for ever, a body of a byte at a time, an answer that is hardly read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from quart import Response, request

from mflux_api.gateway.bytes_in_flight import BytesInFlight
from mflux_api.http import pace
from mflux_api.http.held import IN_FLIGHT, ServiceRequest
from mflux_api.http.responses import Answer, json_answer
from mflux_api.http.server import ServerOptions
from tests.support.http_server import DEADLINE_SECONDS, App, Client, connect, serving

pytestmark = pytest.mark.slow

SOON = 0.3
LARGE = 6 * 2**20


class Serving(App):
    def __init__(self) -> None:
        super().__init__(__name__)
        self.config[IN_FLIGHT] = BytesInFlight(2**30)
        self.request_class = ServiceRequest
        self.ended = trio.Event()
        self.add_url_rule("/large", view_func=self.large)
        self.add_url_rule("/events", view_func=self.events)
        self.add_url_rule("/read", view_func=self.read, methods=["POST"])
        self.register_error_handler(Exception, self.failed)

    async def failed(self, error: Exception) -> tuple[str, int]:
        return str(error), getattr(error, "status", 500)

    async def large(self) -> Response:
        return json_answer(Answer((bytes(LARGE),)))

    async def events(self) -> Response:
        async def body() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"data: %b\n\n" % bytes(1000)
            finally:
                self.ended.set()

        response = Response(body(), content_type="text/event-stream")
        response.timeout = None
        return response

    async def read(self) -> str:
        return str(len(await request.get_data(as_text=False)))


async def trickle(client: Client, piece: bytes) -> None:
    """Send a byte at a time, for as long as the server takes them."""
    for byte in piece:
        with trio.move_on_after(0.02):
            await trio.sleep_forever()
        try:
            await client.stream.send_all(bytes([byte]))
        except trio.BrokenResourceError:
            return


@pytest.mark.parametrize("before", [b"", b"GET /no HTTP/1.1\r\nHost: test\r\n\r\n"])
async def test_head_that_trickles_gets_408_and_the_end(before: bytes) -> None:
    options = ServerOptions(head_seconds=SOON, keep_alive_seconds=60)
    async with serving(Serving(), options) as server, connect(server.port) as client, trio.open_nursery() as nursery:
        began = trio.current_time()
        nursery.start_soon(trickle, client, before + b"GET / HTTP/1.1\r\nX: " + b"x" * 10_000)
        answer = await client.end_of_file()
        assert trio.current_time() - began < DEADLINE_SECONDS / 2
        nursery.cancel_scope.cancel()
    head, _, body = answer[answer.index(b"HTTP/1.1 408") :].partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["code"] == "REQUEST_TIMEOUT"


async def test_half_a_head_does_not_hold_up_the_end_of_the_server() -> None:
    options = ServerOptions(head_seconds=60, graceful_seconds=60)
    async with serving(Serving(), options) as server, connect(server.port) as client:
        await client.stream.send_all(b"GET / HT")
        await trio.testing.wait_all_tasks_blocked(0.02)
        with trio.fail_after(DEADLINE_SECONDS):
            await server.stop()
        assert await client.end_of_file() == b""


async def test_head_in_two_parts_and_a_long_request_later_are_no_slow_head() -> None:
    options = ServerOptions(head_seconds=SOON, keep_alive_seconds=60)
    async with serving(Serving(), options) as server, connect(server.port) as client:
        await client.stream.send_all(b"POST /read HTTP/1.1\r\nHost: t")
        await trio.testing.wait_all_tasks_blocked(0.02)
        await client.stream.send_all(b"est\r\nConnection: close\r\nContent-Length: 30\r\n\r\n")
        await trickle(client, b"x" * 30)
        assert (await client.end_of_file()).endswith(b"\r\n\r\n30")


@pytest.mark.parametrize("framing", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
async def test_body_that_trickles_gets_408_and_the_end(framing: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "CREDIT_SECONDS", SOON)
    async with (
        serving(Serving(), ServerOptions(linger_seconds=0)) as server,
        connect(server.port) as client,
        trio.open_nursery() as nursery,
    ):
        await client.stream.send_all(b"POST /read HTTP/1.1\r\nHost: test\r\n" + framing + b"\r\n\r\n")
        nursery.start_soon(trickle, client, b"1\r\nx\r\n" * 1000)
        answer = await client.end_of_file()
        nursery.cancel_scope.cancel()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"came too slowly" in answer


async def read_slowly(client: Client, bytes_per_read: int) -> None:
    """Take a little, often enough that no single wait is long.

    Raises:
        trio.BrokenResourceError: the server has dropped the client.
    """
    with trio.fail_after(DEADLINE_SECONDS):
        while await client.stream.receive_some(bytes_per_read):
            with trio.move_on_after(0.02):
                await trio.sleep_forever()


async def test_large_answer_that_is_hardly_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "CREDIT_SECONDS", SOON)
    monkeypatch.setattr(pace, "LEAST_BYTES_PER_SECOND", 2**30)
    async with serving(Serving()) as server, connect(server.port, 4096) as client:
        await client.send("/large")
        with pytest.raises(trio.BrokenResourceError):
            await read_slowly(client, 4096)


async def test_stream_of_events_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "CREDIT_SECONDS", 0.1)
    monkeypatch.setattr(pace, "LEAST_BYTES_PER_SECOND", 2**30)
    app = Serving()
    async with serving(app) as server, connect(server.port, 4096) as client:
        await client.send("/events")
        with trio.move_on_after(5 * SOON):
            await read_slowly(client, 4096)
        assert not app.ended.is_set()
