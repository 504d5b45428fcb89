"""The whole way over HTTP: a server with a real engine, its downloads, and a hub on loopback."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from mflux_api.catalog.files import UPSCALER_FILES
from tests.support.hub_downloads import REPO, needed
from tests.support.hub_server import Hub, wait_until
from tests.support.sample_images import scene, to_base64, to_image
from tests.support.server import Server, api_client, serving

pytestmark = pytest.mark.slow

CONFIG = f"""
[models]
default = "demo"

[[models.custom]]
name = "flux2-klein-4b"
base = "flux2-klein-4b"
repo = "{REPO}"

[[models.custom]]
name = "mine"
base = "demo"
path = "mine"
"""
SMALL = {"prompt": "a red house", "model": "flux2-klein-4b", "width": 64, "height": 64, "steps": 2, "seed": 5}


@contextmanager
def served(hub: Hub, folder: Path) -> Iterator[tuple[Server, httpx.Client]]:
    """A server whose ``flux2-klein-4b`` is the hub's checkpoint."""
    with serving(folder, CONFIG, hub.environ()) as server, api_client(server.url) as client:
        yield server, client


def status(client: httpx.Client, alias: str = "flux2-klein-4b") -> dict[str, object]:
    answer: dict[str, object] = client.get(f"/api/v1/models/{alias}/status").raise_for_status().json()
    return answer


def test_from_nothing_to_an_image_and_back_to_nothing(hub: Hub, tmp_path: Path) -> None:
    total = sum(map(len, needed(hub).values()))
    with served(hub, tmp_path) as (_, client):
        assert status(client)["status"] == "not_downloaded"
        for method, path in (("POST", "/download"), ("POST", "/load"), ("POST", "/unload"), ("DELETE", "")):
            unknown = client.request(method, f"/api/v1/models/nonsense{path}")
            assert (unknown.status_code, unknown.json()["code"]) == (404, "MODEL_NOT_FOUND")
        hub.faults.bytes_per_second = 2e6
        job_id = client.post("/api/v1/generate", json=SMALL).raise_for_status().json()["job_id"]
        wait_until(lambda: status(client)["bytes_done"])
        half = status(client)
        assert half["status"] == "downloading"
        assert half["downloaded"] is False
        assert half["bytes_total"] == total
        assert isinstance(half["percent"], float)
        assert 0 < half["percent"] <= 100
        job = client.get(f"/api/v1/jobs/{job_id}").json()
        assert (job["status"], job["stage"], job["position"]) == ("queued", "downloading", 1)
        stages = []
        with client.stream("GET", f"/api/v1/jobs/{job_id}/stream") as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    data = json.loads(line.removeprefix("data:"))
                    stages.append((data.get("stage"), data.get("bytes_done"), data.get("bytes_total")))
        assert any(stage == "downloading" and done and of == total for stage, done, of in stages)
        assert client.get(f"/api/v1/jobs/{job_id}").json()["status"] == "completed"
        loaded = status(client)
        assert (loaded["status"], loaded["downloaded"], loaded["percent"]) == ("loaded", True, None)
        assert str(loaded["path"]).endswith(str(loaded["commit"]))
        # Nothing of the address of the hub is needed any more.
        hub.faults.busy = True
        image = client.post("/sdapi/v1/txt2img", json=SMALL).raise_for_status().json()
        assert image["parameters"]["model"] == "flux2-klein-4b"

        unloaded = client.post("/api/v1/models/flux2-klein-4b/unload").raise_for_status().json()
        assert (unloaded["status"], unloaded["loaded"]) == ("ready", False)
        assert client.post("/api/v1/models/klein-4b/load").raise_for_status().json()["status"] == "loaded"
        deleted = client.delete("/api/v1/models/flux2-klein-4b").raise_for_status().json()
        assert (deleted["status"], deleted["path"]) == ("not_downloaded", None)
        again = client.delete("/api/v1/models/flux2-klein-4b")
        assert (again.status_code, again.json()["code"]) == (400, "MODEL_NOT_DOWNLOADED")
        for alias in ("demo", "mine"):
            kept = client.delete(f"/api/v1/models/{alias}")
            assert (kept.status_code, kept.json()["code"]) == (400, "MODEL_NOT_DELETABLE")
        missing = client.post("/api/v1/models/flux2-klein-4b/load")
        assert (missing.status_code, missing.json()["code"]) == (400, "MODEL_NOT_DOWNLOADED")
        refused = client.post("/sdapi/v1/txt2img", json=SMALL)
        assert (refused.status_code, refused.json()["code"]) == (503, "DOWNLOAD_FAILED")
        assert "503" in refused.json()["error"]
        failed = status(client)
        assert (failed["status"], failed["code"]) == ("error", "DOWNLOAD_FAILED")
        hub.faults.busy = False
        assert client.post("/api/v1/models/flux2-klein-4b/download").json()["status"] == "downloading"
        wait_until(lambda: status(client)["status"] == "ready")


def test_a_killed_server_goes_on_with_the_download_when_it_is_back(hub: Hub, tmp_path: Path) -> None:
    hub.faults.bytes_per_second = 2e6
    with served(hub, tmp_path) as (server, client):
        job_id = client.post("/api/v1/generate", json=SMALL).raise_for_status().json()["job_id"]
        wait_until(lambda: hub.total_sent() > 2e6)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    hub.faults.bytes_per_second = None
    with served(hub, tmp_path) as (_, client):
        wait_until(lambda: client.get(f"/api/v1/jobs/{job_id}").json()["status"] == "completed")
    assert hub.ranges
    assert sum(int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in hub.ranges) > 1e5


def test_upscaler_is_downloaded_on_its_first_use_with_nothing_else_of_its_repository(hub: Hub, tmp_path: Path) -> None:
    from tests.support.upscaler_checkpoint import write_upscaler

    folder = write_upscaler(tmp_path / "upscaler")
    (folder / "seedvr2_ema_7b_fp16.safetensors").write_bytes(bytes(100_000))
    hub.add("owner/upscaler", folder)
    config = '[[models.custom]]\nname = "seedvr2"\nbase = "seedvr2"\nrepo = "owner/upscaler"\n'
    with serving(tmp_path, config, hub.environ()) as server, api_client(server.url) as client:
        body = {"image": to_base64(scene((48, 32))), "upscaler_1": "seedvr2"}
        answer = client.post("/sdapi/v1/extra-single-image", json=body).raise_for_status().json()
        assert to_image(answer["image"]).size == (96, 64)
        path = Path(str(status(client, "seedvr2")["path"]))
    assert {file.name for file in path.iterdir()} == set(UPSCALER_FILES.values())
