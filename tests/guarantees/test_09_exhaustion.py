"""Exhaustion: a full disk, no descriptors, a read-only folder, a clock set back.

Each is a typed error, nothing is lost, and the service recovers without a restart.
"""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import IO, Any, NoReturn

import httpx
import psutil
import pytest

from mflux_api.jobs.job import Status
from tests.support import scripted_server
from tests.support.api_jobs import SMALL, submit, wait_for, wait_for_end
from tests.support.database_check import integrity
from tests.support.harness import ended, gateway, request, scripted_service
from tests.support.scripted_engine import Hold, Script
from tests.support.server import Server, api_client, engine_of, serving

pytestmark = pytest.mark.slow

CONFIG = '[models]\ndefault = "demo"\n'
DEADLINE_SECONDS = 30.0

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
DISK = ["sh", "-c", 'mount -t tmpfs -o size=2m tmpfs "$PWD/output" && exec "$@"', "sh"]


def can_mount() -> bool:
    if not sys.platform.startswith("linux") or shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return False
    done = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    return done.returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="needs a mount namespace of its own")


@contextmanager
def small_disk(folder: Path, config: str = CONFIG, module: str = scripted_server.MODULE) -> Iterator[Server]:
    """A server whose output folder is a disk of 2 MB."""
    (folder / "output").mkdir()
    with serving(folder, config, module=module, wrapper=[*NAMESPACE, *DISK]) as server:
        yield server


def output_of(server: Server) -> Path:
    """The output folder as the server sees it."""
    return Path(f"/proc/{server.process.pid}/cwd/output")


def fill(folder: Path) -> None:
    """Leave no byte free."""
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (4096, 1):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                write_forever(file, b"x" * size)


def write_forever(file: IO[bytes], data: bytes) -> NoReturn:
    while True:
        file.write(data)


def every_job_ends(client: httpx.Client) -> list[dict[str, Any]]:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        jobs: list[dict[str, Any]] = client.get("/api/v1/jobs", params={"limit": 500}).json()["jobs"]
        if all(job["completed_at"] for job in jobs):
            return jobs
        assert time.monotonic() < deadline, [job for job in jobs if not job["completed_at"]]
        time.sleep(0.05)


@needs_mount
def test_full_disk_is_a_typed_error_until_there_is_room_again(tmp_path: Path) -> None:
    with small_disk(tmp_path) as server, api_client(server.url) as client:
        before = submit(client)
        wait_for_end(client, before)
        fill(output_of(server))
        kept: list[str] = []
        # The log of the database still has room for some.
        for _ in range(200):
            answer = client.post("/api/v1/generate", json=SMALL | {"prompt": "x" * 5000})
            if answer.status_code != 200:
                break
            kept.append(answer.json()["job_id"])
        assert (answer.status_code, answer.json()["code"]) == (503, "DISK_FULL")
        assert int(answer.headers["retry-after"]) > 0
        assert client.get("/api/v1/health").json()["status"] == "healthy"
        assert client.get(f"/api/v1/jobs/{before}").json()["status"] == "completed"
        (output_of(server) / "filler").unlink()
        ends = {job["id"]: (job["status"], job["code"]) for job in every_job_ends(client)}
        assert set(ends) == {before, *kept}, "an acknowledged job is gone, or a refused one is there"
        assert set(ends.values()) <= {("completed", None), ("failed", "DISK_FULL")}
        assert wait_for_end(client, submit(client))["status"] == "completed"
        assert client.post("/sdapi/v1/txt2img", json=SMALL).status_code == 200
        shutil.copytree(output_of(server), tmp_path / "copy" / "output")
        assert not list((tmp_path / "copy").rglob("*.tmp"))
        assert server.stop() == 0
    assert integrity(tmp_path / "copy") == "ok"


@needs_mount
def test_drain_on_a_full_disk_ends_in_time(tmp_path: Path) -> None:
    config = CONFIG + "[server]\ndrain_timeout_seconds = 1\n"
    with small_disk(tmp_path, config) as server, api_client(server.url) as client:
        fill(output_of(server))
        while client.post("/api/v1/generate", json=SMALL | {"prompt": "x" * 5000}).status_code == 200:
            pass
        assert server.stop(seconds=10) == 0


