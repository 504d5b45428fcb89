"""What a safetensors file may hold: one reader of headers, so that an upload, the service and the engine agree.

The format is 8 bytes with the header's length, a JSON object of tensors with their places in the data, and the data
(https://huggingface.co/docs/safetensors). Nothing here opens a file, or looks at a model. A header is decoded straight
into what is needed of it: as general JSON, 45 MB of it took 7 s and a gigabyte, and held the interpreter throughout.
"""

import math
import struct
from collections.abc import Mapping
from typing import Annotated, BinaryIO

import attrs
import msgspec

from mflux_api.catalog.files import MAX_HEADER_BYTES
from mflux_api.ipc.printable import MAX_NAME, printable

PREFIX_BYTES = 8
MAX_SIDE = 2**31 - 1
"""What MLX counts a tensor's sides with."""


@attrs.frozen(kw_only=True)
class Rules:
    """What is taken of one kind of file."""

    header_bytes: int
    tensors: int
    """How many at most."""
    types: Mapping[str, int]
    """The types of numbers, with the bits of one."""


_NUMBERS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64"), 64),
}
_OTHER_NUMBERS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64},
    **dict.fromkeys(("F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
}
"""The rest of safetensors 0.8's types. The engine computes with none of them."""

LORA = Rules(header_bytes=16 << 20, tensors=10_000, types=_NUMBERS | _OTHER_NUMBERS)
"""Of a LoRA. Its header has some hundred kilobytes, with a trainer's notes a few megabytes; of every layer of
FLUX.2-dev it has about 1,500 tensors, a LoKr 3,000. A tensor that the engine does not use may be of any type."""

CHECKPOINT = Rules(header_bytes=MAX_HEADER_BYTES, tensors=100_000, types=_NUMBERS)
"""Of one file of a checkpoint."""


class SafetensorsRuleError(Exception):
    """The file breaks a rule; the message says which in a few printable words."""


class NotWhole(SafetensorsRuleError):
    """It is not a whole safetensors file: another download may help."""

    def __init__(self, reason: str, expected_bytes: int | None = None) -> None:
        super().__init__(f"it is not a whole safetensors file ({reason})")
        self.expected_bytes = expected_bytes
        """The length that the header gives the file, where it has another."""


@attrs.frozen
class TensorPlace:
    """One tensor of a file."""

    dtype: str
    """One of the types that the rules take."""
    shape: tuple[int, ...]
    """Empty for a single number."""
    begin: int
    """Where its data begins, counted from the end of the header."""
    size: int
    """Bytes of its data."""


@attrs.frozen
class Header:
    """What a file says of itself."""

    tensors: Mapping[str, TensorPlace]
    metadata: Mapping[str, str]
    data_begin: int
    """Where the data begins in the file."""


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE)], ...], msgspec.Meta(max_length=8)]
    data_offsets: tuple[int, int]


def read_file(file: BinaryIO, size: int, rules: Rules = LORA) -> Header:
    """Read the header at the beginning of an open file; the tensors in it fill the file to its last byte.

    Args:
        file: where its first byte comes next.
        size: bytes of the whole file.
        rules: what is taken.

    Raises:
        SafetensorsRuleError: the file breaks a rule.
        OSError: it cannot be read.
    """
    length = header_bytes(file.read(PREFIX_BYTES), size, rules)
    return read_header(file.read(length), size, rules)


def header_bytes(prefix: bytes | bytearray, file_size: int, rules: Rules = LORA) -> int:
    """Return the length of the header from the first bytes of a file.

    Raises:
        SafetensorsRuleError: no header is that long.
    """
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == PREFIX_BYTES else 0
    if not 2 <= length <= min(rules.header_bytes, file_size - PREFIX_BYTES):
        raise NotWhole("it does not begin with a safetensors header")
    return int(length)


def read_header(data: bytes | bytearray, file_size: int, rules: Rules = LORA) -> Header:
    """Read a header; the tensors in it fill the file to its last byte.

    Args:
        data: the header, without the bytes before it.
        file_size: bytes of the whole file.
        rules: what is taken.

    Raises:
        SafetensorsRuleError: the file breaks a rule.
    """
    try:
        # Counted and measured before anything in it is read.
        entries = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        notes = entries.pop("__metadata__", None)
        if len(entries) > rules.tensors:
            raise SafetensorsRuleError(
                f"it holds {len(entries)} tensors, and {rules.tensors} are the most that are taken"
            )
        longest = max(entries, key=len, default="")
        if len(longest) > MAX_NAME:
            raise SafetensorsRuleError(f"a tensor's name has {len(longest)} characters, and {MAX_NAME} are the most")
        metadata = {} if notes is None else msgspec.json.decode(notes, type=dict[str, str] | None) or {}
        tensors = {name: msgspec.json.decode(each, type=_Tensor) for name, each in entries.items()}
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise NotWhole("its header cannot be read") from None
    if not tensors:
        raise NotWhole("it holds no tensors")
    places = {name: _place(name, tensor, rules) for name, tensor in tensors.items()}
    end = 0
    for place in sorted(places.values(), key=lambda place: (place.begin, place.size)):
        if place.begin != end:
            raise NotWhole("its tensors overlap or have gaps")
        end += place.size
    data_begin = PREFIX_BYTES + len(data)
    if data_begin + end != file_size:
        reason = "a part of it is missing" if data_begin + end > file_size else "it is too long"
        raise NotWhole(reason, expected_bytes=data_begin + end)
    return Header(places, metadata, data_begin)


def _place(name: str, tensor: _Tensor, rules: Rules) -> TensorPlace:
    begin, end = tensor.data_offsets
    if tensor.dtype not in rules.types:
        raise SafetensorsRuleError(
            f"it holds {printable(name)} as {printable(tensor.dtype, 20)}: save it as one of {', '.join(rules.types)}"
        )
    size, over = divmod(math.prod(tensor.shape) * rules.types[tensor.dtype], 8)
    if over or end - begin != size:
        raise NotWhole(f"its tensor {printable(name)} has another size than its shape says")
    return TensorPlace(tensor.dtype, tensor.shape, begin, size)
