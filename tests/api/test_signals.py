"""What signals do to a server, however many come and whenever."""

import base64
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mflux_api.jobs.job import Job, Status
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support import scripted_server
from tests.support.api_jobs import SMALL, submit, wait_for, wait_for_end
from tests.support.server import DEMO_CONFIG, api_client, serving

pytestmark = pytest.mark.slow

LONG = {"steps": 200, "width": 512, "height": 512}


@pytest.fixture(autouse=True)
def _terminal() -> Iterator[None]:
    """Give servers a terminal that can be closed, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("gap", [0.0, 0.001, 0.02, 0.1])
def test_signal_twice_on_an_idle_server_is_exit_status_0(tmp_path: Path, kind: signal.Signals, gap: float) -> None:
    with serving(tmp_path, DEMO_CONFIG) as server:
        server.process.send_signal(kind)
        time.sleep(gap)
        server.process.send_signal(kind)
        assert server.process.wait(20) == 0


def test_closed_terminal_does_not_end_a_server_under_nohup(tmp_path: Path) -> None:
    with serving(tmp_path, DEMO_CONFIG, wrapper=["nohup"]) as server, api_client(server.url) as client:
        server.process.send_signal(signal.SIGHUP)
        assert wait_for_end(client, submit(client))["status"] == "completed"
        assert client.get("/api/v1/health").json()["status"] == "healthy"
        assert server.stop() == 0


def test_closed_terminal_lets_the_running_job_end(tmp_path: Path) -> None:
    environ = scripted_server.environ(step_seconds=0.02)
    with (
        serving(tmp_path, DEMO_CONFIG, environ, module=scripted_server.MODULE) as server,
        api_client(server.url) as client,
    ):
        job_id = submit(client, steps=40)
        wait_for(client, job_id, lambda job: job["progress"] > 0)
        assert server.stop(signal.SIGHUP) == 0
    with SqliteRepository(tmp_path / "output" / DATABASE_NAME) as repository:
        kept = repository.get(job_id)
        assert isinstance(kept, Job)
        assert kept.status is Status.COMPLETED


def test_many_signals_until_the_end_give_exit_status_0(tmp_path: Path) -> None:
    with serving(tmp_path, DEMO_CONFIG) as server:
        deadline = time.monotonic() + 20
        while server.process.poll() is None and time.monotonic() < deadline:
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.002)
        assert server.process.wait(1) == 0


def test_five_immediate_stops_cost_a_job_no_attempt(tmp_path: Path) -> None:
    impatient = DEMO_CONFIG + "[server]\ndrain_timeout_seconds = 0\n"
    scripted: Any = {"environ": scripted_server.environ(step_seconds=0.05), "module": scripted_server.MODULE}
    job_id = ""
    for _ in range(5):
        with serving(tmp_path, impatient, **scripted) as server, api_client(server.url) as client:
            job_id = job_id or submit(client, steps=40)
            wait_for(client, job_id, lambda job: job["progress"] > 0)
            assert server.stop() == 0
        with SqliteRepository(tmp_path / "output" / DATABASE_NAME) as repository:
            kept = repository.get(job_id)
            assert (kept.status, kept.engine_deaths, kept.service_deaths) == ("queued", 0, 0)  # type: ignore[union-attr]
    with serving(tmp_path, DEMO_CONFIG, **scripted) as server, api_client(server.url) as client:
        assert wait_for_end(client, job_id)["status"] == "completed"
    assert len(list((tmp_path / "output").rglob("*.png"))) == 1


def test_synchronous_callers_get_503_when_the_server_is_told_to_stop(tmp_path: Path) -> None:
    answers: dict[str, httpx.Response] = {}
    with (
        serving(tmp_path, DEMO_CONFIG + "[server]\ndrain_timeout_seconds = 1\n") as server,
        api_client(server.url) as client,
    ):

        def generate(name: str, **fields: int) -> None:
            answers[name] = client.post("/sdapi/v1/txt2img", json={**SMALL, **fields})

        callers = [threading.Thread(target=generate, args=("running",), kwargs=LONG)]
        callers[0].start()
        deadline = time.monotonic() + 20
        while client.get("/api/v1/queue").json()["active"] is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        callers.append(threading.Thread(target=generate, args=("queued",)))
        callers[1].start()
        while len(client.get("/api/v1/queue").json()["queued"]) < 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert server.stop() == 0
        for caller in callers:
            caller.join(10)
    for name in ("running", "queued"):
        assert (answers[name].status_code, answers[name].json()["code"]) == (503, "SHUTTING_DOWN"), name
        assert answers[name].headers["retry-after"]


def test_half_written_images_of_a_killed_server_are_removed_at_the_next_start(tmp_path: Path) -> None:
    day = tmp_path / "output" / "2026-01-02"
    day.mkdir(parents=True)
    ours = day / ".0123456789ab-0.png.tmp"
    others = [day / ".notes.tmp", day / "0123456789ab-0.png", day / ".0123456789AB-0.png.tmp"]
    others += [tmp_path / "output" / ours.name, tmp_path / ours.name]
    for file in (ours, *others):
        file.write_bytes(b"x")
    with serving(tmp_path, DEMO_CONFIG) as server:
        assert not ours.exists()
        assert all(file.exists() for file in others)
        assert any("removed 1 half-written image" in line for line in server.lines)


def test_removed_output_directory_refuses_new_jobs_at_once_and_goes_on_answering(tmp_path: Path) -> None:
    with serving(tmp_path, DEMO_CONFIG) as server, api_client(server.url) as client:
        wait_for_end(client, submit(client))
        for file in sorted((tmp_path / "output").rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        (tmp_path / "output").rmdir()
        for path in ("/api/v1/generate", "/sdapi/v1/txt2img"):
            answer = client.post(path, json=SMALL, timeout=5)
            assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL_ERROR")
            assert "The job database was removed from the state directory; restart" in answer.json()["error"]
        assert client.get("/api/v1/health").json()["status"] == "healthy"
        assert server.stop() == 0


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_host_is_listened_on_without_a_warning(tmp_path: Path, host: str) -> None:
    with serving(tmp_path, DEMO_CONFIG, host=host) as server:
        assert server.url.startswith("http://[::1]:")
        assert httpx.get(f"{server.url}/api/v1/health").status_code == 200
        assert not any("API key" in line for line in server.lines)


def test_trailing_comma_in_the_keys_variable_does_not_switch_authentication_off(tmp_path: Path) -> None:
    with serving(tmp_path, DEMO_CONFIG, {"MFLUX_API_KEYS": "secret,"}) as server, api_client(server.url) as client:
        empty = base64.b64encode(b":").decode()
        for headers in ({}, {"X-API-Key": ""}, {"Authorization": "Bearer"}, {"Authorization": f"Basic {empty}"}):
            assert client.get("/api/v1/jobs", headers=headers).status_code == 401
        assert client.get("/api/v1/jobs", headers={"X-API-Key": "secret"}).status_code == 200


def test_models_are_listed_beside_custom_paths_that_cannot_be_read(tmp_path: Path) -> None:
    custom = "".join(
        f'[[models.custom]]\nname = "{name}"\nbase = "demo"\npath = "{path}"\n'
        for name, path in (("long", "x" * 5000), ("nul", "a\\u0000b"), ("loop", "loop"))
    )
    (tmp_path / "loop").symlink_to("loop")
    with serving(tmp_path, DEMO_CONFIG + custom) as server, api_client(server.url) as client:
        models = {model["title"]: model for model in client.get("/api/v1/models").json()["models"]}
        for name in ("long", "nul", "loop"):
            assert models[name]["hash"] is None
            assert client.get(f"/api/v1/models/{name}/status").json()["loaded"] is False