@contextmanager
def disk_that_outlives_a_server(folder: Path) -> Iterator[list[str]]:
    """A disk of 2 MB as the output folder, and what runs a server on it."""
    (folder / "output").mkdir()
    holder = subprocess.Popen([*NAMESPACE, *DISK, "sh", "-c", "echo mounted; exec sleep 600"], cwd=folder, stdout=-1)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"mounted\n"
        enter = ["nsenter", "--target", str(holder.pid), "--user", "--mount", "--preserve-credentials"]
        yield [*enter, "sh", "-c", f'cd "{folder}" && exec "$@"', "sh"]
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()


@needs_mount
def test_start_on_a_full_disk_with_a_job_left_generating_listens_and_hears_signals(tmp_path: Path) -> None:
    # Ends that cannot be written are waited for that long.
    config = CONFIG + "[server]\ndrain_timeout_seconds = 1\n"
    slow = scripted_server.environ(step_seconds=0.5)
    with disk_that_outlives_a_server(tmp_path) as wrapper:
        with serving(tmp_path, config, slow, module=scripted_server.MODULE, wrapper=wrapper) as server:
            with api_client(server.url) as client:
                left = submit(client, steps=100)
                wait_for(client, left, lambda job: job["status"] == "generating")
                # More in the log than there is room for in the file: it cannot be used anew.
                for _ in range(20):
                    submit(client, prompt="x" * 9000)
                fill(output_of(server))
                while client.post("/api/v1/generate", json=SMALL | {"prompt": "x" * 9000}).status_code == 200:
                    pass
            server.stop(signal.SIGKILL)
        with (
            serving(tmp_path, config, module=scripted_server.MODULE, wrapper=wrapper) as server,
            api_client(server.url) as client,
        ):
            assert client.get("/api/v1/health").json()["status"] == "degraded"
            assert "No space left" in client.get("/api/v1/system").json()["problem"]
            for refused in (client.delete(f"/api/v1/jobs/{left}"), client.post("/sdapi/v1/txt2img", json=SMALL)):
                assert (refused.status_code, refused.json()["code"]) == (503, "DISK_FULL")
            assert server.stop(seconds=10) == 0
        with (
            serving(tmp_path, config, module=scripted_server.MODULE, wrapper=wrapper) as server,
            api_client(server.url) as client,
        ):
            (output_of(server) / "filler").unlink()
            every_job_ends(client)
            assert client.get("/api/v1/health").json()["status"] == "healthy"
            assert server.stop() == 0


@needs_mount
def test_read_only_output_directory_is_named_and_over_when_it_is_writable_again(tmp_path: Path) -> None:
    config = CONFIG + '[jobs]\nstate_dir = "state"\n'
    with small_disk(tmp_path, config) as server, api_client(server.url) as client:
        wait_for_end(client, submit(client))
        remount(server, "ro")
        failed = wait_for_end(client, submit(client))
        assert (failed["status"], failed["code"]) == ("failed", "INTERNAL_ERROR")
        assert "generation.output_dir is writable" in failed["error"]
        assert failed["details"] == {"reason": os.strerror(errno.EROFS)}
        refused = client.post("/sdapi/v1/txt2img", json=SMALL)
        assert (refused.status_code, refused.json()["error"]) == (500, failed["error"])
        assert client.get("/api/v1/health").json()["status"] == "healthy"
        remount(server, "rw")
        assert wait_for_end(client, submit(client))["status"] == "completed"
        assert server.stop() == 0


def remount(server: Server, mode: str) -> None:
    enter = ["nsenter", "--target", str(server.process.pid), "--user", "--mount", "--preserve-credentials"]
    subprocess.run([*enter, "mount", "-o", f"remount,{mode}", str(server.folder / "output")], check=True)


