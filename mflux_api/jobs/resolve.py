"""What a job on an upscaler is: which image, how large it becomes, and what is refused."""

import secrets

import attrs

from mflux_api.catalog import Model
from mflux_api.errors import InvalidParameter
from mflux_api.ipc.frames import MAX_BLOB
from mflux_api.jobs.request import MIN_RESOLUTION, GenerateRequest

MAX_PIXELS = MAX_BLOB // 3
"""Of an image before and after: what one frame to or from the engine holds, 22.4 MP."""
MOST = f"{MAX_PIXELS / 1e6:.1f} MP"
DEFAULT_FACTOR = 2.0


def check_upscaling(request: GenerateRequest, model: Model) -> None:
    """Refuse what an upscaler cannot do; what means nothing to it (steps, guidance, width, …) is ignored.

    Raises:
        InvalidParameter: there is not exactly one image, its size is asked for twice, or a LoRA is named.
    """
    count = len(request.init_images)
    if count == 0:
        raise _invalid(
            "init_images",
            f"'init_images' is required: '{model.alias}' upscales an image and generates none; "
            "give it as init_images to /sdapi/v1/img2img or /api/v1/generate, or as --init-image",
            None,
            "required",
        )
    if count > 1:
        sentence = f"'init_images' is invalid: '{model.alias}' upscales one image a job; send one job for each"
        raise _invalid("init_images", sentence, count, 1)
    if request.resolution is not None and request.upscale is not None:
        raise _invalid("upscale", "'upscale' is invalid: give either it or 'resolution'", request.upscale, None)
    if request.lora_files:
        sentence = f"'lora_files' is invalid: '{model.alias}' takes no LoRAs; leave them out"
        raise _invalid("lora_files", sentence, len(request.lora_files), 0)


def resolve_upscaling(request: GenerateRequest, model: Model, given: tuple[int, int]) -> GenerateRequest:
    """Fill in what the request leaves to the service; the result runs as it stands.

    Args:
        request: a checked request.
        model: the upscaler that it names.
        given: width and height of its image.

    Raises:
        InvalidParameter: the image is too large, or would become too large or too small.
    """
    if given[0] * given[1] > MAX_PIXELS:
        sentence = f"'init_images' is invalid: image 1 has {given[0]} × {given[1]} pixels; an upscaler takes {MOST}"
        raise _invalid("init_images", sentence, None, MAX_PIXELS)
    factor = DEFAULT_FACTOR if request.upscale is None else request.upscale
    resolution = round(min(given) * factor) if request.resolution is None else request.resolution
    field, value = ("resolution", resolution) if request.resolution is not None else ("upscale", factor)
    width, height = upscaled_size(*given, resolution)
    if width * height > MAX_PIXELS:
        sentence = f"'{field}' is invalid: the image would have {width} × {height} pixels; the limit is {MOST}"
        raise _invalid(field, sentence, value, MAX_PIXELS)
    if resolution < MIN_RESOLUTION:
        sentence = f"'{field}' is invalid: the image's shorter side would have {resolution} pixels"
        raise _invalid(field, f"{sentence}; it needs {MIN_RESOLUTION}", value, MIN_RESOLUTION)
    seed = request.seed if request.seed not in (None, -1) else secrets.randbelow(2**32)
    return attrs.evolve(
        request,
        model=model.alias,
        seed=seed,
        width=width,
        height=height,
        steps=1,
        guidance=1.0,
        image_strength=None,
        resolution=resolution,
        upscale=None,
        softness=request.softness or 0.0,
    )


def upscaled_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """The size that mflux's SeedVR2 gives an image whose shorter side shall have ``resolution`` pixels: even sides."""
    # In its order of operations: another would round otherwise.
    scale = resolution / min(width, height)
    return int(width * scale) // 2 * 2, int(height * scale) // 2 * 2


def _invalid(field: str, sentence: str, value: float | None, limit: float | str | None) -> InvalidParameter:
    return InvalidParameter(sentence, {"field": field, "value": value, "limit": limit})
