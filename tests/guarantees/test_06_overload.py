"""Overload: a full queue refuses, all of a thousand followers learn the end, and a stuck reader disturbs no other."""

import contextlib
import json
import resource
import socket
import statistics
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import trio

from tests.support import scripted_server
from tests.support.api_jobs import SMALL, submit
from tests.support.report import report
from tests.support.server import Server, api_client, serving

pytestmark = pytest.mark.slow

MIB = 1 << 20
SUBMIT_SECONDS = 0.25


@contextlib.contextmanager
def scripted(folder: Path, config: str = "", **script: float) -> Iterator[Server]:
    environ = scripted_server.environ(**script)
    text = f'[models]\ndefault = "demo"\n{config}'
    with serving(folder, text, environ, module=scripted_server.MODULE) as server:
        yield server


@pytest.fixture
def many_sockets() -> Iterator[None]:
    """Descriptors for a thousand clients, here and in the server that inherits the limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if before[0] < wanted:
        if before[1] < wanted:
            pytest.skip(f"needs {wanted} descriptors")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def memory(server: Server) -> int:
    return int(psutil.Process(server.process.pid).memory_info().rss)


def test_full_queue_refuses_with_retry_after_and_takes_no_memory(tmp_path: Path, full: bool) -> None:
    with (
        scripted(tmp_path, "[scheduler]\nmax_queue = 20\nmax_queue_per_caller = 20\n", step_seconds=5.0) as server,
        api_client(server.url) as client,
    ):
        for _ in range(21):
            submit(client, steps=200)
        body = SMALL | {"prompt": "x" * 10_000}
        for _ in range(200):
            client.post("/api/v1/generate", json=body)
        before = memory(server)
        for _ in range(20_000 if full else 500):
            answer = client.post("/api/v1/generate", json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "QUEUE_FULL")
            assert int(answer.headers["retry-after"]) > 0
        grown = memory(server) - before
        report(f"full queue: {grown / MIB:.1f} MiB more")
        assert grown < 10 * MIB
        assert len(client.get("/api/v1/jobs", params={"limit": 500}).json()["jobs"]) == 21


@asynccontextmanager
async def follower(url: httpx.URL, job_id: str) -> AsyncIterator[trio.SocketStream]:
    """An SSE client that has asked and reads nothing yet."""
    stream = await trio.open_tcp_stream(url.host, url.port or 80)
    async with stream:
        await stream.send_all(f"GET /api/v1/jobs/{job_id}/stream?images=url HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        yield stream


def test_every_follower_gets_the_end_while_submits_stay_quick(tmp_path: Path, full: bool, many_sockets: None) -> None:
    count, jobs = (1000, 50) if full else (100, 10)
    config = "[scheduler]\nmax_queue = 100000\n"
    with scripted(tmp_path, config, step_seconds=0.05) as server, api_client(server.url) as client:
        submit(client)
        before = memory(server)
        # They wait behind one that runs as long as the followers need to come.
        first = submit(client, steps=200)
        ids = [submit(client, steps=5) for _ in range(jobs)]
        ends: list[bytes] = []
        url = httpx.URL(server.url)
        connected = threading.Event()

        async def follow(job_id: str, task_status: trio.TaskStatus[None]) -> None:
            data = b""
            async with follower(url, job_id) as stream:
                data += await stream.receive_some()
                task_status.started()
                async for chunk in stream:
                    data = data[-1000:] + chunk
            ends.append(data)

        async def follow_all() -> None:
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    await nursery.start(follow, ids[number % jobs])
                connected.set()

        latencies: list[float] = []
        thread = threading.Thread(target=trio.run, args=(follow_all,))
        thread.start()
        assert connected.wait(120)
        assert client.get(f"/api/v1/jobs/{ids[0]}").json()["status"] == "queued", "the followers came too late"
        while thread.is_alive():
            began = time.monotonic()
            submit(client)
            latencies.append(time.monotonic() - began)
            thread.join(0.1)
        grown = memory(server) - before
        assert client.get(f"/api/v1/jobs/{first}").json()["status"] == "completed"
    assert len(ends) == count
    assert sum(b"event: complete" in end and end.endswith(b"0\r\n\r\n") for end in ends) == count
    p99 = statistics.quantiles(latencies, n=100)[98]
    report(f"{count} followers: {grown / MIB:.1f} MiB more, {len(latencies)} submits, p99 {p99 * 1000:.0f} ms")
    assert grown < 100 * MIB
    if full:
        # A measured time: where other things run, run it again.
        assert p99 < SUBMIT_SECONDS


def test_stuck_readers_beside_a_healthy_one_change_nothing_for_it(tmp_path: Path, full: bool) -> None:
    stuck_count, steps = (50, 200) if full else (20, 60)
    with (
        scripted(tmp_path, step_seconds=0.01) as server,
        api_client(server.url) as client,
        contextlib.ExitStack() as stack,
    ):
        alone = seconds_to_follow(server, client, steps)
        hold = submit(client, steps=100)
        watched = submit(client, steps=steps, num_images=4, width=512, height=512)
        for _ in range(stuck_count):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((httpx.URL(server.url).host, httpx.URL(server.url).port or 80))
            # Whole images at the end: more than any buffer takes.
            sock.sendall(f"GET /api/v1/jobs/{watched}/stream HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        events = events_of(server, watched)
        steps_seen = [(event["image"], event["step"]) for event in events if event.get("stage") == "denoising"]
        expected = [(image, step) for image in range(4) for step in range(1, steps + 1)]
        assert [(image, step) for image, step in steps_seen if step] == expected
        assert client.get(f"/api/v1/jobs/{hold}").json()["status"] == "completed"
        beside = seconds_to_follow(server, client, steps)
        report(f"{stuck_count} stuck readers: a job takes {beside:.2f} s beside them, {alone:.2f} s without")


def seconds_to_follow(server: Server, client: httpx.Client, steps: int) -> float:
    began = time.monotonic()
    events_of(server, submit(client, steps=steps))
    return time.monotonic() - began


def events_of(server: Server, job_id: str) -> list[dict[str, object]]:
    """Follow a job to its end."""
    with httpx.stream("GET", f"{server.url}/api/v1/jobs/{job_id}/stream?images=url", timeout=120) as answer:
        lines = list(answer.iter_lines())
    assert "event: complete" in lines
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
