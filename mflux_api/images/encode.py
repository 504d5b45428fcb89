"""Pixels to files: PNG with its infotext, and PNG to JPEG or WebP."""

import os
from binascii import b2a_base64
from io import BytesIO
from pathlib import Path
from typing import Literal

ImageFormat = Literal["png", "jpeg", "webp"]

MEDIA_TYPES: dict[ImageFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

_LOSSY_QUALITY = 92
_PIECE_BYTES = 3 * 64 * 1024
_PNG_BEGINS = b"\x89PNG\r\n\x1a\n"
_PNG_ENDS = b"\0\0\0\0IEND\xaeB`\x82"


def base64_length(size: int) -> int:
    """Return how long so many bytes are as base64."""
    return 4 * ((size + 2) // 3)


def read_png_as_base64(path: Path, size: int) -> bytearray:
    """Read a PNG file as base64, piece by piece: beside the result there is no copy in memory.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a whole PNG file, or not of that size any more.
    """
    encoded = bytearray(base64_length(size))
    done, first, last = 0, b"", b""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            raise ValueError("the file has changed")
        while piece := file.read(_PIECE_BYTES):
            text = b2a_base64(piece, newline=False)
            if done + len(text) > len(encoded):
                raise ValueError("the file has grown")
            encoded[done : done + len(text)] = text
            done += len(text)
            first, last = first or piece[: len(_PNG_BEGINS)], (last + piece)[-len(_PNG_ENDS) :]
    if done != len(encoded) or first != _PNG_BEGINS or last != _PNG_ENDS:
        raise ValueError("the file is not a whole PNG file")
    return encoded


def encode_png(rgb: bytes, width: int, height: int, *, parameters: str, postprocessing: str = "") -> bytes:
    """Return RGB8 pixels as a PNG file.

    Args:
        rgb: the pixels, row by row, ``width × height × 3`` bytes.
        width: pixels in a row.
        height: rows.
        parameters: the infotext, kept in the file as A1111 keeps it; nothing where it is empty.
        postprocessing: what A1111 keeps beside it for an image that went through its extras.
    """
    # Pillow is imported on use: a server is up before the first request needs it.
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    for key, value in (("parameters", parameters), ("postprocessing", postprocessing)):
        if value and value.isascii():
            text.add_text(key, value)
        elif value:
            text.add_itxt(key, value)
    buffer = BytesIO()
    # Level 1: a quarter of the time of the default for about a tenth more bytes.
    Image.frombytes("RGB", (width, height), rgb).save(buffer, "PNG", compress_level=1, pnginfo=text)
    return buffer.getvalue()


def convert_png(data: bytes, target: ImageFormat) -> bytes:
    """Return one of our PNG files in another format, with its infotext as the EXIF user comment."""
    if target == "png":
        return data
    from PIL import Image

    with Image.open(BytesIO(data)) as image:
        parameters = image.info.get("parameters", "")
        exif = Image.Exif()
        # 0x8769: the Exif IFD; 0x9286: UserComment, whose first 8 bytes name its encoding.
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + str(parameters).encode("utf-16-be")
        buffer = BytesIO()
        image.convert("RGB").save(buffer, target.upper(), quality=_LOSSY_QUALITY, exif=exif)
    return buffer.getvalue()
