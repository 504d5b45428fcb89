"""A1111's extras: resizing, cropping, blending and the finished file."""

from collections.abc import Sequence
from io import BytesIO

from PIL import Image
from PIL.Image import Resampling

from mflux_api.images.child.protocol import Filter, Size

_RESAMPLING = {"lanczos": Resampling.LANCZOS, "nearest": Resampling.NEAREST}


def resize(image: Image.Image, kind: Filter, scaled: Size, wanted: Size | None) -> Image.Image:
    """Return an image as one of the plain upscalers makes it.

    Args:
        image: the image.
        kind: how it is resized.
        scaled: the size that it is resized to.
        wanted: what is cut out of the middle then.
    """
    return crop(image.resize(scaled, _RESAMPLING[kind]), wanted)


def open_png(png: bytes, wanted: Size | None) -> Image.Image:
    """Return an image that a model made, cut to what was wanted."""
    with Image.open(BytesIO(png), formats=("PNG",)) as image:
        return crop(image.convert("RGB"), wanted)


def merge(layers: Sequence[Image.Image], visibility: float) -> Image.Image:
    """Return the only layer, or the first one with so much of the second in it."""
    first, *others = layers
    for other in others:
        return Image.blend(first, other.resize(first.size, Resampling.LANCZOS), visibility)
    return first


def crop(image: Image.Image, size: Size | None) -> Image.Image:
    """Cut that size out of the middle."""
    if size is None or size == image.size:
        return image
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))
