"""A1111's extras: resizing, cropping and blending with Pillow, to be called in a thread. No requests."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import attrs

from mflux_api.http.a1111.extras_plan import Plan
from mflux_api.http.a1111.sdapi_schemas import ExtrasOptions
from mflux_api.images.decode import decode_image, infotext_of
from mflux_api.images.encode import encode_png

if TYPE_CHECKING:
    from PIL.Image import Image

PLAIN: Mapping[str, str] = {"None": "LANCZOS", "Lanczos": "LANCZOS", "Nearest": "NEAREST"}
"""Upscalers that need no model: A1111's names, and Pillow's names of what they do."""


@attrs.frozen
class Source:
    """An image as a client sent it."""

    text: str = attrs.field(repr=False)
    """Base64 or a data URL."""
    index: int
    """Its place in the request."""
    field: str
    """What the client calls it, for errors."""

    def decode(self) -> "Image":
        """Return its pixels.

        Raises:
            InvalidParameter: it cannot be used.
        """
        return decode_image(self.text, self.index, self.field, reference=False)


def compose(
    options: ExtrasOptions,
    plan: Plan,
    layers: Sequence[str | bytes],
    source: Source,
    done: str,
    *,
    metadata: bool = True,
) -> str:
    """Return the finished image as base64 PNG, with what its source said about itself.

    Args:
        options: how much of a second layer is blended in.
        plan: the sizes.
        layers: one or two of: a plain upscaler's name, or what a model made, as PNG.
        source: the image.
        done: what is done with it, as :func:`~mflux_api.http.a1111.extras_plan.describe` says.
        metadata: whether the image says so, and keeps what its source said.
    """
    images, decoded = list["Image"](), None
    for layer in layers:
        if isinstance(layer, bytes):
            images.append(open_png(layer, plan))
        else:
            # Decoded once, whatever is blended.
            decoded = decoded or source.decode()
            images.append(resize(decoded, layer, plan))
    image = images[0] if len(images) == 1 else blend(images[0], images[1], options.extras_upscaler_2_visibility)
    parameters, postprocessing = (infotext_of(source.text), done) if metadata else ("", "")
    png = encode_png(image.tobytes(), *image.size, parameters=parameters, postprocessing=postprocessing)
    return base64.b64encode(png).decode()


def resize(image: "Image", upscaler: str, plan: Plan) -> "Image":
    """Return an image as one of the plain upscalers makes it."""
    from PIL.Image import Resampling

    return _crop(image.resize(plan.scaled, Resampling[PLAIN[upscaler]]), plan.wanted)


def open_png(png: bytes, plan: Plan) -> "Image":
    """Return an image that a model made, cut to what was wanted."""
    from PIL import Image

    with Image.open(BytesIO(png)) as image:
        return _crop(image.convert("RGB"), plan.wanted)


def blend(one: "Image", other: "Image", visibility: float) -> "Image":
    """Return the first image with so much of the second in it."""
    from PIL import Image
    from PIL.Image import Resampling

    return Image.blend(one, other.resize(one.size, Resampling.LANCZOS), visibility)


def _crop(image: "Image", size: tuple[int, int] | None) -> "Image":
    """Cut that size out of the middle."""
    if size is None or size == image.size:
        return image
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))
