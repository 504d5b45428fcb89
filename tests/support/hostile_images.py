"""Images that cost far more than they weigh, each of a kind that was seen or that follows from a format's rules."""

import base64
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from io import BytesIO

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    *extra: bytes, size: tuple[int, int] = (64, 64), pixels: bytes | None = None, interlaced: bool = False
) -> bytes:
    """A grey PNG file with more chunks before its pixels."""
    width, height = size
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced)
    data = zlib.compress(bytes((width + 1) * height) if pixels is None else pixels, 1)
    return b"".join((SIGNATURE, chunk(b"IHDR", header), *extra, chunk(b"IDAT", data), chunk(b"IEND", b"")))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scans(count: int, size: tuple[int, int] = (2000, 2000)) -> bytes:
    """A progressive JPEG whose last scan comes so many times."""
    data = saved(Image.new("L", size, 90), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


@cache
def bomb() -> bytes:
    """64 MB in 64 KB."""
    return zlib.compress(bytes(64 << 20), 9)


def gif_head(size: tuple[int, int] = (64, 64)) -> bytes:
    """What stands before the parts of a GIF file."""
    return b"GIF89a" + struct.pack("<HHBBB", *size, 0, 0, 0)


def gif(data: bytes, size: tuple[int, int] = (64, 64)) -> bytes:
    """A GIF file whose frame holds this as its blocks."""
    head = b"GIF89a" + struct.pack("<HHBBB", *size, 0x80, 0, 0) + bytes(6)
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, *size, 0) + b"\x08" + data + b"\0"
    return head + frame + b";"


def tiff(entries: int, count: int = 1, kind: int = 4) -> bytes:
    """A TIFF file with many entries that all name the same bytes."""
    fields = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 4, 1, 8), (259, 4, 1, 1), (262, 4, 1, 1), (273, 4, 1, 8)]
    fields += [(277, 4, 1, 1), (278, 4, 1, 64), (279, 4, 1, 4096)]
    fields += [(1000 + number, kind, count, 8) for number in range(entries)]
    data = bytes(max(4096, count * 8))
    table = b"".join(struct.pack("<HHII", *field) for field in fields)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(fields)) + table + bytes(4)


def tile_bomb() -> bytes:
    fields = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 4, 1, 8), (259, 4, 1, 8), (262, 4, 1, 1), (277, 4, 1, 1)]
    fields += [(322, 4, 1, 1 << 20), (323, 4, 1, 1 << 20), (324, 4, 1, 8), (325, 4, 1, 64)]
    table = b"".join(struct.pack("<HHII", *field) for field in fields)
    return b"II*\0" + struct.pack("<I", 72) + bytes(64) + struct.pack("<H", len(fields)) + table + bytes(4)


def packed_bmp(runs: int) -> bytes:
    """A BMP file of runs of one pixel each."""
    head = struct.pack("<IiiHHIIiiII", 40, 8000, 3900, 1, 8, 1, 2 * runs, 0, 0, 256, 0) + bytes(1024)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + 2 * runs, 0, 0, 14 + len(head)) + head + b"\1\1" * runs


def webp(chunks: int) -> bytes:
    data = saved(Image.new("RGB", (64, 64)), "WEBP", lossless=True)
    body = data[8:] + b"JUNK\0\0\0\0" * chunks
    return b"RIFF" + struct.pack("<I", len(body)) + body


REFUSED: Mapping[str, Callable[[], bytes]] = {
    "jpeg of a thousand scans": lambda: scans(1000),
    "jpeg of ninety scans of 30 MP": lambda: scans(90, (6000, 5000)),
    "jpeg of a million segments": lambda: saved(Image.new("L", (64, 64)), "JPEG")[:2] + b"\xff\xfe\0\2" * 10**6,
    "jpeg of a run of 255": lambda: saved(Image.new("L", (64, 64)), "JPEG")[:20] + b"\xff" * 4_000_000 + b"\0",
    "png of a million empty chunks": lambda: png(chunk(b"teSt", b"") * 1_000_000),
    "png of a million empty pixels": lambda: png(chunk(b"IDAT", b"") * 1_000_000),
    "gif of a million comments": lambda: gif_head() + b"\x21\xfe\1a\0" * 10**6,
    "gif of a million empty comments": lambda: gif_head() + b"\x21\xfe\0" * 10**6,
    "gif of a million blocks": lambda: gif(b"\1a" * 10**6),
    "tiff of thousands of entries": lambda: tiff(60_000),
    "tiff of entries of millions of numbers": lambda: tiff(100, 2_000_000, 3),
    "tiff of the same bytes a hundred times": lambda: tiff(400, 1_000_000, 1),
    "tiff of one enormous tile": tile_bomb,
    "bmp of ten million runs": lambda: packed_bmp(10_000_000),
    "webp of a million chunks": lambda: webp(1_000_000),
}
"""What no program writes."""

ACCEPTED: Mapping[str, Callable[[], bytes]] = {
    "png of 30,000 empty chunks": lambda: png(chunk(b"teSt", b"") * 30_000),
    "png with a colour profile that is a bomb": lambda: png(chunk(b"iCCP", b"a\0\0" + bomb())),
    "png with a text that is a bomb": lambda: png(*(chunk(b"zTXt", b"Comment\0\0" + bomb()) for _ in range(20))),
    "png with an infotext that is a bomb": lambda: png(chunk(b"zTXt", b"parameters\0\0" + bomb())),
    "png with an EXIF profile that is a bomb": lambda: png(chunk(b"zTXt", b"Raw profile type exif\0\0" + bomb())),
}
"""What is decoded without what makes it costly."""


def as_text(data: bytes) -> str:
    """Return a file as clients send it."""
    return base64.b64encode(data).decode()
