"""A1111's infotext: how an image was made, as the text that galleries and chat front ends parse.

The form is ``prompt``, then ``Negative prompt: …`` where there is one, then one line of ``Key: value`` pairs.
"""

import json
from collections.abc import Mapping

from mflux_api.jobs.resolve import ResolvedRequest, Upscaling
from mflux_api.version import package_version

SAMPLER = "Euler"
SCHEDULE = "Simple"
SUFFIX = ".safetensors"


def infotext(request: ResolvedRequest, seed: int, model_hash: str | None = None) -> str:
    """Return the infotext of one image of a resolved request."""
    tags = (
        f" <lora:{file.removesuffix(SUFFIX)}:{scale:g}>"
        for file, scale in zip(request.lora_files, request.lora_scales, strict=True)
    )
    lines = [request.prompt + "".join(tags)]
    if request.upscaling is not None:
        return "\n".join([*filter(None, lines), _pairs(_upscaling_pairs(request, request.upscaling, seed, model_hash))])
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    pairs: dict[str, object] = {
        "Steps": request.steps,
        "Sampler": SAMPLER,
        "Schedule type": SCHEDULE,
        "CFG scale": f"{request.guidance:g}",
        "Seed": seed,
        "Size": "{}x{}".format(*request.size),
        "Model hash": model_hash,
        "Model": request.model,
        "Denoising strength": None if request.image_strength is None else f"{request.image_strength:g}",
        **inpainting_pairs(request),
        "Version": f"mflux-api {package_version()}",
    }
    lines.append(_pairs(pairs))
    return "\n".join(lines)


def inpainting_pairs(request: ResolvedRequest) -> Mapping[str, object]:
    """Return A1111's words for what of an image was inpainted; what is as usual is not said."""
    inpainting = request.inpainting
    if inpainting is None:
        return {}
    across, down = inpainting.blur
    pairs: dict[str, object] = {"Mask blur": f"{across:g}" if across == down else f"{across:g}x{down:g}"}
    if inpainting.invert:
        pairs["Mask mode"] = "Inpaint not masked"
    if inpainting.fill in _CONTENTS:
        pairs["Masked content"] = _CONTENTS[inpainting.fill]
    if inpainting.padding is not None:
        pairs |= {"Inpaint area": "Only masked", "Masked area padding": inpainting.padding}
    if any(inpainting.extend):
        pairs["Extended"] = " ".join(map(str, inpainting.extend))
    return pairs


_CONTENTS = {0: "fill", 2: "latent noise", 3: "latent nothing"}


def _upscaling_pairs(
    request: ResolvedRequest, upscaling: Upscaling, seed: int, model_hash: str | None
) -> dict[str, object]:
    return {
        "Seed": seed,
        "Size": "{}x{}".format(*request.size),
        "Model hash": model_hash,
        "Model": request.model,
        # As A1111 calls what its extras did.
        "Postprocess upscale to": "{}x{}".format(*request.size),
        "Postprocess upscaler": request.model,
        "Softness": f"{upscaling.softness:g}",
        "Version": f"mflux-api {package_version()}",
    }


def _pairs(pairs: Mapping[str, object]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in pairs.items() if value is not None)


_NEGATIVE = "Negative prompt:"
_MOST_PAIRS = 200


def parse_infotext(text: str) -> dict[str, str]:
    """Return what an infotext says, by A1111's names, such as ``Prompt``, ``Negative prompt`` and ``Size-1``.

    A text that is none is a prompt.
    """
    lines = text.strip().split("\n")
    pairs = _split_pairs(lines[-1])
    if not pairs.keys() & {"Steps", "Seed", "Size"}:
        pairs = {}
    else:
        lines.pop()
    prompt, negative, in_negative = list[str](), list[str](), False
    for line in lines:
        if line.startswith(_NEGATIVE):
            in_negative, line = True, line.removeprefix(_NEGATIVE).lstrip()
        (negative if in_negative else prompt).append(line)
    width, _, height = pairs.get("Size", "").partition("x")
    sizes = {"Size-1": width, "Size-2": height} if width.isdigit() and height.isdigit() else {}
    return {"Prompt": "\n".join(prompt).strip(), "Negative prompt": "\n".join(negative).strip(), **pairs, **sizes}


def _split_pairs(line: str) -> dict[str, str]:
    """Read ``Key: value, Key: "a value, with commas"``."""
    pairs = dict[str, str]()
    while line and len(pairs) < _MOST_PAIRS:
        key, colon, line = line.partition(":")
        if not colon:
            break
        line = line.lstrip(" ")
        if line.startswith('"'):
            value, line = _quoted(line)
            line = line.partition(",")[2]
        else:
            value, _, line = line.partition(",")
        pairs[key.strip()] = value.strip()
    return pairs


def _quoted(text: str) -> tuple[str, str]:
    """Return a value in quotes, as JSON has it, and what is behind it."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        value, _, rest = text.partition(",")
        return value, "," + rest
    return str(value), text[end:]
