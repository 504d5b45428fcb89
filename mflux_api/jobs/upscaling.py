"""Requests for upscalers: which image, how large it becomes, and what is refused."""

from mflux_api.catalog import Model
from mflux_api.errors import InvalidParameter
from mflux_api.jobs.request import MIN_RESOLUTION, GenerateRequest
from mflux_api.jobs.resolve import ResolvedRequest, Upscaling, choose_seed

MAX_PIXELS = (1 << 26) // 3
"""Most pixels of an image before and after: 64 MiB of RGB, 22.4 MP."""
MOST = f"{MAX_PIXELS / 1e6:.1f} MP"
DEFAULT_FACTOR = 2.0


def check_upscaling(request: GenerateRequest, model: Model) -> None:
    """Refuse what an upscaler cannot do; fields of generators (steps, guidance, width, …) are ignored.

    Raises:
        InvalidParameter: there is not exactly one image, its size is asked for twice, or a LoRA or a mask is named.
    """
    count = len(request.init_images)
    if count == 0:
        raise InvalidParameter.for_field(
            "init_images",
            f"is required: '{model.alias}' upscales an image and generates none; "
            "give it as init_images to /sdapi/v1/img2img or /api/v1/generate, or as --init-image",
            limit="required",
        )
    if count > 1:
        problem = f"is invalid: '{model.alias}' upscales one image a job; send one job for each"
        raise InvalidParameter.for_field("init_images", problem, value=count, limit=1)
    if request.resolution is not None and request.upscale is not None:
        raise InvalidParameter.for_field("upscale", "is invalid: give either it or 'resolution'", value=request.upscale)
    for field, asked in (("mask", request.mask), ("extend", request.extend)):
        if asked:
            problem = f"is invalid: '{model.alias}' upscales whole images; leave it out"
            raise InvalidParameter.for_field(field, problem)
    if request.lora_files:
        problem = f"is invalid: '{model.alias}' takes no LoRAs; leave them out"
        raise InvalidParameter.for_field("lora_files", problem, value=len(request.lora_files), limit=0)


def resolve_upscaling(request: GenerateRequest, model: Model, given: tuple[int, int]) -> ResolvedRequest:
    """Fill in what the request leaves to the service; the result runs as it stands.

    Args:
        request: a checked request.
        model: the upscaler that it names.
        given: width and height of its image.

    Raises:
        InvalidParameter: the image is too large, or would become too large or too small.
    """
    if given[0] * given[1] > MAX_PIXELS:
        problem = f"is invalid: image 1 has {given[0]} × {given[1]} pixels; an upscaler takes {MOST}"
        raise InvalidParameter.for_field("init_images", problem, limit=MAX_PIXELS)
    factor = DEFAULT_FACTOR if request.upscale is None else request.upscale
    resolution = round(min(given) * factor) if request.resolution is None else request.resolution
    field, value = ("resolution", resolution) if request.resolution is not None else ("upscale", factor)
    width, height = upscaled_size(*given, resolution)
    if width * height > MAX_PIXELS:
        problem = f"is invalid: the image would have {width} × {height} pixels; the limit is {MOST}"
        raise InvalidParameter.for_field(field, problem, value=value, limit=MAX_PIXELS)
    if resolution < MIN_RESOLUTION:
        problem = f"is invalid: the image's shorter side would have {resolution} pixels"
        raise InvalidParameter.for_field(
            field, f"{problem}; it needs {MIN_RESOLUTION}", value=value, limit=MIN_RESOLUTION
        )
    return ResolvedRequest(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        model=model.alias,
        seed=choose_seed(request),
        width=width,
        height=height,
        steps=1,
        guidance=1.0,
        num_images=request.num_images,
        low_ram=request.low_ram,
        init_images=request.init_images,
        upscaling=Upscaling(resolution=resolution, softness=request.softness or 0.0),
        output_format=request.output_format,
        output_compression=request.output_compression,
    )


def upscaled_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Return the size that mflux's SeedVR2 gives an image whose shorter side becomes ``resolution``: even sides."""
    # In its order of operations: another would round otherwise.
    scale = resolution / min(width, height)
    return int(width * scale) // 2 * 2, int(height * scale) // 2 * 2
