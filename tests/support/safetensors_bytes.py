"""The bytes of a safetensors file, where a library would not write them or their content does not matter."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any


def safetensors_bytes(size: int = 16, shape: Sequence[int] | None = None) -> bytes:
    """Return a safetensors file of one tensor."""
    sides = [size // 4] if shape is None else list(shape)
    header = json.dumps({"a": {"dtype": "F32", "shape": sides, "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def safetensors_of(
    tensors: Mapping[str, tuple[str, Sequence[int], bytes]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return a safetensors file of tensors with any type: each its type, its shape and its bytes."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
