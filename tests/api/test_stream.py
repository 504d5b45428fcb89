"""Server-sent events over a real socket, read by clients of other projects."""

import base64
import json
import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, connect_sse
from PIL import Image

from tests.support.api_jobs import submit, wait_for_end

pytestmark = pytest.mark.slow


def follow(client: httpx.Client, job_id: str, **headers: str) -> list[ServerSentEvent]:
    """Read a stream until the server ends it."""
    with connect_sse(client, "GET", f"/api/v1/jobs/{job_id}/stream", headers=headers) as source:
        return list(source.iter_sse())


def data(event: ServerSentEvent) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(event.data)
    return parsed


def test_progress_is_monotonic_by_steps_reaches_one_and_then_complete(client: httpx.Client) -> None:
    # From the oldest event on: how far the job is when the stream begins is not known.
    events = follow(client, submit(client, steps=4, num_images=2, seed=5), **{"Last-Event-ID": "unknown"})
    assert [event.event for event in events] == ["progress"] * (len(events) - 1) + ["complete"]
    progress = [data(event) for event in events[:-1]]
    values = [entry["progress"] for entry in progress]
    assert values == sorted(values)
    assert values[-1] == 1.0
    steps = [(entry["image"], entry["step"]) for entry in progress if entry["stage"] == "denoising" and entry["step"]]
    assert [step for step in steps if step[0] == 0] == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert {entry["steps"] for entry in progress} == {4}
    stages = list(dict.fromkeys(entry["stage"] for entry in progress))
    assert stages == ["queued", "loading", "encoding", "denoising", "decoding", "saving"]
    done = data(events[-1])
    assert (done["status"], done["result"]["seeds"], len(done["result"]["images"])) == ("completed", [5, 6], 2)


def test_progress_counts_steps_and_saved_images(client: httpx.Client) -> None:
    *progress, _ = follow(client, submit(client, steps=3, num_images=2))
    assert progress
    for event in progress:
        entry = data(event)
        done = 4 * entry["image"] + (entry["step"] if entry["image"] < 2 else 0)
        assert entry["progress"] >= done / 8 - 1e-9


def test_stream_of_a_finished_job_replays_its_end(client: httpx.Client) -> None:
    job_id = submit(client)
    job = wait_for_end(client, job_id)
    events = follow(client, job_id)
    assert [event.event for event in events] == ["progress", "complete"]
    assert data(events[0]).items() >= {"status": "completed", "progress": 1.0, "id": job_id}.items()
    assert data(events[1]) == job


def test_resume_by_last_event_id_has_no_gap_and_no_duplicate(client: httpx.Client) -> None:
    job_id = submit(client, steps=5)
    whole = follow(client, job_id, **{"Last-Event-ID": "unknown"})
    ids = [event.id for event in whole]
    assert len(ids) == len(set(ids)) > 6
    for index in range(len(ids) - 1):
        assert [event.id for event in follow(client, job_id, **{"Last-Event-ID": ids[index]})] == ids[index + 1 :]
    assert follow(client, job_id, **{"Last-Event-ID": ids[-1]}) == []


def test_cancelled_job_ends_its_stream_with_cancelled(client: httpx.Client) -> None:
    job_id = submit(client, steps=200, width=256, height=256)
    with connect_sse(client, "GET", f"/api/v1/jobs/{job_id}/stream") as source:
        names = []
        for event in source.iter_sse():
            names.append(event.event)
            if event.event == "progress" and data(event)["step"] and "deleted" not in names:
                names.append("deleted")
                httpx.delete(client.base_url.join(f"/api/v1/jobs/{job_id}"))
    assert names[-1] == "cancelled"
    assert names.count("cancelled") == 1


def test_images_by_url_keep_the_stream_small(client: httpx.Client) -> None:
    job_id = submit(client)
    with connect_sse(client, "GET", f"/api/v1/jobs/{job_id}/stream", params={"images": "url"}) as source:
        events = list(source.iter_sse())
    assert data(events[-1])["result"]["images"] == [f"/api/v1/jobs/{job_id}/images/0"]


