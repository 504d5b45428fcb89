"""One POST: where it goes, what counts as done, and that nothing a receiver does holds it up or leads it elsewhere."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import socket
import ssl
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from mflux_api.actors.webhooks.public_addresses import Address
from mflux_api.actors.webhooks.sender import MOST_ADDRESSES, MOST_ANSWER_BYTES, HttpSender, read_retry_after
from mflux_api.actors.webhooks.target import read_target
from mflux_api.jobs.webhook import Attempt
from tests.support.tls_identity import HOST, PEM
from tests.support.webhook_receiver import OK, receiver

LOOPBACK = ipaddress.IPv4Address("127.0.0.1")
PUBLIC = ipaddress.IPv4Address("1.1.1.1")


class Network:
    """Names that resolve to what a test says, and connections that lead to a receiver of the test."""

    def __init__(self, *addresses: Address | str, refuses: Sequence[str] = (), answer: bytes = OK) -> None:
        self.addresses = [ipaddress.ip_address(each) for each in addresses]
        self.refuses = refuses
        self.answer = answer
        self.resolved: list[tuple[str, int]] = []
        self.connected: list[tuple[str, int]] = []

    def sender(self, *, allow_private: bool = False) -> HttpSender:
        return HttpSender(allow_private=allow_private, timeout=10.0, resolve=self.resolve, connect=self.connect)

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        self.resolved.append((host, port))
        return self.addresses

    async def connect(self, address: Address, port: int) -> trio.abc.Stream:
        self.connected.append((str(address), port))
        if str(address) in self.refuses:
            raise ConnectionRefusedError
        ours, theirs = memory_stream_pair()
        await theirs.send_all(self.answer)
        await theirs.send_eof()
        return ours


async def send(sender: HttpSender, url: str = "http://hooks.example/x") -> Attempt:
    return await sender.send(read_target(url, allow_private=True), {"webhook-id": "msg_1"}, b'{"id": "1"}')


@pytest.mark.parametrize("url", ["http://hooks.example/", "https://hooks.example/"])
@pytest.mark.parametrize(
    "addresses",
    [
        ("127.0.0.1",),
        ("::1",),
        ("::ffff:10.0.0.1",),
        ("169.254.169.254",),
        ("64:ff9b::a9fe:a9fe",),
        # One of several is enough.
        ("1.1.1.1", "10.0.0.1"),
        ("2606:4700::1111", "fd00::1"),
    ],
)
async def test_name_that_leads_to_an_address_that_is_not_public_is_not_connected_to(
    addresses: tuple[str, ...], url: str
) -> None:
    network = Network(*addresses)
    attempt = await send(network.sender(), url)
    assert (attempt.final, network.connected) == (True, [])
    assert attempt.error == "the receiver's address is not public (webhooks.allow_private_addresses)"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "10.1.2.3"])
async def test_address_in_the_url_is_checked_again_before_the_connection(host: str) -> None:
    network = Network()
    assert (await send(network.sender(), f"http://{host}/")).final
    assert (network.resolved, network.connected) == ([], [])


async def test_name_is_resolved_once_and_what_was_checked_is_connected_to() -> None:
    network = Network("1.1.1.1", "2606:4700::1111")
    assert await send(network.sender(), "http://hooks.example:81/x") == Attempt()
    assert (network.resolved, network.connected) == ([("hooks.example", 81)], [("1.1.1.1", 81)])


async def test_further_addresses_are_tried_up_to_a_number() -> None:
    names = [f"1.1.1.{n}" for n in range(1, 9)]
    network = Network(*names, refuses=names[:2])
    assert await send(network.sender()) == Attempt()
    assert [address for address, _ in network.connected] == names[:3]
    network = Network(*names, refuses=names)
    assert await send(network.sender()) == Attempt(error="the receiver does not take connections")
    assert [address for address, _ in network.connected] == names[:MOST_ADDRESSES]


async def test_private_address_is_connected_to_where_it_is_allowed() -> None:
    network = Network("10.0.0.1")
    assert await send(network.sender(allow_private=True)) == Attempt()


async def test_name_without_an_address_is_an_error() -> None:
    assert await send(Network().sender()) == Attempt(error="the receiver's name has no address")


def response(status: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} x", *headers, "Content-Length: 0", "", ""]).encode()


@pytest.mark.parametrize(
    ("answer", "attempt"),
    [
        (response(200), Attempt()),
        (response(299), Attempt()),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", Attempt()),
        (b"HTTP/1.0 200 OK\r\n\r\n", Attempt()),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + response(200), Attempt()),
        (response(410), Attempt(error="the receiver answered 410: it wants no more", final=True)),
        (response(404), Attempt(error="the receiver answered 404")),
        (
            response(503, "Retry-After: 120"),
            Attempt(error="the receiver answered 503", retry_after=timedelta(seconds=120)),
        ),
        (b"", Attempt(error="the receiver closed the connection without an answer")),
        (b"HTTP/1.1 2", Attempt(error="the receiver closed the connection without an answer")),
        (b"220 mail.example ESMTP\r\n\r\n", Attempt(error="the receiver's answer is not HTTP")),
        (b"HTTP/1.1 101 x\r\nUpgrade: h2c\r\n\r\n", Attempt(error="the receiver's answer is not HTTP")),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 99_999, Attempt(error="the receiver's answer is not HTTP")),
        (
            b"HTTP/1.1 100 Continue\r\n\r\n" * 9999,
            Attempt(error=f"the receiver's answer is over {MOST_ANSWER_BYTES // 1024} KB"),
        ),
    ],
)
async def test_what_counts_is_the_status_of_an_answer_of_bounded_size(answer: bytes, attempt: Attempt) -> None:
    assert await send(Network(PUBLIC, answer=answer).sender()) == attempt


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_not_followed(status: int) -> None:
    network = Network(PUBLIC, answer=response(status, "Location: http://169.254.169.254/"))
    attempt = await send(network.sender())
    assert attempt.error is not None
    assert attempt.error.startswith(f"the receiver answered {status}, and redirects are not followed")
    assert len(network.connected) == 1


@pytest.mark.parametrize("hanging", ["resolve", "connect"])
async def test_attempt_as_a_whole_has_an_end(autojump_clock: MockClock, hanging: str) -> None:
    network = Network(*[f"1.1.1.{n}" for n in range(1, 9)])

    async def hang(*_: object) -> Sequence[Address]:
        await trio.sleep_forever()

    monkey = {"resolve": network.resolve, "connect": network.connect, hanging: hang}
    sender = HttpSender(allow_private=False, timeout=10.0, **monkey)  # type: ignore[arg-type]
    assert await send(sender) == Attempt(error="the receiver did not answer within 10 s")
    assert trio.current_time() == 10.0


async def test_receiver_that_trickles_its_answer_is_left_in_time(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()

    async def connect(address: Address, port: int) -> trio.abc.Stream:
        return ours

    async def trickle() -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            for line in itertools.chain([b"HTTP/1.1 200 OK\r\n"], itertools.repeat(b"X: y\r\n")):
                await theirs.send_all(line)
                await trio.sleep(1)

    sender = HttpSender(allow_private=True, timeout=10.0, connect=connect)
    with trio.fail_after(12):
        # The nursery ends only when the receiver has noticed that the connection is gone.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            assert await send(sender, "http://10.0.0.1/") == Attempt(error="the receiver did not answer within 10 s")


async def test_endless_rest_of_a_good_answer_is_not_waited_for(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()

    async def connect(address: Address, port: int) -> trio.abc.Stream:
        return ours

    await theirs.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
    assert await send(HttpSender(allow_private=True, timeout=10.0, connect=connect), "http://10.0.0.1/") == Attempt()
    assert trio.current_time() == 1.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("9" * 400, 9_999_999_999.0),
        ("Thu, 01 Jan 1970 00:05:00 GMT", 200.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("Thu, 99 Jan 1970 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert read_retry_after(text, 100.0) == (None if seconds is None else timedelta(seconds=seconds))


# --- real sockets ---


async def to_loopback(host: str, port: int) -> Sequence[Address]:
    return [LOOPBACK]


def real(tmp_path: Path, *, trusts: bool = True) -> tuple[HttpSender, ssl.SSLContext]:
    """A sender that finds every name on loopback, and a receiver's side of TLS."""
    path = tmp_path / "identity.pem"
    path.write_text(PEM)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)

    def context() -> ssl.SSLContext:
        made = ssl.create_default_context(cadata=PEM.partition("-----END PRIVATE KEY-----")[2] if trusts else None)
        made.verify_flags |= ssl.VERIFY_X509_STRICT
        return made

    return HttpSender(allow_private=True, timeout=10.0, resolve=to_loopback, tls=context), server


