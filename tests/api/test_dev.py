"""FLUX.2-dev over HTTP, on a random checkpoint of its layout: its rules, edits, LoRAs, quantized aliases, refusal."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mflux_api.storage.checkpoints import EMBEDDED
from mflux_api.storage.footprint import measure
from tests.support.api_jobs import wait_for_end
from tests.support.dev_checkpoint import SHAPE, write_dev_checkpoint
from tests.support.lora_files import write_lora
from tests.support.sample_images import scene, to_base64, to_image
from tests.support.server import Server, api_client, serving

pytestmark = pytest.mark.slow

CONFIG = """
[models]
default = "flux2-dev"
auto_download = false

[memory]
budget_gb = {budget}

[[models.custom]]
name = "flux2-dev"
base = "flux2-dev"
path = "dev"

[[models.custom]]
name = "large-dev"
base = "flux2-dev"
path = {embedded!r}
"""
"""There is room for text encoder and transformer in turns, not together; and none for the embedded checkpoint."""

SMALL: dict[str, Any] = {"prompt": "a red cat", "seed": 3, "width": 64, "height": 64, "steps": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from tests.support.adapter_files import peft

    folder = tmp_path_factory.mktemp("dev")
    sizes = measure(write_dev_checkpoint(folder / "dev"), float_bytes=4)
    assert sizes is not None
    assert sizes.alternating_offload is not None
    (folder / "loras").mkdir()
    peft(folder / "loras" / "fits.safetensors", SHAPE)
    write_lora(folder / "loras" / "demo.safetensors", seed=1)
    budget = (sizes.whole + sizes.alternating_offload) / 2e9
    with serving(folder, CONFIG.format(budget=budget, embedded=str(EMBEDDED))) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with api_client(server.url) as connected:
        yield connected


def ask(client: httpx.Client, path: str = "txt2img", **fields: Any) -> dict[str, Any]:
    answer = client.post(f"/sdapi/v1/{path}", json={**SMALL, **fields})
    assert answer.status_code == 200, answer.text[:300]
    body: dict[str, Any] = answer.json()
    return body


def test_dev_runs_50_steps_by_default_and_a_cancel_ends_it_between_two(client: httpx.Client) -> None:
    job_id = client.post("/api/v1/generate", json={**SMALL, "steps": None}).json()["job_id"]
    events = []
    with client.stream("GET", f"/api/v1/jobs/{job_id}/stream") as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                events.append(json.loads(line[5:]))
                if events[-1].get("step") == 2:
                    assert client.delete(f"/api/v1/jobs/{job_id}").json() == {"status": "cancelled"}
    assert {event["steps"] for event in events[:-1]} == {50}
    assert events[-1]["status"] == "cancelled"
    assert ask(client, guidance=None)["parameters"]["guidance"] == 4.0


def test_guidance_is_an_input_and_a_negative_prompt_has_no_effect(client: httpx.Client) -> None:
    plain, negative, weak = ask(client), ask(client, negative_prompt="a dog"), ask(client, guidance=1.5)
    same, other = to_image(negative["images"][0]), to_image(weak["images"][0])
    assert same.tobytes() == to_image(plain["images"][0]).tobytes() != other.tobytes()
    assert negative["parameters"]["negative_prompt"] is None


def test_edits_take_references_and_a_strength(client: httpx.Client) -> None:
    edits = [
        ask(client, "img2img", init_images=[to_base64(scene())], image_strength=strength) for strength in (0, 0.5, 1)
    ]
    assert [edit["parameters"]["steps_run"] for edit in edits] == [0, 1, 2]
    two = ask(client, "img2img", init_images=[to_base64(scene()), to_base64(scene((64, 96)))], image_strength=1)
    assert len({to_image(answer["images"][0]).tobytes() for answer in (*edits, two, ask(client))}) == 5


def test_batches_and_previews_are_as_with_any_model(client: httpx.Client) -> None:
    body = {**SMALL, "num_images": 2}
    # It waits until it is followed.
    before = client.post("/api/v1/generate", json={**SMALL, "steps": 200}).json()["job_id"]
    job_id = client.post("/api/v1/generate", json=body).json()["job_id"]
    url = f"/api/v1/jobs/{job_id}/stream"
    with client.stream("GET", url, params={"previews": "jpeg"}, headers={"Last-Event-ID": "x"}) as stream:
        client.delete(f"/api/v1/jobs/{before}")
        events = [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]
    # A follower that came late may have missed the first ones.
    assert {event["stage"] for event in events[:-1]} >= {"denoising", "decoding", "saving"}
    assert any(event["preview"] for event in events[:-1])
    assert events[-1]["result"]["seeds"] == [3, 4]
    alone = to_image(ask(client, seed=4)["images"][0]).tobytes()
    second = to_image(events[-1]["result"]["images"][1]).tobytes()
    assert max(abs(a - b) for a, b in zip(alone, second, strict=True)) <= 1


def test_lora_counts_where_it_fits_and_is_refused_where_it_does_not(client: httpx.Client) -> None:
    plain = ask(client)
    assert ask(client, lora_files=["fits"])["images"] != plain["images"] == ask(client)["images"]
    answer = client.post("/sdapi/v1/txt2img", json={**SMALL, "lora_files": ["demo"]})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER")
    assert answer.json()["details"]["field"] == "lora_files"


def test_quantized_alias_is_made_from_dev_and_kept(server: Server, client: httpx.Client) -> None:
    made = ask(client, model="flux2-dev-4-bit")
    assert to_image(made["images"][0]).tobytes() != to_image(ask(client)["images"][0]).tobytes()
    assert made["parameters"].items() >= {"model": "flux2-dev-4-bit", "guidance": 4.0}.items()
    assert (server.folder / "models" / "quantized" / "flux2-dev-4-bit" / "mflux-api.json").is_file()


def test_model_that_does_not_fit_even_in_turns_is_refused_with_its_sizes(client: httpx.Client) -> None:
    job = wait_for_end(client, client.post("/api/v1/generate", json={**SMALL, "model": "large-dev"}).json()["job_id"])
    assert (job["status"], job["code"]) == ("failed", "OOM_ERROR")
    assert job["details"]["needed_gb"] > job["details"]["available_gb"]
    assert job["details"]["suggestion"] == "Use flux2-dev-4-bit or set low_ram=true"
