"""Uploads of LoRAs: what goes wrong with the disk, the client or too many of them is an error and leaves nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from mflux_api.http import pace
from mflux_api.http.routes import loras
from tests.support.harness import eventually
from tests.support.http_server import Client, connect
from tests.support.lora_files import lora_bytes
from tests.support.scripted_api import Api, scripted_api


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "loras").iterdir()) if (folder / "loras").is_dir() else []


def fail(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    """From now on a call of the system fails for uploads."""
    original = getattr(os, call)

    def failing(first: Any, *rest: Any, **more: Any) -> Any:
        of_upload = ".upload." in str(first) if call == "open" else True
        if of_upload:
            raise OSError(number, os.strerror(number))
        return original(first, *rest, **more)

    monkeypatch.setattr(os, call, failing)


@pytest.mark.parametrize(
    ("call", "number", "expected"),
    [
        ("write", errno.ENOSPC, (503, "DISK_FULL")),
        ("write", errno.EDQUOT, (503, "DISK_FULL")),
        ("write", errno.EIO, (500, "INTERNAL_ERROR")),
        ("open", errno.EROFS, (500, "INTERNAL_ERROR")),
        ("open", errno.ENOSPC, (503, "DISK_FULL")),
    ],
)
@pytest.mark.parametrize("form", [False, True])
async def test_disk_that_refuses_an_upload_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, expected: tuple[int, str], form: bool
) -> None:
    body: dict[str, Any] = {"files": {"file": ("a", lora_bytes(1))}} if form else {"content": lora_bytes(1)}
    async with scripted_api(tmp_path) as api:
        with monkeypatch.context() as patched:
            fail(patched, call, number)
            answer = await api.http.post("/api/v1/loras", params={"name": "a"}, **body)
        assert (answer.status_code, answer.json()["code"]) == expected
        assert str(tmp_path) not in answer.text
        await eventually(lambda: files(tmp_path) == [])
        again = await api.http.post("/api/v1/loras", params={"name": "a"}, **body)
        assert again.status_code == 200


async def test_form_never_touches_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It may be small, or memory; a file of a gigabyte is passed on to where it is to be.
    monkeypatch.setattr("tempfile._TemporaryFileWrapper", None)
    monkeypatch.setattr("tempfile.TemporaryFile", None)
    monkeypatch.setattr("tempfile.SpooledTemporaryFile", None)
    async with scripted_api(tmp_path) as api:
        answer = await api.http.post("/api/v1/loras", files={"file": ("a", lora_bytes(1))})
        assert (answer.status_code, answer.json()["name"]) == (200, "a.safetensors")


async def begin(client: Client, name: str) -> None:
    head = f"POST /api/v1/loras?name={name} HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n"
    await client.stream.send_all(head.encode() + b"x")


async def test_client_that_leaves_half_way_leaves_no_file(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        async with connect(api.port) as client:
            await begin(client, "half")
            await eventually(lambda: len(files(tmp_path)) == 1)
        await eventually(lambda: files(tmp_path) == [])
        assert await upload(api, "half") == (200, "")


async def upload(api: Api, name: str) -> tuple[int, str]:
    answer = await api.http.post("/api/v1/loras", params={"name": name}, content=lora_bytes(1))
    return answer.status_code, answer.json().get("code", "")


async def test_uploads_that_trickle_end_and_block_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "CREDIT_SECONDS", 0.3)
    async with scripted_api(tmp_path) as api, connect(api.port) as first, connect(api.port) as second:
        for client in (first, second):
            await begin(client, "slow")
        await eventually(lambda: len(files(tmp_path)) == 2)
        assert await upload(api, "third") == (200, "")
        for client in (first, second):
            answer = await client.stream.receive_some()
            assert answer.startswith(b"HTTP/1.1 408 ")
        await eventually(lambda: files(tmp_path) == ["third.safetensors"])


async def test_caller_with_too_many_uploads_is_told_so_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loras, "MOST_OF_CALLER", 1)
    monkeypatch.setattr(loras, "WAIT_SECONDS", 0.05)
    async with scripted_api(tmp_path) as api:
        async with connect(api.port) as client:
            await begin(client, "slow")
            await eventually(lambda: len(files(tmp_path)) == 1)
            assert await upload(api, "late") == (429, "TOO_MANY_CONNECTIONS")
        await eventually(lambda: files(tmp_path) == [])
        assert await upload(api, "late") == (200, "")


async def test_further_upload_of_a_caller_gets_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loras, "MOST_OF_CALLER", 1)
    codes = list[tuple[int, str]]()

    async def one(name: str) -> None:
        codes.append(await upload(api, name))

    async with scripted_api(tmp_path) as api, trio.open_nursery() as uploading:
        for number in range(5):
            uploading.start_soon(one, str(number))
    assert codes == [(200, "")] * 5
