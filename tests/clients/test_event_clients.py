"""Clients of event streams: what each of them makes of a job's, and of one that has ended."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import httpx_sse
import pytest
import requests
import sseclient
from aiohttp_sse_client2.client import EventSource

from tests.clients.running import SIDE, Running

JOB = {"prompt": "a lake", "width": SIDE, "height": SIDE, "steps": 3}


@pytest.fixture
def stream(server: Running) -> str:
    """The address of a new job's stream."""
    made = requests.post(f"{server.url}/api/v1/generate", json=JOB, headers=server.headers, timeout=30).json()
    return f"{server.url}/api/v1/jobs/{made['job_id']}/stream?images=url"


def check(events: list[tuple[str, Any]]) -> None:
    assert [name for name, _ in events] == ["progress"] * (len(events) - 1) + ["complete"]
    done = [data["progress"] for _, data in events[:-1]]
    assert done == sorted(done)
    assert len(events[-1][1]["result"]["images"]) == 1


def test_httpx_sse(server: Running, stream: str) -> None:
    for _ in ("while it runs", "after its end"):
        with (
            httpx.Client(headers=server.headers, timeout=60) as client,
            httpx_sse.connect_sse(client, "GET", stream) as source,
        ):
            check([(each.event, json.loads(each.data)) for each in source.iter_sse()])


def test_sseclient_reads_to_the_end(server: Running, stream: str) -> None:
    def pieces(answer: requests.Response) -> Iterator[bytes]:
        yield from answer.iter_content(None)

    with requests.get(stream, headers=server.headers, stream=True, timeout=60) as answer:
        check([(each.event, json.loads(each.data)) for each in sseclient.SSEClient(pieces(answer)).events()])


def test_aiohttp_sse_client_stops_when_it_comes_back_after_the_end(server: Running, stream: str) -> None:
    seen: list[tuple[str, Any]] = []

    async def follow() -> None:
        async with EventSource(stream, headers=server.headers) as source:
            async for each in source:
                # One by one: what came before the error is looked at.
                seen.append((each.type, json.loads(each.data)))  # noqa: PERF401

    # Its way to stop at 204, which is what it gets with the last event's id.
    with pytest.raises(ConnectionAbortedError):
        asyncio.run(asyncio.wait_for(follow(), 60))
    check(seen)
