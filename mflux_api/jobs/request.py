"""What a client asks for: the fields, every limit, and the checks between fields."""

from typing import Annotated, Literal

import attrs
from msgspec import Meta

from mflux_api.errors import InvalidParameter
from mflux_api.jobs.given_images import encode_images, encode_mask
from mflux_api.jobs.schedule import MAX_PARTIAL_IMAGES
from mflux_api.jobs.webhook import Webhook

MAX_SEED = 2**53 - 5
"""Largest seed: seed + 3 (the fourth image) is still exact in a JSON number."""

LARGE = Meta(extra={"large": True})
"""Marks a text that may be as large as a request's body; any other field is small."""
EncodedImage = Annotated[str, LARGE]

MAX_INIT_IMAGES = 4
_MAX_LORAS = 16

MAX_PROMPT = 10_000
_OF_PROMPT = "Text description of the image; an upscaler needs none"
Prompt = Annotated[str, Meta(max_length=MAX_PROMPT, description=_OF_PROMPT)]
NegativePrompt = Annotated[str, Meta(max_length=MAX_PROMPT, description="What the image should not show (base models)")]
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

Mask = Annotated[str, LARGE, Meta(description="Base64 or data URL: what of the first init image is inpainted is white")]
MaskAlpha = Literal["opaque", "transparent"]
MAX_BLUR = 256.0
Blur = Annotated[
    float, Meta(ge=0.0, le=MAX_BLUR, description="Inpainting: radius in pixels of the blur of the mask's edge (4)")
]
Fill = Annotated[
    int,
    Meta(
        ge=0,
        le=3,
        description="Inpainting: what the masked part starts from: 0 colours around it, 1 itself, 2 noise, 3 nothing",
    ),
]
Padding = Annotated[
    int, Meta(ge=0, le=MAX_SIDE, description="Inpainting of the masked part alone: pixels around it that count (32)")
]
Margin = Annotated[int, Meta(ge=0, le=MAX_SIDE, description="Pixels that are added on this side")]
# A1111's clients send 0 and 1.
Flag = bool | Annotated[int, Meta(ge=0, le=1)]

MIN_RESOLUTION, MAX_RESOLUTION = 16, 8192
Resolution = Annotated[
    int, Meta(ge=MIN_RESOLUTION, le=MAX_RESOLUTION, description="Upscalers: the result's shorter side in pixels")
]
MIN_FACTOR, MAX_FACTOR = 0.1, 8.0
Factor = Annotated[float, Meta(ge=MIN_FACTOR, le=MAX_FACTOR, description="Upscalers: times as large (2)")]
Softness = Annotated[
    float, Meta(ge=0.0, le=1.0, description="Upscalers: how much detail is taken away first, to be invented anew (0)")
]

ImageFormat = Literal["png", "jpeg", "webp"]
OutputFormat = Annotated[ImageFormat, Meta(description="Of the images in the answer; null: png, as they are stored")]
Compression = Annotated[
    int, Meta(ge=0, le=100, description="Quality of jpeg and webp (92), as OpenAI's field of this name; png ignores it")
]

DEFAULT_SIDE = 512
DEFAULT_STRENGTH = 0.75

ONLY_OF_UPSCALERS = ("resolution", "upscale", "softness")
MODIFIERS_OF_MASKS = (
    "mask_blur",
    "mask_blur_x",
    "mask_blur_y",
    "inpainting_mask_invert",
    "inpainting_fill",
    "inpaint_full_res",
    "inpaint_full_res_padding",
)
"""Fields that say how something is masked; they mask nothing themselves."""
NOT_OF_UPSCALERS = (
    "negative_prompt",
    "width",
    "height",
    "steps",
    "guidance",
    "image_strength",
    "partial_images",
    *MODIFIERS_OF_MASKS,
)
"""Fields without a meaning for upscalers. Each kind of model ignores the fields of the other, whatever they hold."""


