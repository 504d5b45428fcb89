"""Files that a decoder does not read, or reads otherwise than they mean: read rightly, or refused with the reason."""

import struct

import pytest

from mflux_api.errors import InvalidParameter
from mflux_api.images.child.decode import decode_image

SIDE = 32


def tiff(photometric: int, samples: int, planar: int, bits: int, pixels: bytes, number: int = 1) -> bytes:
    """Return an uncompressed TIFF file with a strip for each plane."""
    planes = samples if planar == 2 else 1
    at, entries = 8, list[tuple[int, int, int, bytes]]()
    size = len(pixels) // planes

    def shorts(*values: int) -> bytes:
        return struct.pack(f"<{len(values)}H", *values)

    def longs(*values: int) -> bytes:
        return struct.pack(f"<{len(values)}I", *values)

    for tag, kind, values in (
        (256, 3, (SIDE,)),
        (257, 3, (SIDE,)),
        (258, 3, (bits,) * samples),
        (259, 3, (1,)),
        (262, 3, (photometric,)),
        (273, 4, tuple(at + size * plane for plane in range(planes))),
        (277, 3, (samples,)),
        (278, 3, (SIDE,)),
        (279, 4, (size,) * planes),
        (284, 3, (planar,)),
        (339, 3, (number,) * samples),
    ):
        entries.append((tag, kind, len(values), shorts(*values) if kind == 3 else longs(*values)))
    directory, extra = at + len(pixels), b""
    behind = directory + 2 + 12 * len(entries) + 4
    table = shorts(len(entries))
    for tag, kind, count, value in entries:
        if len(value) <= 4:
            place = value.ljust(4, b"\0")
        else:
            place = longs(behind + len(extra))
            extra += value
        table += struct.pack("<HHI", tag, kind, count) + place
    return b"II*\0" + longs(directory) + pixels + table + bytes(4) + extra


def numbers(*levels: int) -> bytes:
    return b"".join(struct.pack("<H", 257 * level) * SIDE**2 for level in levels)


@pytest.mark.parametrize(("photometric", "level"), [(1, 200), (0, 55)])
def test_grey_of_16_bits_is_a_negative_where_white_is_zero(photometric: int, level: int) -> None:
    image = decode_image(tiff(photometric, 1, 1, 16, numbers(200)), 0)
    assert image.getpixel((9, 9)) == (level,) * 3


def test_planes_of_8_bits_are_read() -> None:
    pixels = b"".join(bytes((level,)) * SIDE**2 for level in (200, 60, 30))
    assert decode_image(tiff(2, 3, 2, 8, pixels), 0).getpixel((9, 9)) == (200, 60, 30)


def test_planes_of_16_bits_are_refused_with_the_reason() -> None:
    with pytest.raises(InvalidParameter, match="planes of 16 bits; save it with compression"):
        decode_image(tiff(2, 3, 2, 16, numbers(200, 60, 30)), 0)


def test_floats_are_refused_and_tiff_is_not_called_unknown() -> None:
    pixels = struct.pack("<3f", 0.5, 0.2, 0.1) * SIDE**2
    with pytest.raises(InvalidParameter, match="is TIFF of a kind that is not read"):
        decode_image(tiff(2, 3, 1, 32, pixels, number=3), 0)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", "SVG"),
        (b"%PDF-1.7", "a PDF"),
    ],
)
def test_format_that_is_not_read_is_named(head: bytes, name: str) -> None:
    with pytest.raises(InvalidParameter, match=f"is {name}, which is not read; send a PNG, JPEG or WebP"):
        decode_image(head + bytes(100), 0)


def test_layout_of_bmp_that_the_decoder_does_not_know_is_not_called_damaged() -> None:
    pixels = bytes((200, 60, 30, 0)) * SIDE**2
    header = struct.pack("<IiiHHIIiiII3I", 40, SIDE, SIDE, 1, 32, 3, len(pixels), 0, 0, 0, 0, 0xFF, 0xFF00, 0xFF0000)
    head = b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header))
    with pytest.raises(InvalidParameter, match="is BMP of a kind that is not read"):
        decode_image(head + header + pixels, 0)


def test_film_is_not_called_an_image_of_a_known_format() -> None:
    with pytest.raises(InvalidParameter, match="is not an image of a known format"):
        decode_image(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(100), 0)
