"""Asynchronous jobs: submit, read, list, cancel, download images."""

import base64
import re
import threading
import time
from io import BytesIO

import httpx
import pytest
from PIL import Image

from tests.support.api_jobs import SMALL, submit, wait_for, wait_for_end

pytestmark = pytest.mark.slow

JOB_KEYS = """id status stage progress prompt model position eta_seconds created_at started_at completed_at result error
    code details request edit webhook warnings"""
UTC = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def test_submit_answers_at_once_with_id_status_and_position(client: httpx.Client) -> None:
    answer = client.post("/api/v1/generate", json=SMALL).json()
    assert set(answer) == {"job_id", "status", "position", "warnings"}
    assert re.fullmatch(r"[0-9a-f]{12}", answer["job_id"])
    assert (answer["status"], answer["position"]) == ("queued", 1)
    wait_for_end(client, answer["job_id"])


def test_completed_job_has_every_key_and_its_result(client: httpx.Client) -> None:
    job = wait_for_end(client, submit(client, seed=42, num_images=2))
    assert list(job) == JOB_KEYS.split()
    assert job.items() >= {"status": "completed", "progress": 1.0, "stage": None, "error": None, "code": None}.items()
    assert job["result"]["seeds"] == [42, 43]
    images = [Image.open(BytesIO(base64.b64decode(text))) for text in job["result"]["images"]]
    assert [image.size for image in images] == [(64, 64)] * 2
    assert all(re.fullmatch(UTC, job[key]) for key in ("created_at", "started_at", "completed_at"))


def test_list_is_newest_first_without_results_and_pages(client: httpx.Client) -> None:
    ids = [submit(client) for _ in range(5)]
    for job_id in ids:
        wait_for_end(client, job_id)
    page = client.get("/api/v1/jobs", params={"limit": 2}).json()
    rest = client.get("/api/v1/jobs", params={"limit": 3, "cursor": page["next_cursor"]}).json()
    assert [job["id"] for job in (*page["jobs"], *rest["jobs"])] == ids[::-1]
    assert all(job["result"] is None for job in page["jobs"])
    completed = client.get("/api/v1/jobs", params={"status": "completed", "limit": 500}).json()
    assert {job["status"] for job in completed["jobs"]} == {"completed"}
    # Other files' tests leave failed jobs on the same server.
    failed = client.get("/api/v1/jobs", params={"status": "failed", "limit": 500}).json()
    assert {job["status"] for job in failed["jobs"]} <= {"failed"}
    assert not {job["id"] for job in failed["jobs"]} & set(ids)


def test_list_without_limit_reaches_every_job_through_the_cursor(client: httpx.Client) -> None:
    seen: list[str] = []
    cursor = None
    while True:
        page = client.get("/api/v1/jobs", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) >= 5


@pytest.mark.parametrize(("name", "magic"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_images_come_in_three_formats_with_an_etag(client: httpx.Client, name: str, magic: bytes) -> None:
    job_id = submit(client, num_images=2, seed=3)
    wait_for_end(client, job_id)
    path = f"/api/v1/jobs/{job_id}/images/1"
    answer = client.get(path, params={"format": name})
    assert answer.content.startswith(magic)
    assert answer.headers["content-type"] == f"image/{name}"
    assert Image.open(BytesIO(answer.content)).size == (64, 64)
    again = client.get(path, params={"format": name}, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(path, params={"format": "gif"}).json()["code"] == "INVALID_PARAMETER"
    assert client.get(f"/api/v1/jobs/{job_id}/images/2").json()["code"] == "IMAGE_NOT_FOUND"


def test_image_file_is_the_one_in_the_result(client: httpx.Client) -> None:
    job_id = submit(client)
    job = wait_for_end(client, job_id)
    assert client.get(f"/api/v1/jobs/{job_id}/images/0").content == base64.b64decode(job["result"]["images"][0])
    by_url = client.get(f"/api/v1/jobs/{job_id}", params={"images": "url"}).json()
    assert by_url["result"]["images"] == [f"/api/v1/jobs/{job_id}/images/0"]
    assert client.get(f"/api/v1/jobs/{job_id}", params={"images": "pixels"}).json()["code"] == "INVALID_PARAMETER"


def test_cancel_frees_the_engine_within_a_step_and_leaves_it_sound(client: httpx.Client) -> None:
    undisturbed = wait_for_end(client, submit(client, seed=11))["result"]["images"]
    long = submit(client, steps=200, width=256, height=256)
    wait_for(client, long, lambda job: job["progress"] > 0)
    behind = submit(client, seed=11)
    assert client.get(f"/api/v1/jobs/{behind}").json()["position"] == 1
    started = time.perf_counter()
    assert client.delete(f"/api/v1/jobs/{long}").json() == {"status": "cancelled"}
    assert client.get(f"/api/v1/jobs/{long}").json()["status"] == "cancelled"
    assert wait_for_end(client, behind)["result"]["images"] == undisturbed
    assert time.perf_counter() - started < 20


def test_cancel_of_a_queued_and_of_a_finished_job(client: httpx.Client) -> None:
    long = submit(client, steps=200, width=256, height=256)
    queued = submit(client)
    assert client.delete(f"/api/v1/jobs/{queued}").json() == {"status": "cancelled"}
    assert client.delete(f"/api/v1/jobs/{queued}").json() == {"status": "cancelled"}
    assert client.delete(f"/api/v1/jobs/{long}").json() == {"status": "cancelled"}
    done = submit(client)
    before = wait_for_end(client, done)
    assert client.delete(f"/api/v1/jobs/{done}").json() == {"status": "completed"}
    assert client.get(f"/api/v1/jobs/{done}").json() == before


def test_synchronous_jobs_are_listed_and_their_client_leaving_cancels_them(client: httpx.Client) -> None:
    body = {**SMALL, "steps": 200, "width": 256, "height": 256, "prompt": "left alone"}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/sdapi/v1/txt2img", json=body, timeout=1.0)
    job_id = client.get("/api/v1/jobs", params={"limit": 1}).json()["jobs"][0]["id"]
    job = wait_for(client, job_id, lambda job: job["status"] == "cancelled")
    assert job["prompt"] == "left alone"
    wait_for_end(client, submit(client))


def test_synchronous_job_cancelled_by_another_client_is_409(client: httpx.Client) -> None:
    answers: list[httpx.Response] = []
    body = {**SMALL, "steps": 200, "width": 256, "height": 256, "prompt": "to be stopped"}

    def call() -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as other:
            answers.append(other.post("/sdapi/v1/txt2img", json=body))
            answers.append(other.post("/sdapi/v1/txt2img", json={**body, "sampler_name": "Euler a"}))

    thread = threading.Thread(target=call)
    thread.start()
    for _ in range(2):
        job_id = wait_for_newest(client, "to be stopped")
        client.delete(f"/api/v1/jobs/{job_id}")
    thread.join()
    assert (answers[0].status_code, answers[0].json()["code"]) == (409, "JOB_CANCELLED")
    assert (answers[1].status_code, answers[1].json()["images"]) == (200, [])


def wait_for_newest(client: httpx.Client, prompt: str) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        newest = client.get("/api/v1/jobs", params={"limit": 1}).json()["jobs"][0]
        if newest["prompt"] == prompt and newest["progress"] > 0 and newest["status"] == "generating":
            return str(newest["id"])
        time.sleep(0.02)
    raise AssertionError("the job did not start")
