"""Init images as a run takes them: references scaled, snapped to 16 pixels and cropped; the start in its size."""

from PIL.Image import Image, Resampling

from mflux_api.images.rgb import RGBImage
from mflux_api.images.sizes import MULTIPLE, reference_size, scale_to_limit


def as_reference(image: Image) -> RGBImage:
    """Return an RGB image as a reference, as mflux prepares it: scaled down to 1 MP, then cropped to multiples of 16.

    Raises:
        ValueError: a side is too small, or the image so narrow that a side gets too small.
    """
    width, height = reference_size(*image.size)
    if not width or not height:
        raise ValueError(f"a reference needs at least {MULTIPLE} pixels on each side")
    scaled = scale_to_limit(*image.size)
    if scaled != image.size:
        image = image.resize(scaled, Resampling.LANCZOS)
    return _crop(image, width, height)


def as_start(image: Image, width: int, height: int) -> RGBImage:
    """Return an RGB image in exactly the output's size: scaled until it covers it, and cropped around its centre."""
    scale = max(width / image.width, height / image.height)
    # Cut first: a strip of 20,000 pixels scaled to 512 rows would be a gigabyte before its cut.
    across, down = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    box = (across, down, image.width - across, image.height - down)
    return RGBImage(width, height, image.resize((width, height), Resampling.LANCZOS, box=box).tobytes())


def _crop(image: Image, width: int, height: int) -> RGBImage:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return RGBImage(width, height, image.crop((left, top, left + width, top + height)).tobytes())
