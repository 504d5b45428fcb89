"""Packed bodies are taken within the limit of what is in them, however they are packed; other encodings are named."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mflux_api.errors import BodyTooLarge
from mflux_api.http.body_limits import SMALL_BODY_BYTES
from mflux_api.http.content_encoding import SLICE_BYTES, BadPacking, Encoding, UnpackedBody, Unpacker
from tests.support.harness import gateway
from tests.support.lora_files import lora_bytes
from tests.support.scripted_api import Api, scripted_api

BODY = {"prompt": "a red house", "model": "demo", "width": 64, "height": 64, "steps": 1}


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKED: dict[str, tuple[Encoding, Callable[[bytes], bytes]]] = {
    "gzip": (Encoding.GZIP, gzip.compress),
    "gzip in two parts": (
        Encoding.GZIP,
        lambda data: gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :]),
    ),
    "gzip with zeros behind it": (Encoding.GZIP, lambda data: gzip.compress(data, mtime=0) + bytes(100)),
    "deflate as it is meant": (Encoding.DEFLATE, zlib.compress),
    "deflate as it is sent": (Encoding.DEFLATE, raw_deflate),
}


def unpack(encoding: Encoding, packed: bytes, piece: int = 1 << 20) -> bytes:
    unpacker, made = Unpacker(encoding), bytearray()
    for start in range(0, len(packed), piece):
        for part in unpacker.feed(packed[start : start + piece]):
            assert 0 < len(part) <= SLICE_BYTES
            made += part
    unpacker.end()
    return bytes(made)


@pytest.mark.parametrize("name", PACKED)
@given(data=st.binary(max_size=300), piece=st.integers(1, 50))
def test_what_was_packed_comes_out_in_whatever_pieces_it_comes(name: str, data: bytes, piece: int) -> None:
    encoding, pack = PACKED[name]
    assert unpack(encoding, pack(data), piece) == data


@pytest.mark.parametrize("name", PACKED)
def test_large_body_comes_out_slice_by_slice(name: str) -> None:
    encoding, pack = PACKED[name]
    data = bytes(range(256)) * 4096 * 5
    assert unpack(encoding, pack(data)) == data


@given(st.binary(max_size=80), st.sampled_from(list(Encoding)))
def test_any_bytes_are_unpacked_or_refused(data: bytes, encoding: Encoding) -> None:
    with suppress(BadPacking):
        assert len(unpack(encoding, data)) < 1 << 20


@pytest.mark.parametrize(
    ("encoding", "packed", "says"),
    [
        (Encoding.GZIP, b"", "cut off"),
        (Encoding.GZIP, gzip.compress(b"abc", mtime=0)[:-1], "cut off"),
        (Encoding.GZIP, gzip.compress(b"abc", mtime=0) + b"more", "packed otherwise"),
        (Encoding.GZIP, zlib.compress(b"abc"), "packed otherwise"),
        (Encoding.GZIP, gzip.compress(b"", mtime=0) * 2000, "too many parts"),
        (Encoding.DEFLATE, zlib.compress(b"abc") + b"more", "behind its end"),
        (Encoding.DEFLATE, b"x", "cut off"),
        (Encoding.DEFLATE, zlib.compress(b"abc")[:-1], "cut off"),
    ],
)
def test_what_is_not_whole_or_something_else_is_told(encoding: Encoding, packed: bytes, says: str) -> None:
    with pytest.raises(BadPacking, match=says):
        unpack(encoding, packed)


async def one(piece: bytes) -> AsyncGenerator[bytes, None]:
    yield piece


async def test_bomb_is_refused_before_it_is_in_memory() -> None:
    async with aclosing(one(gzip.compress(bytes(40 << 20), 1))) as packed:
        body, taken = UnpackedBody(packed, Encoding.GZIP, 3 << 20), list[int]()

        async def take_all() -> None:
            async for piece in body:
                taken.append(len(piece))

        tracemalloc.start()
        try:
            with pytest.raises(BodyTooLarge, match="over 3 MB once it is unpacked"):
                await take_all()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert sum(taken) <= 3 << 20
    assert peak < 6 << 20


# --- over HTTP ---


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with scripted_api(tmp_path) as running:
        yield running


@pytest.mark.slow
async def test_packed_bodies_are_taken_as_if_they_were_not(api: Api) -> None:
    text = json.dumps(BODY).encode()
    for header, content in (
        ("gzip", gzip.compress(text, mtime=0)),
        ("GZip", gzip.compress(text, mtime=0)),
        ("x-gzip", gzip.compress(text, mtime=0)),
        ("identity, gzip", gzip.compress(text, mtime=0)),
        ("deflate", zlib.compress(text)),
        ("deflate", raw_deflate(text)),
        ("identity", text),
        ("", text),
    ):
        for path in ("/api/v1/generate", "/sdapi/v1/txt2img"):
            answer = await api.http.post(path, content=content, headers={"Content-Encoding": header})
            assert (answer.status_code, answer.json()["warnings"]) == (200, []), header

    async def chunks() -> AsyncIterator[bytes]:
        for byte in gzip.compress(text, mtime=0):
            yield bytes((byte,))

    answer = await api.http.post("/api/v1/generate", content=chunks(), headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 200


@pytest.mark.slow
async def test_encoding_that_is_not_known_is_named_with_those_that_are(api: Api) -> None:
    for header in ("br", "zstd", "compress", "gzip, gzip", "\x7f" * 300):
        for path in ("/api/v1/generate", "/sdapi/v1/img2img", "/sdapi/v1/extra-single-image", "/api/v1/loras?name=a"):
            answer = await api.http.post(path, content=b"abc", headers={"Content-Encoding": header})
            assert (answer.status_code, answer.json()["code"]) == (415, "UNSUPPORTED_ENCODING")
            assert answer.json()["details"]["supported"] == ["gzip", "deflate", "identity"]
            assert answer.headers["Accept-Encoding"] == "gzip, deflate"
            assert answer.json()["error"].isprintable()
            assert len(answer.content) < 1000
    assert (await api.http.get("/api/v1/jobs", headers={"Content-Encoding": "br"})).status_code == 200


@pytest.mark.slow
async def test_body_that_is_not_what_its_encoding_says_is_told_so(api: Api) -> None:
    headers = {"Content-Encoding": "gzip"}
    for content in (json.dumps(BODY).encode(), gzip.compress(json.dumps(BODY).encode())[:-9], b""):
        answer = await api.http.post("/api/v1/generate", content=content, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_JSON")
        assert "Content-Encoding says gzip" in answer.json()["error"]
    answer = await api.http.post("/api/v1/loras", params={"name": "a"}, content=lora_bytes(1), headers=headers)
    assert (answer.status_code, answer.json()["details"]["field"]) == (400, "file")
    assert "Content-Encoding says gzip" in answer.json()["error"]


@pytest.mark.slow
async def test_bombs_are_413_by_what_comes_out_of_them_and_leave_nothing(api: Api, tmp_path: Path) -> None:
    in_flight = gateway(api.service).in_flight
    for path, size in (("/api/v1/generate", 65 << 20), ("/api/v1/jobs/prune", SMALL_BODY_BYTES + 1)):
        packed = gzip.compress(bytes(size), 1)
        answer = await api.http.post(path, content=packed, headers={"Content-Encoding": "gzip"})
        assert (answer.status_code, answer.json()["code"]) == (413, "BODY_TOO_LARGE")
        assert answer.json()["error"].endswith("once it is unpacked")
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert in_flight.used == 0


@pytest.mark.slow
async def test_upload_may_be_packed(api: Api, tmp_path: Path) -> None:
    packed = gzip.compress(lora_bytes(1))
    answer = await api.http.post(
        "/api/v1/loras", params={"name": "a"}, content=packed, headers={"Content-Encoding": "gzip"}
    )
    assert answer.status_code == 200
    assert answer.json()["size_bytes"] == len(lora_bytes(1))
    assert (tmp_path / "loras" / "a.safetensors").read_bytes() == lora_bytes(1)
