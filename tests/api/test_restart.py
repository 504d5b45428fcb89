"""The end of a server and its next start: what stays, and what is removed."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support import scripted_server
from tests.support.api_jobs import SMALL, submit, wait_for_end
from tests.support.server import DEMO_CONFIG, api_client, clean_environment, engine_of, serving

pytestmark = pytest.mark.slow


def test_restart_shows_the_old_jobs_with_their_images(tmp_path: Path) -> None:
    with serving(tmp_path, DEMO_CONFIG) as first, api_client(first.url) as client:
        before = wait_for_end(client, submit(client, seed=4, prompt="Grüße, 世界"))
        first.stop()
    with serving(tmp_path, DEMO_CONFIG) as second, api_client(second.url) as client:
        assert client.get(f"/api/v1/jobs/{before['id']}").json() == before


def test_second_server_on_one_state_directory_exits_with_state_in_use(tmp_path: Path) -> None:
    with serving(tmp_path, DEMO_CONFIG) as first:
        second = subprocess.run(
            [sys.executable, "-m", "mflux_api", "serve", "--port", "0"],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert second.returncode == 2
        assert "STATE_IN_USE" in second.stderr
        assert "Traceback" not in second.stderr
        assert httpx.get(f"{first.url}/api/v1/health").json()["status"] == "healthy"


def test_generate_beside_a_running_server_does_not_touch_its_jobs(tmp_path: Path) -> None:
    with serving(tmp_path, DEMO_CONFIG) as server, api_client(server.url) as client:
        wait_for_end(client, submit(client))
        before = client.get("/api/v1/jobs").json()
        command = [sys.executable, "-m", "mflux_api", "generate", "a lake", "--width", "64", "--height", "64"]
        done = subprocess.run(
            command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).is_file()
        assert client.get("/api/v1/jobs").json() == before


@pytest.mark.parametrize("delete_images", [False, True])
def test_old_jobs_leave_a_tombstone_and_their_images_unless_told_otherwise(tmp_path: Path, delete_images: bool) -> None:
    config = f"\n[jobs]\nkeep_completed = 2\ndelete_images = {str(delete_images).lower()}\n"
    with serving(tmp_path, DEMO_CONFIG + config) as server, api_client(server.url) as client:
        ids = [submit(client, seed=seed) for seed in range(4)]
        for job_id in ids:
            client.get(f"/api/v1/jobs/{job_id}/stream").read()
        wait_for_gone(client, ids[1])
        gone_job = client.get(f"/api/v1/jobs/{ids[0]}")
        assert (gone_job.status_code, gone_job.json()["code"]) == (410, "JOB_GONE")
        assert client.delete(f"/api/v1/jobs/{ids[0]}").status_code == 410
        assert client.get(f"/api/v1/jobs/{ids[0]}/stream").status_code == 410
        assert client.get(f"/api/v1/jobs/{ids[3]}").json()["status"] == "completed"
        stay = ids[2:] if delete_images else ids
        assert {path.name for path in (tmp_path / "output").rglob("*.png")} == {f"{job_id}-0.png" for job_id in stay}
        assert client.get("/api/v1/stats").json()["total_generations"] == 4
        fate = "were deleted" if delete_images else "stay"
        for job_id in ids[:2]:
            assert any(
                f"job {job_id}: its record was removed; 1 image(s) of it {fate}" in line for line in server.lines
            )


def test_killed_server_leaves_no_image_of_a_synchronous_call(tmp_path: Path) -> None:
    environ = scripted_server.environ(step_seconds=0.05)
    output = tmp_path / "output"
    with (
        serving(tmp_path, DEMO_CONFIG, environ, module=scripted_server.MODULE) as server,
        api_client(server.url) as client,
    ):
        kept = wait_for_end(client, submit(client))
        with ThreadPoolExecutor(1) as callers:
            call = callers.submit(client.post, "/sdapi/v1/txt2img", json=SMALL | {"num_images": 4, "steps": 20})
            deadline = time.monotonic() + 30
            while len(list(output.rglob("*.png"))) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            server.process.kill()
            with pytest.raises(httpx.TransportError):
                call.result()
    [mine] = [path for path in output.rglob("*.png") if kept["id"] not in path.name]
    # What others put there stays, whatever its name.
    theirs = [mine.with_name("holiday.png"), mine.with_name("0123456789ab-0.png")]
    for path in theirs:
        path.write_bytes(b"theirs")
    with (
        serving(tmp_path, DEMO_CONFIG, environ, module=scripted_server.MODULE) as server,
        api_client(server.url) as client,
    ):
        ours = [path for path in output.rglob("*.png") if path not in theirs]
        assert [path.name for path in ours] == [f"{kept['id']}-0.png"]
        assert [path.read_bytes() for path in theirs] == [b"theirs"] * 2
        assert client.get(f"/api/v1/jobs/{kept['id']}").json() == kept


def wait_for_gone(client: httpx.Client, job_id: str) -> None:
    deadline = time.monotonic() + 10
    while client.get(f"/api/v1/jobs/{job_id}").status_code != 410:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_image_removed_by_hand_is_gone(tmp_path: Path) -> None:
    with serving(tmp_path, DEMO_CONFIG) as server, api_client(server.url) as client:
        job_id = submit(client)
        client.get(f"/api/v1/jobs/{job_id}/stream", params={"images": "url"}).read()
        (image,) = (tmp_path / "output").rglob("*.png")
        image.unlink()
        for path in (f"/api/v1/jobs/{job_id}", f"/api/v1/jobs/{job_id}/images/0"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (410, "IMAGE_GONE")
        assert client.get(f"/api/v1/jobs/{job_id}", params={"images": "url"}).status_code == 200
        assert "event: complete" in client.get(f"/api/v1/jobs/{job_id}/stream").text


def test_image_that_cannot_be_read_is_named_and_back_when_it_can_be(tmp_path: Path) -> None:
    with serving(tmp_path, DEMO_CONFIG) as server, api_client(server.url) as client:
        job_id = submit(client)
        client.get(f"/api/v1/jobs/{job_id}/stream", params={"images": "url"}).read()
        (image,) = (tmp_path / "output").rglob("*.png")
        data = image.read_bytes()
        image.unlink()
        image.mkdir()
        unreadable = httpx.get(f"{server.url}/api/v1/jobs/{job_id}/images/0")
        assert (unreadable.status_code, unreadable.json()["details"]) == (500, {"reason": "Is a directory"})
        assert "generation.output_dir" in unreadable.json()["error"]
        image.rmdir()
        image.write_bytes(data[:40])
        damaged = httpx.get(f"{server.url}/api/v1/jobs/{job_id}/images/0", params={"format": "webp"})
        assert (damaged.status_code, damaged.json()["details"]) == (500, {"reason": "the file is damaged"})
        image.write_bytes(data)
        assert client.get(f"/api/v1/jobs/{job_id}/images/0").content == data
        assert not any("a request failed" in line for line in server.lines)


def test_serving_process_never_imports_the_model_code(tmp_path: Path) -> None:
    with serving(tmp_path, DEMO_CONFIG) as server, api_client(server.url) as client:
        wait_for_end(client, submit(client))
        client.get("/api/v1/system").raise_for_status()
        maps = Path(f"/proc/{server.process.pid}/maps")
        if not maps.exists():
            pytest.skip("needs /proc")
        loaded = maps.read_text()
        engine = Path(f"/proc/{engine_of(server).pid}/maps").read_text()
        assert "/mlx/" in engine
        assert "/mlx/" not in loaded
        assert "/tokenizers/" not in loaded


KEYS = 'allowed_hosts = ["127.0.0.1"]\napi_keys = ["first", "second"]\n'


def test_keys_hosts_and_origins(tmp_path: Path) -> None:
    config = f'{DEMO_CONFIG}[server]\ncors_origins = ["http://good.example"]\n[security]\n{KEYS}'
    with serving(tmp_path, config) as server, api_client(server.url) as client:
        refused = client.get("/api/v1/jobs")
        assert (refused.status_code, refused.json()["code"]) == (401, "UNAUTHORIZED")
        assert refused.headers["www-authenticate"].startswith("Basic")
        assert client.get("/api/v1/health").status_code == 200
        for headers in ({"Authorization": "Bearer second"}, {"X-API-Key": "first"}):
            assert client.get("/api/v1/jobs", headers=headers).status_code == 200
        assert client.get("/api/v1/jobs", auth=("any user", "first")).status_code == 200
        assert client.get("/api/v1/jobs", headers={"X-API-Key": "firs"}).status_code == 401
        assert client.get("/api/v1/jobs", headers={"Host": "evil.example"}).json()["code"] == "HOST_NOT_ALLOWED"
        key = {"X-API-Key": "first"}
        blind = client.post("/api/v1/generate", json=SMALL, headers={**key, "Origin": "http://bad.example"})
        assert (blind.status_code, blind.json()["code"]) == (403, "ORIGIN_NOT_ALLOWED")
        good = client.post("/api/v1/generate", json=SMALL, headers={**key, "Origin": "http://good.example"})
        assert (good.status_code, good.headers["access-control-allow-origin"]) == (200, "http://good.example")
        # A cache that kept what one origin got must not give it to another.
        assert {answer.headers["vary"] for answer in (good, blind, refused)} == {"Origin"}
