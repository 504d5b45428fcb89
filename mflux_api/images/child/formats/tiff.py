"""TIFF: of the directory what pixels and orientation need, within bounds; the colour profile is read apart."""

import struct

import attrs

from mflux_api.images.child.formats.refused import MAX_NOTES, MAX_PROFILE, BadProfile, Refused, damaged, too_many_parts
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
_KEPT = frozenset((
    *range(254, 260), 262, 266, 273, 274, *range(277, 285), 292, 293, 296, 317, *range(320, 326), 332, 333, 334,
    *range(338, 342), 347, *range(512, 522), *range(529, 533), 50674,
))  # fmt: skip
"""What decoders read for pixels and orientation; all else, such as layers, may be as large and as odd as it likes."""
_XMP, _PROFILE = 700, 34675
Entry = tuple[int, int, int, int]
"""Tag, type, how many, and the value or its place."""


@attrs.frozen
class _Directory:
    order: str
    big: bool
    at: int
    entries: tuple[Entry, ...]

    @property
    def place(self) -> int:
        """How many bytes an entry has for its value."""
        return 8 if self.big else 4

    @property
    def entry(self) -> struct.Struct:
        return struct.Struct(self.order + ("HHQQ" if self.big else "HHII"))


def plain_tiff(data: bytes) -> bytes:
    """Return the file with a directory of only what the pixels of the first image and its orientation need.

    Raises:
        Refused: it is not within bounds, or the file is cut off.
    """
    try:
        directory = _read_directory(data)
        sizes = {tag: count * _SIZES.get(kind, 1) for tag, kind, count, _ in directory.entries}
        kept = [
            each for each in directory.entries if each[0] in _KEPT or (each[0] == _XMP and sizes[_XMP] <= MAX_NOTES)
        ]
        _check(data, kept, directory.order, directory.place)
    except (struct.error, OverflowError):
        raise damaged() from None
    # In its old place, so that the places that entries name stay as they are; it is the last one.
    table = [struct.pack(directory.order + ("Q" if directory.big else "H"), len(kept))]
    table += [directory.entry.pack(*each) for each in kept]
    written = b"".join((*table, bytes(directory.place)))
    return b"".join((data[: directory.at], written, data[directory.at + len(written) :]))


def tiff_profile(data: bytes) -> bytes:
    """Return the colour profile in a TIFF file that :func:`plain_tiff` takes; b"" where there is none.

    Raises:
        BadProfile: it is cut off or too large.
    """
    directory = _read_directory(data)
    for tag, kind, count, value in directory.entries:
        if tag == _PROFILE:
            size = count * _SIZES.get(kind, 1)
            if size > MAX_PROFILE:
                raise BadProfile("is too large")
            if size <= directory.place or value + size > len(data):
                raise BadProfile("is not whole")
            return data[value : value + size]
    return b""


def _read_directory(data: bytes) -> _Directory:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    if count > _MAX_ENTRIES:
        raise too_many_parts()
    empty = _Directory(order, big, at, ())
    at, entry = at + (8 if big else 2), empty.entry
    return attrs.evolve(empty, entries=tuple(entry.unpack_from(data, at + n * entry.size) for n in range(count)))


def _check(data: bytes, entries: list[Entry], order: str, place: int) -> None:
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
