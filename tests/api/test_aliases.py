"""Real aliases on a checkpoint of one's own: every FLUX.2 Klein name generates with its own rules."""

from pathlib import Path

import pytest

from mflux_api.catalog import BUILT_IN
from mflux_api.engine.demo.random_checkpoint import write_random_checkpoint
from mflux_api.storage.checkpoints import EMBEDDED
from tests.support.checkpoint_shapes import TINY
from tests.support.server import api_client, serving

pytestmark = pytest.mark.slow

ALIASES = [model for model in BUILT_IN if model.family == "flux2-klein" and model.quantization == "none" and model.repo]


def test_every_klein_alias_generates_on_a_local_checkpoint_with_its_own_rules(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "weights", TINY, dtype="float32")
    config = '[models]\ndefault = "flux2-klein-4b"\nauto_download = false\n' + "".join(
        f'[[models.custom]]\nname = "{model.alias}"\nbase = "{model.alias}"\npath = "weights"\n' for model in ALIASES
    )
    assert len(ALIASES) == 5
    with serving(tmp_path, config) as server, api_client(server.url) as client:
        for model in ALIASES:
            request = {"prompt": "a", "model": model.alias, "width": 64, "height": 64, "steps": 1, "guidance": 3.0}
            answer = client.post("/sdapi/v1/txt2img", json=request).raise_for_status().json()
            assert len(answer["images"]) == 1
            assert answer["parameters"]["model"] == model.alias
            assert answer["parameters"]["guidance"] == (1.0 if model.distilled else 3.0)
        spelled = client.post("/sdapi/v1/txt2img", json={**request, "model": "klein-4B"}).raise_for_status().json()
        assert spelled["parameters"]["model"] == "flux2-klein-4b"


@pytest.mark.thorough
def test_quantized_aliases_generate_on_the_checkpoint_of_their_base_and_are_kept(tmp_path: Path) -> None:
    custom = (
        f'[[models.custom]]\nname = "flux2-klein-base-4b"\nbase = "flux2-klein-base-4b"\npath = {str(EMBEDDED)!r}\n'
    )
    aliases = [
        model.alias for model in BUILT_IN if model.base == "flux2-klein-base-4b" and model.quantization == "runtime"
    ]
    assert len(aliases) == 4
    with serving(tmp_path, "[models]\nauto_download = false\n" + custom) as server, api_client(server.url) as client:
        for alias in aliases:
            request = {"prompt": "a", "model": alias, "width": 64, "height": 64, "steps": 1, "guidance": 3.0}
            answer = client.post("/sdapi/v1/txt2img", json=request).raise_for_status().json()
            assert (answer["parameters"]["model"], answer["parameters"]["guidance"]) == (alias, 3.0)
    kept = {folder.name for folder in (tmp_path / "models" / "quantized").iterdir() if folder.is_dir()}
    assert kept >= set(aliases)
