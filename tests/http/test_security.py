"""Headers that strangers send, and answers that must not stay in caches."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import httpx
import pytest

from mflux_api.config import SecuritySettings
from tests.support.harness import settings
from tests.support.http_server import connect
from tests.support.scripted_api import Api, scripted_api

pytestmark = pytest.mark.slow

KEY = "a key of nineteen letters"
LETTERS = "ключ-из-букв-и-знаков"
HEADERS = (
    "Accept",
    "Accept-Encoding",
    "Authorization",
    "Content-Encoding",
    "Content-Type",
    "Cookie",
    "Expect",
    "Forwarded",
    "Idempotency-Key",
    "If-Modified-Since",
    "If-None-Match",
    "Last-Event-ID",
    "Origin",
    "Range",
    "Sec-Fetch-Site",
    "User-Agent",
    "X-API-Key",
    "X-Forwarded-For",
    "X-Request-ID",
)
VALUES = (b"\xe9\xff", b"Basic \xe9\xff", b"Basic YTpi\xe9", b"Basic /////w==", b"Bearer \xe9", b'W/"\xe9', b"a=\xe9;")
BODY = b'{"prompt": ""}'


@asynccontextmanager
async def api_with(folder: Path, *keys: str) -> AsyncIterator[Api]:
    changed = attrs.evolve(settings(folder), security=SecuritySettings(api_keys=keys))
    async with scripted_api(folder, changed=changed) as api:
        yield api


@pytest.mark.parametrize("keys", [(), (KEY,)])
@pytest.mark.parametrize(
    "path", ["POST /api/v1/generate", "GET /api/v1/jobs/0123456789ab/stream", "OPTIONS /api/v1/jobs"]
)
async def test_any_bytes_in_any_header_get_an_answer_of_the_contract(
    tmp_path: Path, path: str, keys: tuple[str, ...]
) -> None:
    async with api_with(tmp_path, *keys) as api:
        for name in HEADERS:
            for value in VALUES:
                lines = [
                    f"{path} HTTP/1.1",
                    "Host: test",
                    "Connection: close",
                    f"Content-Length: {len(BODY)}",
                    f"{name}: ",
                ]
                async with connect(api.port) as client:
                    await client.stream.send_all("\r\n".join(lines).encode() + value + b"\r\n\r\n" + BODY)
                    answer = await client.end_of_file()
                assert answer.startswith(b"HTTP/1.1 2" if path.startswith("OPTIONS") else b"HTTP/1.1 4"), (name, value)


async def test_idempotency_key_beyond_ascii_is_an_invalid_parameter(tmp_path: Path) -> None:
    async with api_with(tmp_path) as api:
        headers = {b"Idempotency-Key": "é".encode(), b"Authorization": b"Basic \xe9"}
        answer = await api.http.post("/api/v1/generate", json={"prompt": "a lake"}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER")
        assert answer.json()["details"]["field"] == "Idempotency-Key"


@pytest.mark.parametrize("value", [b"Basic \xe9\xff", b"Basic !", b"Basic /////w==", b"Bearer \xe9", b"X\xe9"])
async def test_header_that_is_not_a_key_is_unauthorized(tmp_path: Path, value: bytes) -> None:
    async with api_with(tmp_path, KEY) as api:
        answer = await api.http.get("/api/v1/jobs", headers={b"Authorization": value})
        assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHORIZED")


@pytest.mark.parametrize(
    "headers",
    [
        {b"X-API-Key": LETTERS.encode()},
        {b"Authorization": b"Bearer " + LETTERS.encode()},
        {b"Authorization": b"basic " + base64.b64encode(LETTERS.encode() + b":")},
        {b"Authorization": b"Basic " + base64.b64encode(b"user:" + LETTERS.encode())},
    ],
)
async def test_key_of_any_letters_is_taken_in_any_header(tmp_path: Path, headers: dict[bytes, bytes]) -> None:
    async with api_with(tmp_path, KEY, LETTERS) as api:
        assert (await api.http.get("/api/v1/jobs", headers=headers)).status_code == 200


@pytest.mark.parametrize("path", ["/api%2F%2Fv1/jobs", "/api/v1/jobs/%2F%2Fevil.example", "/%2F%2Fevil.example/%2F"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_no_path_is_answered_with_a_redirect_that_the_host_header_decides(
    tmp_path: Path, path: str, method: str
) -> None:
    async with api_with(tmp_path) as api, connect(api.port) as client:
        head = f"{method} {path} HTTP/1.1\r\nHost: evil.local\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        await client.stream.send_all(head.encode())
        answer = await client.end_of_file()
        assert answer.startswith(b"HTTP/1.1 404")
        assert b"evil.local" not in answer
        assert b'"code":"NOT_FOUND"' in answer


def kept_out(answer: httpx.Response) -> bool:
    return "no-store" in answer.headers.get_list("cache-control")


async def test_errors_are_not_kept_in_caches(tmp_path: Path) -> None:
    async with api_with(tmp_path) as api:
        for path, status in [("/no", 404), ("/api/v1/generate", 405), ("/api/v1/jobs?limit=x", 400)]:
            answer = await api.http.get(path)
            assert (answer.status_code, kept_out(answer)) == (status, True)
        assert kept_out(await api.http.get("/", headers={"Host": "a/b"}))
        job = await api.finished()
        image = await api.http.get(f"/api/v1/jobs/{job.id}/images/0")
        assert "immutable" in image.headers["cache-control"]


async def test_what_belongs_to_a_key_is_not_kept_in_caches(tmp_path: Path) -> None:
    async with api_with(tmp_path, KEY) as api:
        job = await api.finished()
        paths = [f"/api/v1/jobs/{job.id}{rest}" for rest in ("", "?images=url", "/stream", "/images/0")]
        for path in ("/api/v1/jobs", *paths):
            answer = await api.http.get(path, headers={"X-API-Key": KEY})
            assert (answer.status_code, kept_out(answer)) == (200, True)
        assert kept_out(await api.http.get(paths[0]))
        assert "cache-control" not in (await api.http.get("/api/v1/health")).headers
