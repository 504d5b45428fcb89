"""LoRAs that clients upload: what the engine could not load is refused, at no more cost than its header's size."""

import json
import os
import struct
from pathlib import Path

import pytest

from mflux_api.errors import InvalidParameter
from mflux_api.images.child import lora_header
from mflux_api.images.child.protocol import DescribedLora
from mflux_api.storage.loras import CheckedLora, LoraFiles
from tests.support.local_decoding import LOCAL
from tests.support.lora_files import lora_bytes
from tests.support.safetensors_bytes import safetensors_bytes


async def check(folder: Path, data: bytes) -> CheckedLora:
    with LoraFiles((folder,)).begin() as upload:
        upload.write(data)
        return await LOCAL.check_lora(upload)


def with_header(header: str, data: int = 16) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + bytes(data)


TENSOR = '{"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}'
OVERLAP = {"a": [0, 4], "b": [8, 12], "c": [8, 12]}
HEADER = struct.pack("<Q", 2) + b"{}"
BROKEN = {
    "empty": b"",
    "text": b"hello, this is not a tensor",
    "pickle": b"\x80\x04\x95" + bytes(100),
    "zip": b"PK\x03\x04" + bytes(100),
    "huge header": struct.pack("<Q", 2**62) + b"{}",
    "no tensors": HEADER,
    "cut": safetensors_bytes()[:-1],
    "longer": safetensors_bytes() + b"x",
    "header no JSON": struct.pack("<Q", 4) + b"{{{{",
    "header an array": struct.pack("<Q", 2) + b"[]",
    "header deep": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "gap": safetensors_bytes().replace(b"[0, 16]", b"[4, 16]"),
    "gap as large as an overlap": with_header(
        json.dumps({n: json.loads(TENSOR) | {"shape": [1], "data_offsets": at} for n, at in OVERLAP.items()}), 12
    ),
    "shape": safetensors_bytes(shape=[8]),
    "negative shape": safetensors_bytes(shape=[-1, -4]),
    "shape whose product would take minutes": safetensors_bytes(shape=[2**62] * 700_000),
}


HOSTILE = {
    "type of numbers that there is not": with_header(TENSOR.replace("F32", "F65").join(('{"a": ', "}"))),
    "name of two megabytes": with_header(json.dumps({"a" * 2_000_000: json.loads(TENSOR)})),
    "a million tensors": with_header("{" + ",".join(f'"{n}":0' for n in range(1_000_000)) + "}"),
    "metadata of lists in lists": with_header('{"__metadata__": {"a": ' + "[[]," * 3_000_000 + "0" + "}}"),
    "metadata of millions of lists": with_header(
        '{"__metadata__": [' + "[[],[]]," * 1_500_000 + f'0], "a": {TENSOR}}}'
    ),
}


async def test_whole_file_is_in_order(tmp_path: Path) -> None:
    data = safetensors_bytes()
    assert await check(tmp_path, data) == CheckedLora(len(data))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_not_a_whole_safetensors_file_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidParameter, match="a whole safetensors file"):
        await check(tmp_path, BROKEN[name])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", HOSTILE)
async def test_header_that_no_trainer_writes_is_refused_in_a_short_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidParameter, match="'file' is invalid") as caught:
        await check(tmp_path, HOSTILE[name])
    assert len(caught.value.message) < 300


async def test_headers_of_many_files_are_described_and_one_that_is_broken_hides_no_other(tmp_path: Path) -> None:
    contents = {**BROKEN, **HOSTILE, "plain": safetensors_bytes(), "lora": lora_bytes(1)}
    paths = [tmp_path / f"{name}.safetensors" for name in contents]
    for path, data in zip(paths, contents.values(), strict=True):
        path.write_bytes(data)
    paths.append(tmp_path / "gone.safetensors")
    described = dict[str, DescribedLora]()
    while len(described) < len(paths):
        found = await LOCAL.describe_loras(paths[len(described) :])
        assert found
        described |= dict(zip((path.stem for path in paths[len(described) :]), found, strict=False))
    lora = described.pop("lora").contents
    assert lora is not None
    assert (lora.format, lora.rank, lora.layers, lora.understood, lora.text_encoder_layers) == ("lora", 2, 3, 3, 0)
    plain = described.pop("plain").contents
    assert plain is not None
    assert (plain.format, plain.understood) == ("unknown", 0)
    for name, each in described.items():
        assert each.contents is None, name
        assert each.problem is not None, name
        assert each.problem.isprintable(), name
        assert len(each.problem) < 300, name


async def test_order_that_takes_long_is_answered_with_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of others wait behind it."""
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for path in paths:
        path.write_bytes(safetensors_bytes())
    monkeypatch.setattr(lora_header, "ORDER_SECONDS", -1.0)
    assert len(await LOCAL.describe_loras(paths)) == 1
