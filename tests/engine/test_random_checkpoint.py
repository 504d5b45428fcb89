"""The random checkpoint: the same bytes everywhere, written whole or not at all, with a usable tokenizer."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from mflux_api.engine.demo import random_checkpoint
from mflux_api.engine.demo.random_checkpoint import CheckpointShape, write_random_checkpoint
from tests.support.checkpoint_shapes import TINY


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_layout_is_diffusers(tiny_folder: Path) -> None:
    assert set(_digests(tiny_folder)) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/chat_template.jinja",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (
        _digests(write_random_checkpoint(tmp_path / name, TINY, seed=seed))
        for name, seed in (("first", 7), ("again", 7), ("other", 8))
    )
    assert first == again
    changed = {name for name in first if first[name] != other[name]}
    assert changed == {name for name in first if name.endswith(".safetensors")}


def test_bytes_are_these_on_every_machine(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "model", TINY)
    digest = hashlib.sha256((folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    assert digest == "001ba685cce40d7b53fd00f885c71d87a7e8abff9e9582df1ceedc01b34da291"


def test_bfloat16_is_float32_rounded_to_nearest_even() -> None:
    import numpy as np

    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0xBF807FFF], dtype=np.uint32)
    assert [hex(value) for value in random_checkpoint._bfloat16(bits.view(np.float32))] == [
        "0x3f80",
        "0x3f80",
        "0x3f82",
        "0x3f81",
        "0xbf80",
    ]


def test_a_complete_folder_is_left_alone(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "model", TINY)
    marker = folder / "model_index.json"
    marker.write_text("{}")
    assert write_random_checkpoint(folder, TINY) == folder
    assert marker.read_text() == "{}"


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a checkpoint"):
        write_random_checkpoint(tmp_path, TINY)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(random_checkpoint, "write_tokenizer", fail)
    with pytest.raises(OSError, match="disk full"):
        write_random_checkpoint(tmp_path / "model", TINY)
    assert list(tmp_path.iterdir()) == []


def test_the_default_is_small_and_its_linears_can_be_quantized(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "model")
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 40_000_000
    for component in ("transformer", "text_encoder"):
        file = next((folder / component).glob("*.safetensors"))
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        header.pop("__metadata__")
        odd = [name for name, entry in header.items() if len(entry["shape"]) == 2 and entry["shape"][1] % 64]
        assert odd == []


def test_writing_imports_no_model_library(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from mflux_api.engine.demo.random_checkpoint import write_random_checkpoint as write;"
        "write(Path(sys.argv[1]));"
        "print(sorted({'mlx', 'mflux', 'transformers', 'torch', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path / "model")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_tokenizer_round_trips_and_has_qwens_tokens(tiny_folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_folder / "tokenizer" / "tokenizer.json"))
    text = "a red cat in Zürich, 猫: at night"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("<|im_start|>user").ids) == 2
    assert len(tokenizer.encode(" a red cat").ids) == 3


def test_shape_names_its_derived_widths() -> None:
    shape = attrs.evolve(CheckpointShape(), heads=3, text_out_layers=(1, 3))
    assert (shape.width, shape.joint_attention_dim) == (192, 256)
