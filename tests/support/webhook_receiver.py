"""A real receiver of webhooks on loopback, which answers what it is told and keeps what it got."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.message import Message
from email.parser import BytesParser
from functools import partial

import attrs
import trio

OK = b"HTTP/1.1 204 No Content\r\n\r\n"
Answer = Callable[[trio.abc.Stream], Awaitable[None]]


@attrs.frozen
class Post:
    """One request as it came."""

    line: str
    headers: Message
    body: bytes


@attrs.define
class Receiver:
    """What came, and where it listens."""

    port: int
    posts: list[Post] = attrs.field(factory=list)
    connections: int = 0


def answering(data: bytes) -> Answer:
    """Answer with these bytes."""

    async def answer(stream: trio.abc.Stream) -> None:
        await stream.send_all(data)

    return answer


@asynccontextmanager
async def receiver(*answers: Answer | bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """Listen for as long as the block lasts; the last answer counts for all further connections."""
    plan = [answering(each) if isinstance(each, bytes) else each for each in answers or (OK,)]

    async def serve(stream: trio.abc.Stream) -> None:
        found.connections += 1
        answer = plan.pop(0) if len(plan) > 1 else plan[0]
        if tls is not None:
            stream = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        try:
            found.posts.append(await _read(stream))
            await answer(stream)
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        found = Receiver(listener.socket.getsockname()[1])
        yield found
        nursery.cancel_scope.cancel()


async def _read(stream: trio.abc.Stream) -> Post:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await _some(stream)
    head, _, body = data.partition(b"\r\n\r\n")
    line, _, rest = head.partition(b"\r\n")
    headers = BytesParser().parsebytes(rest, headersonly=True)
    while len(body) < int(headers["Content-Length"]):
        body += await _some(stream)
    return Post(line.decode(), headers, body)


async def _some(stream: trio.abc.Stream) -> bytes:
    some = await stream.receive_some(65536)
    if not some:
        raise trio.BrokenResourceError("the sender left")
    return bytes(some)
