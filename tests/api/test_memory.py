"""Quantized models, several at once, and what does not fit: from outside, with the real engine."""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from mflux_api.engine.demo.random_checkpoint import write_random_checkpoint
from tests.support.api_jobs import submit, wait_for_end
from tests.support.checkpoint_shapes import TINY
from tests.support.server import Server, api_client, serving

pytestmark = pytest.mark.slow

CONFIG = """
[memory]
budget_gb = 0.012

[[models.custom]]
name = "flux2-klein-4b"
base = "flux2-klein-4b"
path = "tiny"

[[models.custom]]
name = "big"
base = "flux2-klein-base-4b"
path = "big"
"""
"""The tiny model takes 4 MB in float32, the big one 64 MB, 19 MB of it at a time."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    write_random_checkpoint(folder / "tiny", TINY)
    write_random_checkpoint(folder / "big")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, CONFIG) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with api_client(server.url) as connected:
        yield connected


def image(client: httpx.Client, model: str, **fields: object) -> bytes:
    job = wait_for_end(client, submit(client, model=model, seed=3, **fields))
    assert job["status"] == "completed", job
    return client.get(f"/api/v1/jobs/{job['id']}/images/0").content


def loaded(client: httpx.Client) -> set[str]:
    models = (model["title"] for model in client.get("/api/v1/models").json()["models"])
    return {model for model in models if client.get(f"/api/v1/models/{model}/status").json()["loaded"]}


def test_quantized_weights_are_kept_and_a_damaged_entry_costs_no_job_its_image(
    folder: Path, client: httpx.Client
) -> None:
    first = image(client, "flux2-klein-4b-4-bit")
    assert first != image(client, "flux2-klein-4b")
    entry = folder / "models" / "quantized" / "flux2-klein-4b-4-bit"
    made = (entry / "mflux-api.json").stat().st_ino
    # Another server on the same folder of models reads what was kept.
    config = CONFIG.replace('path = "', f'path = "{folder}/')
    environ = {"MFLUX_MODELS_DIR": str(folder / "models")}
    with serving(folder / "second", config, environ) as again, api_client(again.url) as other:
        assert image(other, "flux2-klein-4b-4-bit") == first
    assert (entry / "mflux-api.json").stat().st_ino == made
    (entry / "transformer" / "0.safetensors").write_bytes(b"nonsense")
    for alias in ("flux2-klein-4b-3-bit", "flux2-klein-4b-6-bit", "flux2-klein-4b-8-bit"):
        image(client, alias)
    assert "flux2-klein-4b-4-bit" not in loaded(client)
    assert image(client, "flux2-klein-4b-4-bit") == first
    assert json.loads((entry / "mflux-api.json").read_text())["made_from"]["bits"] == 4


def test_models_stay_while_they_fit_and_jobs_on_two_at_once_get_their_own(client: httpx.Client) -> None:
    alone = {model: image(client, model) for model in ("flux2-klein-4b", "flux2-klein-4b-8-bit")}
    assert loaded(client) >= set(alone)
    jobs = [(model, submit(client, model=model, seed=3)) for model in list(alone) * 2]
    for model, job_id in jobs:
        job = wait_for_end(client, job_id)
        assert job["model"] == model
        assert client.get(f"/api/v1/jobs/{job_id}/images/0").content == alone[model]
    assert client.get("/api/v1/system").json()["active_model"] in alone


def test_a_model_that_cannot_fit_is_refused_with_sizes_and_advice_and_no_model_has_to_go(client: httpx.Client) -> None:
    image(client, "flux2-klein-4b")
    before = loaded(client)
    answer = client.post(
        "/sdapi/v1/txt2img", json={"prompt": "a", "model": "big", "width": 64, "height": 64, "steps": 1}
    )
    assert (answer.status_code, answer.json()["code"]) == (500, "OOM_ERROR")
    details = answer.json()["details"]
    assert details["needed_gb"] > details["available_gb"] == 0.01
    assert details["suggestion"] == "Use flux2-klein-base-4b-mlx-4bit or set low_ram=true"
    assert loaded(client) == before


def test_low_ram_generates_the_same(client: httpx.Client) -> None:
    # The files differ: each says how it was made.
    low, usual = (image(client, "flux2-klein-4b", low_ram=low_ram) for low_ram in (True, False))
    assert pixels(low) == pixels(usual)


def pixels(file: bytes) -> bytes:
    with Image.open(BytesIO(file)) as opened:
        return opened.tobytes()


def test_an_idle_model_leaves_the_memory(folder: Path, tmp_path: Path) -> None:
    config = CONFIG.replace("[memory]", "[memory]\nidle_unload_seconds = 0.5").replace('path = "', f'path = "{folder}/')
    with serving(tmp_path, config) as running, api_client(running.url) as client:
        image(client, "flux2-klein-4b")
        while (state := client.get("/api/v1/system").json())["active_model"] or state["mlx_memory_gb"]:
            pass
        assert client.get("/api/v1/models/flux2-klein-4b/status").json()["status"] == "ready"
        image(client, "flux2-klein-4b")
