"""How fast ``/api/v1/health`` answers while hostile images are sent, beside the same server when it is idle.

Also how much memory the server and its children have before, during and ten seconds after, and how fast SIGTERM is
obeyed in the middle of it.

Run: ``uv run --group dev python -m benchmarks.hostile_images [seconds]``
"""

import base64
import http.client
import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence

import psutil

from benchmarks.health_under_load import latencies, latency_table, p99, summarize
from benchmarks.report import Report, options_parser
from benchmarks.server import running_server
from tests.support.hostile_images import ACCEPTED, REFUSED

CLIENTS = 8


def attack(port: int, bodies: Sequence[bytes], stop: threading.Event, statuses: Counter[int]) -> None:
    """Send the bodies again and again, on a new connection each."""
    for body in itertools.cycle(bodies):
        if stop.is_set():
            return
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("POST", "/sdapi/v1/img2img", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            statuses[answer.status] += 1
        except (OSError, http.client.HTTPException):
            statuses[0] += 1
        finally:
            connection.close()


def _once() -> threading.Event:
    """Return what stops an attack after one request."""

    class Once(threading.Event):
        asked = False

        def is_set(self) -> bool:
            before, self.asked = self.asked, True
            return before

    return Once()


def megabytes(process: psutil.Process) -> float:
    """Return the memory of a process and of all its children."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().uss
        except psutil.Error:
            continue
    return total / 2**20


def main() -> None:
    """Print p99 with and without the attack, memory, and how the server ended."""
    parser = options_parser(__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=20.0)
    options = parser.parse_args()
    report, seconds = Report("hostile_images", options), options.seconds
    files = [make() for make in itertools.chain(REFUSED.values(), ACCEPTED.values())]
    fields = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 1}
    bodies = [json.dumps(fields | {"init_images": [base64.b64encode(file).decode()]}).encode() for file in files]
    statuses, late = Counter[int](), Counter[int]()
    with running_server() as (port, pid):
        server = psutil.Process(pid)
        # The first image loads the model.
        attack(port, bodies[-1:], _once(), Counter())
        time.sleep(5)
        idle, before = latencies(port, 1000), megabytes(server)

        def begin(stop: threading.Event, counts: Counter[int]) -> list[threading.Thread]:
            threads = [
                threading.Thread(target=attack, args=(port, bodies[n:] + bodies[:n], stop, counts), daemon=True)
                for n in range(CLIENTS)
            ]
            for thread in threads:
                thread.start()
            return threads

        stop = threading.Event()
        threads = begin(stop, statuses)
        busy, until, during = list[float](), time.monotonic() + seconds, 0.0
        while time.monotonic() < until:
            busy += latencies(port, 100)
            during = max(during, megabytes(server))
        stop.set()
        for thread in threads:
            thread.join()
        time.sleep(10)
        after = megabytes(server)
        begin(threading.Event(), late)
        time.sleep(2)
        asked = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        status = server.wait()
        ended = time.monotonic() - asked
    latency = {"idle": summarize(idle), "attack": summarize(busy)}
    memory = {"before": before, "during": during, "after": after}
    figures = {"latency": latency, "memory_mb": memory, "answers": dict(statuses)}
    figures["sigterm"] = {"status": status, "seconds": ended}
    notes = (
        f"p99 attack / idle: {p99(busy) / p99(idle):.1f} ×",
        f"memory: {before:.0f} MB before, {during:.0f} at most, {after:.0f} ten seconds after",
        f"answers: {dict(statuses)}; SIGTERM: status {status} after {ended:.1f} s",
    )
    report.publish(figures, latency_table(latency), notes=notes)


if __name__ == "__main__":
    main()
