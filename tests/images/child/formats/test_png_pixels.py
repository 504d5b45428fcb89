"""PNG files of few and of many bits a level: transparency is that of the level which the file names."""

import struct
import zlib

import pytest

from mflux_api.images.child.decode import decode_image
from mflux_api.images.png import SIGNATURE, chunk

SIDE = 32


def png(depth: int, level: int, transparent: int) -> bytes:
    """Return a PNG file of one grey level."""
    bits = "".join(format(level, f"0{depth}b") for _ in range(SIDE))
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"tRNS", struct.pack(">H", transparent)), (b"IDAT", zlib.compress(row * SIDE))
    return SIGNATURE + b"".join(chunk(kind, body) for kind, body in (*parts, (b"IEND", b"")))


@pytest.mark.parametrize(
    ("depth", "level"), [(1, 0), (1, 1), (2, 1), (2, 2), (4, 1), (4, 7), (4, 14), (8, 100), (16, 25700)]
)
def test_level_that_stands_for_transparency_is_white(depth: int, level: int) -> None:
    assert decode_image(png(depth, level, level), 0).getpixel((9, 9)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("depth", "level", "other"), [(1, 0, 1), (2, 1, 2), (4, 1, 2), (4, 1, 0), (8, 100, 101), (16, 25700, 30000)]
)
def test_level_beside_it_is_opaque(depth: int, level: int, other: int) -> None:
    shown = level * 255 // ((1 << depth) - 1)
    assert decode_image(png(depth, level, other), 0).getpixel((9, 9)) == (shown,) * 3
