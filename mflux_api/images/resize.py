"""Init images in the sizes that FLUX.2's edit mode conditions on: scaled, snapped to 16 pixels, cropped."""

import math
from typing import TYPE_CHECKING

from mflux_api.images.rgb import RGBImage

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_AREA = 1024 * 1024
"""Pixels of a reference; a larger one is scaled down. An output without a size has the same limit."""
MULTIPLE = 16


def reference_size(width: int, height: int) -> tuple[int, int]:
    """Return the size of an image as a reference: its own shape, at most 1 MP, snapped down to multiples of 16.

    It is also the output's size where a request names none. A side of less than 16 pixels becomes 0.
    """
    scaled = _scale_to_limit(width, height)
    return scaled[0] - scaled[0] % MULTIPLE, scaled[1] - scaled[1] % MULTIPLE


def as_reference(image: "Image") -> RGBImage:
    """Return an RGB image as a reference, as mflux prepares it: scaled down to 1 MP, then cropped to multiples of 16.

    Raises:
        ValueError: a side is too small, or the image so narrow that a side gets too small.
    """
    from PIL.Image import Resampling

    width, height = reference_size(*image.size)
    if not width or not height:
        raise ValueError(f"a reference needs at least {MULTIPLE} pixels on each side")
    scaled = _scale_to_limit(*image.size)
    if scaled != image.size:
        image = image.resize(scaled, Resampling.LANCZOS)
    return _crop(image, width, height)


def as_start(image: "Image", width: int, height: int) -> RGBImage:
    """Return an RGB image in exactly the output's size: scaled until it covers it, and cropped around its centre."""
    from PIL.Image import Resampling

    scale = max(width / image.width, height / image.height)
    # Cut first: a strip of 20,000 pixels scaled to 512 rows would be a gigabyte before its cut.
    across, down = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    box = (across, down, image.width - across, image.height - down)
    return RGBImage(width, height, image.resize((width, height), Resampling.LANCZOS, box=box).tobytes())


def _scale_to_limit(width: int, height: int) -> tuple[int, int]:
    area = width * height
    if area <= MAX_AREA:
        return width, height
    scale = math.sqrt(MAX_AREA / area)
    return round(width * scale), round(height * scale)


def _crop(image: "Image", width: int, height: int) -> RGBImage:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return RGBImage(width, height, image.crop((left, top, left + width, top + height)).tobytes())
