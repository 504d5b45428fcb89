"""A1111's extras: what its clients ask for, how large an image becomes, and the plain ways of resizing one."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Annotated

import attrs
from msgspec import Meta

from mflux_api.errors import InvalidParameter
from mflux_api.images.decode import decode_image, infotext_of
from mflux_api.images.encode import encode_png
from mflux_api.jobs.request import MAX_FACTOR, MAX_RESOLUTION, MIN_FACTOR, MIN_RESOLUTION, Seed, Softness
from mflux_api.jobs.upscaling import DEFAULT_FACTOR, MAX_PIXELS, MOST, upscaled_size

if TYPE_CHECKING:
    from PIL.Image import Image

PLAIN: Mapping[str, str] = {"None": "LANCZOS", "Lanczos": "LANCZOS", "Nearest": "NEAREST"}
"""Upscalers that are no models, by A1111's names, and Pillow's names of what they do."""

MAX_BATCH = 64
MAX_BATCH_PIXELS = 4 * MAX_PIXELS
"""Of all results of one call: its answer is put together in memory."""

_Side = Annotated[int, Meta(ge=1, le=MAX_RESOLUTION)]


@attrs.frozen(kw_only=True)
class ExtrasOptions:
    """What both calls take; what A1111 has besides (face restoration) is ignored."""

    resize_mode: Annotated[int, Meta(ge=0, le=1, description="0: by a factor; 1: to a size")] = 0
    upscaling_resize: Annotated[float, Meta(ge=MIN_FACTOR, le=MAX_FACTOR)] = DEFAULT_FACTOR
    upscaling_resize_w: _Side = 512
    upscaling_resize_h: _Side = 512
    upscaling_crop: bool = True
    """With a size: cut what hangs over; else the image covers the size."""
    upscaler_1: str = "None"
    """A name of ``GET /sdapi/v1/upscalers``, in upper or lower case."""
    upscaler_2: str = "None"
    extras_upscaler_2_visibility: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    """How much of the second one's image is blended in."""
    softness: Softness = 0.0
    """This and the next two are ours, for upscalers that are models."""
    seed: Seed = 0
    low_ram: bool = False

    @property
    def blends(self) -> bool:
        """Whether there is a second image in the result."""
        return self.extras_upscaler_2_visibility > 0 and self.upscaler_2 != "None"


@attrs.frozen(kw_only=True)
class ExtraSingleImage(ExtrasOptions):
    """``POST /sdapi/v1/extra-single-image``."""

    image: str = attrs.field(repr=False)
    """Base64 or a data URL."""


@attrs.frozen(kw_only=True)
class FileData:
    """One image of a batch."""

    data: str = attrs.field(repr=False)
    name: str = ""


@attrs.frozen(kw_only=True)
class ExtraBatchImages(ExtrasOptions):
    """``POST /sdapi/v1/extra-batch-images``."""

    imageList: Annotated[tuple[FileData, ...], Meta(min_length=1, max_length=MAX_BATCH)]  # noqa: N815 - A1111's name


@attrs.frozen
class Source:
    """An image as a client sent it."""

    text: str = attrs.field(repr=False)
    index: int
    """Its place in the request."""
    field: str
    """What the client calls it, for errors."""

    def decoded(self) -> "Image":
        """Return its pixels; call it in a thread. Raises InvalidParameter where it cannot be used."""
        return decode_image(self.text, self.index, self.field, reference=False)


@attrs.frozen
class Plan:
    """How large one image becomes."""

    scaled: tuple[int, int]
    """What plain resizing gives."""
    resolution: int
    """What a model is asked for: its result covers what is wanted."""
    wanted: tuple[int, int] | None
    """What is cut out of the middle in the end; ``None``: nothing is cut."""

    @property
    def pixels(self) -> int:
        """Of the result."""
        width, height = self.wanted or self.scaled
        return width * height