def test_previews_come_on_demand_alone_and_change_no_pixel(client: httpx.Client) -> None:
    body = {"steps": 6, "width": 128, "height": 128, "num_images": 2, "seed": 3}
    # It waits until it is followed.
    before = submit(client, steps=200, width=256, height=256)
    job_id = submit(client, **body)
    with connect_sse(client, "GET", f"/api/v1/jobs/{job_id}/stream", params={"previews": "jpeg"}) as source:
        client.delete(f"/api/v1/jobs/{before}")
        events = [data(event) for event in source.iter_sse()]
    shown = [event for event in events[:-1] if event["preview"] is not None]
    assert shown
    for event in shown:
        assert Image.open(BytesIO(base64.b64decode(event["preview"]))).size == (16, 16)
        assert (event["stage"], event["steps"]) == ("denoising", 6)
    values = [event["progress"] for event in events[:-1]]
    assert values == sorted(values)
    plain = follow(client, job_id, **{"Last-Event-ID": "unknown"})
    assert all(data(event)["preview"] is None for event in plain[:-1])
    again = wait_for_end(client, submit(client, **body))
    assert again["result"]["images"] == events[-1]["result"]["images"]
    answer = client.get(f"/api/v1/jobs/{job_id}/stream", params={"previews": "png"})
    assert (answer.status_code, answer.json()["details"]["field"]) == (400, "previews")


def test_stream_may_be_read_by_any_page(client: httpx.Client) -> None:
    job_id = submit(client)
    answer = client.get(f"/api/v1/jobs/{job_id}/stream", headers={"Origin": "http://elsewhere.example"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"


def test_client_that_comes_back_with_the_end_is_told_to_stay_away(client: httpx.Client) -> None:
    """An EventSource that is left open would otherwise connect for ever."""
    job_id = submit(client)
    end = follow(client, job_id)[-1]
    answer = client.get(f"/api/v1/jobs/{job_id}/stream", headers={"Last-Event-ID": end.id})
    assert (answer.status_code, answer.content) == (204, b"")
    # httpx-sse raises without it.
    assert answer.headers["content-type"].startswith("text/event-stream")


NODE_CLIENT = """
const {EventSource} = require("eventsource");
const source = new EventSource(process.argv[2]);
const seen = [];
source.addEventListener("progress", (e) => seen.push(JSON.parse(e.data).progress));
source.addEventListener("complete", (e) => {
  source.close();
  console.log(JSON.stringify({seen, seeds: JSON.parse(e.data).result.seeds}));
});
"""


NODE_LEFT_OPEN = """
const {EventSource} = require("eventsource");
let opened = 0, ended = 0;
const source = new EventSource(process.argv[2]);
source.addEventListener("open", () => opened++);
source.addEventListener("complete", () => ended++);
source.addEventListener("error", (e) => {
  if (source.readyState === EventSource.CLOSED) console.log(JSON.stringify({opened, ended, code: e.code}));
});
"""


def installed_eventsource(folder: Path) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    installed = subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund", "eventsource@4"], cwd=folder, capture_output=True
    )
    if installed.returncode != 0:
        pytest.skip("the npm registry cannot be reached")
    return folder / "client.js"


def test_npm_eventsource_that_is_left_open_connects_no_more(client: httpx.Client, tmp_path: Path) -> None:
    script = installed_eventsource(tmp_path)
    script.write_text(NODE_LEFT_OPEN)
    url = client.base_url.join(f"/api/v1/jobs/{submit(client)}/stream")
    # Node ends by itself once the source is closed.
    done = subprocess.run(["node", script.name, str(url)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == {"opened": 1, "ended": 1, "code": 204}


def test_npm_eventsource_reads_it(client: httpx.Client, tmp_path: Path) -> None:
    script = installed_eventsource(tmp_path)
    script.write_text(NODE_CLIENT)
    job_id = submit(client, steps=4, seed=3)
    url = client.base_url.join(f"/api/v1/jobs/{job_id}/stream")
    done = subprocess.run(["node", script.name, str(url)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    result = json.loads(done.stdout)
    assert result["seeds"] == [3]
    assert result["seen"] == sorted(result["seen"])
    assert result["seen"][-1] == 1.0
