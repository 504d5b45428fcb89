"""Images from strangers: base64 or a data URL becomes RGB pixels, or one clear error.

These bytes come from clients: only formats that browsers and cameras write are opened, the number of pixels
is known before the first is decoded, and whatever a decoder raises is the same error to the client.
"""

import base64
import binascii
import re
from io import BytesIO
from typing import TYPE_CHECKING
from urllib.parse import unquote

from mflux_api.errors import InvalidParameter
from mflux_api.images.resize import MULTIPLE, reference_size

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 32_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
LIMIT = f"base64 or a data URL of a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF image of at most {MAX_PIXELS // 10**6} MP"

_MOST_INFOTEXT = 64 * 1024
_LEAST_SAVED = 4096
_DATA_URL = re.compile(r"data:[^,]{0,256}?;base64,", re.IGNORECASE)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,20}:")
_URL_SAFE = str.maketrans("-_", "+/")


def decode_image(text: str, index: int, field: str = "init_images", *, reference: bool = True) -> "Image":
    """Return an image as RGB: turned as its EXIF orientation says, on white where it is transparent.

    An animation gives its first frame. Takes up to a second for a large image, so call it in a thread.

    Args:
        text: base64 or a data URL.
        index: its place in the request, for the error.
        field: what the client calls the list it is in, for the error.
        reference: whether it is for editing, which needs a least size; ``False`` for upscaling.

    Raises:
        InvalidParameter: it is not a whole image of a known format, or too large or too small.
    """
    try:
        return _to_rgb(_decode_base64(text), reference)
    except _Refused as refused:
        raise InvalidParameter.for_field(
            field, f"is invalid: image {index + 1} {refused}", limit=LIMIT, index=index
        ) from None


def infotext_of(text: str) -> str:
    """Return the infotext in a PNG that :func:`decode_image` has read; "" where there is none."""
    from PIL import Image

    with Image.open(BytesIO(_decode_base64(text)), formats=_FORMATS) as image:
        said = image.info.get("parameters", "")
    return said if isinstance(said, str) and len(said) <= _MOST_INFOTEXT else ""


def file_bytes(text: str) -> bytes | None:
    """Return the file that is in base64 or a data URL; ``None`` where it is neither."""
    try:
        return _decode_base64(text)
    except _Refused:
        return None


def compact_text(text: str) -> str:
    """Return base64 of the file alone where a text is much longer, because of blanks for instance; else the text."""
    data = file_bytes(text)
    if data is None or len(text) - 2 * len(data) < _LEAST_SAVED:
        return text
    return base64.b64encode(data).decode()


class _Refused(Exception):
    """The message completes the sentence "image 1 …"."""


def _decode_base64(text: str) -> bytes:
    text = text.strip()
    head = _DATA_URL.match(text)
    if head is None and (scheme := _URL.match(text)) is not None:
        what = (
            "is a data URL without base64" if scheme.group().lower() == "data:" else "is a URL; send the image itself"
        )
        raise _Refused(what)
    encoded = "".join(text[head.end() if head is not None else 0 :].split()).translate(_URL_SAFE)
    if head is not None and "%" in encoded:
        encoded = unquote(encoded)
    encoded = encoded.rstrip("=")
    if not encoded:
        raise _Refused("is empty")
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _Refused("is not base64") from None


def _to_rgb(data: bytes, reference: bool) -> "Image":
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            _check_size(*image.size, reference)
            image.load()
            # After the frame is chosen and before anything forgets the EXIF data.
            return _put_on_white(_apply_orientation(image))
    except _Refused:
        raise
    except UnidentifiedImageError:
        raise _Refused("is not an image of a known format; send a PNG, JPEG or WebP") from None
    except MemoryError:
        # The limit of the process, and not the image's own fault: who set it says what it means.
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _Refused(f"has too many pixels; scale it down to {MAX_PIXELS // 10**6} MP") from None
    except Exception:  # noqa: BLE001 - a decoder may raise anything on bytes from outside, and it means one thing
        raise _Refused("is damaged or cut off; save or send it again") from None


def _apply_orientation(image: "Image") -> "Image":
    from PIL import ImageOps

    try:
        turned: Image = ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - the pixels are sound; what a program wrote beside them does not matter
        return image
    return turned


def _check_size(width: int, height: int, reference: bool) -> None:
    if width * height > MAX_PIXELS:
        raise _Refused(f"has {width} × {height} pixels; scale it down to {MAX_PIXELS // 10**6} MP")
    if reference and not all(reference_size(width, height)):
        raise _Refused(f"has {width} × {height} pixels; a side needs at least {MULTIPLE}, also once scaled to 1 MP")


def _put_on_white(image: "Image") -> "Image":
    from PIL import Image

    if image.mode.startswith("I;16"):
        # Pillow's own conversion would clip 16 bits at 255: all white. It scales "I" alone in every byte order.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    elif image.mode in ("I", "F"):
        # The value of white is unknown in them, and Pillow's own conversion would clip them at 255, too.
        raise _Refused("has 32 bits a pixel; save it with 8 or 16")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")
