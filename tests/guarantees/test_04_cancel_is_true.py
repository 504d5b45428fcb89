"""Cancel is true: at every stage and step one terminal event, and an engine as good as a fresh one.

tests/actors/test_cancel.py does the same at every moment that a scripted engine can be held at, and in races.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.api_jobs import SMALL, submit, wait_for, wait_for_end
from tests.support.report import report
from tests.support.server import Server, api_client, serving

pytestmark = pytest.mark.slow

CONFIG = '[models]\ndefault = "demo"\n'
STEPS = 12
VICTIM = {"steps": STEPS, "width": 256, "height": 256, "num_images": 2}
WITNESS = {"steps": 2, "width": 128, "height": 128, "seed": 77}

STAGES = ["queued", "loading", "encoding", "denoising", "decoding", "saving"]

Moment = tuple[str, int, int]
"""Stage, images saved, steps done: cancel at the first event that is that far."""

EVERY: list[Moment] = [
    ("queued", 0, 0),
    ("loading", 0, 0),
    ("encoding", 0, 0),
    *[("denoising", image, step) for image in (0, 1) for step in range(1, STEPS + 1)],
    *[(stage, image, STEPS) for image in (0, 1) for stage in ("decoding", "saving")],
]
SOME = [("queued", 0, 0), ("denoising", 0, 5), ("decoding", 0, STEPS), ("denoising", 1, 1)]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a process generates that never did anything else."""
    with serving(tmp_path_factory.mktemp("fresh"), CONFIG) as server, api_client(server.url) as client:
        return wait_for_end(client, submit(client, **WITNESS))["result"]["images"]


def events(answer: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and data of each event of a stream, as they come."""
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


def reached(data: dict[str, Any], moment: Moment) -> bool:
    """Whether an event is that far, or further: a stage that is over before a client follows has no event."""
    stage, image, step = moment
    return (data["image"], data["step"], STAGES.index(data["stage"])) >= (image, step, STAGES.index(stage))


def cancel_at(server: Server, client: httpx.Client, moment: Moment) -> str:
    """Cancel a job there; check its only end, and return how it ended."""
    job_id = submit(client, **VICTIM)
    status = ""
    with httpx.stream("GET", f"{server.url}/api/v1/jobs/{job_id}/stream?images=url", timeout=60) as answer:
        seen: list[str] = []
        for name, data in events(answer):
            seen.append(name)
            if name == "progress" and not status and reached(data, moment):
                status = client.delete(f"/api/v1/jobs/{job_id}").json()["status"]
    assert seen.count("progress") == len(seen) - 1, seen
    assert (seen[-1], status) in {("cancelled", "cancelled"), ("complete", "completed")}
    job = client.get(f"/api/v1/jobs/{job_id}").json()
    assert job["status"] == status
    assert client.delete(f"/api/v1/jobs/{job_id}").json()["status"] == status
    return str(status)


def test_cancel_at_any_stage_and_step_leaves_an_engine_as_good_as_a_fresh_one(
    tmp_path: Path, fresh: Any, full: bool
) -> None:
    with serving(tmp_path, CONFIG) as server, api_client(server.url) as client:
        ends = []
        for moment in EVERY if full else SOME:
            ends.append(cancel_at(server, client, moment))
            witness = wait_for_end(client, submit(client, **WITNESS))
            assert witness["result"]["images"] == fresh, f"other pixels after a cancel at {moment}"
        # One child did it all: no cancel was a kill.
        assert sum("is ready on" in line for line in server.lines) == 1
        assert not any("engine died" in line for line in server.lines)
    report(f"cancelled at {ends.count('cancelled')} of {len(ends)} moments")
    # At the very last moments a job may be complete before the cancel comes.
    assert ends.count("cancelled") >= len(ends) - 2


def test_dropped_synchronous_client_frees_the_engine_within_a_step(tmp_path: Path, fresh: Any, full: bool) -> None:
    long = SMALL | {"steps": 200, "width": 256, "height": 256}
    with serving(tmp_path, CONFIG) as server, api_client(server.url) as client:
        wait_for_end(client, submit(client))
        for seconds in (0.3, 0.6, 1.0, 1.5, 2.0) if full else (0.5,):
            with httpx.Client(base_url=server.url, timeout=seconds) as leaving, contextlib.suppress(httpx.ReadTimeout):
                leaving.post("/sdapi/v1/txt2img", json=long)
                raise AssertionError("the image was finished too soon for this test")
            newest = client.get("/api/v1/jobs", params={"limit": 1}).json()["jobs"][0]
            job = wait_for(client, newest["id"], lambda job: job["completed_at"])
            assert job["status"] == "cancelled"
            # 200 steps take far longer than a client waits here: it was freed, not finished.
            assert job["progress"] < 0.9
            assert wait_for_end(client, submit(client, **WITNESS))["result"]["images"] == fresh
        assert not any("engine died" in line for line in server.lines)
