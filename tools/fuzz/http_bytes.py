"""HTTP itself: heads, framing, chunks and pipelines that two readers could take differently."""

import random
from collections.abc import Iterator

from tools.fuzz.case import Case, request
from tools.fuzz.mutate import mutate

_METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "TRACE", "CONNECT", "PRI", "G\0T", "", "A" * 5000)
_TARGETS = (
    *(
        "/api/v1/health",
        "/api/v1/jobs?limit=0",
        "/api/v1/jobs/x/stream",
        "/api/v1/jobs/0123456789ab/images/0",
        "*",
        "/",
    ),
    *(
        "/%00",
        "/%ff%fe",
        "/../../etc/passwd",
        "//evil/",
        "http://evil/api/v1/health",
        "/a b",
        "/\xe9",
        "/" + "a" * 9000,
    ),
    *(
        "/api/v1/jobs?cursor=" + "%41" * 2000,
        "/api/v1/jobs?" + "a=1&" * 2000,
        "/api/v1/models/../health",
        "/openapi.json",
    ),
)
_VERSIONS = ("HTTP/1.1",) * 6 + ("HTTP/1.0", "HTTP/2.0", "HTTP/3.0", "HTTP/0.9", "HTTP/1.1 ", "HTTP/11", "ICY", "")
_HEADERS = (
    *(
        "Host: ",
        "Host: a\r\nHost: b",
        "Host: [::1",
        "Host: a@b",
        "Host: a..b",
        "Host: " + "a" * 64,
        "Host: evil.example",
        "Content-Length: -1",
    ),
    *("Content-Length: 5\r\nContent-Length: 6", "Content-Length: 1e3", "Content-Length: 99999999999999999999"),
    *("Content-Length: +5", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: x"),
    *("Transfer-Encoding : chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5", "Expect: 100-continue"),
    *("Expect: 200", "Connection: close, Upgrade", "Upgrade: h2c", "Upgrade: websocket", "Content-Encoding: gzip"),
    *("Authorization: Basic \xff\xfe", "Authorization: Basic ====", "Authorization: Bearer \xe9", "X-API-Key: \xff"),
    *(
        "Idempotency-Key: \xe9",
        "Idempotency-Key: " + "a" * 500,
        "Last-Event-ID: \xff",
        "Last-Event-ID: 0-0",
        "Cookie: ;=;",
    ),
    *(
        "Origin: null",
        "Origin: http://evil.example",
        "Range: bytes=0-,0-,0-",
        "If-None-Match: *",
        "Accept: " + "a," * 3000,
    ),
    *(
        " folded",
        "\tfolded",
        "no colon",
        ": no name",
        "a\0b: c",
        "a: b\0c",
        "X: " + "x" * 70_000,
        "Content-Type: \x80;;=",
    ),
    *("Content-Type: multipart/form-data", "Content-Type: multipart/form-data; boundary=" + "b" * 300),
)
_ENDINGS = ("\r\n",) * 8 + ("\n", "\r", "\r\r\n", "")
_CHUNKS = (
    *(b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"5;ext=1\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n"),
    *(
        b"5\nhello\n0\n\n",
        b"05\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
        b"5\r\nhel",
        b"1\r\na\r\n" * 2000 + b"0\r\n\r\n",
        b"zz\r\n",
    ),
    *(b"5" + b";x=" + b"y" * 50_000, b"0\r\n" + b"T: x\r\n" * 5000 + b"\r\n"),
)


def cases(rng: random.Random, most: int) -> Iterator[Case]:
    """Yield bytes of connections, from nearly right to noise."""
    while True:
        how, data = rng.choice((_head, _head, _head, _chunks, _pipeline, _noise))(rng, most)
        yield Case("http", how, data[:most], well_formed=False)


def _head(rng: random.Random, most: int) -> tuple[str, bytes]:
    method, target, version = rng.choice(_METHODS), rng.choice(_TARGETS), rng.choice(_VERSIONS)
    headers = ["Host: 127.0.0.1", *rng.sample(_HEADERS, rng.choice((0, 1, 1, 2, 5)))]
    if rng.random() < 0.05:
        headers += [f"X-{number}: y" for number in range(rng.choice((100, 5000)))]
    if rng.random() < 0.1:
        headers.pop(0)
    end = rng.choice(_ENDINGS)
    text = end.join([f"{method} {target} {version}", *headers]) + end + rng.choice((end, end, ""))
    added = ", ".join(header[:30] for header in headers[1:3])
    return f"{method[:10]} {target[:30]} {version} ({added})", text.encode("latin-1") + rng.choice((b"", b"hello"))


def _chunks(rng: random.Random, most: int) -> tuple[str, bytes]:
    target = rng.choice(("/sdapi/v1/txt2img", "/api/v1/loras?name=a.safetensors", "/api/v1/health", "/api/v1/generate"))
    head = (
        f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n"
    )
    body = rng.choice(_CHUNKS)
    return f"chunks to {target}: {body[:20]!r}", head.encode() + b"\r\n" + body


def _pipeline(rng: random.Random, most: int) -> tuple[str, bytes]:
    count = rng.choice((2, 10, 500))
    one = request(rng.choice(("GET", "HEAD", "POST")), rng.choice(("/api/v1/health", "/openapi.json", "/none")))
    one = one.replace(b"Connection: close\r\n", b"")
    cut = rng.choice((0, 0, 1, 20))
    return f"{count} requests at once", (one * count)[: -cut or None]


def _noise(rng: random.Random, most: int) -> tuple[str, bytes]:
    if rng.random() < 0.5:
        return "noise", rng.randbytes(rng.choice((1, 100, 100_000)))
    how, data = mutate(rng, request("POST", "/api/v1/generate", b'{"prompt": "a house"}'), most)
    return f"bytes: {how}", data
