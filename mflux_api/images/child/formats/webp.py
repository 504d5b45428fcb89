"""WebP: the still image or the first frame, and its orientation's notes."""

import struct

from mflux_api.images.child.formats.refused import MAX_NOTES, MAX_PARTS, damaged, too_many_parts

_ICC, _EXIF, _XMP = 0x20, 0x08, 0x04
_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_NOTES = {b"EXIF": _EXIF, b"XMP ": _XMP}


def plain_webp(data: bytes) -> bytes:
    """Return a WebP file with the first image and what turns it upright.

    Raises:
        Refused: it has too many chunks, or is cut off.
    """
    chunks = dict[bytes, bytes]()
    at, count = 12, 0
    while at + 8 <= len(data):
        count += 1
        if count > MAX_PARTS:
            raise too_many_parts()
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length
        if kind in (b"VP8X", *_PIXELS) or (kind in _NOTES and length <= MAX_NOTES):
            if end > len(data):
                raise damaged()
            # The first of each: of an animation, its first frame.
            chunks.setdefault(kind, data[at + 8 : end])
        at = end + length % 2
    extended = chunks.pop(b"VP8X", None)
    body = list[bytes]()
    if extended is not None:
        if len(extended) != 10:
            raise damaged()
        flags = extended[0] & ~(_ICC | _EXIF | _XMP)
        for kind, flag in _NOTES.items():
            flags |= flag if kind in chunks else 0
        body.append(_chunk(b"VP8X", bytes((flags, *extended[1:]))))
        order: tuple[str, ...] = ("ANIM", "ANMF", "ALPH", "VP8 ", "VP8L", "EXIF", "XMP ")
    else:
        order = ("VP8 ", "VP8L")
    body += [_chunk(kind, chunks[kind]) for kind in (name.encode("ascii") for name in order) if kind in chunks]
    content = b"".join((b"WEBP", *body))
    return b"".join((b"RIFF", struct.pack("<I", len(content)), content))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join((kind, struct.pack("<I", len(data)), data, b"\0" * (len(data) % 2)))
