"""Jobs over HTTP, as tests submit and follow them."""

import re
import time
from collections.abc import Callable
from typing import Any

import httpx

SMALL = {"prompt": "a tree", "model": "demo", "width": 64, "height": 64, "steps": 1}
WAIT_SECONDS = 30.0

_ENDS = {"completed": "complete", "failed": "failed", "cancelled": "cancelled"}


def submit(client: httpx.Client, **fields: Any) -> str:
    """Submit a small job and return its id."""
    answer = client.post("/api/v1/generate", json={**SMALL, **fields})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["job_id"])


def wait_for_end(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """Follow a job to its end and return it; its stream has progress, then the one event of its status."""
    stream = client.get(f"/api/v1/jobs/{job_id}/stream", params={"images": "url"})
    assert stream.status_code == 200, stream.text
    names = re.findall(r"^event: (\w+)$", stream.text, re.MULTILINE)
    job: dict[str, Any] = client.get(f"/api/v1/jobs/{job_id}").json()
    assert job["status"] in _ENDS, job
    assert len(names) > 1
    assert names == ["progress"] * (len(names) - 1) + [_ENDS[job["status"]]]
    return job


def wait_for(client: httpx.Client, job_id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return a job as soon as it fulfils a condition."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        job: dict[str, Any] = client.get(f"/api/v1/jobs/{job_id}").json()
        if condition(job):
            return job
        time.sleep(0.02)
    raise AssertionError(f"job {job_id} did not get there")
