"""Whether a file is a whole safetensors file, told from its header: nothing of its data is read.

The format is 8 bytes with the header's length, a JSON object of tensors with their places in the data, and the data.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

_MAX_HEADER_BYTES = 16 * 1024 * 1024
"""Less than the format allows: a LoRA's header has some hundred kilobytes, and this one is parsed by the service."""
_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes of one number of each type; tensors of other types are not checked."""


class SafetensorsError(Exception):
    """The file is not a whole safetensors file; the message says why in a few words."""


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
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise SafetensorsError("it does not begin with a safetensors header")
        data = file.read(length)
    try:
        header = msgspec.json.decode(data, type=dict[str, Any])
        header.pop("__metadata__", None)
        tensors = [msgspec.convert(each, _Tensor) for each in header.values()]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SafetensorsError("its header cannot be read") from None
    if not tensors:
        raise SafetensorsError("it holds no tensors")
    end = 0
    for begin, until in sorted(tensor.data_offsets for tensor in tensors):
        if begin != end or until < begin:
            raise SafetensorsError("its tensors overlap or have gaps")
        end = until
    for tensor in tensors:
        begin, until = tensor.data_offsets
        if tensor.dtype in _BYTES and math.prod(tensor.shape) * _BYTES[tensor.dtype] != until - begin:
            raise SafetensorsError("a tensor has another size than its shape says")
    if 8 + length + end != size:
        raise SafetensorsError("a part of it is missing" if 8 + length + end > size else "it is too long")


# Bounded, because the product of many large numbers would block the whole process.
_Side = Annotated[int, msgspec.Meta(ge=0, lt=2**48)]


class _Tensor(msgspec.Struct):
    dtype: str
    shape: Annotated[tuple[_Side, ...], msgspec.Meta(max_length=8)]
    data_offsets: tuple[int, int]
