"""What an image file says of itself: A1111's infotext for all, and the request as JSON, by which it is made again."""

import json
from collections.abc import Mapping
from typing import Any, Final

import attrs

from mflux_api.images.infotext import parse_infotext
from mflux_api.jobs.resolve import ResolvedRequest
from mflux_api.version import package_version

MAX_RECORD: Final = 64 * 1024
"""Characters."""

_FROM_INFOTEXT: Final[Mapping[str, tuple[str, type[int] | type[float]]]] = {
    "Steps": ("steps", int),
    "CFG scale": ("guidance", float),
    "Seed": ("seed", int),
    "Size-1": ("width", int),
    "Size-2": ("height", int),
}


@attrs.frozen(kw_only=True)
class ImageMetadata:
    """What was found in a file."""

    width: int
    height: int
    format: str
    infotext: str = ""
    """Empty where there is none."""
    record: str = ""
    """What :func:`generation_record` made; empty where there is none."""
    items: Mapping[str, str] = attrs.field(factory=dict)
    """Other texts, such as another program's workflow."""


def generation_record(request: ResolvedRequest, seed: int) -> str:
    """Return the request of one image as JSON: what ``POST /api/v1/generate`` takes to make it again.

    Init images and the mask are not in it, only how many there were.
    """
    masked = request.inpainting is not None and request.inpainting.masked
    given = request_fields(request, seed)
    whole = {"version": package_version(), "request": given, "init_images": len(request.init_images), "mask": masked}
    text = json.dumps(whole, ensure_ascii=True)
    return text if len(text) <= MAX_RECORD else ""


def request_fields(request: ResolvedRequest, seed: int) -> dict[str, Any]:
    """Return what ``POST /api/v1/generate`` takes to make one image again, without init images and mask."""
    fields: dict[str, Any] = {"prompt": request.prompt, "model": request.model, "seed": seed}
    if request.upscaling is not None:
        fields |= {"resolution": request.upscaling.resolution, "softness": request.upscaling.softness}
    else:
        fields |= {"width": request.width, "height": request.height, "steps": request.steps}
        fields |= {"guidance": request.guidance, "negative_prompt": request.negative_prompt}
        fields |= {"image_strength": request.image_strength}
    if request.lora_files:
        fields |= {"lora_files": list(request.lora_files), "lora_scales": list(request.lora_scales)}
    if request.low_ram:
        fields["low_ram"] = True
    fields |= _of_inpainting(request)
    return {name: value for name, value in fields.items() if value is not None}


def _of_inpainting(request: ResolvedRequest) -> dict[str, Any]:
    inpainting = request.inpainting
    if inpainting is None:
        return {}
    across, down = inpainting.blur
    fields: dict[str, Any] = {"mask_blur": across} if across == down else {"mask_blur_x": across, "mask_blur_y": down}
    # What is ``None`` is left out.
    fields |= {"extend": inpainting.margins, "inpainting_fill": inpainting.fill}
    if inpainting.invert:
        fields["inpainting_mask_invert"] = True
    if inpainting.transparent:
        fields["mask_alpha"] = "transparent"
    if inpainting.padding is not None:
        fields |= {"inpaint_full_res": True, "inpaint_full_res_padding": inpainting.padding}
    return fields


@attrs.frozen(kw_only=True)
class Recipe:
    """A request that makes an image again, as far as its file tells."""

    request: Mapping[str, Any]
    """What ``POST /api/v1/generate`` takes; empty where the file tells nothing."""
    warnings: tuple[str, ...] = ()
    """What it does not tell."""


def recipe_of(found: ImageMetadata) -> Recipe:
    """Return the request of an image of this service, or what another program's infotext has of one."""
    try:
        whole = json.loads(found.record) if found.record else None
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict) and isinstance(whole.get("request"), dict):
        request = {str(name): value for name, value in whole["request"].items()}
        return Recipe(request=request, warnings=_missing(whole))
    if not found.infotext:
        return Recipe(request={}, warnings=("The file does not say how it was made",))
    return _of_infotext(found.infotext)


def _missing(whole: Mapping[str, Any]) -> tuple[str, ...]:
    count = whole.get("init_images")
    told = list[str]()
    if isinstance(count, int) and count > 0:
        told.append(f"It was made from {count} init image(s), which the file does not hold: add them as 'init_images'")
    if whole.get("mask") is True:
        told.append("It was made with a mask, which the file does not hold: add it as 'mask'")
    return tuple(told)


def _of_infotext(text: str) -> Recipe:
    pairs = parse_infotext(text)
    request: dict[str, Any] = {"prompt": pairs.get("Prompt", "")}
    if pairs.get("Negative prompt"):
        request["negative_prompt"] = pairs["Negative prompt"]
    for name, (field, kind) in _FROM_INFOTEXT.items():
        try:
            request[field] = kind(pairs[name])
        except (KeyError, ValueError):
            continue
    model = pairs.get("Model")
    made_with = f"'{model[:64]}'" if model else "a model that it does not name"
    return Recipe(
        request=request, warnings=(f"Another program made it with {made_with}: another model, another image",)
    )
