"""A call of OpenAI's API becomes a request of ours: sizes, qualities, images, and what is said of the rest."""

import math
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import attrs

from mflux_api.catalog import Model
from mflux_api.errors import InvalidParameter
from mflux_api.http.openai.names import is_dall_e
from mflux_api.http.openai.schemas import EditsRequest, ImageReference, ImagesRequest
from mflux_api.images.encode import ImageFormat
from mflux_api.images.sizes import MULTIPLE
from mflux_api.jobs.request import MAX_SIDE, MIN_SIDE, GenerateRequest

EventPrefix = Literal["image_generation", "image_edit"]

NAMES: Final[Mapping[str, str]] = {
    "num_images": "n",
    "lora_files": "lora",
    "lora_scales": "lora",
    "init_images": "image",
    "width": "size",
    "height": "size",
}
"""Our fields as OpenAI's clients call them."""

_ABSENT: Final = ("None", "")
_PROMPTS: Final = ("prompt", "negative_prompt")
_SIZE: Final = re.compile(r"([0-9]{1,5})[xX\u00d7]([0-9]{1,5})")
_FACTORS: Final[Mapping[str, float]] = {"low": 0.5, "high": 2, "hd": 2, "xhigh": 2.5, "max": 3}
"""Times the steps that a model is made for."""
_TOLD_QUALITY: Final[Mapping[str, str]] = {"hd": "high", "auto": "medium", "standard": "medium"}
_MOST_STEPS: Final = 200
_NEUTRAL_STYLES: Final = ("", "auto", "none")


@attrs.frozen(kw_only=True)
class Call:
    """What a call asks for."""

    request: GenerateRequest
    output_format: ImageFormat
    wants_base64: bool
    wants_urls: bool
    """Both where no form is asked for and OpenAI's own model of that name would answer with URLs."""
    stream: bool
    quality: str
    """As answers tell it: ``low``, ``medium``, ``high`` …"""
    prefix: EventPrefix
    """How the names of its events begin."""
    warnings: tuple[str, ...]


def read_call(asked: ImagesRequest, model: Model, *, default_steps: int) -> Call:
    """Return what a call asks for.

    Args:
        asked: the body.
        model: the model.
        default_steps: of distilled models.

    Raises:
        InvalidParameter: something in it cannot be.
    """
    told = list[str]()
    if asked.background == "transparent":
        raise InvalidParameter.for_field(
            "background",
            "is invalid: images are opaque; expected 'opaque' or 'auto'",
            value="transparent",
            limit="opaque",
        )
    images = _images_of(asked)
    width, height = _size(asked, model, told, edits=bool(images))
    output = asked.output_format or "png"
    if asked.output_compression is not None and output == "png":
        told.append("'output_compression' has no effect: PNG files lose nothing")
    if (asked.style or "").casefold() not in _NEUTRAL_STYLES:
        told.append("'style' has no effect: say it in the prompt")
    if asked.stream and asked.response_format == "url":
        told.append("'response_format' url has no effect with 'stream': its events hold the images")
    if asked.partial_images and not asked.stream:
        told.append("'partial_images' has no effect without 'stream'")
    loras, scales = _loras(asked.lora)
    quality = asked.quality or "auto"
    request = GenerateRequest(
        prompt=asked.prompt,
        model=model.alias,
        negative_prompt=asked.negative_prompt,
        seed=asked.seed,
        width=width,
        height=height,
        steps=_steps(asked, model, default_steps, told),
        guidance=asked.guidance,
        num_images=asked.n,
        lora_files=loras,
        lora_scales=scales,
        init_images=images,
        # An edit follows the prompt; what the first image had is in the references.
        image_strength=1.0 if images else None,
        mask=_mask_of(asked) if isinstance(asked, EditsRequest) else None,
        mask_alpha="transparent",
        partial_images=(asked.partial_images or 0) if asked.stream else 0,
        output_format=output,
        output_compression=None if output == "png" else asked.output_compression,
    )
    return Call(
        request=request,
        output_format=output,
        wants_base64=asked.response_format != "url",
        wants_urls=asked.response_format == "url" or (asked.response_format is None and is_dall_e(asked.model)),
        stream=asked.stream,
        quality=_TOLD_QUALITY.get(quality, quality),
        prefix="image_edit" if isinstance(asked, EditsRequest) else "image_generation",
        warnings=tuple(told),
    )


def normalize(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a body without what only says that it is absent, and with its single images as lists of one."""
    # Python's clients write an absent value into a form as its name; pages send what was left empty.
    fields = {name: value for name, value in body.items() if value not in _ABSENT or name in _PROMPTS}
    if isinstance(fields.get("image"), str):
        fields["image"] = [fields["image"]]
    if isinstance(fields.get("images"), Mapping):
        fields["images"] = [fields["images"]]
    return fields


def _images_of(asked: ImagesRequest) -> tuple[str, ...]:
    if not isinstance(asked, EditsRequest):
        return ()
    images = list(asked.image)
    images += [_text_of(each, f"images[{index}]") for index, each in enumerate(asked.images)]
    if not images:
        raise InvalidParameter.for_field("image", "is required", limit="required")
    return tuple(images)


def _mask_of(asked: EditsRequest) -> str | None:
    return _text_of(asked.mask, "mask") if isinstance(asked.mask, ImageReference) else asked.mask


def _text_of(reference: ImageReference, name: str) -> str:
    text = reference.image_url or reference.b64_json
    if not text:
        raise InvalidParameter.for_field(name, "needs 'image_url' or 'b64_json'", limit="a data URL")
    return text


def _size(asked: ImagesRequest, model: Model, told: list[str], *, edits: bool) -> tuple[int | None, int | None]:
    """Return width and height; ``None`` where an edit has the first image's."""
    text = (asked.size or "auto").strip()
    if text == "auto":
        return (None, None) if edits else model.native_size
    found = _SIZE.fullmatch(text)
    limit = f"auto or WIDTHxHEIGHT, each from {MIN_SIDE} to {MAX_SIDE}"
    if found is None:
        raise InvalidParameter.for_field("size", f"is invalid: expected {limit}", value=text[:20], limit=limit)
    wanted = int(found[1]), int(found[2])
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in wanted):
        raise InvalidParameter.for_field("size", f"is invalid: expected {limit}", value=text, limit=limit)
    width, height = ((side + MULTIPLE // 2) // MULTIPLE * MULTIPLE for side in wanted)
    if (width, height) != wanted:
        told.append(f"'size' {text} was changed to {width}x{height}: sides are multiples of {MULTIPLE}")
    return width, height


def _steps(asked: ImagesRequest, model: Model, default_steps: int, told: list[str]) -> int | None:
    factor = _FACTORS.get(asked.quality or "")
    if asked.steps is not None:
        if factor is not None:
            told.append("'quality' has no effect beside 'steps'")
        return asked.steps
    if factor is None:
        return None
    return max(1, min(_MOST_STEPS, math.ceil((model.default_steps or default_steps) * factor)))


def _loras(asked: str | tuple[str, ...] | None) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return names and scales: a scale stands behind the last colon."""
    names, scales = list[str](), list[float]()
    for text in (asked,) if isinstance(asked, str) else asked or ():
        name, colon, scale = text.rpartition(":")
        try:
            scales.append(float(scale) if colon else 1.0)
            names.append(name if colon else text)
        except ValueError:
            scales.append(1.0)
            names.append(text)
    return tuple(names), tuple(scales)
