"""A server under attack: health is answered, what it cost comes back, and it ends when it is told to.

How quickly is measured by ``benchmarks/floods.py``.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import httpx
import psutil
import pytest

from tests.support import scripted_server
from tests.support.floods import FLOODS, Flood, flooded
from tests.support.server import Server, serving

pytestmark = pytest.mark.slow

RECOVERY_SECONDS = 10.0
HEALTH_SECONDS = 5.0
CONNECTIONS = 10
"""Fewer than a benchmark has: the clients share a processor with the test."""
MOST_GROWN_MB = 48
CONFIG = '[models]\ndefault = "demo"\n[server]\ndrain_timeout_seconds = 0\nmax_in_flight_mb = 32\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, CONFIG, scripted_server.environ(), module=scripted_server.MODULE) as running:
        healthy(running)
        yield running
        assert running.stop() == 0
        assert not [line for line in running.lines if "Traceback" in line or " ERROR " in line]


def healthy(server: Server) -> None:
    """Ask for health on a connection of its own, and again on the same one."""
    with httpx.Client(base_url=server.url, timeout=HEALTH_SECONDS) as client:
        for _ in range(2):
            assert client.get("/api/v1/health").json()["status"] == "healthy"


def small(name: str) -> Flood:
    flood = FLOODS[name]
    return attrs.evolve(flood, connections=min(flood.connections, CONNECTIONS))


def port_of(server: Server) -> int:
    return httpx.URL(server.url).port or 80


@pytest.mark.parametrize("name", FLOODS)
def test_health_is_answered_in_a_flood_and_what_it_cost_comes_back(server: Server, name: str) -> None:
    process = psutil.Process(server.process.pid)
    descriptors, memory = process.num_fds(), process.memory_info().rss
    with flooded(port_of(server), small(name)):
        healthy(server)
    deadline = time.monotonic() + RECOVERY_SECONDS
    while process.num_fds() > descriptors:
        assert time.monotonic() < deadline, f"{process.num_fds() - descriptors} descriptors are still open"
        time.sleep(0.01)
    while (grown := process.memory_info().rss - memory) > MOST_GROWN_MB * 2**20:
        assert time.monotonic() < deadline, f"{grown // 2**20} MB are not given back"
        time.sleep(0.01)
    healthy(server)


def test_server_ends_in_time_in_all_floods_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, CONFIG, scripted_server.environ(), module=scripted_server.MODULE) as server:
        with flooded(port_of(server), *map(small, FLOODS)):
            assert httpx.get(f"{server.url}/api/v1/health", timeout=30).status_code == 200
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(10) == 0
        assert not [line for line in server.lines if "stuck" in line]