@contextmanager
def descriptors_left(server: Server, count: int) -> Iterator[None]:
    """Let the server open so many descriptors more, and no other."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("needs prlimit")
    pid = server.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    limit = next(limit for limit in range(len(used) + count, soft) if len(set(range(limit)) - used) == count)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptors_left_is_a_typed_error_until_there_are_some_again(tmp_path: Path) -> None:
    environ = scripted_server.environ(step_seconds=0.01)
    with (
        serving(tmp_path, CONFIG, environ, module=scripted_server.MODULE) as server,
        api_client(server.url) as client,
    ):
        wait_for_end(client, submit(client))
        with ExitStack() as stack:
            with descriptors_left(server, 3):
                # Three are let in; another waits in the backlog until one that asks nothing has given way.
                clients = [
                    stack.enter_context(httpx.Client(base_url=server.url, timeout=DEADLINE_SECONDS)) for _ in range(3)
                ]
                for each in clients:
                    assert each.get("/api/v1/health").status_code == 200
                failed = finished_by(clients[0], submit(clients[0]))
                assert (failed["status"], failed["code"]) == ("failed", "INTERNAL_ERROR")
                assert failed["details"] == {"reason": os.strerror(errno.EMFILE)}
                assert httpx.get(f"{server.url}/api/v1/health", timeout=DEADLINE_SECONDS).status_code == 200
            assert httpx.get(f"{server.url}/api/v1/health", timeout=DEADLINE_SECONDS).json()["status"] == "healthy"
            assert finished_by(clients[0], submit(clients[0]))["status"] == "completed"
        assert not list((tmp_path / "output").rglob("*.tmp"))
        assert not any("Traceback" in line for line in server.lines)
        # A minute lies between two such lines.
        assert sum("accept returned EMFILE" in line for line in server.lines) == 1
        assert server.stop() == 0


def finished_by(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """Poll on one connection: a new one would not be let in."""
    return wait_for(client, job_id, lambda job: job["completed_at"])


def test_engine_that_finds_no_descriptors_comes_back_when_there_are_some(tmp_path: Path) -> None:
    with serving(tmp_path, CONFIG) as server, api_client(server.url) as client:
        job_id = submit(client, steps=30, width=128, height=128)
        wait_for(client, job_id, lambda job: job["progress"] > 0)
        with descriptors_left(server, 1):
            engine_of(server).kill()
            until(lambda: client.get("/api/v1/health").json()["status"] == "degraded")
            assert any("it cannot be started (Too many open files)" in line for line in server.lines)
        until(lambda: client.get("/api/v1/health").json()["status"] == "healthy")
        assert wait_for_end(client, job_id)["status"] == "completed"
        assert psutil.Process(server.process.pid).status() != psutil.STATUS_ZOMBIE


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Clock(datetime):
    """A wall clock that can be set."""

    offset = timedelta()

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "Clock":
        moment = datetime.now(tz) + cls.offset
        return cls.fromisoformat(moment.isoformat())


async def test_clock_set_back_by_a_day_changes_no_order_and_counts_nothing_negative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("actors.scheduler.admission", "actors.job_store"):
        monkeypatch.setattr(f"mflux_api.{module}.datetime", Clock)
    monkeypatch.setattr(Clock, "offset", timedelta())
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"step 0/1": hold}), keep=2) as service:
        first = await service.submit(request(1))
        await hold.reached.wait()
        second = await service.submit(request(2))
        Clock.offset = timedelta(days=-1)
        third = await service.submit(request(3))
        live = await gateway(service).snapshots()
        assert [live[job.id].position for job in (first, second, third)] == [None, 1, 2]
        hold.release.set()
        jobs = [await ended(service, job.id) for job in (first, second, third)]
        assert [job.status for job in jobs] == [Status.COMPLETED] * 3
        assert jobs[2].created_at < jobs[0].created_at - timedelta(hours=23)
        totals = await gateway(service).totals()
        assert (totals.generations, totals.seconds >= 0) == (3, True)
        # What finished first goes first, whatever the clock says; the newest stays on top of the list.
        views, _ = await gateway(service).jobs()
        assert [view.job.id for view in views] == [third.id, second.id]
        assert datetime.now(UTC) - jobs[2].created_at > timedelta(hours=23)
