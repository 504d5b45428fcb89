"""Accepted means kept: kill the server at random moments under load; what it acknowledged ends exactly once."""

import contextlib
import random
import sqlite3
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from mflux_api.jobs.job import Job, Status
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support import scripted_server
from tests.support.api_jobs import SMALL
from tests.support.database_check import integrity
from tests.support.report import report
from tests.support.server import Server, serving

pytestmark = pytest.mark.slow

CONFIG = '[models]\ndefault = "demo"\n[jobs]\nkeep_completed = 1000000\n'
SUBMITTERS = 3


class Load:
    """Clients that submit, cancel and look until the server is gone, and write down what they were told."""

    def __init__(self, url: str, rng: random.Random) -> None:
        self.kept: list[str] = []
        self.ended: dict[str, str] = {}
        self._url = url
        self._rng = rng
        self._threads = [threading.Thread(target=self._until_it_is_gone, args=(each,)) for each in self._clients()]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()

    def _clients(self) -> list[str]:
        return ["_submit"] * SUBMITTERS + ["_cancel", "_look", "_generate"]

    def _until_it_is_gone(self, name: str) -> None:
        turn = getattr(self, name)
        with httpx.Client(base_url=self._url, timeout=20) as client, contextlib.suppress(httpx.TransportError):
            while True:
                turn(client)

    def _submit(self, client: httpx.Client) -> None:
        fields = {"steps": self._rng.randint(1, 6), "num_images": self._rng.randint(1, 3)}
        answer = client.post("/api/v1/generate", json=SMALL | fields)
        if answer.status_code == 200:
            self.kept.append(answer.json()["job_id"])
        else:
            assert answer.json()["code"] in ("QUEUE_FULL", "TOO_MANY_JOBS")
            time.sleep(0.02)

    def _cancel(self, client: httpx.Client) -> None:
        time.sleep(0.05)
        client.delete(f"/api/v1/jobs/{self._rng.choice(self.kept or ['none'])}")

    def _look(self, client: httpx.Client) -> None:
        time.sleep(0.02)
        for job in client.get("/api/v1/jobs", params={"limit": 100}).json()["jobs"]:
            if job["completed_at"]:
                self.ended[job["id"]] = job["status"]

    def _generate(self, client: httpx.Client) -> None:
        time.sleep(0.05)
        client.post("/sdapi/v1/txt2img", json=SMALL | {"steps": 2, "num_images": 4})


def running(folder: Path) -> "contextlib.AbstractContextManager[Server]":
    return serving(folder, CONFIG, scripted_server.environ(step_seconds=0.002), module=scripted_server.MODULE)


def test_every_acknowledged_job_ends_once_however_often_the_server_is_killed(tmp_path: Path, full: bool) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    report(f"seed {seed}")
    kept: list[str] = []
    ended: dict[str, str] = {}
    for _ in range(100 if full else 4):
        with running(tmp_path) as server, Load(server.url, rng) as load:
            time.sleep(rng.uniform(0.0, 1.5 if full else 0.8))
            server.process.kill()
            server.process.wait()
        kept += load.kept
        for job_id, status in load.ended.items():
            assert ended.setdefault(job_id, status) == status, "a job ended twice"
        assert integrity(tmp_path) == "ok"
    with running(tmp_path) as server, httpx.Client(base_url=server.url) as client:
        deadline = time.monotonic() + 60
        while (load_now := client.get("/api/v1/health").json())["active_jobs"] + load_now["queue_length"]:
            assert time.monotonic() < deadline, load_now
            time.sleep(0.05)
        assert server.stop() == 0
    jobs = stored(tmp_path, kept)
    report(f"{len(kept)} jobs acknowledged, {len(ended)} seen to end")
    assert kept
    assert {job.status for job in jobs.values()} <= {Status.COMPLETED, Status.CANCELLED, Status.FAILED}
    assert {job_id: jobs[job_id].status.value for job_id in ended if job_id in jobs} == {
        job_id: status for job_id, status in ended.items() if job_id in jobs
    }
    check_images(tmp_path, jobs)
    assert not psutil.Process().children(recursive=True)


def stored(folder: Path, kept: list[str]) -> dict[str, Job]:
    """Every acknowledged job; counts and rows agree."""
    with SqliteRepository(folder / "output" / DATABASE_NAME) as repository:
        assert repository.unfinished() == ()
        found = {job_id: repository.get(job_id) for job_id in kept}
        totals = repository.totals()
    with contextlib.closing(sqlite3.connect(folder / "output" / DATABASE_NAME)) as connection:
        completed = connection.execute("SELECT count(*) FROM jobs WHERE status = 'completed'").fetchone()[0]
    assert totals.generations == completed
    assert all(isinstance(job, Job) for job in found.values()), "an acknowledged job is not in the store"
    return {job_id: job for job_id, job in found.items() if isinstance(job, Job)}


def check_images(folder: Path, jobs: dict[str, Job]) -> None:
    """What a job shows is on disk; nothing of an unfinished one is left half written."""
    for job in jobs.values():
        if job.status is Status.COMPLETED:
            assert len(job.images) == job.request.num_images
        if job.status is Status.FAILED:
            assert job.failure is not None
            assert job.failure.code == "SERVER_CRASHED"
        assert all(Path(image.path).is_file() for image in job.images)
    # Also those of synchronous calls, whose callers were cut off.
    with SqliteRepository(folder / "output" / DATABASE_NAME) as repository:
        every = repository.page(limit=1_000_000, cursor=None, status=None).jobs
        assert repository.abandoned() == ()
    shown = {Path(image.path).name for job in every for image in job.images}
    on_disk = {file.name for file in (folder / "output").rglob("*.png*")}
    assert on_disk - shown == set(), "images that no job shows"
    assert not list((folder / "output").rglob("*.tmp"))
