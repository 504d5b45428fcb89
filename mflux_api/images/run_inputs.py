"""What a run needs besides its request: pixels, made from the text that the request carries."""

import attrs

from mflux_api.errors import GenerationFailed
from mflux_api.images.decode import decode_image
from mflux_api.images.resize import as_reference, as_start, reference_size
from mflux_api.images.rgb import RGBImage
from mflux_api.jobs.request import MAX_SIDE, MIN_SIDE
from mflux_api.jobs.resolve import ResolvedRequest


@attrs.frozen(kw_only=True)
class RunInputs:
    """The images of one run."""

    references: tuple[RGBImage, ...] = ()
    start: RGBImage | None = None
    """The image that an image strength below 1 starts from, in the output's size."""
    source: RGBImage | None = None
    """The image for an upscaler, as the client sent it."""


def output_size(init_images: tuple[str, ...]) -> tuple[int, int] | None:
    """Check init images and return the size of an output that names none; ``None`` without init images.

    Decodes every image and keeps none, so call it in a thread.

    Raises:
        InvalidParameter: one of them cannot be used.
    """
    sizes = [reference_size(*decode_image(text, index).size) for index, text in enumerate(init_images)]
    if not sizes:
        return None
    width, height = (min(max(side, MIN_SIDE), MAX_SIDE) for side in sizes[0])
    return width, height


def source_size(init_image: str) -> tuple[int, int]:
    """Check an image that is to be upscaled and return its size; decodes it, so call it in a thread.

    Raises:
        InvalidParameter: it cannot be used.
    """
    return decode_image(init_image, 0, reference=False).size


def source(request: ResolvedRequest) -> RGBImage:
    """Return what a resolved request upscales.

    Raises:
        InvalidParameter: the image cannot be used.
        GenerationFailed: it was removed.
    """
    image = decode_image(_kept(request.init_images[0]), 0, reference=False)
    return RGBImage(image.width, image.height, image.tobytes())


def references_and_start(request: ResolvedRequest) -> tuple[tuple[RGBImage, ...], RGBImage | None]:
    """Return the references and the start image of a resolved request; one large image at a time is in memory.

    Raises:
        InvalidParameter: an init image cannot be used.
        GenerationFailed: one that was kept for the job was removed.
    """
    references: list[RGBImage] = []
    start: RGBImage | None = None
    for index, text in enumerate(request.init_images):
        image = decode_image(_kept(text), index)
        references.append(as_reference(image))
        if index == 0 and request.strength < 1.0:
            start = as_start(image, *request.size)
    return tuple(references), start


def _kept(text: str) -> str:
    if not text:
        raise GenerationFailed("An init image of this job was removed from the state directory; submit it again")
    return text
