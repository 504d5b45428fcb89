"""The bytes of a safetensors file whose content does not matter."""

import json
import struct
from collections.abc import Sequence


def safetensors_bytes(size: int = 16, shape: Sequence[int] | None = None) -> bytes:
    """Return a safetensors file of one tensor."""
    sides = [size // 4] if shape is None else list(shape)
    header = json.dumps({"a": {"dtype": "F32", "shape": sides, "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)
