"""The tools over a running server: its REST API on loopback, over a scripted engine."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
from mcp.client.client import Client

from mflux_api.config import SecuritySettings
from mflux_api.mcp import remote
from mflux_api.mcp.backend import Unreachable
from mflux_api.mcp.event_lines import ServerEvent, read_events
from mflux_api.mcp.files import InputFiles, Links
from mflux_api.mcp.server import build_server
from mflux_api.mcp.tools import Tools
from tests.mcp.fakes import text_of
from tests.support.harness import settings
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Script

ASKED = {"prompt": "a lake", "width": 64, "height": 64, "steps": 2, "seed": 3, "model": "demo"}


@asynccontextmanager
async def asking(url: str, folder: Path, key: str | None = None) -> AsyncIterator[Client]:
    """Connect the SDK's client to the tools over a server; its images come to that folder."""
    links = Links()
    async with (
        remote.open_remote(url, key, folder) as backend,
        Client(build_server(Tools(backend, InputFiles((folder,), folder), links), links)) as client,
    ):
        yield client


def url_of(api: Api) -> str:
    return f"http://127.0.0.1:{api.port}"


async def test_images_of_a_server_come_to_this_machine(tmp_path: Path) -> None:
    here = tmp_path / "here"
    messages = list[str | None]()

    async def report(progress: float, total: float | None, message: str | None) -> None:
        messages.append(message)

    async with scripted_api(tmp_path / "server") as api, asking(url_of(api), here) as client:
        made = await client.call_tool("generate", ASKED | {"num_images": 2}, progress_callback=report)
        assert not made.is_error, text_of(made)
        images = made.structured_content["images"]
        assert [image["seed"] for image in images] == [3, 4]
        (job,) = (await api.http.get("/api/v1/jobs")).json()["jobs"]
        stored = (await api.service.job(job["id"])).images
        for image, original in zip(images, stored, strict=True):
            copied = trio.Path(image["path"])
            assert copied.is_relative_to(here)
            assert await copied.read_bytes() == await trio.Path(original.path).read_bytes()
        assert [block.type for block in made.content] == ["text", *["resource_link", "image"] * 2]
        assert "step 2 of 2, image 1 of 2" in messages
        status = await client.call_tool("job_status", {"job_id": job["id"], "image_content": "none"})
        assert status.structured_content["images"] == images


async def test_cancelled_call_ends_the_servers_job(tmp_path: Path) -> None:
    script = Script(step_seconds=3600.0)
    async with scripted_api(tmp_path, script) as api, asking(url_of(api), tmp_path) as client:
        with trio.CancelScope() as scope:

            async def cancel(progress: float, total: float | None, message: str | None) -> None:
                if (message or "").startswith("step"):
                    scope.cancel()

            await client.call_tool("generate", ASKED, progress_callback=cancel)
        (job,) = (await api.http.get("/api/v1/jobs")).json()["jobs"]
        async with api.service.events(job["id"]) as events:
            async for _ in events:
                pass
        assert (await api.service.job(job["id"])).status == "cancelled"


async def test_server_says_why_it_refuses(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api, asking(url_of(api), tmp_path) as client:
        wrong = await client.call_tool("generate", ASKED | {"steps": 500})
        unknown = await client.call_tool("job_status", {"job_id": "../models"})
    assert wrong.is_error
    assert text_of(wrong) == "'steps' is invalid: expected int <= 200 (INVALID_PARAMETER)"
    assert text_of(unknown) == "Job '../models' not found (JOB_NOT_FOUND)"


async def test_server_with_keys_is_asked_with_one(tmp_path: Path) -> None:
    changed = attrs.evolve(settings(tmp_path), security=SecuritySettings(api_keys=("sesame",)))
    async with scripted_api(tmp_path, changed=changed) as api:
        async with asking(url_of(api), tmp_path) as client:
            refused = text_of(await client.call_tool("list_models"))
        async with asking(url_of(api), tmp_path, "sesame") as client:
            listed = await client.call_tool("list_models")
    assert "set MFLUX_API_KEYS to a key with the scopes 'read' and 'generate' (UNAUTHORIZED)" in refused
    names = [model["name"] for model in listed.structured_content["models"]]
    assert "demo" in names


async def test_server_on_this_machine_is_asked_through_no_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted_api(tmp_path) as api:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "nonsense://127.0.0.1:9")
        async with asking(url_of(api), tmp_path) as client:
            assert not (await client.call_tool("list_models")).is_error
    with pytest.raises(ConnectionError, match="names a proxy that cannot be used"):
        async with remote.open_remote("http://server.invalid", None, tmp_path):
            pytest.fail("it was opened")


async def test_other_answers_than_a_servers_are_told_as_such(tmp_path: Path) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\nIt works!")

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        async with asking(f"http://127.0.0.1:{port}", tmp_path) as client:
            other = text_of(await client.call_tool("list_models"))
            nursery.cancel_scope.cancel()
    async with asking(f"http://127.0.0.1:{port}", tmp_path) as client:
        none = text_of(await client.call_tool("list_models"))
    assert "(what answers there is not an mflux-api server that this version knows); check --url" in other
    assert "(no server answers there); check --url, and that it runs" in none


PROGRESS = json.dumps({"id": "0123456789ab", "status": "generating", "stage": "denoising", "progress": 0.5})
CUT = f"event: progress\ndata: {PROGRESS}\n\n"
WHOLE = "event: complete\ndata: {}\n\n"


@pytest.mark.parametrize(("answers", "seen"), [((CUT, CUT, WHOLE), 2), ((CUT, "", "", CUT, WHOLE), 2)])
async def test_job_is_followed_again_when_its_stream_is_cut(
    answers: tuple[str, ...], seen: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0, 0.0))
    async with (
        streaming(answers) as url,
        remote.open_remote(url, None, tmp_path) as backend,
        backend.follow("0123456789ab") as events,
    ):
        assert [event.progress async for event in events] == [0.5] * seen


async def test_job_whose_server_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0, 0.0))
    async with streaming((CUT, "", "", "", "")) as url, remote.open_remote(url, None, tmp_path) as backend:
        with pytest.raises(Unreachable, match="it does not answer any more"):
            async with backend.follow("0123456789ab") as events:
                assert [event.progress async for event in events] == [0.5]


@asynccontextmanager
async def streaming(answers: tuple[str, ...]) -> AsyncIterator[str]:
    """Serve event streams, one after the other; an empty one is a connection that is closed."""
    left = iter(answers)

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            body = next(left)
            if body:
                await stream.send_all(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("length", [1, 7, 4096])
async def test_events_are_read_from_chunks_of_any_size(length: int) -> None:
    data = b': keep-alive\nid: 1\nevent: progress\ndata: {"a": 1}\n\n: keep-alive\nevent: complete\ndata: {}\n\n'

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), length):
            yield data[start : start + length]

    found = [event async for event in read_events(chunks())]
    assert found == [ServerEvent("progress", b'{"a": 1}'), ServerEvent("complete", b"{}")]
