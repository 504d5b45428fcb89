"""Answers that come before the request has arrived; clients that are gone, or that do not speak HTTP."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from quart import request

from mflux_api.http import connection
from mflux_api.http.server import ServerOptions
from tests.support.http_server import DEADLINE_SECONDS, App, Client, connect, serving

pytestmark = pytest.mark.slow

MEGABYTE = bytes(1024 * 1024)
LIMIT = 64 * len(MEGABYTE)
HEAD = b"POST /refused HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000000000\r\n\r\n"


class Refusing(App):
    """One route reads its body, the other answers without."""

    def __init__(self) -> None:
        super().__init__(__name__)
        self.config["MAX_CONTENT_LENGTH"] = LIMIT
        self.add_url_rule("/read", view_func=self.read, methods=["POST"])
        self.add_url_rule("/refused", view_func=self.refused, methods=["POST"])

    async def read(self) -> str:
        return str(len(await request.get_data(as_text=False)))

    async def refused(self) -> tuple[str, int]:
        return "no", 401


def post(port: int, path: str, *, chunked: bool) -> tuple[int, str | None]:
    """Send 100 MB as a client does that looks for no answer before it has sent everything."""

    def body() -> Iterator[bytes]:
        for _ in range(100):
            yield MEGABYTE

    client = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
    headers = {} if chunked else {"Content-Length": str(100 * len(MEGABYTE))}
    client.request("POST", path, body(), headers, encode_chunked=chunked)
    answer = client.getresponse()
    answer.read()
    client.close()
    return answer.status, answer.headers["Connection"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("path", "status"), [("/read", 413), ("/refused", 401)])
async def test_client_that_is_still_sending_gets_to_read_the_answer(path: str, status: int, chunked: bool) -> None:
    answers: list[tuple[int, str | None]] = []
    async with serving(Refusing()) as server, trio.open_nursery() as nursery:

        async def one() -> None:
            answers.append(await trio.to_thread.run_sync(lambda: post(server.port, path, chunked=chunked)))

        for _ in range(3):
            nursery.start_soon(one)
    assert answers == [(status, "close")] * 3


async def tasks() -> int:
    """Return how many tasks there are once all of them wait."""
    await trio.testing.wait_all_tasks_blocked(0.01)
    return trio.lowlevel.current_statistics().tasks_living


async def send_without_end(client: Client) -> None:
    """Begin a request without an end, take its answer, and go on sending until the connection is gone."""
    await client.stream.send_all(HEAD)
    answer = b""
    with trio.fail_after(DEADLINE_SECONDS):
        while not answer.endswith(b"\r\n\r\nno"):
            answer += await client.stream.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await endless(client)


async def endless(client: Client) -> None:
    while True:
        await client.stream.send_all(MEGABYTE)


async def test_client_that_never_stops_sending_is_closed_after_a_while() -> None:
    async with serving(Refusing(), ServerOptions(linger_seconds=0.3)) as server, connect(server.port) as client:
        await send_without_end(client)


async def test_client_that_sends_too_much_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_BYTES", 10 * len(MEGABYTE))
    async with serving(Refusing(), ServerOptions(linger_seconds=60)) as server, connect(server.port) as client:
        await send_without_end(client)


async def test_client_that_falls_silent_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_SILENCE_SECONDS", 0.1)
    async with serving(Refusing(), ServerOptions(linger_seconds=60, keep_alive_seconds=60)) as server:
        idle = await tasks()
        async with connect(server.port) as client:
            await client.stream.send_all(HEAD)
            assert (await client.end_of_file()).endswith(b"\r\n\r\nno")
            with trio.fail_after(DEADLINE_SECONDS):
                while await tasks() > idle:
                    continue


@pytest.mark.parametrize("drained_first", [False, True])
async def test_client_that_goes_on_sending_does_not_hold_up_the_end(
    drained_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_SILENCE_SECONDS", 60)
    options = ServerOptions(linger_seconds=60, graceful_seconds=60)
    async with serving(Refusing(), options) as server, connect(server.port) as client:
        if drained_first:
            server.drain.set()
        await client.stream.send_all(HEAD)
        if not drained_first:
            await client.end_of_file()
            await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.fail_after(DEADLINE_SECONDS):
            await server.stop()
        assert server.ended.is_set()


async def test_client_that_left_leaves_nothing_behind() -> None:
    # Hypercorn keeps its socket for as long as an idle one; many short connections used up the descriptors.
    async with serving(Refusing(), ServerOptions(keep_alive_seconds=60)) as server:
        before = await tasks()
        for _ in range(20):
            async with connect(server.port) as client:
                await client.get("/nothing")
                await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.fail_after(DEADLINE_SECONDS):
            while await tasks() > before:
                continue
        assert await tasks() == before


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40), 400),
        (b"GET / HTTP/one\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"x" * 100_000, 431),
        (b"POST /read HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /read HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n", 400),
    ],
)
async def test_bytes_that_are_not_http_get_an_error_in_the_contracts_shape(text: bytes, status: int) -> None:
    async with serving(Refusing()) as server, connect(server.port) as client:
        await client.stream.send_all(text)
        await client.stream.send_eof()
        head, _, body = (await client.end_of_file()).partition(b"\r\n\r\n")
    first, *lines = head.decode().lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert first.split()[1] == str(status)
    assert (headers["content-type"], headers["connection"]) == ("application/json", "close")
    assert len(headers["x-request-id"]) == 16
    error = json.loads(body)
    assert (error["code"], error["details"], list(error)) == ("INVALID_HTTP", {}, ["error", "code", "details"])


@pytest.mark.parametrize("more", [b"\r\n", b"GET / HTTP/1.1\r\nHost: test\r\n\r\n", MEGABYTE])
async def test_client_that_sends_more_after_its_last_request_gets_to_read_the_answer(more: bytes) -> None:
    head = b"POST /read HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
    async with serving(Refusing()) as server, connect(server.port) as client:
        await client.stream.send_all(head + more)
        answer = await client.end_of_file()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n3")


@pytest.mark.parametrize("count", [1, 200])
async def test_long_headers_that_are_still_being_sent_get_to_read_the_answer(count: int) -> None:
    async with serving(Refusing()) as server, connect(server.port) as client:
        await client.stream.send_all(b"GET / HTTP/1.1\r\n")
        for _ in range(count):
            await client.stream.send_all(b"x-long: " + b"x" * 50_000 + b"\r\n")
        assert (await client.end_of_file()).startswith(b"HTTP/1.1 431")
