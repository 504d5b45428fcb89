"""Checkpoints whose files are absurd: the load fails with a short sentence, in a bounded time, and nothing dies."""

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mflux_api.catalog.files import UPSCALER_FILES
from mflux_api.engine.device import Device
from mflux_api.engine.upscaling.seedvr2_components import UpscalerComponents
from mflux_api.engine.weights.components import CheckpointError, load_components
from mflux_api.ipc.printable import MAX_SENTENCE
from mflux_api.storage.footprint import measure
from tests.support.upscaler_checkpoint import write_upscaler

pytestmark = pytest.mark.slow

Spoil = Callable[[Path], None]
NESTED = b"[" * 100_000


def config(name: str, **values: object) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return spoil


def content(name: str, data: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return spoil


def size(name: str, count: int) -> Spoil:
    def spoil(folder: Path) -> None:
        os.truncate(folder / name, count)

    return spoil


def special(name: str, make: Callable[[Path], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


def header(change: Callable[[bytes], bytes], file: str = "transformer/diffusion_pytorch_model.safetensors") -> Spoil:
    def spoil(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        text = change(data[8 : 8 + length])
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return spoil


def with_entry(entry: bytes) -> Spoil:
    return header(lambda text: text.rstrip()[:-1] + b"," + entry + b"}")


TRANSFORMER = "transformer/config.json"
TEXT_ENCODER = "text_encoder/config.json"
TOKENIZER = "tokenizer/tokenizer.json"
INDEX = "transformer/model.safetensors.index.json"

HOSTILE: dict[str, Spoil] = {
    "more heads than there is memory": config(TRANSFORMER, num_attention_heads=2**20),
    "a ratio of 1e300": config(TRANSFORMER, mlp_ratio=1e300),
    "a ratio that is not a number": config(TRANSFORMER, mlp_ratio=float("nan")),
    "a vocabulary of 2^24": config(TEXT_ENCODER, vocab_size=2**24),
    "a number of 5,000 digits": content(TRANSFORMER, b'{"num_layers": ' + b"1" * 5000 + b"}"),
    "a nested configuration": content(TRANSFORMER, NESTED),
    "a configuration that spoils a terminal": config(TRANSFORMER, num_layers="\x1b[31m\u202e" * 1000),
    "10,000 outputs of the text encoder": config("model_index.json", text_encoder_out_layers=[1] * 10_000),
    "a configuration of 2 MB": config(TRANSFORMER, note="x" * 2_000_000),
    "a configuration that is a pipe": special(TRANSFORMER, os.mkfifo),
    "weights that are a pipe": special("vae/diffusion_pytorch_model.safetensors", os.mkfifo),
    "weights that are a device": special(
        "vae/diffusion_pytorch_model.safetensors", lambda path: path.symlink_to("/dev/zero")
    ),
    "a tensor's name of 2 MB": with_entry(
        b'"' + b"x" * 2_000_000 + b'": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}'
    ),
    "a tensor of an unknown type": with_entry(b'"a": {"dtype": "X\\u001b", "shape": [0], "data_offsets": [0, 0]}'),
    "an empty tensor of huge sides": with_entry(
        b'"a": {"dtype": "F32", "shape": [0, 2147483648], "data_offsets": [0, 0]}'
    ),
    "a million lists as metadata": with_entry(b'"__metadata__": {"a": [' + b",".join([b"[]"] * 1_000_000) + b"]}"),
    "a nested header": with_entry(b'"a": ' + b"[" * 500_000 + b"]" * 500_000),
    "a header that is nested": header(lambda text: NESTED),
    "an index of lists": content(INDEX, b'{"weight_map": {"a": [' + b",".join([b"[]"] * 1_000_000) + b"]}}"),
    "a nested index": content(INDEX, b'{"weight_map": ' + NESTED),
    "an index of 100 MB": lambda folder: (content(INDEX, b"")(folder), size(INDEX, 100_000_000)(folder))[0],
    "a tokenizer of 100 MB": size(TOKENIZER, 100_000_000),
    "a nested tokenizer": content(TOKENIZER, NESTED),
    "a tokenizer of another form": content(TOKENIZER, b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": 1}}'),
    "a tokenizer's configuration of another form": content("tokenizer/tokenizer_config.json", b"[]"),
    "a tokenizer's configuration that is a pipe": special("tokenizer/tokenizer_config.json", os.mkfifo),
}


@pytest.mark.parametrize("spoil", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_checkpoint_is_one_short_error(tiny_folder: Path, device: Device, tmp_path: Path, spoil: Spoil) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "secret-folder"))
    spoil(folder)
    began = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        load_components(folder)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) <= MAX_SENTENCE
    assert "secret-folder" not in message
    # What the service reads of it has the same limits: it holds the interpreter meanwhile.
    measure(folder, float_bytes=4)
    assert time.process_time() - began < 5


def test_file_that_shrinks_while_a_model_is_loaded_is_an_error(
    tiny_folder: Path, device: Device, tmp_path: Path
) -> None:
    """MLX reads files and maps none, so what is missing is no SIGBUS."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))

    def shrink(component: str, done: int, total: int) -> None:
        if component == "transformer":
            os.truncate(folder / "transformer" / "diffusion_pytorch_model.safetensors", 5000)

    with pytest.raises(CheckpointError, match="cannot be read from disk"):
        load_components(folder, report=shrink)


def test_block_number_that_is_none_costs_an_upscaler_nothing(tmp_path: Path, device: Device) -> None:
    """All blocks up to that number were looked for."""
    folder = write_upscaler(tmp_path / "upscaler")
    entry = f'"blocks.{"9" * 150}.a": {{"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}'.encode()
    header(lambda text: text.rstrip()[:-1] + b"," + entry + b"}", UPSCALER_FILES["transformer"])(folder)
    UpscalerComponents(folder).load_all()
    assert measure(folder, float_bytes=4) is not None


def test_upscaler_of_a_thousand_blocks_is_one_short_error(tmp_path: Path, device: Device) -> None:
    folder = write_upscaler(tmp_path / "upscaler")
    entry = b'"blocks.999.a": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}'
    header(lambda text: text.rstrip()[:-1] + b"," + entry + b"}", UPSCALER_FILES["transformer"])(folder)
    with pytest.raises(CheckpointError, match=r"^transformer: blocks\.\d+\."):
        UpscalerComponents(folder)
