"""Idempotency: one key and one body are one job, at once, later, and after the server was killed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from mflux_api.jobs.idempotency import HEADER
from mflux_api.storage.checkpoints import EMBEDDED
from tests.support import scripted_server
from tests.support.api_jobs import SMALL, wait_for_end
from tests.support.lora_files import write_lora
from tests.support.server import Server, api_client, serving

pytestmark = pytest.mark.slow

AT_ONCE = 50


@contextmanager
def scripted(folder: Path, config: str = "", **script: float) -> Iterator[Server]:
    environ = scripted_server.environ(**script)
    text = f'[models]\ndefault = "demo"\n{config}'
    with serving(folder, text, environ, module=scripted_server.MODULE) as server:
        yield server


def post(client: httpx.Client, key: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return client.post("/api/v1/generate", json=SMALL | fields, headers={HEADER: key} | (headers or {}))


def all_at_once(url: str, key: str, times: int) -> list[httpx.Response]:
    """Send one request from as many threads, each on a connection of its own that is open already."""
    answers: list[httpx.Response] = []
    ready = threading.Barrier(times)

    def send() -> None:
        with api_client(url) as client:
            client.get("/api/v1/health")
            ready.wait()
            answers.append(post(client, key))

    threads = [threading.Thread(target=send) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_same_key_many_times_at_once_is_one_job_whatever_the_queue_holds(tmp_path: Path) -> None:
    # Room for one job: the others with the key must not be counted, nor refused.
    with (
        scripted(tmp_path, "[scheduler]\nmax_queue = 1\n", step_seconds=0.5) as server,
        api_client(server.url) as client,
    ):
        for round_number in range(3):
            answers = all_at_once(server.url, f"key {round_number}", AT_ONCE)
            assert {answer.status_code for answer in answers} == {200}
            (job_id,) = {answer.json()["job_id"] for answer in answers}
            assert len(client.get("/api/v1/jobs").json()["jobs"]) == round_number + 1
            wait_for_end(client, job_id)
        assert client.get("/api/v1/stats").json()["total_generations"] == 3


def test_another_body_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with scripted(tmp_path) as server, api_client(server.url) as client:
        first = post(client, "a").json()["job_id"]
        for field in ({"seed": 1}, {"prompt": "another"}, {"steps": 2}):
            refused = post(client, "a", **field)
            assert (refused.status_code, refused.json()["code"]) == (409, "IDEMPOTENCY_CONFLICT")
        # Order and blanks make no other body.
        reordered = ", ".join(f'"{name}" : {value!r}'.replace("'", '"') for name, value in reversed(SMALL.items()))
        same = client.post("/api/v1/generate", content="{ " + reordered + " }", headers={HEADER: "a"})
        assert same.json()["job_id"] == first
        assert post(client, "b", seed=1).json()["job_id"] != first
        assert len(client.get("/api/v1/jobs").json()["jobs"]) == 2


def test_refused_submission_leaves_its_key_free(tmp_path: Path) -> None:
    with (
        scripted(tmp_path, "[scheduler]\nmax_queue = 1\n", step_seconds=0.3) as server,
        api_client(server.url) as client,
    ):
        assert post(client, "bad", steps=0).status_code == 400
        running = post(client, "running", steps=3).json()["job_id"]
        while client.get("/api/v1/health").json()["active_jobs"] == 0:
            pass
        waiting = post(client, "waiting")
        assert waiting.status_code == 200
        full = post(client, "bad")
        assert (full.status_code, full.json()["code"]) == (503, "QUEUE_FULL")
        # What was accepted is answered even while the queue is full.
        again = post(client, "waiting").json()
        assert again == {"job_id": waiting.json()["job_id"], "status": "queued", "position": 1, "warnings": []}
        wait_for_end(client, again["job_id"])
        ended = {"job_id": running, "status": "completed", "position": 0, "warnings": []}
        assert post(client, "running", steps=3).json() == ended
        assert post(client, "bad").status_code == 200


def test_key_survives_kill_9(tmp_path: Path) -> None:
    with scripted(tmp_path, step_seconds=0.05) as server, api_client(server.url) as client:
        ids = {key: post(client, key).json()["job_id"] for key in ("a", "b", "c")}
        server.stop(signal.SIGKILL)
    with scripted(tmp_path) as server, api_client(server.url) as client:
        for key, job_id in ids.items():
            assert post(client, key).json()["job_id"] == job_id
            assert post(client, key, seed=5).status_code == 409
            assert wait_for_end(client, job_id)["status"] == "completed"
        assert len(client.get("/api/v1/jobs").json()["jobs"]) == 3


def test_job_that_retention_removed_is_not_generated_again_by_a_late_retry(tmp_path: Path) -> None:
    with scripted(tmp_path, "[jobs]\nkeep_completed = 0\n") as server, api_client(server.url) as client:
        job_id = post(client, "a").json()["job_id"]
        while client.get(f"/api/v1/jobs/{job_id}").status_code == 200:
            pass
        late = post(client, "a")
        assert (late.status_code, late.json()["code"]) == (410, "JOB_GONE")
        assert client.get("/api/v1/jobs").json()["jobs"] == []


def test_key_is_answered_with_its_job_when_its_lora_and_its_model_are_gone(tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "loras" / "style.safetensors", 1)
    fields: dict[str, dict[str, Any]] = {"a": {"lora_files": ["style"]}, "b": {"model": "mine"}}
    custom = f'[[models.custom]]\nname = "mine"\nbase = "flux2-klein-4b"\npath = "{EMBEDDED}"\n'
    with scripted(tmp_path, custom) as server, api_client(server.url) as client:
        ids = {key: post(client, key, **field).json()["job_id"] for key, field in fields.items()}
        for job_id in ids.values():
            wait_for_end(client, job_id)
    lora.unlink()
    with scripted(tmp_path) as server, api_client(server.url) as client:
        for key, field in fields.items():
            again = post(client, key, **field)
            assert (again.status_code, again.json()["job_id"]) == (200, ids[key])
            assert post(client, f"new {key}", **field).status_code == 400
        # A body that is invalid by now is another body.
        assert post(client, "a", steps=0).json()["code"] == "IDEMPOTENCY_CONFLICT"


def test_two_callers_may_use_the_same_key(tmp_path: Path) -> None:
    with (
        scripted(tmp_path, '[security]\napi_keys = ["first", "second"]\n') as server,
        api_client(server.url) as client,
    ):
        first = post(client, "a", {"X-API-Key": "first"}).json()["job_id"]
        assert post(client, "a", {"Authorization": "Bearer first"}).json()["job_id"] == first
        assert post(client, "a", {"X-API-Key": "second"}, seed=4).json()["job_id"] != first


@pytest.mark.parametrize("key", ["", "x" * 256, "gr\u00fc\u00df", "tab\there"])
def test_invalid_key_is_refused(shared: Server, key: str) -> None:
    with api_client(shared.url) as client:
        refused = client.post("/api/v1/generate", json=SMALL, headers={HEADER.encode(): key.encode("latin-1")})
        assert (refused.status_code, refused.json()["details"]["field"]) == (400, HEADER)
        assert client.get("/api/v1/jobs").json()["jobs"] == []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with scripted(tmp_path_factory.mktemp("idempotency")) as server:
        yield server
