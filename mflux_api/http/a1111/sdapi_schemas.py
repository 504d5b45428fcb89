"""JSON of ``/sdapi/v1``: what A1111's clients send to its extras, and what they get."""

from collections.abc import Mapping
from typing import Annotated, Any

import attrs
from msgspec import Meta

from mflux_api.jobs.request import MAX_FACTOR, MAX_RESOLUTION, MIN_FACTOR, EncodedImage, Flag, Seed, Softness
from mflux_api.jobs.upscaling import DEFAULT_FACTOR

MAX_BATCH = 64

_Side = Annotated[int, Meta(ge=1, le=MAX_RESOLUTION)]


@attrs.frozen(kw_only=True)
class ImagesResponse:
    """``POST /sdapi/v1/txt2img`` and ``img2img``."""

    images: tuple[str, ...]
    """Base64 PNG."""
    parameters: Mapping[str, Any]
    info: str
    warnings: tuple[str, ...]
    """Sentences about what was asked for and is not done, such as unknown fields; empty as a rule."""


@attrs.frozen(kw_only=True)
class ExtrasOptions:
    """What both calls take; what A1111 has besides (face restoration) is ignored."""

    resize_mode: Annotated[int, Meta(ge=0, le=1, description="0: by a factor; 1: to a size")] = 0
    upscaling_resize: Annotated[float, Meta(ge=MIN_FACTOR, le=MAX_FACTOR)] = DEFAULT_FACTOR
    upscaling_resize_w: _Side = 512
    upscaling_resize_h: _Side = 512
    upscaling_crop: Flag = True
    """With a size: cut what hangs over; else the image covers the size."""
    upscaler_1: str = "None"
    """A name of ``GET /sdapi/v1/upscalers``, in upper or lower case."""
    upscaler_2: str = "None"
    extras_upscaler_2_visibility: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    """How much of the second upscaler's image is blended in."""
    softness: Softness = 0.0
    """An addition to A1111's fields, for upscalers that are models."""
    seed: Seed = 0
    """An addition to A1111's fields, for upscalers that are models."""
    low_ram: Flag = False
    """An addition to A1111's fields, for upscalers that are models."""

    @property
    def blends(self) -> bool:
        """Whether there is a second image in the result."""
        return self.extras_upscaler_2_visibility > 0 and self.upscaler_2 != "None"


@attrs.frozen(kw_only=True)
class ExtraSingleImage(ExtrasOptions):
    """``POST /sdapi/v1/extra-single-image``."""

    image: EncodedImage = attrs.field(repr=False)
    """Base64 or a data URL."""


@attrs.frozen(kw_only=True)
class FileData:
    """One image of a batch."""

    data: EncodedImage = attrs.field(repr=False)
    name: str = ""


@attrs.frozen(kw_only=True)
class ExtraBatchImages(ExtrasOptions):
    """``POST /sdapi/v1/extra-batch-images``."""

    imageList: Annotated[tuple[FileData, ...], Meta(min_length=1, max_length=MAX_BATCH)]  # noqa: N815 - A1111's name


@attrs.frozen(kw_only=True)
class ExtraSingleResponse:
    """``POST /sdapi/v1/extra-single-image``."""

    html_info: str
    image: str
    """Base64 PNG."""
    warnings: tuple[str, ...]
    """Sentences about what was asked for and is not done; empty as a rule."""


@attrs.frozen(kw_only=True)
class ExtraBatchResponse:
    """``POST /sdapi/v1/extra-batch-images``."""

    html_info: str
    images: tuple[str, ...]
    """Base64 PNG, in the order of the request."""
    warnings: tuple[str, ...]
    """Sentences about what was asked for and is not done; empty as a rule."""


@attrs.frozen(kw_only=True)
class UpscalerItem:
    """One of ``GET /sdapi/v1/upscalers``."""

    name: str
    """What ``upscaler_1`` takes."""
    model_name: str | None
    model_path: str | None
    model_url: str | None
    scale: float | None
