"""What the jobs of a queue are told they will take (``eta_seconds``) against what they took.

One job runs first, so that something is known. Each of the queue is asked for right after it was submitted, and once
more when all are there.

Run: ``uv run --group dev python -m benchmarks.eta [--model MODEL] [--url URL]``
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from benchmarks.client import Client
from benchmarks.report import Report, Table, options_parser
from benchmarks.server import running_server

FIRST: dict[str, Any] = {"width": 256, "height": 256, "steps": 4}
QUEUE: tuple[dict[str, Any], ...] = (
    {"width": 256, "height": 256, "steps": 4},
    {"width": 256, "height": 256, "steps": 12},
    {"width": 512, "height": 512, "steps": 4},
    {"width": 256, "height": 256, "steps": 4, "num_images": 4},
    {"width": 384, "height": 384, "steps": 8},
    {"width": 512, "height": 512, "steps": 8},
    {"width": 512, "height": 256, "steps": 4, "num_images": 2},
    {"width": 256, "height": 256, "steps": 4},
    {"width": 640, "height": 640, "steps": 4},
    {"width": 512, "height": 512, "steps": 4, "num_images": 2},
)


@attrs.define
class Row:
    """One job: what was asked for, when, what it was told, and when it ended."""

    asked: dict[str, Any]
    job_id: str
    at: float
    told: float | None
    at_again: float = 0.0
    told_again: float | None = None
    ended: float = 0.0

    def error(self) -> float | None:
        """Return how far off it was what the job was told at its submission, as a share of what it took."""
        return None if self.told is None else self.told / (self.ended - self.at) - 1

    def error_again(self) -> float | None:
        """Return the same of what it was told when all were there; ``None`` where it had ended by then."""
        return None if self.told_again is None else self.told_again / (self.ended - self.at_again) - 1

    def summary(self) -> dict[str, Any]:
        """Return its figures."""
        return {
            **self.asked,
            "told_seconds": self.told,
            "took_seconds": round(self.ended - self.at, 2),
            "error": _rounded(self.error()),
            "told_later_seconds": self.told_again,
            "took_later_seconds": round(self.ended - self.at_again, 2),
            "error_later": _rounded(self.error_again()),
        }


def measure(client: Client) -> list[Row]:
    """Run the queue."""
    _wait(client, _submit(client, 0, FIRST))
    rows = list[Row]()
    for number, fields in enumerate(QUEUE, start=1):
        job_id = _submit(client, number, fields)
        rows.append(Row(fields, job_id, time.monotonic(), _told(client, job_id)))
    for row in rows:
        row.at_again, row.told_again = time.monotonic(), _told(client, row.job_id)
    for row in rows:
        _wait(client, row.job_id)
        row.ended = time.monotonic()
    return rows


def _submit(client: Client, number: int, fields: dict[str, Any]) -> str:
    """Submit a job; each has a prompt of its own, which has to be read."""
    return client.submit(prompt=f"a red house by {number} lakes", seed=1, **fields)


def _told(client: Client, job_id: str) -> float | None:
    found: float | None = client.ask("GET", f"/api/v1/jobs/{job_id}")["eta_seconds"]
    return found


def _wait(client: Client, job_id: str) -> None:
    """Wait for a job's end.

    Raises:
        SystemExit: it failed.
    """
    job = client.wait(job_id)
    if job["status"] != "completed":
        raise SystemExit(f"a job ended as {job['status']}: {job['error']}")


@contextmanager
def _server(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with running_server() as (port, _):
        yield f"http://127.0.0.1:{port}"


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 3)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:+.0%}"


def main() -> None:
    """Print the table."""
    parser = options_parser(__doc__)
    parser.add_argument("--model", default="demo", help="the model of all jobs")
    parser.add_argument("--url", help="a running server; by default one is started")
    options = parser.parse_args()
    report = Report("eta", options)
    with _server(options.url) as url:
        rows = measure(Client(url, options.model))
    table = Table(
        ("job", "told", "took", "error", "told when all were there", "took", "error"), [_cells(row) for row in rows]
    )
    report.publish({"model": options.model, "jobs": [row.summary() for row in rows]}, table)


def _cells(row: Row) -> tuple[str, ...]:
    images = row.asked.get("num_images", 1)
    name = f"{row.asked['width']} × {row.asked['height']}, {row.asked['steps']} steps"
    told, again = (f"{told:.1f} s" if told is not None else "" for told in (row.told, row.told_again))
    took, later = (f"{row.ended - at:.1f} s" for at in (row.at, row.at_again))
    name += f", {images} images" if images > 1 else ""
    return name, told, took, _percent(row.error()), again, later, _percent(row.error_again())


if __name__ == "__main__":
    main()
