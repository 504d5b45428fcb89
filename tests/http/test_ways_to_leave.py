"""Every way in which a client can leave gives back its descriptor, its tasks and the memory of its answer."""

from __future__ import annotations

import gc
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from weakref import WeakSet

import pytest
import trio
import trio.testing
from quart import Response, request

from mflux_api.http import connection
from mflux_api.http.responses import Answer, json_answer
from mflux_api.http.server import ServerOptions
from tests.support.harness import eventually
from tests.support.http_server import App, Client, connect, serving

pytestmark = pytest.mark.slow

CLIENTS = 5
SOON = 0.3
OPTIONS = ServerOptions(
    keep_alive_seconds=SOON, head_seconds=SOON, send_stall_seconds=SOON, linger_seconds=SOON, graceful_seconds=SOON
)
"""What bounds a client that says nothing more, shorter than a real server's."""


class Large(bytearray):
    """An answer of six megabytes that can be seen to be gone."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


class Serving(App):
    def __init__(self) -> None:
        super().__init__(__name__)
        self.config["BODY_TIMEOUT"] = SOON
        self.answers = WeakSet[Large]()
        self.add_url_rule("/large", view_func=self.large)
        self.add_url_rule("/small", view_func=self.small)
        self.add_url_rule("/never", view_func=self.never)
        self.add_url_rule("/endless", view_func=self.endless)
        self.add_url_rule("/read", view_func=self.read, methods=["POST"])
        self.add_url_rule("/refused", view_func=self.small, methods=["POST"])

    async def large(self) -> Response:
        answer = Large(6 * 2**20)
        self.answers.add(answer)
        return json_answer(Answer((answer,)))

    async def small(self) -> str:
        return "small"

    async def never(self) -> str:
        await trio.sleep_forever()
        raise AssertionError

    async def endless(self) -> Response:
        async def events() -> AsyncIterator[bytes]:
            while True:
                yield b": keep-alive\n" * 1000
                await trio.lowlevel.checkpoint()

        response = Response(events(), content_type="text/event-stream")
        response.timeout = None
        return response

    async def read(self) -> str:
        return str(len(await request.get_data(as_text=False)))


def ask(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join((f"{line} HTTP/1.1", "Host: test", *headers, "", "")).encode() + body


UNREAD = {
    "nothing": b"",
    "half a head": ask("GET /large")[:-2],
    "an answer": ask("GET /large"),
    "an answer over Upgrade": ask(
        "GET /large", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: "
    ),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0",
    "many answers": ask("GET /large") * 5,
    "a stream": ask("GET /endless"),
    "two streams": ask("GET /endless") * 2,
    "a handler": ask("GET /never"),
    "two handlers": ask("GET /never") * 2,
    "half a body": ask("POST /read", "Content-Length: 1000000", body=b"x" * 1000),
    "half a chunk": ask("POST /read", "Transfer-Encoding: chunked", body=b"1000\r\nx"),
    "a body that no handler reads": ask("POST /refused", "Content-Length: 1000000000", body=b"x" * 100_000),
    "what is not HTTP": b"\x16\x03\x01\x02\x00" + bytes(100),
    "an idle connection": ask("GET /small"),
}
"""What a client has sent, and not read the answer of, when it leaves."""

ENDLESS = ("a handler", "two handlers")
"""What has no end while its client is there."""


def close(client: Client) -> None:
    """Leave in good order; the kernel makes a reset of it where there is something unread."""
    client.stream.socket.close()


def reset(client: Client) -> None:
    """Vanish, as a program that is killed does."""
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.stream.socket.close()


def half_close(client: Client) -> None:
    """Say that nothing more will come, and stay without reading."""
    client.stream.socket.shutdown(socket.SHUT_WR)


def stay(client: Client) -> None:
    """Say and read nothing more."""


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def living_tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


@contextmanager
def no_garbage_collector() -> Iterator[None]:
    """A quiet server collects no garbage for hours: what is not freed at once stays."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("leave", "what"),
    [
        (leave, what)
        for leave in (close, reset, half_close, stay)
        for what in UNREAD
        if leave is not stay or what not in ENDLESS
    ],
)
async def test_client_that_leaves_gives_back_all_that_it_held(
    leave: Callable[[Client], None], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_SILENCE_SECONDS", SOON)
    app = Serving()
    with no_garbage_collector():
        async with serving(app, OPTIONS) as server:
            await trio.testing.wait_all_tasks_blocked()
            tasks, descriptors = living_tasks(), open_descriptors()
            async with AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(connect(server.port, 4096)) for _ in range(CLIENTS)]
                for client in clients:
                    await client.stream.send_all(UNREAD[what])
                await trio.testing.wait_all_tasks_blocked(0.02)  # the answers have begun, and none can be whole
                for client in clients:
                    leave(client)
                with trio.fail_after(4):
                    await eventually(lambda: (living_tasks(), len(app.answers)) == (tasks, 0))
            assert open_descriptors() == descriptors