@pytest.mark.slow
async def test_message_goes_over_tls_to_the_host_that_the_url_names(tmp_path: Path) -> None:
    sender, tls = real(tmp_path)
    async with receiver(OK, tls=tls) as found:
        assert await send(sender, f"https://{HOST}:{found.port}/hook?token=1") == Attempt()
    (post,) = found.posts
    assert post.line == "POST /hook?token=1 HTTP/1.1"
    assert post.headers["Host"] == f"{HOST}:{found.port}"
    assert post.headers["webhook-id"] == "msg_1"
    assert post.body == b'{"id": "1"}'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trusts", "host", "why"),
    [(False, HOST, "it is self-signed"), (True, "other.example", "it is for another name")],
)
async def test_certificate_is_verified_against_the_name(tmp_path: Path, trusts: bool, host: str, why: str) -> None:
    sender, tls = real(tmp_path, trusts=trusts)
    async with receiver(OK, tls=tls) as found:
        attempt = await send(sender, f"https://{host}:{found.port}/")
    assert attempt == Attempt(error=f"the receiver's certificate cannot be verified: {why}")
    assert found.posts == []


@pytest.mark.slow
async def test_receiver_without_tls_is_told_apart(tmp_path: Path) -> None:
    sender, _ = real(tmp_path)
    async with trio.open_nursery() as nursery:

        async def serve(stream: trio.abc.Stream) -> None:
            await stream.receive_some()
            await stream.send_all(response(400))
            await stream.aclose()

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        attempt = await send(sender, f"https://{HOST}:{listeners[0].socket.getsockname()[1]}/")
        nursery.cancel_scope.cancel()
    assert attempt == Attempt(error="the receiver does not speak TLS as it should")


@pytest.mark.slow
async def test_port_that_nothing_listens_on_is_an_error_without_an_address() -> None:
    with_nothing = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = with_nothing[0].socket.getsockname()[1]
    await with_nothing[0].aclose()
    sender = HttpSender(allow_private=True, timeout=10.0)
    assert await send(sender, f"http://localhost:{port}/") == Attempt(error="the receiver does not take connections")


@pytest.mark.slow
async def test_name_is_looked_up_and_one_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    sender = HttpSender(allow_private=True, timeout=10.0)
    async with receiver(OK) as found:
        assert await send(sender, f"http://localhost:{found.port}/") == Attempt()

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert await send(sender, "http://unknown.example/") == Attempt(error="the receiver's name cannot be resolved")


@pytest.mark.slow
async def test_name_on_loopback_is_refused_by_what_it_resolves_to() -> None:
    async with receiver(OK) as found:
        target = read_target(f"http://localhost:{found.port}/", allow_private=True)
        attempt = await HttpSender(allow_private=False, timeout=10.0).send(target, {}, b"")
    assert attempt.final
    assert found.connections == 0
