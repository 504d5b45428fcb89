"""JSON of ``/v1``; the names are OpenAI's, and ours where it has none."""

from typing import Annotated, Literal

import attrs
from msgspec import UNSET, Meta, UnsetType

from mflux_api.http.openai_errors import OpenAIError
from mflux_api.images.encode import ImageFormat
from mflux_api.jobs.request import EncodedImage, Guidance, ImageCount, NegativePrompt, Prompt, Seed, Steps

Quality = Literal["auto", "standard", "low", "medium", "high", "hd", "xhigh", "max"]
Background = Literal["auto", "opaque", "transparent"]
Compression = Annotated[int, Meta(ge=0, le=100, description="Quality of JPEG and WebP; PNG has none")]
PartialImages = Annotated[int, Meta(ge=0, le=3, description="Images on the way, of a stream")]
_Name = Annotated[str, Meta(max_length=300)]
_Loras = Annotated[tuple[_Name, ...], Meta(max_length=16)]


@attrs.frozen(kw_only=True)
class ImagesRequest:
    """``POST /v1/images/generations``."""

    prompt: Prompt
    model: str | None = None
    """An alias; null: the default model. OpenAI's own names are it, too (``openai.aliases``)."""
    n: ImageCount = 1
    size: Annotated[str, Meta(max_length=20)] | None = None
    """``WIDTHxHEIGHT`` or ``auto``: the model's own size, or the first image's."""
    quality: Quality | None = None
    """How many steps: ``low`` half, ``high`` twice, ``max`` three times what the model is made for."""
    response_format: Literal["b64_json", "url"] | None = None
    output_format: ImageFormat | None = None
    output_compression: Compression | None = None
    background: Background | None = None
    style: Annotated[str, Meta(max_length=100)] | None = None
    moderation: Annotated[str, Meta(max_length=100)] | None = None
    user: Annotated[str, Meta(max_length=1000)] | None = None
    safety_identifier: Annotated[str, Meta(max_length=1000)] | None = None
    stream: bool = False
    partial_images: PartialImages | None = None
    seed: Seed | None = None
    """An addition, as are the next ones."""
    steps: Steps | None = None
    guidance: Guidance | None = None
    negative_prompt: NegativePrompt | None = None
    lora: _Name | _Loras | None = None
    """A name of ``GET /api/v1/loras`` or several, each perhaps with ``:`` and its scale behind it."""


@attrs.frozen(kw_only=True)
class ImageReference:
    """One of ``images``."""

    image_url: EncodedImage | None = attrs.field(default=None, repr=False)
    """A data URL."""
    b64_json: EncodedImage | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class EditsRequest(ImagesRequest):
    """``POST /v1/images/edits``: a form with files, or JSON."""

    image: Annotated[tuple[EncodedImage, ...], Meta(max_length=4)] = attrs.field(default=(), repr=False)
    """One to four; the prompt may refer to all, and the mask is of the first."""
    images: Annotated[tuple[ImageReference, ...], Meta(max_length=4)] = attrs.field(default=(), repr=False)
    """The same in JSON."""
    mask: ImageReference | EncodedImage | None = attrs.field(default=None, repr=False)
    """What is transparent in it is inpainted; what is white, where nothing is transparent.

    In JSON it may be an object, as each of ``images``.
    """
    input_fidelity: Annotated[str, Meta(max_length=100)] | None = None


@attrs.frozen(kw_only=True)
class ImageItem:
    """One image; what was not asked for is not there, and DALL-E's names have both where no form is asked for."""

    # Not null: clients that check answers by a schema take an absent text only.
    b64_json: str | UnsetType = UNSET
    url: str | UnsetType = UNSET
    """Readable without a key for an hour."""
    seed: int
    """With it the image can be made again; an addition."""


@attrs.frozen(kw_only=True)
class InputTokens:
    """What was put in."""

    text_tokens: int
    """An estimate: a quarter of the prompt's bytes."""
    image_tokens: int
    """Of each image one for 16 by 16 pixels."""


@attrs.frozen(kw_only=True)
class Usage:
    """What was put in and came out; nothing is charged by it."""

    input_tokens: int
    output_tokens: int
    """One for 16 by 16 pixels of each image."""
    total_tokens: int
    input_tokens_details: InputTokens


@attrs.frozen(kw_only=True)
class ImagesAnswer:
    """``POST /v1/images/generations`` and ``edits``."""

    created: int
    data: tuple[ImageItem, ...]
    background: str = "opaque"
    output_format: ImageFormat
    quality: str
    size: str
    usage: Usage
    warnings: tuple[str, ...]
    """Sentences about what was asked for and is not done; empty as a rule. An addition."""


@attrs.frozen(kw_only=True)
class PartialImageEvent:
    """What an image is coming to, where ``partial_images`` asks for it: ``image_generation`` or ``image_edit``."""

    type: str
    """``….partial_image``, as the event is called."""
    partial_image_index: int
    """Which of the image's partial ones, from 0."""
    image_index: int
    """Which of the ``n`` images, from 0. An addition."""
    created_at: int
    size: str
    quality: str
    background: str = "opaque"
    output_format: ImageFormat
    b64_json: str = ""


@attrs.frozen(kw_only=True)
class CompletedEvent:
    """A finished image; there is one event for each of the ``n``."""

    type: str
    """``….completed``, as the event is called."""
    image_index: int
    created_at: int
    size: str
    quality: str
    background: str = "opaque"
    output_format: ImageFormat
    seed: int
    """With it the image can be made again. An addition, as are the warnings."""
    warnings: tuple[str, ...]
    usage: Usage
    """Of the whole call."""
    b64_json: str = ""


@attrs.frozen(kw_only=True)
class ErrorEvent:
    """The last event of a stream whose job has no images."""

    type: Literal["error"] = "error"
    error: OpenAIError


@attrs.frozen(kw_only=True)
class ModelItem:
    """One model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """When this server began."""
    owned_by: str


@attrs.frozen(kw_only=True)
class ModelsAnswer:
    """``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: tuple[ModelItem, ...]