PartialImages = Annotated[
    int,
    Meta(
        ge=0,
        le=MAX_PARTIAL_IMAGES,
        description="How often each image is shown on its way, as `partial_image` events of the job's stream",
    ),
]
MAX_PRIORITY = 10
Priority = Annotated[
    int, Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="Among the caller's own waiting jobs the highest is first")
]


@attrs.frozen(kw_only=True)
class Extend:
    """Outpainting: how many pixels are added on each side of the first init image."""

    left: Margin = 0
    top: Margin = 0
    right: Margin = 0
    bottom: Margin = 0

    def __bool__(self) -> bool:
        """Whether it adds anything."""
        return any(attrs.astuple(self))


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
    init_images: Annotated[tuple[EncodedImage, ...], Meta(max_length=MAX_INIT_IMAGES)] = attrs.field(
        default=(), converter=encode_images
    )
    """Base64 or data URLs; paths, bytes and images of Pillow's become base64. The first is what an image
    strength below 1 starts from, and the prompt may refer to all."""
    image_strength: Strength | None = None
    """Only with init images; ``None`` is 0.75 then, and 1 with ``extend``."""
    mask: Mask | None = attrs.field(default=None, converter=encode_mask)
    """Given as ``init_images`` are, and only with them: white is inpainted, black of the first one is kept. Any size;
    it is read by its alpha where that is not opaque everywhere."""
    mask_alpha: MaskAlpha = "opaque"
    """Of a mask with transparency: whether what is opaque is inpainted, as in A1111, or what is transparent, as OpenAI
    has it."""
    mask_blur: Blur | None = None
    """``None``: 4; it counts for both directions, whatever the next two say."""
    mask_blur_x: Blur | None = None
    mask_blur_y: Blur | None = None
    inpainting_mask_invert: Flag = False
    """Black is inpainted and white is kept."""
    inpainting_fill: Fill | None = None
    """What the masked part starts from; ``None``: 1, itself."""
    inpaint_full_res: Flag = False
    """Generate the masked part alone, in the size that is asked for, and put it back into the first init image."""
    inpaint_full_res_padding: Padding | None = None
    """Only with ``inpaint_full_res``; ``None``: 32."""
    extend: Extend | None = None
    """Only with init images; what is added is masked, and ``mask`` is of the image before."""
    resolution: Resolution | None = None
    """Only for upscalers, like ``upscale`` and ``softness``; other models ignore it. Give this or ``upscale``."""
    upscale: Factor | None = None
    softness: Softness | None = None
    output_format: OutputFormat | None = None
    """Of images in answers and events; files on disk are PNG whatever it says."""
    output_compression: Compression | None = None
    partial_images: PartialImages = 0
    """Followers of the job get what each image is coming to, decoded; it takes the time of as many more decodings."""
    priority: Priority = 0
    """Orders the jobs of one caller; those of others too, where its key has the scope ``prioritize``."""
    webhook: Webhook | None = None
    """Where the job's end is sent; only with ``webhooks.enabled``."""


def check_fields(request: GenerateRequest, *, max_images: int, needs_prompt: bool = True) -> None:
    """Check the rules that concern more than one field, or a setting.

    Args:
        request: a request whose fields are each within their limits.
        max_images: ``generation.max_batch_size``.
        needs_prompt: whether its model requires a prompt.

    Raises:
        InvalidParameter: a prompt is missing, there are too many images, LoRAs or scales, or no image to inpaint.
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
    for field, asked in (("mask", request.mask), ("extend", request.extend)):
        if asked and not request.init_images:
            raise InvalidParameter.for_field(
                field, "needs 'init_images': expected the image to inpaint as the first of them", limit="init_images"
            )
    _at_most("init_images", len(request.init_images), MAX_INIT_IMAGES)
    _at_most("lora_files", len(request.lora_files), _MAX_LORAS)


def _at_most(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidParameter.for_field(
            field, f"is invalid: expected at most {limit} entries", value=count, limit=limit
        )
