"""What a run needs besides its request: pixels, made from the text that the request carries."""

import attrs

from mflux_api.images.inpainting import InpaintingInputs
from mflux_api.images.rgb import RGBImage
from mflux_api.images.sizes import reference_size
from mflux_api.jobs.request import MAX_SIDE, MIN_SIDE


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
