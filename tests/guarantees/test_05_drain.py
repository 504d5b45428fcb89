"""Drain: SIGTERM lets the running job end or gives it back, keeps the queued ones, and ends in time with status 0."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mflux_api.cli import serve
from mflux_api.cli.exit_status import EXIT_INTERNAL
from mflux_api.jobs.job import Job, Status
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support import scripted_server
from tests.support.api_jobs import SMALL, submit, wait_for, wait_for_end
from tests.support.report import report
from tests.support.server import Server, api_client, engine_of, serving

pytestmark = pytest.mark.slow

FOLLOWERS = 50
IDLE = 5
ALLOWANCE = 2.0
"""Seconds after the drain in which the process ends."""


def config(drain_seconds: float) -> str:
    return f'[models]\ndefault = "demo"\n[server]\ndrain_timeout_seconds = {drain_seconds}\n'


@contextlib.contextmanager
def scripted(folder: Path, drain_seconds: float, **script: float | bool | str) -> Iterator[Server]:
    environ = scripted_server.environ(**script)
    with serving(folder, config(drain_seconds), environ, module=scripted_server.MODULE) as server:
        yield server


class Followers:
    """Many SSE clients, each on a raw socket read to its end by one thread."""

    def __init__(self, url: str, job_ids: list[str], count: int) -> None:
        self.streams: dict[int, bytes] = {}
        self._sockets = [ask(url, f"/api/v1/jobs/{job_ids[n % len(job_ids)]}/stream") for n in range(count)]
        self.job_ids = [job_ids[n % len(job_ids)] for n in range(count)]
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def join(self) -> None:
        """Wait until the server has ended every stream."""
        self._thread.join(60)
        assert not self._thread.is_alive(), "a stream was not ended"

    def _read(self) -> None:
        for number, sock in enumerate(self._sockets):
            with sock:
                self.streams[number] = everything(sock)


def ask(url: str, path: str, receive_buffer: int | None = None) -> socket.socket:
    """Send a request on a connection of its own."""
    address = httpx.URL(url)
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(60)
    sock.connect((address.host, address.port or 80))
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    return sock


def everything(sock: socket.socket) -> bytes:
    """All that the server sends until it closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(1 << 16):
            data += chunk
    return data


@pytest.mark.parametrize("job_ends_in_time", [True, False])
def test_sigterm_with_a_full_queue_ends_in_time_and_loses_nothing(
    tmp_path: Path, job_ends_in_time: bool, full: bool
) -> None:
    drain_seconds = 10.0 if job_ends_in_time else 2.0
    with (
        scripted(tmp_path, drain_seconds, step_seconds=0.1) as server,
        api_client(server.url) as client,
        contextlib.ExitStack() as stack,
    ):
        big = submit(client, width=1024, height=1024)
        wait_for_end(client, big)
        running = submit(client, steps=30 if job_ends_in_time else 200)
        queued = [submit(client, seed=seed) for seed in range(5)]
        wait_for(client, running, lambda job: job["progress"] > 0)
        followers = Followers(server.url, [running, *queued], FOLLOWERS)
        for _ in range(IDLE):
            idle = stack.enter_context(ask(server.url, "/api/v1/health"))
            assert b"200" in idle.recv(1 << 16)
        stuck = stack.enter_context(ask(server.url, f"/api/v1/jobs/{big}", receive_buffer=4096))
        stuck.recv(1024)
        server.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        while client.get("/api/v1/health").json()["status"] != "draining":
            assert time.monotonic() < told + 5
        refused = client.post("/api/v1/generate", json=SMALL)
        assert (refused.status_code, refused.json()["code"]) == (503, "SHUTTING_DOWN")
        assert int(refused.headers["retry-after"]) > 0
        assert server.process.wait(drain_seconds + serve.STUCK_SECONDS + 5) == 0
        took = time.monotonic() - told
        followers.join()
    report(
        f"drain {drain_seconds:g} s, job {'ended' if job_ends_in_time else 'was given back'}: exit after {took:.2f} s"
    )
    if full:
        assert took <= drain_seconds + ALLOWANCE
    check_streams(followers, running, complete=job_ends_in_time)
    with scripted(tmp_path, drain_seconds) as server, api_client(server.url) as client:
        if job_ends_in_time:
            assert client.get(f"/api/v1/jobs/{running}").json()["status"] == "completed"
        for seed, job_id in enumerate(queued):
            assert wait_for_end(client, job_id)["result"]["seeds"] == [seed]
        assert wait_for_end(client, running)["status"] == "completed"
        assert server.stop() == 0


