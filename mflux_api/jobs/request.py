"""What a client asks for: the fields, every limit, and the checks between fields."""

from typing import Annotated

import attrs
from msgspec import Meta

from mflux_api.errors import InvalidParameter

MAX_SEED = 2**53 - 5
"""Largest seed: seed + 3 (the fourth image) is still exact in a JSON number."""

LARGE = Meta(extra={"large": True})
"""Marks a text that may be as large as a request's body; any other field is small."""
EncodedImage = Annotated[str, LARGE]

_MAX_INIT_IMAGES = 4
_MAX_LORAS = 16

Prompt = Annotated[str, Meta(max_length=10_000, description="Text description of the image; an upscaler needs none")]
NegativePrompt = Annotated[str, Meta(max_length=10_000, description="What the image should not show (base models)")]
Seed = Annotated[int, Meta(ge=-1, le=MAX_SEED, description="Random seed; null or -1: random")]
MIN_SIDE, MAX_SIDE = 64, 2048
Side = Annotated[
    int, Meta(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=16, description="Pixels; null: 512, or the first init image's")
]
Steps = Annotated[int, Meta(ge=1, le=200, description="Denoising steps; null: the model's default")]
Guidance = Annotated[float, Meta(ge=0.0, le=30.0, description="Guidance; distilled models always run at 1.0")]
# How many at most is a setting: see `validate`.
ImageCount = Annotated[int, Meta(ge=1, description="Number of images")]
# Wider than the API document's 0 to 2: sliders are made to be used far out and backwards.
MIN_LORA_SCALE, MAX_LORA_SCALE = -4.0, 4.0
LoraScale = Annotated[float, Meta(ge=MIN_LORA_SCALE, le=MAX_LORA_SCALE)]
Strength = Annotated[
    float, Meta(ge=0.0, le=1.0, description="How much to transform the init image (0.75); 0 keeps it, 1 ignores it")
]

MIN_RESOLUTION, MAX_RESOLUTION = 16, 8192
Resolution = Annotated[
    int, Meta(ge=MIN_RESOLUTION, le=MAX_RESOLUTION, description="Upscalers: the result's shorter side in pixels")
]
MIN_FACTOR, MAX_FACTOR = 0.1, 8.0
Factor = Annotated[float, Meta(ge=MIN_FACTOR, le=MAX_FACTOR, description="Upscalers: times as large (2)")]
Softness = Annotated[
    float, Meta(ge=0.0, le=1.0, description="Upscalers: how much detail is taken away first, to be invented anew (0)")
]

DEFAULT_SIDE = 512
DEFAULT_STRENGTH = 0.75

ONLY_OF_UPSCALERS = ("resolution", "upscale", "softness")
NOT_OF_UPSCALERS = ("negative_prompt", "width", "height", "steps", "guidance", "image_strength")
"""Fields without a meaning for upscalers. Each kind of model ignores the fields of the other, whatever they hold."""


@attrs.frozen(kw_only=True)
class GenerateRequest:
    """What a client asks for: a prompt and how to make images of it, with everything it leaves out as ``None``.

    The field names and defaults are those of the HTTP API. Build one directly when embedding;
    :func:`mflux_api.jobs.parse.validate` says whether its fields are within their limits.
    """

    prompt: Prompt = ""
    """Required, except for upscalers."""
    model: str | None = None
    """An alias of the catalog; ``None`` means ``models.default``."""
    negative_prompt: NegativePrompt | None = None
    seed: Seed | None = None
    width: Side | None = None
    """``None``: 512 or, with init images, the first one's own, snapped and at most 1 MP."""
    height: Side | None = None
    steps: Steps | None = None
    guidance: Guidance | None = None
    num_images: ImageCount = 1
    lora_files: Annotated[tuple[str, ...], Meta(max_length=_MAX_LORAS)] = ()
    lora_scales: Annotated[tuple[LoraScale, ...], Meta(max_length=_MAX_LORAS)] = ()
    low_ram: bool = False
    init_images: Annotated[tuple[EncodedImage, ...], Meta(max_length=_MAX_INIT_IMAGES)] = ()
    """Base64 or data URLs: the first is what an image strength below 1 starts from, and the prompt may refer to all."""
    image_strength: Strength | None = None
    """Only with init images; ``None`` is 0.75 then."""
    resolution: Resolution | None = None
    """Only for upscalers, like ``upscale`` and ``softness``; other models ignore it. Give this or ``upscale``."""
    upscale: Factor | None = None
    softness: Softness | None = None


def check_fields(request: GenerateRequest, *, max_images: int, needs_prompt: bool = True) -> None:
    """Check the rules that concern more than one field, or a setting.

    Args:
        request: a request whose fields are each within their limits.
        max_images: ``generation.max_batch_size``.
        needs_prompt: whether its model requires a prompt.

    Raises:
        InvalidParameter: a prompt is missing, or there are too many images, LoRAs or scales.
    """
    if needs_prompt and not request.prompt:
        raise InvalidParameter.for_field("prompt", "is required", limit="required")
    if request.num_images > max_images:
        raise InvalidParameter.for_field(
            "num_images",
            f"is invalid: expected at most {max_images} (generation.max_batch_size)",
            value=request.num_images,
            limit=max_images,
            minimum=1,
        )
    if len(request.lora_scales) > len(request.lora_files):
        raise InvalidParameter.for_field(
            "lora_scales",
            "has more entries than 'lora_files'",
            value=len(request.lora_scales),
            limit=len(request.lora_files),
        )
    _at_most("init_images", len(request.init_images), _MAX_INIT_IMAGES)
    _at_most("lora_files", len(request.lora_files), _MAX_LORAS)


def _at_most(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidParameter.for_field(
            field, f"is invalid: expected at most {limit} entries", value=count, limit=limit
        )
