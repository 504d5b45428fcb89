"""The memory of a server whose clients send without end or do not read: it stays within its limit."""

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx
import psutil
import pytest

from tests.support import scripted_server
from tests.support.api_jobs import submit, wait_for_end
from tests.support.server import Server, api_client, serving

pytestmark = pytest.mark.slow

MEGABYTE = 2**20
LIMIT_MB = 64
SLACK_MB = 48
"""What is beside the limit: images of the last jobs, pieces on their way, and what the allocator keeps."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    config = f'[models]\ndefault = "demo"\n[server]\nmax_in_flight_mb = {LIMIT_MB}\n'
    with serving(folder, config, scripted_server.environ(), module=scripted_server.MODULE) as running:
        yield running
        # Not killed, or the measurement of its coverage would be lost.
        assert running.stop() == 0


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with api_client(server.url) as connected:
        yield connected


class Crowd:
    """Connections that are opened at one time and not read."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self._address = httpx.URL(server.url)
        self._stack = stack
        self._sockets: list[socket.socket] = []
        self._told: set[socket.socket] = set()

    def join(self, request: bytes, body: bytes = b"", times: int = 0) -> None:
        """Send a request, and a part of a body so many times, in a thread of its own."""
        sock = self._stack.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((self._address.host, self._address.port or 80))
        self._sockets.append(sock)

        def send() -> None:
            with suppress(OSError):  # it may be refused, and the connection closed
                sock.sendall(request)
                for _ in range(times):
                    sock.sendall(body)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        self._stack.callback(thread.join, 10)
        self._stack.callback(_hang_up, sock)

    def begun(self) -> int:
        """How many have an answer to read."""
        return len(select.select(self._sockets, [], [], 0)[0])

    def statuses(self) -> list[int]:
        """The status of every answer that has begun since the last time."""
        found = []
        for sock in [each for each in self._sockets if each not in self._told]:
            sock.setblocking(False)
            try:
                found.append(int(sock.recv(12)[9:12]))
            except (BlockingIOError, ValueError):
                continue
            # What is behind it may look like a status, too.
            self._told.add(sock)
        return found


def _hang_up(sock: socket.socket) -> None:
    """End what the thread waits for; a connection that the server has reset is gone already."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _grown_mb(server: Server, before: int) -> int:
    """By how much the memory has grown at most, watched until it has been quiet for a second."""
    process = psutil.Process(server.process.pid)
    peak, changed = 0, time.monotonic()
    while time.monotonic() < changed + 1:
        now = process.memory_info().rss
        if now > peak:
            peak, changed = now, time.monotonic()
        time.sleep(0.01)
    return (peak - before) // MEGABYTE


def _rss(server: Server) -> int:
    return psutil.Process(server.process.pid).memory_info().rss


def test_unfinished_bodies_take_no_more_than_the_limit(server: Server, client: httpx.Client) -> None:
    before = _rss(server)
    with ExitStack() as stack:
        crowd = Crowd(server, stack)
        head = f"POST /sdapi/v1/img2img HTTP/1.1\r\nHost: test\r\nContent-Length: {16 * MEGABYTE}\r\n\r\n"
        for _ in range(20):
            crowd.join(head.encode(), b"x" * MEGABYTE, times=15)
        assert _grown_mb(server, before) < LIMIT_MB + SLACK_MB
        # Four have room for all that they send; the others are told so.
        refused = list[int]()
        deadline = time.monotonic() + 20
        while (left := 20 - len(refused)) > 4:
            assert time.monotonic() < deadline, left
            refused += crowd.statuses()
            time.sleep(0.01)
        assert left > 0
        assert set(refused) == {503}
        assert client.get("/api/v1/health").json()["status"] == "healthy"


def test_answers_that_are_not_read_take_no_more_than_the_limit(server: Server, client: httpx.Client) -> None:
    # Noise does not compress: 12.6 MB as PNG, 16.8 as base64.
    jobs = [submit(client, width=2048, height=2048, steps=1, seed=seed) for seed in range(8)]
    for job_id in jobs:
        wait_for_end(client, job_id)
    before = _rss(server)
    with ExitStack() as stack:
        crowd = Crowd(server, stack)
        for job_id in jobs * 2:
            crowd.join(f"GET /api/v1/jobs/{job_id} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        assert _grown_mb(server, before) < LIMIT_MB + SLACK_MB
        assert set(crowd.statuses()) == {200, 503}


@pytest.mark.parametrize("upgrade", ["", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n"])
def test_hundred_clients_that_hang_up_with_an_unread_answer_leave_nothing(
    server: Server, client: httpx.Client, upgrade: str
) -> None:
    job_id = submit(client, width=2048, height=2048, steps=1)
    wait_for_end(client, job_id)
    process = psutil.Process(server.process.pid)
    client.get("/api/v1/health")  # the connection of this client is there before and after
    memory, descriptors = _rss(server), process.num_fds()
    request = f"GET /api/v1/jobs/{job_id} HTTP/1.1\r\nHost: test\r\n{upgrade}\r\n".encode()
    for _ in range(5):
        with ExitStack() as stack:
            crowd = Crowd(server, stack)
            for _ in range(20):
                crowd.join(request)
            deadline = time.monotonic() + 10
            while crowd.begun() < 20:
                assert time.monotonic() < deadline, "the answers do not begin"
                time.sleep(0.01)
    deadline = time.monotonic() + 10
    while process.num_fds() > descriptors:
        assert time.monotonic() < deadline, "descriptors are still open"
        time.sleep(0.01)
    assert _grown_mb(server, memory) < 17 + SLACK_MB


def test_followers_of_one_job_that_do_not_read_take_the_room_of_one(server: Server, client: httpx.Client) -> None:
    job_id = submit(client, width=2048, height=2048, steps=1)
    wait_for_end(client, job_id)
    before = _rss(server)
    with ExitStack() as stack:
        crowd = Crowd(server, stack)
        for _ in range(30):
            crowd.join(f"GET /api/v1/jobs/{job_id}/stream HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        assert _grown_mb(server, before) < 17 + SLACK_MB
        assert crowd.statuses() == [200] * 30
