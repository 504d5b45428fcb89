"""Clients that close their side for writing after a request, as `nc -N` and HTTP/1.0 clients do, get their answer."""

from __future__ import annotations

import gzip
import json
import re
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from mflux_api.http import half_close
from mflux_api.http.half_close import SAYS, need_client
from tests.support.http_server import App, connect, serving
from tests.support.lora_files import lora_bytes
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Hold, Script

pytestmark = pytest.mark.slow

JOB = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 1}


def ask(line: str, *headers: str, body: bytes = b"", version: str = "1.1") -> bytes:
    if body:
        headers = (*headers, f"Content-Length: {len(body)}")
    return "\r\n".join((f"{line} HTTP/{version}", "Host: localhost", *headers, "", "")).encode() + body


async def answer_to(port: int, data: bytes) -> bytes:
    """What comes until the end of file for a client that says at once that nothing more will come."""
    async with connect(port) as client:
        await client.stream.send_all(data)
        await client.stream.send_eof()
        return await client.end_of_file()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with scripted_api(tmp_path) as running:
        yield running


async def test_client_that_closes_its_side_gets_every_answer_that_waits_for_nothing(api: Api) -> None:
    job = await api.finished()
    text = json.dumps(JOB).encode()
    for line, body, status in (
        ("GET /api/v1/jobs", b"", 200),
        ("GET /api/v1/models", b"", 200),
        ("GET /api/v1/health", b"", 200),
        ("GET /openapi.json", b"", 200),
        (f"GET /api/v1/jobs/{job.id}", b"", 200),
        (f"GET /api/v1/jobs/{job.id}/images/0", b"", 200),
        (f"GET /api/v1/jobs/{job.id}/images/0?format=jpeg", b"", 200),
        (f"HEAD /api/v1/jobs/{job.id}/stream", b"", 200),
        (f"GET /api/v1/jobs/{job.id}/stream", b"", 200),
        (f"GET /api/v1/jobs/{'0' * 12}/stream", b"", 404),
        (f"DELETE /api/v1/jobs/{job.id}", b"", 200),
        ("OPTIONS /api/v1/jobs", b"", 200),
        ("GET /nothing", b"", 404),
        ("POST /api/v1/generate", text, 200),
        ("POST /api/v1/generate", b"{", 400),
        ("POST /sdapi/v1/txt2img", b'{"prompt": ""}', 400),
        ("POST /sdapi/v1/txt2img", text.replace(b"demo", b"none"), 400),
        ("POST /sdapi/v1/img2img", text, 400),
        ("POST /api/v1/loras?overwrite=true&name=a", lora_bytes(1), 200),
        ("POST /api/v1/models/nothing/load", b"", 404),
    ):
        for version, headers in (("1.1", ()), ("1.1", ("Connection: close",)), ("1.0", ())):
            data = await answer_to(api.port, ask(line, *headers, body=body, version=version))
            assert data.startswith(b"HTTP/1.1 %d " % status), (line, version, data[:200])
            head, _, content = data.partition(b"\r\n\r\n")
            if line.endswith("/stream") and status == 200 and line.startswith("GET"):
                assert b"event: complete" in content
                continue
            length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
            assert line.startswith("HEAD") or (length is not None and len(content) == int(length.group(1))), line


async def test_packed_upload_in_chunks_of_a_client_that_closes_its_side_is_whole(api: Api, tmp_path: Path) -> None:
    packed = gzip.compress(lora_bytes(2))
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(packed[at : at + 99]), packed[at : at + 99]) for at in range(0, len(packed), 99)
    )
    head = ask("POST /api/v1/loras?name=b", "Content-Encoding: gzip", "Transfer-Encoding: chunked")
    assert (await answer_to(api.port, head + chunks + b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert (tmp_path / "loras" / "b.safetensors").read_bytes() == lora_bytes(2)


async def test_requests_that_were_sent_at_once_are_all_answered(api: Api) -> None:
    three = ask("GET /api/v1/jobs") + ask("GET /api/v1/queue") + ask("GET /api/v1/jobs/000000000000")
    data = await answer_to(api.port, three)
    assert data.count(b"HTTP/1.1 200 ") == 2
    assert data.count(b"HTTP/1.1 404 ") == 1


async def test_generation_ends_with_its_clients_side_and_so_does_a_stream(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"denoising": hold})) as api:
        generating = ask("POST /sdapi/v1/txt2img", body=json.dumps(JOB).encode())
        async with connect(api.port) as client:
            await client.stream.send_all(generating)
            await hold.reached.wait()
            [job] = (await api.http.get("/api/v1/jobs")).json()["jobs"]
            stream = await answer_to(api.port, ask(f"GET /api/v1/jobs/{job['id']}/stream"))
            assert b"event: complete" not in stream
            await client.stream.send_eof()
            assert await client.end_of_file() == b""
        hold.release.set()
        job = (await api.http.get(f"/api/v1/jobs/{job['id']}")).json()
        assert job["status"] == "cancelled"


class Slow(App):
    """Its one route says when it needs its client, once it is let go on."""

    def __init__(self) -> None:
        super().__init__(__name__)
        self.config[SAYS] = True
        self.began, self.go_on, self.cancelled = trio.Event(), trio.Event(), trio.Event()
        self.add_url_rule("/", view_func=self.wait)
        self.add_url_rule("/needs", view_func=self.need)

    async def wait(self) -> str:
        self.began.set()
        try:
            await self.go_on.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return "done"

    async def need(self) -> str:
        self.began.set()
        await self.go_on.wait()
        need_client()
        self.began, self.go_on = trio.Event(), trio.Event()
        return await self.wait()


async def test_handler_that_comes_to_need_its_client_ends_when_that_has_closed_its_side() -> None:
    app = Slow()
    async with serving(app) as server, connect(server.port) as client:
        await client.stream.send_all(ask("GET /needs"))
        await client.stream.send_eof()
        await app.began.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not app.cancelled.is_set()
        app.go_on.set()
        assert await client.end_of_file() == b""
        assert app.cancelled.is_set()


async def test_client_that_closed_its_side_is_answered_when_the_handler_is_ready() -> None:
    app = Slow()
    async with serving(app) as server, connect(server.port) as client:
        await client.stream.send_all(ask("GET /"))
        await client.stream.send_eof()
        await app.began.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        app.go_on.set()
        assert (await client.end_of_file()).endswith(b"done")


async def test_client_that_vanished_ends_its_request_at_once() -> None:
    app = Slow()
    async with serving(app) as server, connect(server.port) as client:
        await client.stream.send_all(ask("GET /"))
        await app.began.wait()
        client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.stream.socket.close()
        with trio.move_on_after(5):
            await app.cancelled.wait()
        assert app.cancelled.is_set()


async def test_request_of_a_client_that_closed_its_side_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_close, "BEGIN_SECONDS", 0.1)
    app = Slow()
    async with serving(app) as server, connect(server.port) as client:
        await client.stream.send_all(ask("GET /"))
        await client.stream.send_eof()
        assert await client.end_of_file() == b""
        assert app.cancelled.is_set()
