"""What the jobs of a queue are told they will take (``eta_seconds``) against what they took.

One job runs first, so that something is known. Each of the queue is asked for right after it was submitted, and once
more when all are there.

Run: ``uv run --group dev python -m benchmarks.eta [--model MODEL] [--url URL] [--json FILE]``
"""

import argparse
import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

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


class Client:
    """Calls of one server."""

    def __init__(self, url: str, model: str) -> None:
        self._url = url.rstrip("/")
        self._model = model

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, method=method, data=data, headers=head)
        with urllib.request.urlopen(request, timeout=600) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def submit(self, number: int, **fields: Any) -> str:
        """Submit a job and return its id; each has a prompt of its own, which has to be read."""
        body = {"prompt": f"a red house by {number} lakes", "model": self._model, "seed": 1, **fields}
        return str(self._ask("POST", "/api/v1/generate", body)["job_id"])

    def told(self, job_id: str) -> float | None:
        """Return what a job is told now."""
        found: float | None = self._ask("GET", f"/api/v1/jobs/{job_id}")["eta_seconds"]
        return found

    def wait(self, job_id: str) -> float:
        """Wait for a job's end and return when it was.

        Raises:
            SystemExit: it failed.
        """
        while True:
            found = self._ask("GET", f"/api/v1/jobs/{job_id}?wait=30")
            if found["status"] == "completed":
                return time.monotonic()
            if found["status"] in ("failed", "cancelled"):
                raise SystemExit(f"a job ended as {found['status']}: {found['error']}")


def measure(client: Client) -> list[Row]:
    """Run the queue."""
    client.wait(client.submit(0, **FIRST))
    rows = list[Row]()
    for number, fields in enumerate(QUEUE, start=1):
        job_id = client.submit(number, **fields)
        rows.append(Row(fields, job_id, time.monotonic(), client.told(job_id)))
    for row in rows:
        row.at_again, row.told_again = time.monotonic(), client.told(row.job_id)
    for row in rows:
        row.ended = client.wait(row.job_id)
    return rows


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
    """Print the table, and write it as JSON where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="the model of all jobs")
    parser.add_argument("--url", help="a running server; by default one is started")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    with _server(options.url) as url:
        rows = measure(Client(url, options.model))
    print("| job | told | took | error | told when all were there | took | error |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        images = row.asked.get("num_images", 1)
        name = f"{row.asked['width']} × {row.asked['height']}, {row.asked['steps']} steps" + f", {images} images" * (
            images > 1
        )
        told, again = (f"{told:.1f} s" if told is not None else "" for told in (row.told, row.told_again))
        took, later = row.ended - row.at, row.ended - row.at_again
        errors = _percent(row.error()), _percent(row.error_again())
        print(f"| {name} | {told} | {took:.1f} s | {errors[0]} | {again} | {later:.1f} s | {errors[1]} |")
    if options.json is not None:
        options.json.write_text(json.dumps([row.summary() for row in rows], indent=2), "utf-8")


if __name__ == "__main__":
    main()