def check_streams(followers: Followers, running: str, *, complete: bool) -> None:
    """Every stream was ended by the server, whole; those of the running job tell its end if it had one."""
    for number, stream in followers.streams.items():
        assert stream.endswith(b"0\r\n\r\n"), "a stream was cut off"
        ended = b"event: complete" in stream
        assert ended == (complete and followers.job_ids[number] == running)


def test_second_signal_ends_at_once_and_gives_the_job_back(tmp_path: Path, full: bool) -> None:
    with scripted(tmp_path, 60, step_seconds=0.1) as server, api_client(server.url) as client:
        running = submit(client, steps=200)
        wait_for(client, running, lambda job: job["progress"] > 0)
        for _ in range(2):
            # A process group's signal may come twice at once; that is one.
            server.process.send_signal(signal.SIGTERM)
        time.sleep(1.2)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        told = time.monotonic()
        assert server.process.wait(serve.STUCK_SECONDS + 5) == 0
        took = time.monotonic() - told
        report(f"second signal: exit after {took:.2f} s")
        assert not full or took <= ALLOWANCE
    job = stored(tmp_path, running)
    assert (job.status, job.engine_deaths, job.service_deaths) == (Status.QUEUED, 0, 0)


def test_watchdog_ends_a_server_whose_event_loop_is_stuck(tmp_path: Path) -> None:
    with scripted(tmp_path, 0, stuck_drain=True, step_seconds=0.1) as server, api_client(server.url) as client:
        running = submit(client, steps=200)
        queued = submit(client, seed=3)
        wait_for(client, running, lambda job: job["progress"] > 0)
        server.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        assert server.process.wait(serve.STUCK_SECONDS + 10) == EXIT_INTERNAL
        assert time.monotonic() - told >= serve.STUCK_SECONDS - 0.1
    assert [line for line in server.lines if "stuck" in line] == [
        "mflux-api: the shutdown is stuck: ending the process; unfinished jobs go on at the next start"
    ]
    with scripted(tmp_path, 30) as server, api_client(server.url) as client:
        assert wait_for_end(client, running)["status"] == "completed"
        assert wait_for_end(client, queued)["result"]["seeds"] == [3]
        assert server.stop() == 0


def test_save_on_a_dead_disk_ends_the_server_with_status_70_and_the_name_of_what_hung(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with scripted(tmp_path, 1, dead_disk=str(fifo)) as server, api_client(server.url) as client:
        running = submit(client)
        wait_for(client, running, lambda job: job["stage"] == "saving")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(1 + serve.STUCK_SECONDS + 5) == EXIT_INTERNAL
    assert [line.partition("ERROR   ")[2] for line in server.lines if "did not stop" in line and "ERROR" in line] == [
        "core: 'scheduler' did not stop within 4 s and was abandoned; "
        "check the disks that the service uses, and start it again"
    ]
    assert (stored(tmp_path, running).engine_deaths, stored(tmp_path, running).status.terminal) == (0, False)


def test_stopped_engine_does_not_hold_up_the_end(tmp_path: Path, full: bool) -> None:
    with serving(tmp_path, config(1)) as server, api_client(server.url) as client:
        running = submit(client, steps=200, width=256, height=256)
        wait_for(client, running, lambda job: job["progress"] > 0)
        engine = engine_of(server)
        engine.send_signal(signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        assert server.process.wait(1 + serve.STUCK_SECONDS + 5) == 0
        took = time.monotonic() - told
        report(f"drain 1 s, stopped engine: exit after {took:.2f} s")
        assert not full or took <= 1 + ALLOWANCE
        assert not engine.is_running()


def stored(folder: Path, job_id: str) -> Job:
    """A job as it lies in the store while no server runs."""
    with SqliteRepository(folder / "output" / DATABASE_NAME) as repository:
        job = repository.get(job_id)
    assert isinstance(job, Job)
    return job
