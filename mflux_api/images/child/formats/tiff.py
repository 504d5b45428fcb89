"""TIFF: bounds on the first image's directory; the file itself goes on as it is."""

import struct

from mflux_api.images.child.formats.refused import Refused, damaged, too_many_parts
from mflux_api.images.sizes import MAX_PIXELS

_MAX_ENTRIES = 512
"""Entries of a directory: cameras write some sixty."""
_MAX_COUNT = 1 << 18
"""Numbers of one entry: 32 MP in tiles of 16 × 16 have half as many."""
_MAX_BYTES = 16 << 20
"""Bytes of all entries together; each may name the same ones."""
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_OPAQUE = (1, 2, 6, 7)
"""Types whose values are bytes and not made into numbers."""
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_BYTE_COUNTS = (279, 325)
"""How much data each strip or tile has: all of them together no more than the file."""
_NUMBERS = {3: "H", 4: "I", 16: "Q"}


def plain_tiff(data: bytes) -> bytes:
    """Return the file when its directory is within bounds.

    Raises:
        Refused: it is not, or the file is cut off.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    try:
        (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
        if count > _MAX_ENTRIES:
            raise too_many_parts()
        entry = struct.Struct(order + ("HHQQ" if big else "HHII"))
        at += 8 if big else 2
        entries = [entry.unpack_from(data, at + place * entry.size) for place in range(count)]
        _check(data, entries, order, 8 if big else 4)
    except (struct.error, OverflowError):
        raise damaged() from None
    return data


def _check(data: bytes, entries: list[tuple[int, ...]], order: str, place: int) -> None:
    total, tile = 0, {_TILE_WIDTH: 1, _TILE_LENGTH: 1}
    for tag, kind, count, value in entries:
        total += count * _SIZES.get(kind, 1)
        if total > _MAX_BYTES or (kind not in _OPAQUE and count > _MAX_COUNT):
            raise too_many_parts()
        if tag in tile:
            # A number stands in the first bytes of its place.
            size = min(_SIZES.get(kind, 1), place)
            tile[tag] = value >> 8 * (place - size) if order == ">" else value & ((1 << 8 * size) - 1)
        elif tag in _BYTE_COUNTS and count * _SIZES.get(kind, 1) > place:
            lengths = struct.unpack_from(f"{order}{count}{_NUMBERS.get(kind, 'B')}", data, value)
            if sum(lengths) > 4 * len(data):
                raise damaged()
    if tile[_TILE_WIDTH] * tile[_TILE_LENGTH] > 2 * MAX_PIXELS:
        raise Refused("has tiles that are too large; save it again as a plain PNG or JPEG")
