"""PNG: the chunks that pixels need, the orientation's notes, and the infotext and the profile, which are read apart."""

import struct
import zlib
from collections.abc import Iterator

from mflux_api.images.child.formats.refused import (
    MAX_NOTES,
    MAX_PARTS,
    MAX_PROFILE,
    BadProfile,
    damaged,
    too_many_parts,
)
from mflux_api.images.png import SIGNATURE, chunk

_HEAD = struct.Struct(">I4s")
_HEADER_BYTES = 13
_KEPT = (b"IHDR", b"PLTE", b"tRNS")
_MOST_TEXT = 1 << 20
"""Bytes of a text: a prompt and a negative prompt of 10,000 characters each have 80,000."""
_XMP = b"XML:com.adobe.xmp"
_RAW_EXIF = (b"Raw profile type exif", b"Raw profile type APP1")
_TRANSPARENCY = {0: range(2, 3), 2: range(6, 7), 3: range(1, 257)}
"""By the colour type, how many bytes of transparency there may be."""
_GREY, _PALETTE = 0, 3
_FEW_BITS = (2, 4)


def plain_png(data: bytes) -> bytes:
    """Return a PNG file with the first image and what turns it upright; animations, profiles and texts are gone.

    What the pixels do not need may be damaged in any way.

    Raises:
        Refused: it has too many chunks, or a chunk that pixels need is damaged.
    """
    kept, notes, pixels = dict[bytes, bytes](), dict[bytes, memoryview](), list[memoryview]()
    broken = set[bytes]()
    for kind, body, crc in _chunks(data):
        if kind == b"IDAT":
            pixels.append(body)
        elif kind in _KEPT and kind not in kept:
            if zlib.crc32(body, zlib.crc32(kind)) != crc:
                broken.add(kind)
            kept[kind] = bytes(body)
        elif kind not in notes and len(body) <= MAX_NOTES and _has_orientation(kind, body):
            # The first one alone, even if it is damaged: each could be small and unpack to much.
            notes[kind] = body if zlib.crc32(body, zlib.crc32(kind)) == crc else memoryview(b"")
    if len(header := kept.get(b"IHDR", b"")) < _HEADER_BYTES or b"IHDR" in broken or not pixels:
        raise damaged()
    colour_type = header[9]
    if colour_type != _PALETTE:
        # Elsewhere it only suggests colours.
        kept.pop(b"PLTE", None)
    elif b"PLTE" in broken:
        raise damaged()
    if len(kept.get(b"tRNS", b"")) not in _TRANSPARENCY.get(colour_type, ()):
        kept.pop(b"tRNS", None)
    elif colour_type == _GREY and (depth := header[8]) in _FEW_BITS and b"tRNS" in kept:
        # The decoder makes 8 bits of the pixels and not of this.
        level = int.from_bytes(kept[b"tRNS"], "big") & ((1 << depth) - 1)
        kept[b"tRNS"] = (level * 255 // ((1 << depth) - 1)).to_bytes(2, "big")
    parts = [SIGNATURE]
    parts += [chunk(kind, kept[kind]) for kind in _KEPT if kind in kept]
    for kind, body in notes.items():
        if note := _plain_note(kind, bytes(body)):
            # A text that was compressed is not any more.
            parts.append(chunk(b"tEXt" if kind == b"zTXt" else kind, note))
    parts += [chunk(b"IDAT", b"".join(pixels)), chunk(b"IEND", b"")]
    return b"".join(parts)


def read_text(data: bytes, key: str) -> str:
    """Return the first text of that name in a PNG file; "" where there is none, or it is too long.

    Raises:
        Refused: it has too many chunks.
    """
    wanted = key.encode("ascii") + b"\0"
    for kind, body, _ in _chunks(data):
        if kind in (b"tEXt", b"iTXt", b"zTXt") and len(body) <= _MOST_TEXT and bytes(body[: len(wanted)]) == wanted:
            text = _text(kind, bytes(body[len(wanted) :]), _MOST_TEXT) or b""
            return text.decode("latin-1" if kind != b"iTXt" else "utf-8", "replace")
    return ""


def text_names(data: bytes) -> list[str]:
    """Return the names of the texts in a PNG file, each once.

    Raises:
        Refused: it has too many chunks.
    """
    names = dict[str, None]()
    for kind, body, _ in _chunks(data):
        if kind in (b"tEXt", b"iTXt", b"zTXt"):
            key = bytes(body[:80]).partition(b"\0")[0]
            if key and key.isascii():
                names[key.decode("ascii")] = None
    return list(names)


def png_profile(data: bytes) -> bytes:
    """Return the colour profile in a PNG file; b"" where there is none.

    Raises:
        BadProfile: it is damaged or too large.
    """
    for kind, body, crc in _chunks(data):
        if kind == b"IDAT":
            break
        if kind == b"iCCP":
            if len(body) > MAX_PROFILE:
                raise BadProfile("is too large")
            if zlib.crc32(body, zlib.crc32(kind)) != crc:
                raise BadProfile("is damaged")
            unpacker = zlib.decompressobj()
            try:
                profile = unpacker.decompress(bytes(body).partition(b"\0")[2][1:], MAX_PROFILE)
            except zlib.error:
                raise BadProfile("is damaged") from None
            if not unpacker.eof:
                raise BadProfile("is too large" if unpacker.unconsumed_tail else "is damaged")
            return profile
    return b""


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """Yield kind, content and checksum of each chunk up to the end; a cut one is what there is of it.

    Where a chunk says that it is longer than the file, the pixels are looked for behind it.
    """
    view, at, count = memoryview(data), len(SIGNATURE), 0
    while at + _HEAD.size <= len(data):
        length, kind = _HEAD.unpack_from(data, at)
        count += 1
        if count > MAX_PARTS:
            raise too_many_parts()
        begin, end = at + _HEAD.size, at + _HEAD.size + length
        if end > len(data) and kind != b"IDAT" and (pixels := data.find(b"IDAT", begin)) >= begin + 4:
            at = pixels - 4
            continue
        crc = int.from_bytes(view[end : end + 4], "big") if end + 4 <= len(data) else -1
        yield kind, view[begin:end], crc
        if kind == b"IEND":
            return
        at = end + 4


def _has_orientation(kind: bytes, body: memoryview) -> bool:
    """Whether a chunk may hold the orientation."""
    if kind == b"eXIf":
        return True
    if kind not in (b"iTXt", b"tEXt", b"zTXt"):
        return False
    key, _, rest = bytes(body).partition(b"\0")
    # Pillow reads no packed XMP.
    return (key == _XMP and rest[:1] == b"\0") if kind == b"iTXt" else key in _RAW_EXIF


def _plain_note(kind: bytes, body: bytes) -> bytes | None:
    """Return what such a chunk holds, unpacked; ``None`` if it is damaged or too long."""
    if kind != b"zTXt":
        return body
    key, _, rest = body.partition(b"\0")
    text = _text(kind, rest, 4 * MAX_NOTES)
    return None if text is None else key + b"\0" + text


def _text(kind: bytes, rest: bytes, limit: int) -> bytes | None:
    """Return the text behind a key, unpacked where it is packed; ``None`` if it is damaged or longer than the limit."""
    if kind == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:]
        for _ in range(2):
            # A language, and the key in it.
            _, _, rest = rest.partition(b"\0")
    else:
        packed, rest = kind == b"zTXt", rest[1:] if kind == b"zTXt" else rest
    if not packed:
        return rest
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(rest, limit)
    except zlib.error:
        return None
    return text if unpacker.eof else None
