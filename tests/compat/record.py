"""Records what a release leaves on disk, for `test_state_of_releases.py`. Run it once for each release, and by hand.

Usage, with the Python of the release's own environment::

    python -m tests.compat.record PYTHON_OF_THE_RELEASE CHECKOUT_OF_THE_RELEASE tests/compat/VERSION

Everything goes through the release's command line and its HTTP API, so that later releases are recorded the same way.
Two folders come out of it: in each, the server was killed with SIGKILL while a job ran, in `synchronous` a synchronous
one, in `asynchronous` one that has a row of its own.
"""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

DEADLINE_SECONDS = 30.0

API_KEY = "the key of the recording"

SMALL: dict[str, Any] = {"model": "demo", "width": 64, "height": 64, "steps": 2, "seed": 7}
LONG: dict[str, Any] = {"model": "demo", "width": 64, "height": 64, "steps": 200, "seed": 9, "num_images": 4}

CONFIG = f"""\
# Every setting of the release, none at its default.
[server]
host = "127.0.0.1"
port = 7862
drain_timeout_seconds = 12.5
cors_origins = ["https://example.org"]

[models]
default = "demo"
auto_download = false
cache_dir = "./checkpoints"

[[models.custom]]
name = "my-klein"
base = "flux2-klein-4b"
path = "./my-klein"

[[models.custom]]
name = "their-klein"
base = "flux2-klein-base-4b"
repo = "owner/their-klein"
revision = "v1"

[generation]
default_steps = 3
max_batch_size = 5
output_dir = "./images"

[scheduler]
max_queue = 50
max_attempts = 3
max_affinity_skips = 2
cancel_grace_seconds = 5.0
batch_window_ms = 1

[engine]
start_timeout_seconds = 50.0
step_timeout_seconds = 200.0
heartbeat_seconds = 15.0
preload = true

[jobs]
keep_completed = 500
ttl_hours = 240.0
state_dir = "./images"

[lora]
dirs = ["./adapters", "./more-adapters"]
max_upload_mb = 64

[memory]
budget_gb = 3.5
idle_unload_seconds = 600.0

[security]
api_keys = ["{API_KEY}"]
allowed_hosts = ["localhost", "127.0.0.1"]
"""

DUMP_SETTINGS = """
import json, sys
from pathlib import Path
import attrs, mflux_api
folder = Path.cwd()
def plain(value):
    if isinstance(value, Path):
        return value.relative_to(folder).as_posix()
    return value
settings = attrs.asdict(mflux_api.load_settings(Path("config.toml"), environ={}),
                        value_serializer=lambda _, __, value: plain(value))
json.dump(settings, sys.stdout, indent=1)
"""


def record(python: str, checkout: Path, target: Path) -> None:
    """Record both folders anew."""
    for name, fill in (("synchronous", _synchronous), ("asynchronous", _asynchronous)):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            recorded = fill(_Release(python, checkout, folder))
            (folder / "recorded.json").write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n", "utf-8")
            _keep(folder, target / name)


class _Release:
    """The release's server on one folder."""

    def __init__(self, python: str, checkout: Path, folder: Path) -> None:
        self._python = python
        self._checkout = checkout
        self._folder = folder
        (folder / "config.toml").write_text(CONFIG, "utf-8")
        (folder / "adapters").mkdir()

    @contextmanager
    def serving(self, config: str = CONFIG, *, end: signal.Signals = signal.SIGTERM) -> Iterator[httpx.Client]:
        """Run a server, and end it by a signal when the block ends."""
        (self._folder / "config.toml").write_text(config, "utf-8")
        process = subprocess.Popen(
            [self._python, "-m", "mflux_api", "serve", "--port", "0"],
            cwd=self._folder,
            env=self._environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        try:
            urls = (re.search(r"listening on (http://\S+)", line) for line in process.stderr)
            url = next(found.group(1) for found in urls if found is not None)
            # The pipe must not fill up.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            with httpx.Client(base_url=url, headers={"X-API-Key": API_KEY}, timeout=DEADLINE_SECONDS) as client:
                yield client
            process.send_signal(end)
            process.wait(DEADLINE_SECONDS)
        finally:
            process.kill()
            process.wait()
            (self._folder / "config.toml").write_text(CONFIG, "utf-8")

    def settings(self) -> Any:
        """What the release reads in the config file."""
        done = subprocess.run(
            [self._python, "-c", DUMP_SETTINGS],
            cwd=self._folder,
            env=self._environment(),
            check=True,
            capture_output=True,
        )
        return json.loads(done.stdout)

    def add_broken_adapter(self) -> None:
        """A whole safetensors file that is not a LoRA: a job that names it fails in the engine."""
        header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        data = struct.pack("<Q", len(header)) + header + struct.pack("<f", 1.0)
        (self._folder / "adapters" / "broken.safetensors").write_bytes(data)

    def _environment(self) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("MFLUX_")}
        return plain | {"PYTHONPATH": str(self._checkout)}


