"""How fast health answers while clients attack, what comes back after it, and how long the server takes to end in it.

Run: ``uv run --group dev python -m benchmarks.floods [seconds of each] [word in the name]``

Besides the time that passes it gives the time that the server computed meanwhile, where the system counts it: on a busy
machine the first is mostly that of other programs.
"""

import contextlib
import http.client
import multiprocessing
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import httpx
import psutil

from benchmarks.health_under_load import p99
from tests.support import scripted_server
from tests.support.floods import FLOODS, flooded
from tests.support.server import Server, serving

CONFIG = '[models]\ndefault = "demo"\n[server]\ndrain_timeout_seconds = 2\n'
RECOVERY_SECONDS = 10.0
PAUSE_SECONDS = 0.02
"""Between two questions, as a monitor that asks often."""


def main() -> None:
    """Print a line for each flood."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    word = sys.argv[2] if len(sys.argv) > 2 else ""
    print(f"{'':<30}{'quiet p99':>10}{'p99':>9}{'new p99':>9}{'computed':>9}{'files':>7}{'memory':>8}{'end':>8}")
    for name in (each for each in FLOODS if word in each):
        with (
            tempfile.TemporaryDirectory() as folder,
            serving(Path(folder), CONFIG, scripted_server.environ(), module=scripted_server.MODULE) as server,
        ):
            print(f"{name:<30}{measure(server, name, seconds)}", flush=True)


def measure(server: Server, name: str, seconds: float) -> str:
    """Return what one flood does to a server, which ends in it."""
    process = psutil.Process(server.process.pid)
    quiet, _ = latencies(server, seconds / 2, new=False)
    files, memory = process.num_fds(), process.memory_info().rss
    with attacked(server, name):
        same, computed = latencies(server, seconds / 2, new=False)
        new, computed_new = latencies(server, seconds / 2, new=True)
    began = time.monotonic()
    while process.num_fds() > files and time.monotonic() < began + RECOVERY_SECONDS:
        time.sleep(0.05)
    left = process.num_fds() - files
    grown = (process.memory_info().rss - memory) / 2**20
    with attacked(server, name):
        time.sleep(seconds / 4)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(60)
        ended = time.monotonic() - began
    times = f"{p99(quiet):>7.0f} ms{p99(same):>6.0f} ms{p99(new):>6.0f} ms{p99(computed + computed_new):>6.0f} ms"
    return f"{times}{left:>+7}{grown:>+5.0f} MB{ended:>6.1f} s" + (f" (status {status})" if status else "")


@contextlib.contextmanager
def attacked(server: Server, name: str) -> Iterator[None]:
    """A flood from another process, so that it takes no time from the one that measures."""
    stop = multiprocessing.Event()
    process = multiprocessing.Process(target=_attack, args=(httpx.URL(server.url).port, name, stop))
    process.start()
    try:
        time.sleep(1)
        yield
    finally:
        stop.set()
        process.join()


def _attack(port: int, name: str, stop: Event) -> None:
    with flooded(port, FLOODS[name]):
        stop.wait()


def latencies(server: Server, seconds: float, *, new: bool) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each question for health: those that passed, and those that the server computed."""
    url = httpx.URL(server.url)
    connection = http.client.HTTPConnection(url.host, url.port, timeout=30)
    passed, computed = list[float](), list[float]()
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(passed) < 3:
        began, began_computing = time.perf_counter(), _computed(server)
        connection.request("GET", "/api/v1/health")
        answer = connection.getresponse()
        answer.read()
        computed.append((_computed(server) - began_computing) * 1000)
        passed.append((time.perf_counter() - began) * 1000)
        if answer.status != 200:
            raise SystemExit(f"health answered {answer.status}")
        if new:
            connection.close()
        time.sleep(PAUSE_SECONDS)
    connection.close()
    return passed, computed


def _computed(server: Server) -> float:
    """Return the seconds of a processor that the server's loop has had; 0 where the system does not say."""
    path = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/schedstat")
    return int(path.read_text().split()[0]) / 1e9 if path.is_file() else 0.0


if __name__ == "__main__":
    main()
