"""Models, health, system, queue, stats, the OpenAPI document and CORS."""

import json
import re

import httpx
import pytest
from openapi_spec_validator import validate

from mflux_api.catalog import BUILT_IN
from mflux_api.storage.checkpoints import EMBEDDED
from tests.support.api_jobs import submit, wait_for_end

pytestmark = pytest.mark.slow

_ALIASES = """
flux2-klein-4b flux2-klein-4b-mlx-4bit flux2-klein-4b-mlx-8bit flux2-klein-4b-3-bit flux2-klein-4b-4-bit
flux2-klein-4b-6-bit flux2-klein-4b-8-bit flux2-klein-9b flux2-klein-9b-mlx-4bit flux2-klein-9b-mlx-8bit
flux2-klein-9b-3-bit flux2-klein-9b-4-bit flux2-klein-9b-6-bit flux2-klein-9b-8-bit flux2-klein-base-4b
flux2-klein-base-4b-mlx-4bit flux2-klein-base-4b-mlx-8bit flux2-klein-base-4b-3-bit flux2-klein-base-4b-4-bit
flux2-klein-base-4b-6-bit flux2-klein-base-4b-8-bit flux2-klein-base-9b flux2-klein-base-9b-3-bit
flux2-klein-base-9b-4-bit flux2-klein-base-9b-6-bit flux2-klein-base-9b-8-bit flux2-dev flux2-dev-4-bit
flux2-dev-8-bit seedvr2 flux2-klein-9b-kv demo demo-base
"""
ALIASES = _ALIASES.split()


def test_models_lists_the_thirty_aliases_and_the_embedded_ones(client: httpx.Client) -> None:
    models = {model["title"]: model for model in client.get("/api/v1/models").json()["models"]}
    assert list(models) == ALIASES
    assert (
        models["flux2-klein-9b"].items()
        >= {
            "model_name": "black-forest-labs/FLUX.2-klein-9B",
            "downloaded": False,
            "size_gb": 33.46,
            "hash": None,
            "sha256": None,
            "config": {"base_arch": "flux2", "supports_guidance": False, "max_sequence_length": 512},
        }.items()
    )
    assert models["flux2-klein-base-4b"]["config"]["supports_guidance"] is True
    demo = models["demo"]
    assert demo["downloaded"] is True
    assert demo["sha256"].startswith(demo["hash"])
    assert len(demo["hash"]) == 10
    assert len(BUILT_IN) == len(ALIASES)


def test_custom_entries_replace_an_alias_and_its_runtime_quantized_ones(client: httpx.Client) -> None:
    models = {model["title"]: model for model in client.get("/api/v1/models").json()["models"]}
    assert models["flux2-klein-4b"]["downloaded"] is True
    assert models["flux2-klein-4b-4-bit"]["downloaded"] is True
    assert models["flux2-klein-4b-mlx-8bit"]["downloaded"] is False
    image = client.post(
        "/sdapi/v1/txt2img", json={"prompt": "a", "model": "flux2-klein-4b", "width": 64, "height": 64, "steps": 1}
    )
    assert image.json()["parameters"]["model"] == "flux2-klein-4b"


def test_model_status_follows_the_model_into_memory(client: httpx.Client) -> None:
    absent = client.get("/api/v1/models/flux2-klein-9b/status").json()
    assert absent == {
        "model": "flux2-klein-9b",
        "status": "not_downloaded",
        "downloaded": False,
        "loaded": False,
        "size_gb": 33.46,
        "path": None,
        "commit": None,
        "percent": None,
        "bytes_done": None,
        "bytes_total": None,
        "bytes_per_second": None,
        "eta_seconds": None,
        "error": None,
        "code": None,
        "details": None,
    }
    assert client.get("/api/v1/models/flux2-klein-4b-8-bit/status").json()["status"] == "ready"
    wait_for_end(client, submit(client, model="flux2-klein-4b-8-bit", steps=1))
    wait_for_end(client, submit(client))
    # Both are small: they stay side by side.
    for alias in ("demo", "flux2-klein-4b-8-bit"):
        loaded = client.get(f"/api/v1/models/{alias}/status").json()
        assert (loaded["status"], loaded["loaded"]) == ("loaded", True)
        assert loaded["path"] == str(EMBEDDED)


def test_health_counts_jobs(client: httpx.Client) -> None:
    idle = client.get("/api/v1/health").json()
    assert idle == {
        "status": "healthy",
        "version": "2.0.0",
        "models_available": 33,
        "active_jobs": 0,
        "queue_length": 0,
    }
    ids = [submit(client, steps=100, width=256, height=256) for _ in range(3)]
    busy = client.get("/api/v1/health").json()
    assert (busy["active_jobs"], busy["queue_length"]) == (1, 2)
    queue = client.get("/api/v1/queue").json()
    assert queue["active"]["job_id"] == ids[0]
    assert [(job["job_id"], job["position"]) for job in queue["queued"]] == [(ids[1], 1), (ids[2], 2)]
    assert queue["total"] == 2
    for job_id in ids:
        client.delete(f"/api/v1/jobs/{job_id}")
    assert client.get("/api/v1/queue").json() == {"active": None, "queued": [], "total": 0}


