"""Pictures as bytes: encoding what the engine painted."""

from io import BytesIO
from typing import Literal

ImageFormat = Literal["png", "jpeg", "webp"]

MEDIA_TYPES: dict[ImageFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def encode_png(rgb: bytes, width: int, height: int) -> bytes:
    """Return RGB8 pixels (row by row, ``width × height × 3`` bytes) as a PNG file."""
    from PIL import Image

    buffer = BytesIO()
    # Level 1: a quarter of the time of the default for about a tenth more bytes.
    Image.frombytes("RGB", (width, height), rgb).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
