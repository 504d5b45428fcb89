"""JPEG: the tables and scans of the first image, its colour marks and its orientation's notes."""

import re
import struct

from mflux_api.images.child.formats.refused import Refused, damaged, too_many_parts

MAX_SCANS = 100
"""Scans of an image: a usual progressive one has 10, and each costs as much as a whole image."""
MAX_SCANNED_PIXELS = 640_000_000
"""Pixels times scans: twenty scans of the largest image."""
_MAX_SEGMENTS = 5_000
# One 255 of a run is enough, and a run of them costs no more than its length.
_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
"""In a scan: 0 after 255 is data, and D0 to D7 are its restarts."""
_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_TABLES = frozenset((0xC4, 0xCC, 0xDB, 0xDD))
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers without a length."""
_SCAN, _END = 0xDA, 0xD9
_NOTES = ((0xE0, b""), (0xEE, b"Adobe"), (0xE1, b"Exif\0"), (0xE1, b"http://ns.adobe.com/xap/1.0/\0"))
"""Segments of which the first is kept: size and colours (JFIF, Adobe), orientation (EXIF, XMP)."""


def plain_jpeg(data: bytes) -> bytes:
    """Return a JPEG file with the first image and what turns it upright; profiles, comments and thumbnails are gone.

    Raises:
        Refused: it has too many segments or scans, or is damaged.
    """
    parts, notes = [data[:2]], set[tuple[int, bytes]]()
    at, segments, scans, pixels, ended = 2, 0, 0, 0, False
    while (found := _MARKER.search(data, at)) is not None:
        marker, begin = data[found.end() - 1], found.end()
        if marker == _END:
            ended = True
            break
        segments += 1
        if segments > _MAX_SEGMENTS:
            raise too_many_parts()
        if marker in _BARE:
            at = begin
            continue
        length = int.from_bytes(data[begin : begin + 2], "big")
        if length < 2:
            raise damaged()
        end = begin + length
        if marker in _FRAMES:
            pixels = _pixels(data, begin, pixels)
        elif marker == _SCAN:
            scans += 1
            if scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
                raise Refused("has too many scans; save it again as a plain JPEG or PNG")
            end_of_scan = _END_OF_SCAN.search(data, end)
            end = len(data) if end_of_scan is None else end_of_scan.start()
        if marker in _FRAMES or marker in _TABLES or marker == _SCAN:
            parts.append(data[found.start() : end])
        elif (note := _note(marker, data[begin + 2 : end])) is not None and note not in notes:
            notes.add(note)
            parts.append(data[found.start() : end])
        at = end
    if not pixels or not scans:
        raise damaged()
    if ended:
        # Without an end it is cut off, and the decoder says so.
        parts.append(b"\xff\xd9")
    return b"".join(parts)


def _pixels(data: bytes, begin: int, before: int) -> int:
    if before or begin + 7 > len(data):
        # A second frame belongs to a second image.
        raise damaged()
    height, width = struct.unpack_from(">HH", data, begin + 3)
    return int(height * width)


def _note(marker: int, content: bytes) -> tuple[int, bytes] | None:
    return next(((kind, name) for kind, name in _NOTES if marker == kind and content.startswith(name)), None)