def test_queue_estimates_from_measured_steps(client: httpx.Client) -> None:
    wait_for_end(client, submit(client, steps=4, width=256, height=256))
    ids = [submit(client, steps=40, width=256, height=256) for _ in range(2)]
    queue = client.get("/api/v1/queue").json()
    running, waiting = queue["active"]["eta_seconds"], queue["queued"][0]["eta_seconds"]
    assert 0 < running < 120
    assert waiting > running
    for job_id in reversed(ids):
        client.delete(f"/api/v1/jobs/{job_id}")


def test_system_names_the_device_and_the_memory(client: httpx.Client) -> None:
    wait_for_end(client, submit(client))
    system = client.get("/api/v1/system").json()
    assert system["active_model"] == "demo"
    assert system["mlx_memory_gb"] > 0
    assert system["system_memory_gb"]["total"] > system["system_memory_gb"]["used"] > 0
    assert system["device"]
    assert system["engine"]["backend"] in ("cpu", "metal", "cuda")
    (engine,) = system["engines"]
    assert (engine["id"], engine["status"], engine["loading"]) == ("0", "ready", None)
    assert engine["models"][0] == "demo"
    assert (engine["device"], engine["backend"]) == (system["device"], system["engine"]["backend"])
    assert engine["incarnation"] >= 1
    assert engine["memory_gb"] == system["mlx_memory_gb"]


def test_stats_count_generations_and_images(client: httpx.Client) -> None:
    before = client.get("/api/v1/stats").json()
    wait_for_end(client, submit(client, num_images=3))
    after = client.get("/api/v1/stats").json()
    assert after["total_generations"] == before["total_generations"] + 1
    assert after["total_images"] == before["total_images"] + 3
    assert after["average_time_seconds"] > 0
    assert after["uptime_hours"] >= before["uptime_hours"]


def test_openapi_document_is_valid_and_names_every_route(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    validate(document)
    assert document["openapi"].startswith("3.1")
    assert document["components"]["schemas"]["GenerateRequest"]["properties"]["num_images"]["anyOf"][0]["maximum"] == 4
    assert {"/sdapi/v1/txt2img", "/api/v1/jobs/{job_id}/stream", "/api/v1/queue"} <= set(document["paths"])


def test_preflight_allows_what_clients_send(client: httpx.Client) -> None:
    headers = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
    answer = client.options("/api/v1/generate", headers=headers)
    assert answer.is_success
    assert answer.headers["access-control-allow-origin"] == "*"
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    assert allowed == [
        "Authorization",
        "Content-Type",
        "Content-Encoding",
        "X-API-Key",
        "Last-Event-ID",
        "Idempotency-Key",
        "Prefer",
        "User-Agent",
        "OpenAI-Organization",
        "OpenAI-Project",
    ]
    exposed = "Retry-After, X-Request-ID, X-Should-Retry, Location, Preference-Applied"
    assert answer.headers["access-control-expose-headers"] == exposed
    assert "DELETE" in answer.headers["access-control-allow-methods"]


@pytest.mark.parametrize("path", ["/api/v1/health", "/api/v1/models", "/api/v1/jobs", "/api/v1/queue"])
def test_head_is_answered_like_get_without_a_body(client: httpx.Client, path: str) -> None:
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_keys_come_in_the_order_of_the_document(client: httpx.Client) -> None:
    text = client.get("/api/v1/health").text
    assert list(json.loads(text)) == ["status", "version", "models_available", "active_jobs", "queue_length"]


@pytest.mark.parametrize("path", ["/api/v1/health", "/api/v1/nothing", "/api/v1/jobs/000000000000/stream"])
def test_every_response_has_a_request_id_and_the_clients_own_is_kept(client: httpx.Client, path: str) -> None:
    assert client.get(path, headers={"X-Request-ID": "My.id_1-2"}).headers["x-request-id"] == "My.id_1-2"
    for bad in ("x" * 65, "a b", "a,b", ""):
        assert re.fullmatch("[0-9a-f]{16}", client.get(path, headers={"X-Request-ID": bad}).headers["x-request-id"])
    fresh = [client.get(path).headers["x-request-id"] for _ in range(2)]
    assert fresh[0] != fresh[1]


def test_room_for_downloads_and_for_models_in_memory_is_told(client: httpx.Client) -> None:
    assert client.get("/api/v1/models").json()["disk_free_gb"] > 0
    engine = client.get("/api/v1/system").json()["engines"][0]
    assert engine["device_memory_gb"] >= engine["memory_gb"] >= 0
