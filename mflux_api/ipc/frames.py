"""Frames: how two processes say attrs objects and raw bytes to each other over a pipe.

A frame is a 4-byte big-endian length, a MessagePack array ``[tag, body, blob lengths]`` of that length, and then the
blobs, raw. Both sides cap every size, so that a broken peer cannot make the other allocate at will.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import msgspec

MAX_HEADER = 1 << 20
MAX_BLOB = 96_000_000
"""Bytes of one raw blob: an image of 32 MP, the largest that a client may send."""
MAX_BLOBS = 8

_LENGTH = struct.Struct(">I")

PREFIX_LENGTH = _LENGTH.size


class ProtocolError(Exception):
    """The peer sent something that is not a frame, or a frame cannot be made of what is to be sent."""


@attrs.frozen
class Header:
    """A decoded header: the frame and the lengths of the blobs that follow it."""

    frame: Any
    """An instance of one of the types that were asked for."""
    blob_lengths: tuple[int, ...]


def encode(frame: Any, blobs: Sequence[bytes] = ()) -> bytes:
    """Return a frame as bytes.

    Raises:
        ProtocolError: it is larger than the receiver would take, or holds what MessagePack cannot say or the
            receiver would refuse.
    """
    return b"".join((encode_head(frame, [len(blob) for blob in blobs]), *blobs))


def encode_head(frame: Any, lengths: Sequence[int]) -> bytes:
    """Return what of a frame stands before its blobs.

    Args:
        frame: an attrs object.
        lengths: how long each of its blobs is.

    Raises:
        ProtocolError: it is larger than the receiver would take, or holds what MessagePack cannot say or the
            receiver would refuse.
    """
    try:
        header = msgspec.msgpack.encode([type(frame).__name__, attrs.asdict(frame, recurse=False), list(lengths)])
        if len(header) > MAX_HEADER or len(lengths) > MAX_BLOBS or any(length > MAX_BLOB for length in lengths):
            raise ProtocolError(f"a {type(frame).__name__} frame is too large")
        # A frame that the receiver refused would cost the child that sent it, or got it; here it costs one request.
        _decode(header, {type(frame).__name__: type(frame)})
    except (UnicodeEncodeError, OverflowError, RecursionError, TypeError, ValueError) as error:
        # A lone surrogate in a prompt, a number beyond 64 bits or out of its field's limits, an object of a library.
        raise ProtocolError(f"a {type(frame).__name__} frame cannot be encoded ({type(error).__name__})") from None
    return _LENGTH.pack(len(header)) + header


def header_length(prefix: bytes) -> int:
    """Return the header's length from the first 4 bytes of a frame.

    Raises:
        ProtocolError: no frame is that long.
    """
    (length,) = _LENGTH.unpack(prefix)
    if not 0 < length <= MAX_HEADER:
        raise ProtocolError(f"a frame header of {length} bytes")
    return int(length)


def decode_header(data: bytes, types: Mapping[str, type[Any]]) -> Header:
    """Decode a header.

    Args:
        data: the bytes between the length and the blobs.
        types: tag → class of every frame that may come.

    Raises:
        ProtocolError: it is not one of ours.
    """
    try:
        frame, lengths = _decode(data, types)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
        # Not all that msgspec raises is its own: text that is not UTF-8 is a UnicodeDecodeError.
        raise ProtocolError("a frame that cannot be decoded") from None
    if len(lengths) > MAX_BLOBS or not all(0 <= length <= MAX_BLOB for length in lengths):
        raise ProtocolError("a frame with blobs out of bounds")
    return Header(frame, lengths)


def _decode(data: bytes, types: Mapping[str, type[Any]]) -> tuple[Any, tuple[int, ...]]:
    tag, body, lengths = msgspec.msgpack.decode(data, type=tuple[str, dict[str, Any], tuple[int, ...]])
    if tag not in types:
        raise ProtocolError("a frame with an unknown tag")
    return msgspec.convert(body, types[tag]), lengths
