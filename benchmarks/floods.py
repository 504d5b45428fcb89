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
from benchmarks.report import Report, Table, options_parser
from tests.support import scripted_server
from tests.support.floods import FLOODS, flooded
from tests.support.server import Server, serving

CONFIG = '[models]\ndefault = "demo"\n[server]\ndrain_timeout_seconds = 2\n'
RECOVERY_SECONDS = 10.0
PAUSE_SECONDS = 0.02
"""Between two questions, as a monitor that asks often."""


def main() -> None:
    """Print a line for each flood."""
    parser = options_parser(__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=10.0)
    parser.add_argument("word", nargs="?", default="")
    options = parser.parse_args()
    report, found = Report("floods", options), dict[str, dict[str, float]]()
    for name in (each for each in FLOODS if options.word in each):
        print(name, file=sys.stderr, flush=True)
        with (
            tempfile.TemporaryDirectory() as folder,
            serving(Path(folder), CONFIG, scripted_server.environ(), module=scripted_server.MODULE) as server,
        ):
            found[name] = measure(server, name, options.seconds)
        report.save({"floods": found})
    heads = ("", "quiet p99", "p99", "new p99", "computed", "files", "memory", "end")
    report.publish({"floods": found}, Table(heads, [(name, *cells(row)) for name, row in found.items()]))


def cells(row: dict[str, float]) -> tuple[str, ...]:
    """Return the figures of one flood as the table has them."""
    times = (f"{row[key]:.0f} ms" for key in ("quiet_p99_ms", "p99_ms", "new_p99_ms", "computed_p99_ms"))
    end = f"{row['end_seconds']:.1f} s" + (f" (status {row['status']})" if row["status"] else "")
    return (*times, f"{row['files_left']:+}", f"{row['memory_grown_mb']:+.0f} MB", end)


def measure(server: Server, name: str, seconds: float) -> dict[str, float]:
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
    return {
        "quiet_p99_ms": p99(quiet),
        "p99_ms": p99(same),
        "new_p99_ms": p99(new),
        "computed_p99_ms": p99(computed + computed_new),
        "files_left": left,
        "memory_grown_mb": grown,
        "end_seconds": ended,
        "status": status,
    }


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
