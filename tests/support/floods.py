"""Clients that attack a server with many connections at one time, until they are told to stop."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Iterator

import attrs

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_HOST = b"Host: localhost\r\n"
_HEALTH = b"GET /api/v1/health HTTP/1.1\r\n" + _HOST + b"\r\n"


def _post(path: str, *headers: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\n".encode() + _HOST + b"\r\n".join([*headers, b"", b""])


@attrs.frozen(kw_only=True)
class Flood:
    """What each of the clients does, again and again."""

    connections: int = 50
    first: bytes = b""
    """What a client sends once."""
    then: bytes = b""
    """What it sends after that, without end."""
    bytes_a_turn: int = 65536
    """How much of it at one time."""
    turn_seconds: float = 0.0
    """How long it waits before it sends more."""
    reads: bool = True
    leaves: bool = False
    """Whether it leaves as soon as it has sent the first, and another comes."""
    resets: bool = False
    """Whether it leaves with a reset, as a program that is killed."""


FLOODS = {
    "connections that say nothing": Flood(connections=300),
    "connections that are dropped": Flood(connections=1, leaves=True),
    "requests whose clients reset": Flood(connections=1, first=_HEALTH, leaves=True, resets=True),
    "TLS": Flood(connections=1, first=b"\x16\x03\x01\x02\x00" + bytes(200), leaves=True),
    "heads of a byte at a time": Flood(
        then=b"GET / HTTP/1.1\r\nX: " + b"x" * 10_000, bytes_a_turn=1, turn_seconds=0.02
    ),
    "heads of many headers": Flood(then=_HEALTH[:-2] + b"a:b\r\n" * 3000 + b"\r\n"),
    "requests without a pause": Flood(then=_HEALTH * 100),
    "Expect": Flood(then=_post("/api/v1/generate", b"Expect: 100-continue", b"Content-Length: 2") + b"{}"),
    "bodies of a byte at a time": Flood(
        first=_post("/api/v1/generate", b"Content-Length: 60000000"), then=b"x", bytes_a_turn=1, turn_seconds=0.02
    ),
    "bodies at full speed": Flood(
        connections=20, first=_post("/api/v1/generate", b"Content-Length: 60000000"), then=b"x" * 65536
    ),
    "chunks of a byte": Flood(
        first=_post("/api/v1/generate", b"Transfer-Encoding: chunked"), then=b"1\r\nx\r\n" * 10_000
    ),
    "small chunks": Flood(
        first=_post("/api/v1/generate", b"Transfer-Encoding: chunked"), then=(b"40\r\n" + b"x" * 64 + b"\r\n") * 1_000
    ),
    "chunk extensions": Flood(
        first=_post("/api/v1/generate", b"Transfer-Encoding: chunked"), then=b"1;" + b"x" * 1_000_000
    ),
    "trailers": Flood(
        first=_post("/api/v1/generate", b"Transfer-Encoding: chunked") + b"0\r\n", then=b"a: b\r\n" * 10_000
    ),
    "uploads of a byte at a time": Flood(
        first=_post("/api/v1/loras?name=slow", b"Content-Length: 1000000"),
        then=b"x",
        bytes_a_turn=1,
        turn_seconds=0.02,
    ),
    "answers that are not read": Flood(then=b"GET /openapi.json HTTP/1.1\r\n" + _HOST + b"\r\n", reads=False),
}


@contextlib.contextmanager
def flooded(port: int, *floods: Flood) -> Iterator[None]:
    """Attack a server on this machine while the block lasts."""
    stop = threading.Event()
    threads = [threading.Thread(target=_attack, args=(port, flood, stop)) for flood in floods]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _attack(port: int, flood: Flood, stop: threading.Event) -> None:
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(contextlib.closing(selectors.DefaultSelector()))
        clients = set[_Client]()
        stack.callback(_close, clients)
        while not stop.is_set():
            while len(clients) < flood.connections:
                try:
                    client = _Client(port, flood)
                except OSError:
                    break
                clients.add(client)
                selector.register(client.socket, client.events, client)
            for key, ready in selector.select(0.01):
                if not key.data.go_on(ready):
                    selector.unregister(key.fileobj)
                    clients.discard(key.data)
                    key.data.close()
            if flood.turn_seconds:
                stop.wait(flood.turn_seconds)


def _close(clients: set[_Client]) -> None:
    for client in clients:
        client.close()


class _Client:
    def __init__(self, port: int, flood: Flood) -> None:
        self._flood = flood
        self._sent = 0
        self.events = (selectors.EVENT_READ if flood.reads else 0) | (
            selectors.EVENT_WRITE if flood.then or flood.leaves or not flood.reads else 0
        )
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=2)
        self.socket.setblocking(False)
        if flood.resets:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        try:
            self.socket.send(flood.first)
        except OSError:
            self.socket.close()
            raise

    def go_on(self, ready: int) -> bool:
        """Send and read a little; return whether the connection goes on."""
        try:
            if ready & selectors.EVENT_READ and not self.socket.recv(65536):
                return False
            if ready & selectors.EVENT_WRITE and self._flood.then:
                start = self._sent % len(self._flood.then)
                self._sent += self.socket.send(self._flood.then[start : start + self._flood.bytes_a_turn])
        except BlockingIOError:
            return True
        except OSError:
            return False
        return not self._flood.leaves

    def close(self) -> None:
        self.socket.close()
