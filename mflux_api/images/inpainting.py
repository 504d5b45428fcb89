"""What inpainting adds to the images of a run: what is inpainted, and the image that keeps all else."""

from typing import Literal

import attrs

from mflux_api.images.rgb import RGBImage

Fill = Literal["original", "noise", "nothing"]
"""What the inpainted part of the latents is before noise is added; A1111's ``inpainting_fill`` 1, 2 and 3."""

Box = tuple[int, int, int, int]
"""Left, top, width and height in pixels."""


def check_box(box: Box, size: tuple[int, int]) -> None:
    """Refuse a box that is not within an image.

    Args:
        box: the place in the image.
        size: the image's width and height.

    Raises:
        ValueError: it reaches beyond the image, or is empty.
    """
    left, top, width, height = box
    if left < 0 or top < 0 or width < 1 or height < 1 or left + width > size[0] or top + height > size[1]:
        raise ValueError("the box of an inpainting must lie within its result")


@attrs.frozen(kw_only=True)
class InpaintingInputs:
    """The mask of a run, and what its result is composed from.

    Raises:
        ValueError: the blurred mask has not the overlay's size, or the box is not within it.
    """

    mask: bytes = attrs.field(repr=False)
    """One byte a pixel in the size of the run: 0 is protected, 255 inpainted; from 128 on it counts as inpainted."""
    overlay: RGBImage
    """The source's own pixels in the size of the result."""
    blurred_mask: bytes = attrs.field(repr=False)
    """One byte a pixel in the size of the result: the overlay's share is 255 minus it."""
    box: Box
    """Where in the result the generated image goes, scaled to its size; the whole result without a crop."""
    fill: Fill = "original"

    def __attrs_post_init__(self) -> None:
        if len(self.blurred_mask) != self.overlay.width * self.overlay.height:
            raise ValueError("a blurred mask must have one byte for each pixel of the result")
        check_box(self.box, self.overlay.size)
