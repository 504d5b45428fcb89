"""Requests that another server could read differently, or in another protocol: what becomes of them."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.routing import Map

from mflux_api.http.request_head import FREE_CHUNKS, JOINED_CHUNKS, LEAST_CHUNK_BYTES, MOST_HEADERS, RequestParser

BODY = b"a\nb\r\n\r\nc\r"


class Request:
    """What the parser makes of bytes, which come in pieces of one size."""

    def __init__(self, data: bytes, piece: int = 1) -> None:
        parser = RequestParser(16 * 1024)
        self.body = b""
        self.ended = False
        self.problem: str | None = None
        self.failed = False
        for start in range(0, len(data), piece):
            parser.receive_data(data[start : start + piece])
            try:
                self._read(parser)
            except h11.RemoteProtocolError:
                self.problem = parser.problem
                self.failed = True
                return

    def _read(self, parser: RequestParser) -> None:
        while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Request):
                self.head = event
            elif isinstance(event, h11.Data):
                self.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self.ended = True

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.head.headers)


def head(*lines: str, target: str = "/", method: str = "GET", version: str = "1.1", host: str = "Host: test") -> bytes:
    return "\r\n".join((f"{method} {target} HTTP/{version}", host, *lines, "", "")).encode("latin-1")


@pytest.mark.parametrize("version", ["0.9", "2.0", "3.0", "9.9"])
def test_other_version_than_1_is_refused_by_the_name_of_what_is_spoken(version: str) -> None:
    problem = Request(head(version=version)).problem
    assert problem is not None
    assert "HTTP/1.1 only" in problem


def test_minor_version_of_the_future_is_taken_for_1_1() -> None:
    assert Request(head(version="1.7")).head.http_version == b"1.1"


def test_upgrade_does_not_reach_the_app() -> None:
    request = Request(head("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"))
    assert set(request.headers) == {b"host", b"connection"}
    assert request.ended


@pytest.mark.parametrize("piece", [1, 3, 10_000])
@pytest.mark.parametrize("place", range(4))
def test_line_that_ends_with_lf_alone_is_refused(place: int, piece: int) -> None:
    lines = [b"POST / HTTP/1.1", b"Host: test", b"Content-Length: 9", b"", BODY]
    ends = [b"\n" if place == line else b"\r\n" for line in range(4)]
    data = b"".join(line + end for line, end in zip(lines, [*ends, b""], strict=True))
    problem = Request(data, piece).problem
    assert problem is not None
    assert "CR LF" in problem


@given(piece=st.integers(1, 200), body=st.binary(min_size=1, max_size=100))
def test_body_may_hold_anything(piece: int, body: bytes) -> None:
    plain = Request(head(f"Content-Length: {len(body)}", method="POST") + body, piece)
    assert (plain.body, plain.ended) == (body, True)
    chunks = b"%x;note=1\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (len(body), body)
    chunked = Request(head("Transfer-Encoding: chunked", method="POST") + chunks, piece)
    assert (chunked.body, chunked.ended) == (body, True)


@pytest.mark.parametrize(
    "chunks", [b"1;\n\r\na", b"1;\r;\r\na", b"1\na\r\n0\r\n\r\n", b"1\r\na\n0\r\n\r\n", b"0\r\nA: b\n\n"]
)
def test_chunk_with_a_line_end_of_its_own_is_refused(chunks: bytes) -> None:
    request = Request(head("Transfer-Encoding: chunked", method="POST") + chunks + b"\r\n\r\n")
    assert not request.ended


@pytest.mark.parametrize("lengths", [["Content-Length: 9"], ["Content-Length: 9", "Content-Length: 9"]])
def test_length_beside_chunks_does_not_count_and_the_connection_ends(lengths: list[str]) -> None:
    request = Request(head("Transfer-Encoding: chunked", *lengths, method="POST") + b"1\r\na\r\n0\r\n\r\n" + head())
    assert (request.body, request.ended) == (b"a", True)
    assert b"content-length" not in request.headers
    assert request.headers[b"connection"] == b"close"


@pytest.mark.parametrize("host", ["Host:", "Host: \t ", "X-Host: test"])
def test_empty_host_is_a_missing_one(host: str) -> None:
    request = Request(head(host=host))
    assert not request.ended
    # HTTP/1.0 needs none.
    assert b"host" not in Request(head(host=host, version="1.0")).headers


@pytest.mark.parametrize(
    "host",
    [
        *("a b", "a/b", "a@b", "a,b:x", "[::1", "::1", "a:1:2", "a:123456", "\xe9", "a\x7f", "a?b"),
        # Werkzeug takes no such labels, and not with an answer of ours.
        *(".", "..", ".a", "a..b", "a..:80", "a" * 64, f"{'a' * 64}.b", f"b.{'a' * 64}:80"),
    ],
)
def test_host_that_is_not_one_is_refused(host: str) -> None:
    assert "not a host and port" in str(Request(head(host=f"Host: {host}")).problem)


@pytest.mark.parametrize(
    "host", ["test", "TEST.local.", "a_b:80", "127.0.0.1:8000", "[::1]", "[fe80::1%25eth0]:80", "a:"]
)
def test_host_that_is_one_reaches_the_app_as_it_is(host: str) -> None:
    assert Request(head(host=f"Host: {host}")).headers[b"host"] == host.encode()


@pytest.mark.parametrize("host", ["a.", "a.b.:80", "a" * 63, f"{'a' * 63}.b", f"{'a' * 63}:65535", "_a~%41", "[::1]"])
def test_host_that_is_one_is_taken_and_has_a_route(host: str) -> None:
    request = Request(head(host=f"Host: {host}"))
    assert (request.problem, request.ended) == (None, True)
    assert Map().bind(host) is not None


@pytest.mark.parametrize(
    "target", ["?x", "test:443", "*", "a", "ftp://test/", "http:/test", "http://", "http:///a", "http://[::1"]
)
def test_target_that_is_not_a_path_is_refused(target: str) -> None:
    assert Request(head(target=target)).problem is not None


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        ("http://other:80/a?b=http://c//d", "/a?b=http://c//d", "other:80"),
        ("HTTP://other", "/", "other"),
        ("https://[::1]?b", "/?b", "[::1]"),
        ("//a///b?c//d", "/a/b?c//d", "test"),
        ("/", "/", "test"),
    ],
)
def test_path_and_host_have_one_spelling(target: str, path: str, host: str) -> None:
    request = Request(head(target=target))
    assert (request.head.target.decode(), request.headers[b"host"].decode()) == (path, host)


def test_options_may_ask_about_the_whole_server() -> None:
    assert Request(head(target="*", method="OPTIONS")).head.target == b"*"


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"GET / HTTP/1.1", b"Host: a", b": ", b"\0", b"\xff", b"1", b" "]))
)
def test_any_bytes_are_read_the_same_in_any_pieces(parts: list[bytes]) -> None:
    data = b"GET / HTTP/1.1\r\nHost: a" + b"".join(parts)
    whole, apart = Request(data, len(data)), Request(data, 1)
    assert (whole.ended, whole.problem) == (apart.ended, apart.problem)


CHUNKED = head("Transfer-Encoding: chunked", method="POST")


def chunks(count: int, size: int) -> bytes:
    return b"%x\r\n%b\r\n" % (size, b"x" * size) * count


def test_body_in_a_million_tiny_chunks_is_refused_early() -> None:
    request = Request(CHUNKED + chunks(2 * FREE_CHUNKS, 1) + b"0\r\n\r\n", 65536)
    assert request.problem is not None
    assert "too small" in request.problem
    assert len(request.body) < 1.1 * FREE_CHUNKS


@pytest.mark.parametrize(("count", "size"), [(FREE_CHUNKS, 1), (2 * FREE_CHUNKS, LEAST_CHUNK_BYTES)])
def test_body_in_chunks_of_a_program_that_writes_little_at_a_time_is_taken(count: int, size: int) -> None:
    request = Request(CHUNKED + chunks(count, size) + b"0\r\n\r\n", 65536)
    assert (request.problem, request.ended, len(request.body)) == (None, True, count * size)


def test_chunks_that_have_come_are_few_events() -> None:
    parser = RequestParser(16 * 1024)
    parser.receive_data(CHUNKED + chunks(1000, 3) + b"0\r\n\r\n")
    events = list(iter(parser.next_event, h11.NEED_DATA))
    assert sum(len(event.data) for event in events if isinstance(event, h11.Data)) == 3000
    assert len(events) <= 1000 // JOINED_CHUNKS + 3


@given(
    sizes=st.lists(st.integers(1, 200), max_size=200),
    piece=st.integers(1, 500),
    end=st.sampled_from([b"0\r\n\r\n", b"0\r\na: b\r\n\r\n", b"", b"x\r\n"]),
)
def test_joined_chunks_are_the_body_whatever_comes_behind_it(sizes: list[int], piece: int, end: bytes) -> None:
    request = Request(CHUNKED + b"".join(chunks(1, size) for size in sizes) + end, piece)
    assert len(request.body) == sum(sizes)
    assert request.ended == end.startswith(b"0")
    assert request.failed == (end == b"x\r\n")


@pytest.mark.parametrize(("count", "taken"), [(MOST_HEADERS - 1, True), (MOST_HEADERS, False), (3000, False)])
def test_request_with_thousands_of_headers_is_refused_before_they_are_parsed(count: int, taken: bool) -> None:
    request = Request(head(*["a:"] * count), 65536)
    assert (request.problem is None) == taken
    assert taken or "over 100 headers" in str(request.problem)
