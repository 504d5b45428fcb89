"""What a run needs besides its request: pixels, made from the text that the request carries."""

import attrs

from mflux_api.errors import InvalidParameter
from mflux_api.images.inpainting import InpaintingInputs
from mflux_api.images.rgb import RGBImage
from mflux_api.images.sizes import MAX_AREA, MAX_PIXELS, MULTIPLE, reference_size, scale_to_limit
from mflux_api.jobs.request import MAX_SIDE, MIN_SIDE, Extend, GenerateRequest


@attrs.frozen(kw_only=True)
class RunInputs:
    """The images of one run."""

    references: tuple[RGBImage, ...] = ()
    start: RGBImage | None = None
    """The image that an image strength below 1 and inpainting start from, in the size of what is generated."""
    inpainting: InpaintingInputs | None = None
    """What of ``start`` is inpainted; the first reference is the source then."""
    source: RGBImage | None = None
    """The image for an upscaler, as the client sent it."""


def output_size(first: tuple[int, int]) -> tuple[int, int]:
    """Return the size of an output that names none, by the size of its first init image."""
    width, height = (min(max(side, MIN_SIDE), MAX_SIDE) for side in reference_size(*first))
    return width, height


def inpainting_size(source: tuple[int, int]) -> tuple[int, int]:
    """Return the size to generate at where a part of an image of this size is protected and the request names none.

    The result has the image's own size, so the nearest one is taken: it distorts least on the way there and back.
    """
    scaled = scale_to_limit(*source)
    # Both sides of a panorama are scaled: one that was cut to the limit alone would be squeezed.
    scale = min(1.0, MAX_SIDE / max(scaled))
    width, height = (max(round(side * scale / MULTIPLE) * MULTIPLE, MIN_SIDE) for side in scaled)
    # One megapixel is the most that a reference has, and what is generated is one.
    return (width, height) if width * height <= MAX_AREA else output_size(source)


def inpainting_canvas(request: GenerateRequest, source: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the image to inpaint, extended.

    Args:
        request: a checked request.
        source: size of its first init image.

    Raises:
        InvalidParameter: the image would become too large.
    """
    extend = request.extend or Extend()
    width, height = source[0] + extend.left + extend.right, source[1] + extend.top + extend.bottom
    if width * height > MAX_PIXELS:
        problem = f"is invalid: the image would have {width} × {height} pixels; the limit is {MAX_PIXELS // 10**6} MP"
        raise InvalidParameter.for_field("extend", problem, limit=MAX_PIXELS)
    return width, height


def differs_in_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one image cannot be the other, scaled: their sides' ratios are too far apart for a rounding."""
    return abs(size[0] * other[1] - size[1] * other[0]) > _ROUNDING * max(*size, *other)


_ROUNDING = 2
"""Pixels that a side may have more or less when it was scaled by a program that rounds."""
