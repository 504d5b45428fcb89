"""LoRA files: a header that promises what the file does not have, and names, numbers and texts without measure."""

import json
import random
import struct
from collections.abc import Iterator
from typing import Any

from tools.fuzz.case import Case, request
from tools.fuzz.mutate import mutate

_LAYER = "transformer.single_transformer_blocks.0.attn.to_out"
_NUMBERS: tuple[Any, ...] = (-1, 0, 1, 16, 2**31, 2**32, 2**63, 2**64, 10**400, 1.5, True, None, "16", [], {})


def cases(rng: random.Random, most: int) -> Iterator[Case]:
    """Yield uploads of mutated files; every fifth is followed by a generation that names the file."""
    number = 0
    while True:
        number += 1
        used = rng.random() < 0.2
        # One that is used has a name of its own, or a refused upload would leave an older file to be used.
        name = f"fuzz-{number if used else 0}.safetensors"
        how, data = _file(rng, most)
        upload = _upload(rng, name, data)
        if used:
            body = {"prompt": "a house", "model": "demo", "width": 64, "height": 64, "steps": 1, "lora_files": [name]}
            use = request("POST", "/sdapi/v1/txt2img", json.dumps(body).encode())
            yield Case("safetensors", f"{how}, used", use, upload)
        else:
            yield Case("safetensors", how, upload)


def _upload(rng: random.Random, name: str, data: bytes) -> bytes:
    target = f"/api/v1/loras?name={name}&overwrite=true"
    if rng.random() < 0.7:
        return request("POST", target, data, "application/octet-stream")
    begin = f'--fuzz\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    return request("POST", target, begin + data + b"\r\n--fuzz--\r\n", "multipart/form-data; boundary=fuzz")


def header() -> dict[str, Any]:
    """Return the header of a small LoRA that the demo model takes."""
    return {
        "__metadata__": {"format": "pt"},
        f"{_LAYER}.lora_A.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
        f"{_LAYER}.lora_B.weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [32, 64]},
    }


def _pack(text: bytes, data: bytes = bytes(64), length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _file(rng: random.Random, most: int) -> tuple[str, bytes]:
    whole = _pack(json.dumps(header()).encode())
    choice = rng.randrange(8)
    if choice == 0:
        how, data = mutate(rng, whole, most)
        return f"bytes: {how}", data
    if choice == 1:
        length = rng.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1))
        return f"header length {length}", _pack(json.dumps(header()).encode(), length=length)
    if choice == 2:
        text, depth = rng.choice((b"[", b'{"a":')), min(rng.choice((10, 1000, 100_000)), most // 8)
        return f"header nested {depth} deep", _pack(b'{"__metadata__":' + text * depth)
    if choice == 3:
        count = min(rng.choice((10, 1000, 50_000)), most // 80)
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        return f"{count} tensors", _pack(json.dumps({f"t{n}": entry for n in range(count)}).encode(), b"")
    if choice == 4:
        size = min(rng.choice((100, 100_000, 2_000_000)), most // 2)
        name = rng.choice(
            ("a" * size, f"transformer.transformer_blocks.{'9' * min(size, 5000)}.attn.to_q.lora_A.weight")
        )
        return f"a name of {len(name)} characters", _pack(json.dumps(_renamed(name)).encode())
    if choice == 5:
        count = min(rng.choice((10, 10_000, 500_000)), most // 16)
        extra = {"__metadata__": {f"k{n}": "v" for n in range(count)}}
        return f"{count} words of metadata", _pack(json.dumps(header() | extra).encode())
    changed = header()
    name = rng.choice([*changed])
    field = rng.choice(("dtype", "shape", "data_offsets", "extra"))
    changed[name][field] = _strange(rng)
    return f"{name}: {field} = {str(changed[name][field])[:60]}", _pack(json.dumps(changed).encode())


def _renamed(name: str) -> dict[str, Any]:
    changed = header()
    changed[name] = changed.pop(f"{_LAYER}.lora_A.weight")
    return changed


def _strange(rng: random.Random) -> Any:
    one, other = rng.choice(_NUMBERS), rng.choice(_NUMBERS)
    return rng.choice(([one, other], [one] * 1000, one, "F8_E4M3", "BF16", "\ud800", {"a": one}))
