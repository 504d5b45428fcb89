"""How fast ``/api/v1/health`` answers while a 512×512 job runs, beside the same server when it is idle.

Run: ``uv run --group dev python -m benchmarks.health_under_load [requests]``
"""

import http.client
import json
import statistics
import time

from benchmarks.report import Report, Table, options_parser
from benchmarks.server import running_server


def latencies(port: int, count: int) -> list[float]:
    """Return the milliseconds of ``count`` requests, one after another on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    times = []
    for _ in range(count):
        started = time.perf_counter()
        connection.request("GET", "/api/v1/health")
        answer = connection.getresponse()
        answer.read()
        times.append((time.perf_counter() - started) * 1000)
        if answer.status != 200:
            raise SystemExit(f"health answered {answer.status}")
    connection.close()
    return times


def main() -> None:
    """Print median and p99, idle and busy, and their ratio."""
    parser = options_parser(__doc__)
    parser.add_argument("requests", type=int, nargs="?", default=2000)
    options = parser.parse_args()
    report, count = Report("health_under_load", options), options.requests
    with running_server() as (port, _):
        post(port, {"prompt": "warm up", "model": "demo", "width": 64, "height": 64, "steps": 1})
        time.sleep(8)
        idle = latencies(port, count)
        post(port, {"prompt": "a lake", "model": "demo", "width": 512, "height": 512, "steps": 100})
        time.sleep(1)
        busy = latencies(port, count)
    figures = {"idle": summarize(idle), "busy": summarize(busy)}
    note = f"p99 busy / idle: {p99(busy) / p99(idle):.1f} ×"
    report.publish(figures, latency_table(figures), notes=[note])


def summarize(times: list[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the worst of some milliseconds."""
    return {"median_ms": statistics.median(times), "p99_ms": p99(times), "worst_ms": max(times)}


def latency_table(figures: dict[str, dict[str, float]]) -> Table:
    """Return summaries by their names as a table."""
    rows = [(name, *(f"{value:.2f} ms" for value in row.values())) for name, row in figures.items()]
    return Table(("", "median", "p99", "worst"), rows)


def p99(times: list[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(times, n=100)[98]


def post(port: int, body: dict[str, object]) -> None:
    """Submit a job."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/api/v1/generate", json.dumps(body))
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"the job was refused with {answer.status}")


if __name__ == "__main__":
    main()
