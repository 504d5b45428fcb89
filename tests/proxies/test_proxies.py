"""The examples of ``deploy/`` before a real server: events as they come, one client behind each address, one prefix."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import httpx
import pytest
import trio

from mflux_api.config import SecuritySettings, ServerSettings
from tests.support.harness import eventually, request, settings
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Hold, Script
from tests.support.server import ROOT

pytestmark = pytest.mark.slow

DEPLOY = ROOT / "deploy"
HOST = "images.example.com"
HOST_OF_MANY = "example.com"
"""That of the example below a path."""
JOB = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 2}
KEY = "a-key-that-is-long-enough"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def to(text: str, port: int) -> str:
    """An example, for a server at another port."""
    assert "127.0.0.1:7861" in text
    return text.replace("127.0.0.1:7861", f"127.0.0.1:{port}")


def nginx(folder: Path, port: int, own: int) -> list[str]:
    """Nginx with the example, without its TLS."""
    site = (DEPLOY / "nginx.conf").read_text("utf-8")
    site = re.sub(r"\s+ssl_certificate\w* [^;]+;", "", site).replace("listen 443 ssl;", f"listen 127.0.0.1:{own};")
    below = (DEPLOY / "nginx-below-a-path.conf").read_text("utf-8")
    # Both at once: the locations of the path belong to the same server block.
    site = site.rstrip().removesuffix("}") + below + "}\n"
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{name}_temp_path {folder}/{name};" for name in names)
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{to(site, port)}\n}}\n",
        "utf-8",
    )
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]


def caddy(folder: Path, port: int, own: int) -> list[str]:
    """Caddy with the example, without its TLS."""
    text = to((DEPLOY / "Caddyfile").read_text("utf-8"), port)
    sites, count = re.subn(r"^((?:images\.)?example\.com) \{$", rf"http://\1:{own} {{", text, flags=re.MULTILINE)
    assert count == 2
    options = "{\n\tadmin off\n\tauto_https off\n}\n"
    (folder / "Caddyfile").write_text(options + sites, "utf-8")
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


@attrs.frozen
class Proxied:
    """A server, and a client that reaches it through a proxy alone."""

    api: Api
    client: httpx.AsyncClient


@pytest.fixture(params=[nginx, caddy])
def command(request: pytest.FixtureRequest) -> Callable[[Path, int, int], list[str]]:
    chosen: Callable[[Path, int, int], list[str]] = request.param
    if shutil.which(chosen.__name__) is None:
        if chosen is caddy:
            pytest.skip("Caddy is not installed")
        pytest.fail("nginx is not installed: apt-get install nginx")
    return chosen


@asynccontextmanager
async def proxied(
    folder: Path, command: Callable[[Path, int, int], list[str]], script: Script | None = None
) -> AsyncIterator[Proxied]:
    changed = attrs.evolve(
        settings(folder),
        server=ServerSettings(trusted_proxies=("127.0.0.1",)),
        security=SecuritySettings(api_keys=(KEY,), allowed_hosts=(HOST, HOST_OF_MANY)),
    )
    async with scripted_api(folder, script, changed=changed) as api:
        port = free_port()
        environ = {**os.environ, "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
        # It returns at once.
        process = subprocess.Popen(  # noqa: ASYNC220
            command(folder, api.port, port), stderr=subprocess.DEVNULL, cwd=folder, env=environ
        )
        try:
            headers = {"Host": HOST, "X-API-Key": KEY}
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:

                async def answers() -> bool:
                    assert process.poll() is None
                    try:
                        return (await client.get("/livez")).status_code == 200
                    except httpx.TransportError:
                        return False

                await eventually(answers)
                yield Proxied(api, client)
        finally:
            process.terminate()
            await trio.to_thread.run_sync(process.wait)


async def test_events_come_one_by_one(tmp_path: Path, command: Callable[[Path, int, int], list[str]]) -> None:
    hold = Hold()
    async with proxied(tmp_path, command, Script(at={"step 0/2": hold})) as proxy:
        job = await proxy.api.service.submit(request())
        await hold.reached.wait()
        seen: list[str] = []
        async with proxy.client.stream("GET", f"/api/v1/jobs/{job.id}/stream") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    seen.append(line.removeprefix("event: "))
                    # The job cannot end before its first event has come through.
                    hold.release.set()
        assert (seen[0], seen[-1]) == ("progress", "complete")


@pytest.mark.parametrize("prefix", ["", "/images"])
async def test_every_url_leads_back_through_the_proxy(
    prefix: str, tmp_path: Path, command: Callable[[Path, int, int], list[str]]
) -> None:
    host = HOST_OF_MANY if prefix else HOST
    async with proxied(tmp_path, command) as proxy:
        client = proxy.client
        client.headers["Host"] = host
        done = await client.post(f"{prefix}/api/v1/generate?wait=60&images=url", json=JOB)
        (path,) = done.json()["result"]["images"]
        assert path.startswith(f"{prefix}/api/v1/jobs/")
        assert done.headers["location"].startswith(f"{prefix}/api/v1/jobs/")
        for each in (path, done.headers["location"]):
            assert (await client.get(each)).status_code == 200
        asked = {"prompt": "a lake", "model": "demo", "size": "64x64", "response_format": "url"}
        url = (await client.post(f"{prefix}/v1/images/generations", json=asked)).json()["data"][0]["url"]
        assert url.startswith(f"http://{host}{prefix}/api/v1/jobs/")
        client.headers.pop("X-API-Key")
        assert (await client.get(url.removeprefix(f"http://{host}"))).status_code == 200


async def test_what_clients_say_of_proxies_is_not_believed(
    tmp_path: Path, command: Callable[[Path, int, int], list[str]]
) -> None:
    evil = {
        "X-Forwarded-For": "203.0.113.7",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "gopher",
        "X-Forwarded-Prefix": "/evil",
        "Forwarded": "for=203.0.113.7;host=evil.example",
    }
    async with proxied(tmp_path, command) as proxy:
        asked = {"prompt": "a lake", "model": "demo", "size": "64x64", "response_format": "url"}
        answer = await proxy.client.post("/v1/images/generations", json=asked, headers=evil)
        assert answer.json()["data"][0]["url"].startswith(f"http://{HOST}/api/v1/jobs/")
        path = "/api/v1/generate?wait=60&images=url"
        assert "evil" not in json.dumps((await proxy.client.post(path, json=JOB, headers=evil)).json())


async def test_large_body_and_error_of_the_server_come_through(
    tmp_path: Path, command: Callable[[Path, int, int], list[str]]
) -> None:
    async with proxied(tmp_path, command) as proxy:
        large = {**JOB, "init_images": ["A" * 5_000_000]}
        refused = await proxy.client.post("/api/v1/generate", json=large)
        assert refused.status_code == 400
        assert refused.json()["code"] == "INVALID_PARAMETER"
        proxy.client.headers.pop("X-API-Key")
        assert (await proxy.client.get("/api/v1/queue")).json()["code"] == "UNAUTHORIZED"
