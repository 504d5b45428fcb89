"""`mflux-api mcp` as assistants start it: a process on pipes, asked by the SDK's own client."""

import json
import signal
import struct
import subprocess
import sys
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import attrs
import mcp_types as types
import psutil
import pytest
import trio
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from tests.mcp.fakes import text_of
from tests.support.scripted_api import scripted_api
from tests.support.server import DEMO_CONFIG, clean_environment

pytestmark = pytest.mark.slow

SMALL = {"prompt": "a red house", "width": 64, "height": 64, "steps": 2, "seed": 7}
END_SECONDS = 20.0


@attrs.frozen
class Assistant:
    """A client, and the process that it started."""

    client: Client
    process: psutil.Process


def _configure(folder: Path, config: str) -> None:
    folder.mkdir()
    (folder / "config.toml").write_text(config, "utf-8")


@asynccontextmanager
async def assistant(folder: Path, *options: str, config: str = DEMO_CONFIG) -> AsyncIterator[Assistant]:
    """Start the command in a folder, and connect to it; all its processes have ended when the block has."""
    _configure(folder, config)
    parameters = StdioServerParameters(
        command=sys.executable, args=["-P", "-m", "mflux_api", "mcp", *options], cwd=folder, env=clean_environment()
    )
    me = psutil.Process()
    before = {child.pid for child in me.children()}
    with (folder / "log").open("w") as log:
        async with Client(stdio_client(parameters, errlog=log)) as client:
            (process,) = [child for child in me.children() if child.pid not in before]
            yield Assistant(client, process)
            family = [process, *process.children(recursive=True)]
    _, left = psutil.wait_procs(family, END_SECONDS)
    assert left == []


async def test_assistant_generates_edits_upscales_and_cancels_on_a_service_of_its_own(tmp_path: Path) -> None:
    reports = list[tuple[float, float | None, str | None]]()

    async def report(progress: float, total: float | None, message: str | None) -> None:
        reports.append((progress, total, message))

    (tmp_path / "secret.png").write_bytes(b"secret")
    # Not above: it imports MLX, which must not come before the BLAS of other tests.
    from tests.support.upscaler_checkpoint import write_upscaler

    write_upscaler(tmp_path / "weights")
    config = f'{DEMO_CONFIG}[[models.custom]]\nname = "small"\nbase = "seedvr2"\npath = "../weights"\n'
    async with assistant(tmp_path / "work", config=config) as started:
        client = started.client
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert names == ["generate", "edit", "upscale", "list_models", "job_status", "cancel_job"]

        made = await client.call_tool("generate", SMALL, progress_callback=report)
        assert not made.is_error, text_of(made)
        (image,) = made.structured_content["images"]
        assert image["seed"] == 7
        assert made.structured_content["warnings"] == []
        assert Path(image["path"]).is_relative_to(tmp_path / "work" / "output")
        kinds = [type(block) for block in made.content]
        assert kinds == [types.TextContent, types.ResourceLink, types.ImageContent]
        assert "step 1 of 2" in [message for _, _, message in reports]
        assert all(before[0] < after[0] for before, after in pairwise(reports))
        assert reports[-1][:2] == (3.0, 3.0)
        (content,) = (await client.read_resource(image["uri"])).contents
        assert isinstance(content, types.BlobResourceContents)
        assert b64decode(content.blob) == await trio.Path(image["path"]).read_bytes()

        change = {"prompt": "make it night", "init_images": [image["path"]], "steps": 1, "image_strength": 1.0}
        edited = await client.call_tool("edit", change)
        assert not edited.is_error, text_of(edited)
        assert len(edited.structured_content["images"]) == 1

        larger = await client.call_tool("upscale", {"init_images": [image["path"]], "upscale": 1.5, "seed": 1})
        assert not larger.is_error, text_of(larger)
        assert (larger.structured_content["model"], larger.structured_content["warnings"]) == ("small", [])
        png = await trio.Path(larger.structured_content["images"][0]["path"]).read_bytes()
        # Width and height stand behind the first chunk's name.
        assert struct.unpack(">II", png[16:24]) == (96, 96)

        outside = await client.call_tool("edit", change | {"init_images": [str(tmp_path / "secret.png")]})
        assert outside.is_error
        assert "is outside of the folders that may be read" in text_of(outside)
        wrong = await client.call_tool("generate", {"prompt": "a lake", "width": 65})
        assert wrong.is_error
        assert text_of(wrong).startswith("'width' is invalid: expected int that's a multiple of 16")

        with trio.CancelScope() as scope:

            async def cancel_at_a_step(progress: float, total: float | None, message: str | None) -> None:
                if (message or "").startswith("step 1 "):
                    scope.cancel()

            await client.call_tool("generate", SMALL | {"steps": 200}, progress_callback=cancel_at_a_step)
        assert scope.cancelled_caught
        # The engine is free again at its next step: 199 more would take minutes.
        again = await client.call_tool("generate", SMALL | {"image_content": "none"})
        assert [type(block) for block in again.content] == [types.TextContent, types.ResourceLink]
    assert (tmp_path / "work" / "log").read_text() == ""


async def test_assistant_uses_a_running_server(tmp_path: Path) -> None:
    async with scripted_api(tmp_path / "server") as api:
        url = f"127.0.0.1:{api.port}"
        async with assistant(tmp_path / "work", "--url", url, "--root", str(tmp_path)) as started:
            made = await started.client.call_tool("generate", SMALL | {"model": "demo"})
            assert not made.is_error, text_of(made)
            assert not started.process.children()
            change = {"prompt": "a lake", "model": "demo", "init_images": ["../picked.png"]}
            missing = await started.client.call_tool("edit", change)
        (job,) = (await api.http.get("/api/v1/jobs")).json()["jobs"]
    (image,) = made.structured_content["images"]
    assert Path(image["path"]).name == f"{job['id']}-0.png"
    assert "the file 'picked.png' cannot be read (no such file or directory)" in text_of(missing)
    assert (tmp_path / "work" / "log").read_text() == ""


def test_signal_ends_the_command_and_its_engine_while_the_client_stays(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(DEMO_CONFIG, "utf-8")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "mflux_api", "mcp"],
        cwd=tmp_path,
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        call = {"name": "generate", "arguments": SMALL | {"steps": 200}, "_meta": {"progressToken": 1}}
        for message in (
            {"id": 1, "method": "initialize", "params": hello},
            {"method": "notifications/initialized"},
            {"id": 2, "method": "tools/call", "params": call},
        ):
            process.stdin.write(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n")
            process.stdin.flush()
        lines = [process.stdout.readline()]
        while b"step 1 of 200" not in lines[-1]:
            lines.append(process.stdout.readline())
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_SECONDS) == 0
        lines += process.stdout.readlines()
    assert family
    assert psutil.wait_procs(family, END_SECONDS)[1] == []
    # Nothing but the protocol was written to standard output.
    assert {json.loads(line)["jsonrpc"] for line in lines} == {"2.0"}
