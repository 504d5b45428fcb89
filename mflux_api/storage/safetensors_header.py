"""Whether a file is a whole safetensors file, told from its header: nothing of its data is read.

The form is 8 bytes with the header's length, a JSON object of tensors with their places in the data, and the data.
"""

import struct
from pathlib import Path
from typing import Any

import msgspec

MAX_HEADER_BYTES = 16 * 1024 * 1024


class SafetensorsError(Exception):
    """It is none; the message is a few words that say why."""


def check_whole(path: Path) -> None:
    """Check that the header can be read and that the tensors fill the file to its last byte.

    Raises:
        SafetensorsError: they do not.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise SafetensorsError("it is too short")
        (length,) = struct.unpack("<Q", prefix)
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise SafetensorsError("it has no such header")
        data = file.read(length)
    try:
        header = msgspec.json.decode(data, type=dict[str, Any])
        header.pop("__metadata__", None)
        places = sorted(msgspec.convert(each, _Tensor).data_offsets for each in header.values())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SafetensorsError("its header cannot be read") from None
    if not places:
        raise SafetensorsError("it holds no tensors")
    end = 0
    for begin, until in places:
        if begin != end or until < begin:
            raise SafetensorsError("its tensors overlap or have gaps")
        end = until
    if 8 + length + end != size:
        raise SafetensorsError("a part of it is missing" if 8 + length + end > size else "it is too long")


class _Tensor(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]
