"""Clients for Node: each case of node/clients.mjs in a process of its own."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.packages import installed
from tests.clients.running import SIDE, Running, opened

HERE = Path(__file__).parent / "node"
SECONDS = 120


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the packages are installed."""
    return installed(HERE, tmp_path_factory)


def run(folder: Path, name: str, server: Running) -> Any:
    """Return what a case printed."""
    command = ["node", "clients.mjs", name, server.url, *([server.key] if server.key else [])]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_images(told: Any, count: int, side: int = SIDE) -> None:
    assert [opened(text).size for text in told["images"]] == [(side, side)] * count


def test_openai_lists_models(folder: Path, server: Running) -> None:
    told = run(folder, "openai_models", server)
    assert "demo" in told["found"]
    assert told["one"] == "demo"


def test_openai_generates_several(folder: Path, server: Running) -> None:
    told = run(folder, "openai_generate", server)
    check_images(told, 2)
    assert told["size"] == "64x64"
    assert told["usage"]["total_tokens"] == told["usage"]["input_tokens"] + told["usage"]["output_tokens"]


def test_openai_reads_a_url(folder: Path, server: Running) -> None:
    assert run(folder, "openai_url", server) == {"status": 200, "kind": "image/png"}


def test_openai_edits_one_and_several_with_a_mask(folder: Path, server: Running) -> None:
    told = run(folder, "openai_edit", server)
    check_images(told, 2)
    assert told["warnings"] == []


def test_openai_streams(folder: Path, server: Running) -> None:
    kinds = run(folder, "openai_stream", server)
    assert kinds[-1] == "image_generation.completed"
    assert len(kinds) <= 3
    assert set(kinds[:-1]) <= {"image_generation.partial_image"}


def test_openai_raises_its_own_errors(folder: Path, server: Running) -> None:
    told = run(folder, "openai_errors", server)
    assert (told["model"]["kind"], told["model"]["code"]) == ("NotFoundError", "model_not_found")
    assert (told["size"]["kind"], told["size"]["code"]) == ("BadRequestError", "invalid_parameter")
    if server.key is not None:
        assert (told["key"]["kind"], told["key"]["code"]) == ("AuthenticationError", "invalid_api_key")


def test_openai_call_that_is_aborted_is_cancelled(folder: Path, server: Running) -> None:
    assert run(folder, "openai_abort", server)["kind"] == "APIUserAbortError"
    assert server.eventually_newest("cancelled")


def test_ai_sdk_with_a_compatible_provider(folder: Path, server: Running) -> None:
    told = run(folder, "ai_compatible", server)
    check_images(told, 2)
    assert told["warnings"] == []
    check_images(run(folder, "ai_compatible_edit", server), 1)


def test_ai_sdk_with_its_provider_of_openai(folder: Path, server: Running) -> None:
    check_images(run(folder, "ai_openai", server), 3)


def test_ai_sdk_reads_an_error(folder: Path, server: Running) -> None:
    assert "'nope' does not exist" in run(folder, "ai_error", server)["message"]


def test_langchain_has_an_image_or_a_url(folder: Path, server: Running) -> None:
    told = run(folder, "langchain", server)
    check_images(told, 1)
    assert told["status"] == 200


def test_node_sd_webui_generates_and_edits(folder: Path, server: Running) -> None:
    if server.key is not None:
        pytest.skip("node-sd-webui has no option for a key")
    told = run(folder, "node_sd_webui", server)
    check_images(told, 3)
    assert told["told"]["prompt"] == "a lake"


def test_modelfusion_generates_by_both_dialects(folder: Path, server: Running) -> None:
    check_images(run(folder, "modelfusion", server), 2)


def test_stable_diffusion_api_sets_the_model_generates_edits_and_upscales(folder: Path, server: Running) -> None:
    told = run(folder, "stable_diffusion_api", server)
    check_images(told, 3)
    assert (told["larger"], told["model"]) == (2 * SIDE, "demo")


def test_event_source_sees_a_job_to_its_end_and_is_then_told_to_stay_away(folder: Path, server: Running) -> None:
    told = run(folder, "eventsource", server)
    assert told["seen"][-1] == "complete"
    assert set(told["seen"][:-1]) == {"progress"}
    assert told["images"] == 1
    assert told["opened"] == 1
