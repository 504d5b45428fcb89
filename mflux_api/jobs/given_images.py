"""Images as a Python program has them (paths, bytes, Pillow's) become the base64 that a request carries."""

import base64
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mflux_api.errors import InvalidParameter
from mflux_api.system.regular_files import FileTooLarge, NotRegularFile, read_regular

MAX_FILE_BYTES = 256 * 2**20
"""Of one file; an image of 32 MP in 16 bits without compression has as many."""
_OF_PNG = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
"""Pillow's modes that a PNG has; any other becomes RGB."""


@runtime_checkable
class PillowImage(Protocol):
    """What is used of ``PIL.Image.Image``; Pillow itself is not imported here."""

    @property
    def mode(self) -> str:
        """What its pixels are."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:  # noqa: A002 - Pillow's name
        """Write the image."""

    def convert(self, mode: str) -> Any:
        """Return it in another mode."""

    def getexif(self) -> Any:
        """Return its EXIF data."""


GivenImage = str | bytes | bytearray | memoryview | Path | PillowImage
"""Base64 or a data URL as text, a file's content, a file, or an image of Pillow's."""


def encode_image(image: GivenImage) -> str:
    """Return an image as base64; a text is one already.

    Raises:
        InvalidParameter: the file cannot be read.
    """
    if isinstance(image, Path):
        return base64.b64encode(_content(image)).decode()
    if isinstance(image, bytes | bytearray | memoryview):
        return base64.b64encode(image).decode()
    if isinstance(image, PillowImage):
        return base64.b64encode(_as_png(image)).decode()
    # Of another kind: the check of the request names the field.
    return image


def encode_images(images: GivenImage | Iterable[GivenImage]) -> tuple[str, ...]:
    """Return images as base64; one alone is a list of one.

    Raises:
        InvalidParameter: a file cannot be read.
    """
    if isinstance(images, str | bytes | bytearray | memoryview | Path | PillowImage):
        return (encode_image(images),)
    # What is not images at all is left for the check of the request.
    given: Any = images
    return tuple(map(encode_image, given)) if isinstance(given, Iterable) else given


def encode_mask(mask: GivenImage | None) -> str | None:
    """Return a mask as base64, where there is one.

    Raises:
        InvalidParameter: the file cannot be read.
    """
    return None if mask is None else encode_image(mask)


def _content(path: Path) -> bytes:
    try:
        return read_regular(path.expanduser(), MAX_FILE_BYTES)
    except FileTooLarge:
        reason = f"it has more than {MAX_FILE_BYTES // 2**20} MB"
    except NotRegularFile:
        reason = "it is not a file"
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise InvalidParameter(f"The image {path.name} cannot be read: {reason}", {"value": path.name, "limit": "a file"})


def _as_png(image: PillowImage) -> bytes:
    buffer = BytesIO()
    # An image that was opened from a photograph may be turned by its EXIF data, which Pillow does not write by itself.
    exif = image.getexif()
    if image.mode not in _OF_PNG:
        image = image.convert("RGB")
    # It is read once, in this machine: speed counts more than size.
    image.save(buffer, format="PNG", exif=exif, compress_level=1)
    return buffer.getvalue()
