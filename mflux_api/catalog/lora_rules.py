"""What a LoRA's file may hold: the rules of the upload and of the engine's reader, in one place, so that they agree.

The format is 8 bytes with the header's length, a JSON object of tensors with their places in the data, and the data
(https://huggingface.co/docs/safetensors). Nothing here reads a file, or looks at a model.
"""

import math
import struct
from collections.abc import Mapping
from typing import Annotated

import attrs
import msgspec

from mflux_api.ipc.printable import MAX_NAME, printable

PREFIX_BYTES = 8
MAX_HEADER_BYTES = 16 << 20
"""Less than the format allows: a LoRA's header has some hundred kilobytes, with a trainer's notes a few megabytes."""
MAX_TENSORS = 10_000
"""A LoRA of every layer of FLUX.2-dev has about 1,500, a LoKr of them 3,000."""
MAX_SIDE = 2**31 - 1
"""What MLX counts a tensor's sides with."""

BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
"""The types of numbers that the engine takes, with the bytes of one."""


class LoraRuleError(Exception):
    """The file breaks a rule; the message says which in a few printable words."""


@attrs.frozen
class TensorPlace:
    """One tensor of a file."""

    dtype: str
    """A key of :data:`BYTES`."""
    shape: tuple[int, ...]
    """Every side is at least 1; empty for a single number."""
    begin: int
    """Where its data begins, counted from the end of the header."""
    size: int
    """Bytes of its data."""


@attrs.frozen
class LoraHeader:
    """What a file says of itself."""

    tensors: Mapping[str, TensorPlace]
    metadata: Mapping[str, str]
    data_begin: int
    """Where the data begins in the file."""


class _Tensor(msgspec.Struct):
    dtype: str
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE)], ...], msgspec.Meta(max_length=8)]
    data_offsets: tuple[int, int]


def header_bytes(prefix: bytes | bytearray, file_size: int) -> int:
    """Return the length of the header from the first bytes of a file.

    Raises:
        LoraRuleError: no header is that long.
    """
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == PREFIX_BYTES else 0
    if not 2 <= length <= min(MAX_HEADER_BYTES, file_size - PREFIX_BYTES):
        raise _not_whole("it does not begin with a safetensors header")
    return int(length)


def read_header(data: bytes | bytearray, file_size: int) -> LoraHeader:
    """Read a header; the tensors in it fill the file to its last byte.

    Args:
        data: the header, without the bytes before it.
        file_size: bytes of the whole file.

    Raises:
        LoraRuleError: the file breaks a rule.
    """
    try:
        # Counted and measured before anything in it is read.
        entries = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        notes = entries.pop("__metadata__", None)
        if len(entries) > MAX_TENSORS:
            raise LoraRuleError(f"it holds {len(entries)} tensors, and {MAX_TENSORS} are the most that are taken")
        longest = max(entries, key=len, default="")
        if len(longest) > MAX_NAME:
            raise LoraRuleError(f"a tensor's name has {len(longest)} characters, and {MAX_NAME} are the most")
        metadata = {} if notes is None else msgspec.json.decode(notes, type=dict[str, str] | None) or {}
        tensors = {name: msgspec.json.decode(each, type=_Tensor) for name, each in entries.items()}
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _not_whole("its header cannot be read") from None
    if not tensors:
        raise _not_whole("it holds no tensors")
    places = {name: _place(name, tensor) for name, tensor in tensors.items()}
    end = 0
    for place in sorted(places.values(), key=lambda place: place.begin):
        if place.begin != end:
            raise _not_whole("its tensors overlap or have gaps")
        end += place.size
    data_begin = PREFIX_BYTES + len(data)
    if data_begin + end != file_size:
        raise _not_whole("a part of it is missing" if data_begin + end > file_size else "it is too long")
    return LoraHeader(places, metadata, data_begin)


def _place(name: str, tensor: _Tensor) -> TensorPlace:
    begin, end = tensor.data_offsets
    if tensor.dtype not in BYTES:
        raise LoraRuleError(
            f"it holds {printable(name)} as {printable(tensor.dtype, 20)}: save it as one of {', '.join(BYTES)}"
        )
    size = math.prod(tensor.shape) * BYTES[tensor.dtype]
    if not size:
        raise LoraRuleError(f"its tensor {printable(name)} is empty")
    if end - begin != size:
        raise _not_whole(f"its tensor {printable(name)} has another size than its shape says")
    return TensorPlace(tensor.dtype, tensor.shape, begin, size)


def _not_whole(reason: str) -> LoraRuleError:
    return LoraRuleError(f"it is not a whole safetensors file ({reason})")
