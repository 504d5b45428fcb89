"""JPEG: tables and scans of the first image, colour marks, its orientation; the colour profile is read apart."""

import re
import struct

from mflux_api.images.child.formats.refused import MAX_PROFILE, BadProfile, Refused, damaged, too_many_parts

END_OF_JPEG = b"\xff\xd9"
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
_SEQUENTIAL = frozenset((0xC0, 0xC1, 0xC9))
_TABLES = frozenset((0xC4, 0xCC, 0xDB, 0xDD))
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers without a length."""
_SCAN, _END = 0xDA, 0xD9
_NOTES = ((0xE0, b"", 0), (0xEE, b"Adobe", 12), (0xE1, b"Exif\0", 0), (0xE1, b"http://ns.adobe.com/xap/1.0/\0", 0))
"""Segments of which the first is kept: size, colours (JFIF, Adobe), orientation (EXIF, XMP); and their least size."""
_PROFILE, _PROFILE_NAME = 0xE2, b"ICC_PROFILE\0"


def plain_jpeg(data: bytes) -> bytes:
    """Return a JPEG file with the first image and what turns it upright; profiles, comments and thumbnails are gone.

    What lies between the last scan and the end does not matter.

    Raises:
        Refused: it has too many segments or scans, or is damaged.
    """
    parts, notes = [data[:2]], set[tuple[int, bytes]]()
    at, segments, scans, pixels, ended, of_one_scan = 2, 0, 0, 0, False, (b"", False)
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
        end = begin + max(2, int.from_bytes(data[begin : begin + 2], "big"))
        needed = marker in _FRAMES or marker in _TABLES or marker == _SCAN
        if end > len(data) and not needed:
            # Not a segment, or one that says that it is longer than the file.
            at = begin
            continue
        if marker in _FRAMES:
            pixels = _pixels(data, begin, pixels)
            of_one_scan = (data[begin + 7 : begin + 8], marker in _SEQUENTIAL)
        elif marker == _SCAN:
            scans += 1
            if scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
                raise Refused("has too many scans; save it again as a plain JPEG or PNG")
            end_of_scan = _END_OF_SCAN.search(data, end)
            end = len(data) if end_of_scan is None else end_of_scan.start()
            if (data[begin + 2 : begin + 3], True) == of_one_scan:
                # All components: nothing behind it, up to the end, belongs to the image.
                parts.append(data[found.start() : end])
                ended = data.find(END_OF_JPEG, end) >= 0
                break
        if needed:
            parts.append(data[found.start() : end])
        elif (note := _note(marker, data[begin + 2 : end])) is not None and note not in notes:
            notes.add(note)
            parts.append(data[found.start() : end])
        at = end
    if not pixels or not scans:
        raise damaged()
    if ended:
        # Without an end it is cut off, and the decoder says so.
        parts.append(END_OF_JPEG)
    return b"".join(parts)


def jpeg_profile(data: bytes) -> bytes:
    """Return the colour profile in a JPEG file, put together of its parts; b"" where there is none.

    Raises:
        BadProfile: a part is missing, or it is too large.
    """
    pieces, count, total, at = dict[int, bytes](), 0, 0, 2
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or data[found.end() - 1] in (_SCAN, _END):
            break
        marker, at = data[found.end() - 1], found.end()
        if marker in _BARE:
            continue
        end = at + max(2, int.from_bytes(data[at : at + 2], "big"))
        content, at = data[at + 2 : end], end
        if marker == _PROFILE and content.startswith(_PROFILE_NAME) and len(content) >= len(_PROFILE_NAME) + 2:
            place, count = content[len(_PROFILE_NAME)], max(count, content[len(_PROFILE_NAME) + 1])
            pieces.setdefault(place, content[len(_PROFILE_NAME) + 2 :])
            total += len(content)
            if total > MAX_PROFILE:
                raise BadProfile("is too large")
    if not pieces:
        return b""
    if any(place not in pieces for place in range(1, count + 1)):
        raise BadProfile("is not whole")
    return b"".join(pieces[place] for place in sorted(pieces))


def _pixels(data: bytes, begin: int, before: int) -> int:
    if before or begin + 7 > len(data):
        # A second frame belongs to a second image.
        raise damaged()
    height, width = struct.unpack_from(">HH", data, begin + 3)
    return int(height * width)


def _note(marker: int, content: bytes) -> tuple[int, bytes] | None:
    for kind, name, least in _NOTES:
        if marker == kind and len(content) >= least and content.startswith(name):
            return kind, name
    return None
