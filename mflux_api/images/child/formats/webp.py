"""WebP: the still image or the first frame, its orientation's notes, and its colour profile, which is read apart."""

import struct
from collections.abc import Iterator, Mapping

from mflux_api.images.child.formats.refused import (
    MAX_NOTES,
    MAX_PARTS,
    MAX_PROFILE,
    BadProfile,
    damaged,
    too_many_parts,
)

_ALPHA, _EXIF, _XMP, _ANIMATION = 0x10, 0x08, 0x04, 0x02
_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_EXTENDED_BYTES = 10
_NOTES = {b"EXIF": _EXIF, b"XMP ": _XMP}


def plain_webp(data: bytes) -> bytes:
    """Return a WebP file with the first image and what turns it upright.

    Raises:
        Refused: it has too many chunks, or is cut off.
    """
    chunks = dict[bytes, bytes]()
    for kind, begin, end in _chunks(data):
        if kind in (b"VP8X", *_PIXELS) or (kind in _NOTES and end - begin <= MAX_NOTES):
            if end <= len(data):
                # The first of each: of an animation, its first frame.
                chunks.setdefault(kind, data[begin:end])
            elif kind in _PIXELS:
                raise damaged()
    extended = chunks.pop(b"VP8X", None)
    if extended is not None and b"ANMF" not in chunks:
        # What it says is in the image, too, and there it is right.
        extended = _extended(chunks) or extended
    body = list[bytes]()
    if extended is not None:
        if len(extended) != _EXTENDED_BYTES:
            raise damaged()
        flags = extended[0] & (_ALPHA | _ANIMATION)
        # Around a first frame that is smaller than the image there is nothing, and without this the decoder has black.
        flags |= _ALPHA if b"ANMF" in chunks else 0
        for kind, flag in _NOTES.items():
            flags |= flag if kind in chunks else 0
        body.append(_chunk(b"VP8X", bytes((flags, *extended[1:]))))
        order: tuple[str, ...] = ("ANIM", "ANMF", "ALPH", "VP8 ", "VP8L", "EXIF", "XMP ")
    else:
        order = ("VP8 ", "VP8L")
    body += [_chunk(kind, chunks[kind]) for kind in (name.encode("ascii") for name in order) if kind in chunks]
    content = b"".join((b"WEBP", *body))
    return b"".join((b"RIFF", struct.pack("<I", len(content)), content))


def webp_profile(data: bytes) -> bytes:
    """Return the colour profile in a WebP file; b"" where there is none.

    Raises:
        BadProfile: it is cut off or too large.
    """
    for kind, begin, end in _chunks(data):
        if kind == b"ICCP":
            if end > len(data):
                raise BadProfile("is not whole")
            if end - begin > MAX_PROFILE:
                raise BadProfile("is too large")
            return data[begin:end]
    return b""


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each chunk, where its content begins, and where it says that it ends."""
    at, count = 12, 0
    while at + 8 <= len(data):
        count += 1
        if count > MAX_PARTS:
            raise too_many_parts()
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], at + 8, at + 8 + length
        at += 8 + length + length % 2


def _extended(chunks: Mapping[bytes, bytes]) -> bytes | None:
    """Return what stands in the extended header of a still image, by its own header; ``None`` if that is damaged."""
    if (image := chunks.get(b"VP8 ")) is not None and image[3:6] == b"\x9d\x01\x2a" and len(image) >= 10:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", image, 6))
        alpha = b"ALPH" in chunks
    elif (image := chunks.get(b"VP8L")) is not None and image[:1] == b"\x2f" and len(image) >= 5:
        (packed,) = struct.unpack_from("<I", image, 1)
        width, height, alpha = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1, bool(packed >> 28 & 1)
    else:
        return None
    sides = ((side - 1).to_bytes(3, "little", signed=side == 0) for side in (width, height))
    return b"".join((bytes((_ALPHA if alpha else 0, 0, 0, 0)), *sides))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join((kind, struct.pack("<I", len(data)), data, b"\0" * (len(data) % 2)))
