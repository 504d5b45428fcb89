"""Images in answers, within a number of bytes: an assistant reads all that it is given."""

from collections.abc import Awaitable, Callable
from typing import Final, Literal

import attrs

from mflux_api.images.base64_text import encode_text
from mflux_api.images.encode import MEDIA_TYPES, ImageTarget
from mflux_api.system.threads import read_in_thread

Shown = Literal["thumbnail", "full", "none"]

THUMBNAIL_BYTES: Final = 160 * 1024
"""Largest thumbnail: four of them, as base64, stay below the 1 MB that clients take. 768 pixels of JPEG have 40 to 150
kB."""
FULL_BYTES: Final = 4 * 2**20
MAX_IMAGES: Final = 4
"""Images in one answer; further ones are files alone."""

_THUMBNAILS: Final = tuple(
    ImageTarget(format="jpeg", quality=quality, side=side) for side, quality in ((768, 80), (512, 70), (256, 50))
)
_WHOLE: Final = (ImageTarget(), ImageTarget(format="jpeg", quality=92), ImageTarget(format="jpeg", quality=75))


@attrs.frozen
class ShownImage:
    """One image of an answer."""

    data: str = attrs.field(repr=False)
    """As base64."""
    media_type: str
    warning: str = ""
    """What is not as it was asked for."""


async def show_image(read: Callable[[ImageTarget], Awaitable[bytes]], shown: Shown) -> ShownImage | None:
    """Return an image in the first form that is small enough; ``None`` where it is not asked for.

    Args:
        read: reads it in a format and size.
        shown: how it is asked for.
    """
    if shown == "none":
        return None
    if shown == "full":
        for target in _WHOLE:
            if len(data := await read(target)) <= FULL_BYTES:
                changed = "" if target.as_stored else f"it is a {target.format.upper()}"
                return await _image(data, target, changed)
    too_large = "it is a thumbnail" if shown == "full" else ""
    for target in _THUMBNAILS:
        if len(data := await read(target)) <= THUMBNAIL_BYTES:
            return await _image(data, target, too_large)
    # 256 pixels of noise have 30 kB.
    raise AssertionError("the smallest thumbnail is too large")


async def _image(data: bytes, target: ImageTarget, changed: str) -> ShownImage:
    warning = f"An image is larger than {FULL_BYTES // 2**20} MB, so {changed} here; its file is whole"
    return ShownImage(await read_in_thread(encode_text, data), MEDIA_TYPES[target.format], warning if changed else "")