def plan(options: ExtrasOptions, width: int, height: int, *, field: str = "image") -> Plan:
    """Return what becomes of an image of that size.

    Args:
        options: what is asked for.
        width: of the image.
        height: of the image.
        field: what the client calls the image, for the error.

    Raises:
        InvalidParameter: it is too large, or would become too large or too small.
    """
    if width * height > MAX_PIXELS:
        raise InvalidParameter.for_field(
            field, f"is invalid: an image has {width} × {height} pixels; scale it down to {MOST}", limit=MAX_PIXELS
        )
    if options.resize_mode == 0:
        field, factor = "upscaling_resize", options.upscaling_resize
        scaled = round(width * factor), round(height * factor)
        wanted, resolution = None, round(min(width, height) * factor)
    else:
        size = options.upscaling_resize_w, options.upscaling_resize_h
        # The side that decides is the one to name.
        factor, field = max((size[0] / width, "upscaling_resize_w"), (size[1] / height, "upscaling_resize_h"))
        scaled = max(size[0], round(width * factor)), max(size[1], round(height * factor))
        wanted, resolution = size if options.upscaling_crop else scaled, _covering(width, height, scaled)
    largest = max(scaled, upscaled_size(width, height, resolution), key=lambda sides: sides[0] * sides[1])
    if largest[0] * largest[1] > MAX_PIXELS:
        raise InvalidParameter.for_field(
            field,
            f"is invalid: an image of {width} × {height} pixels would become {largest[0]} × {largest[1]}; "
            f"the limit is {MOST}",
            value=getattr(options, field),
            limit=MAX_PIXELS,
        )
    if min(resolution, *scaled) < MIN_RESOLUTION:
        raise InvalidParameter.for_field(
            field,
            f"is invalid: a side would have less than {MIN_RESOLUTION} pixels",
            value=getattr(options, field),
            limit=MIN_RESOLUTION,
        )
    return Plan(scaled, resolution, wanted)


def _covering(width: int, height: int, least: tuple[int, int]) -> int:
    """The smallest resolution at which an upscaler's even sides are no shorter than that."""
    resolution = min(least)
    while any(side < wanted for side, wanted in zip(upscaled_size(width, height, resolution), least, strict=True)):
        resolution += 1
    return resolution


def composed(options: ExtrasOptions, plan: Plan, layers: Sequence[str | bytes], source: Source, said: str) -> str:
    """Return the finished image as base64 PNG, with what its source said about itself; call it in a thread.

    Args:
        options: how much of a second layer is blended in.
        plan: the sizes.
        layers: a plain upscaler's name, or what a model made as PNG; one or two.
        source: the image.
        said: what is done with it, as :func:`description` says.
    """
    images, given = list["Image"](), None
    for layer in layers:
        if isinstance(layer, bytes):
            images.append(opened(layer, plan))
        else:
            # Decoded once, whatever is blended.
            given = given or source.decoded()
            images.append(resized(given, layer, plan))
    image = images[0] if len(images) == 1 else blended(images[0], images[1], options.extras_upscaler_2_visibility)
    png = encode_png(image.tobytes(), *image.size, parameters=infotext_of(source.text), postprocessing=said)
    return base64.b64encode(png).decode()


def resized(image: "Image", upscaler: str, plan: Plan) -> "Image":
    """Return an image as one of the plain upscalers makes it; takes a while, so call it in a thread."""
    from PIL.Image import Resampling

    return cut(image.resize(plan.scaled, Resampling[PLAIN[upscaler]]), plan.wanted)


def opened(png: bytes, plan: Plan) -> "Image":
    """Return an image as a model made it, cut to what was wanted; call it in a thread."""
    from PIL import Image

    with Image.open(BytesIO(png)) as image:
        return cut(image.convert("RGB"), plan.wanted)


def cut(image: "Image", size: tuple[int, int] | None) -> "Image":
    """Cut so much out of the middle."""
    if size is None or size == image.size:
        return image
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))


def blended(one: "Image", other: "Image", visibility: float) -> "Image":
    """Return the first image with so much of the second in it; call it in a thread."""
    from PIL import Image
    from PIL.Image import Resampling

    return Image.blend(one, other.resize(one.size, Resampling.LANCZOS), visibility)


def description(options: ExtrasOptions, plan: Plan, seed: int | None = None) -> str:
    """Say what was done in A1111's words, as infotext; the seed is a model's."""
    if options.resize_mode == 0:
        pairs: dict[str, object] = {"Postprocess upscale by": f"{options.upscaling_resize:g}"}
    else:
        pairs = {"Postprocess upscale to": f"{options.upscaling_resize_w}x{options.upscaling_resize_h}"}
        if options.upscaling_crop and plan.wanted is not None:
            pairs["Postprocess crop to"] = "{}x{}".format(*plan.wanted)
    pairs["Postprocess upscaler"] = options.upscaler_1
    if options.blends:
        pairs["Postprocess upscaler 2"] = options.upscaler_2
    if seed is not None:
        pairs |= {"Seed": seed, "Softness": f"{options.softness:g}"}
    return ", ".join(f"{key}: {value}" for key, value in pairs.items())