def _synchronous(release: _Release) -> dict[str, Any]:
    with release.serving(CONFIG.replace("keep_completed = 500", "keep_completed = 0")) as client:
        gone = _submit(client, prompt="a job that retention removes", key="of the removed job")
        _until(lambda: client.get(f"/api/v1/jobs/{gone}").status_code == 410)
    release.add_broken_adapter()
    body: dict[str, Any] = {**SMALL, "prompt": "two red houses", "num_images": 2}
    with release.serving(end=signal.SIGKILL) as client:
        finished = [
            _submit(client, key="of a finished job", **body),
            _submit(client, prompt="Grüße, 世界", model="demo-base", guidance=3.5, negative_prompt="rain"),
            _submit(client, prompt="the same at night", init_images=[_png("blue")], image_strength=0.5),
            _submit(client, prompt="a failed job", lora_files=["broken"], lora_scales=[0.5], low_ram=True),
        ]
        _until(lambda: all(_job(client, job)["completed_at"] for job in finished))
        client.post("/sdapi/v1/txt2img", json={**SMALL, "prompt": "a synchronous job"}).raise_for_status()
        long = _submit(client, prompt="cancelled while it ran", **LONG)
        early = _submit(client, prompt="cancelled while it waited")
        client.delete(f"/api/v1/jobs/{early}").raise_for_status()
        _until(lambda: _job(client, long)["progress"] > 0.05)
        client.delete(f"/api/v1/jobs/{long}").raise_for_status()
        ended = _listed(client)
        assert {job["status"] for job in ended} == {"completed", "failed", "cancelled"}
        threading.Thread(target=_post_unanswered, args=(client, LONG | {"prompt": "running when killed"})).start()
        _until(lambda: bool(client.get("/api/v1/jobs?status=generating").json()["jobs"]))
        waiting = _waiting(client)
        running = client.get("/api/v1/jobs?status=generating").json()["jobs"]
        assert len(running) == 1
        return {
            "settings": release.settings(),
            "finished": [_said(client, job["id"]) for job in ended],
            "unfinished": waiting,
            "synchronous_run": running[0]["id"],
            "removed": [gone],
            "keys": {
                "of the removed job": {"job": gone, "body": {**SMALL, "prompt": "a job that retention removes"}},
                "of a finished job": {"job": finished[0], "body": body},
                "of a waiting job": {"job": waiting[0]["id"], "body": {**SMALL, "prompt": "a waiting job"}},
            },
            "stats": client.get("/api/v1/stats").json(),
        }


def _asynchronous(release: _Release) -> dict[str, Any]:
    with release.serving(end=signal.SIGKILL) as client:
        running = _submit(client, prompt="running when killed", **LONG)
        waiting = _waiting(client)
        _until(lambda: _job(client, running)["progress"] > 0.02)
        job = _job(client, running)
        assert job["status"] == "generating"
        return {
            "settings": release.settings(),
            "finished": [],
            "unfinished": [_kept_of(job), *waiting],
            "synchronous_run": None,
            "removed": [],
            "keys": {
                "of a waiting job": {"job": waiting[0]["id"], "body": {**SMALL, "prompt": "a waiting job"}},
            },
            "stats": client.get("/api/v1/stats").json(),
        }


def _waiting(client: httpx.Client) -> list[dict[str, Any]]:
    jobs = [
        _submit(client, prompt="a waiting job", key="of a waiting job"),
        _submit(client, prompt="a waiting edit", init_images=[_png("red"), _png("green")], model="demo-base"),
    ]
    return [_kept_of(_job(client, job)) for job in jobs]


def _submit(client: httpx.Client, *, key: str | None = None, **fields: Any) -> str:
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = client.post("/api/v1/generate", json={**SMALL, **fields}, headers=headers)
    answer.raise_for_status()
    job: str = answer.json()["job_id"]
    return job


def _post_unanswered(client: httpx.Client, body: dict[str, Any]) -> None:
    with suppress(httpx.TransportError):
        client.post("/sdapi/v1/txt2img", json=body)


def _job(client: httpx.Client, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = client.get(f"/api/v1/jobs/{job_id}").raise_for_status().json()
    return job


def _listed(client: httpx.Client) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = client.get("/api/v1/jobs").raise_for_status().json()["jobs"]
    return jobs


def _said(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """A finished job as a client sees it, with a digest in place of each image."""
    job = _job(client, job_id)
    if job["result"] is not None:
        job["result"]["images"] = [
            hashlib.sha256(base64.b64decode(image)).hexdigest() for image in job["result"]["images"]
        ]
    return job


def _kept_of(job: dict[str, Any]) -> dict[str, Any]:
    """What a restart does not change of a job that is not finished."""
    return {name: job[name] for name in ("id", "prompt", "model", "created_at")}


def _png(color: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the release does not come so far"
        time.sleep(0.02)


def _keep(folder: Path, target: Path) -> None:
    """Keep what the server left, without its lock and the index of SQLite's log, which is made anew."""
    shutil.rmtree(target, ignore_errors=True)
    leave = shutil.ignore_patterns("*.lock", "*-shm", "checkpoints")
    shutil.copytree(folder, target, ignore=leave)


if __name__ == "__main__":
    record(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
