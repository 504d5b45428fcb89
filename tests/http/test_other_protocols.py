"""Clients that ask for another protocol than HTTP/1.1, or whose requests two servers could read differently."""

from __future__ import annotations

import json

import pytest
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.ws_stream import WSStream
from quart import request

from tests.support.http_server import App, connect, serving

pytestmark = pytest.mark.slow

SECOND = b"GET /second HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"


class Echo(App):
    """Answers with the path and the body; nothing may ever make Hypercorn's other protocols."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(__name__)
        self.add_url_rule("/<path>", view_func=self.echo, methods=["GET", "POST"])
        for other in (H2Protocol, WSStream):
            monkeypatch.setattr(other, "__init__", self._never)

    def _never(self, *_: object) -> None:
        raise AssertionError("another protocol")

    async def echo(self, path: str) -> str:
        body = await request.get_data(as_text=False)
        assert isinstance(body, bytes)
        return f"{path}: {body.decode()}."


async def answers(app: App, data: bytes) -> bytes:
    """Return all that comes until the server closes the connection."""
    async with serving(app) as server, connect(server.port) as client:
        await client.stream.send_all(data)
        return await client.end_of_file()


@pytest.mark.parametrize(
    "lines",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        b"Upgrade: H2C\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n",
        b"Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
    ],
)
async def test_upgrade_is_ignored_and_the_connection_goes_on(lines: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    data = await answers(Echo(monkeypatch), b"GET /first HTTP/1.1\r\nHost: test\r\n" + lines + b"\r\n" + SECOND)
    assert data.count(b"HTTP/1.1 200 ") == 2
    assert b"HTTP/1.1 101" not in data
    assert data.index(b"first: .") < data.index(b"second: .")


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0",
        b"GET /a HTTP/3.0\r\nHost: test\r\n\r\n",
        b"GET /a HTTP/0.9\r\nHost: test\r\n\r\n",
        b"GET /a HTTP/1.1\nHost: test\n\n",
        b"GET /a HTTP/1.1\r\nHost: test\nX-A: b\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET ?a HTTP/1.1\r\nHost: test\r\n\r\n",
        b"CONNECT test:443 HTTP/1.1\r\nHost: test\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: test\r\n\r\n",
    ],
)
async def test_what_is_not_http_1_gets_an_error_of_http_1_and_the_end(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = await answers(Echo(monkeypatch), data + SECOND)
    first, _, body = answer.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in first.lower()
    assert json.loads(body)["code"] == "INVALID_HTTP"  # one answer: the request behind it was not read


async def test_request_behind_a_length_that_chunks_contradict_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"POST /first HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await answers(Echo(monkeypatch), head + b"3\r\nabc\r\n0\r\n\r\n" + SECOND)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()
    assert answer.endswith(b"first: abc.")


async def test_every_answer_says_that_its_type_is_not_to_be_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (SECOND, SECOND.replace(b"/second", b"/no/such/path"), b"x\r\n\r\n"):
        assert b"x-content-type-options: nosniff\r\n" in (await answers(Echo(monkeypatch), data)).lower()
