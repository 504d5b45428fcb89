"""``<lora:name:0.8>`` in a prompt, as A1111's users write it: taken out of the text, put among the request's LoRAs."""

import math
import re

import attrs

from mflux_api.errors import InvalidParameter
from mflux_api.jobs.request import MAX_LORA_SCALE, MIN_LORA_SCALE, GenerateRequest

_TAG = re.compile(r"<lora:([^<>]*)>")
_BLANKS = " \t"


def without_tags(request: GenerateRequest) -> GenerateRequest:
    """Return the request with the tags of its prompt as further ``lora_files`` and ``lora_scales``.

    A tag is ``<lora:name>`` (scale 1), ``<lora:name:0.8>``, or one of A1111's longer ones, where only the scale for the
    diffusion model counts here: ``<lora:name:TEXT:0.8>``, ``<lora:name:unet=0.8>``.

    Raises:
        InvalidParameter: a tag cannot be read, or nothing but tags is there.
    """
    tags = _TAG.findall(request.prompt)
    if not tags:
        return request
    prompt = remove_tags(request.prompt).strip()
    if not prompt:
        raise _invalid("a text beside its <lora:…> tags")
    found = [_read(tag) for tag in tags]
    given = len(request.lora_files) - len(request.lora_scales)
    return attrs.evolve(
        request,
        prompt=prompt,
        lora_files=(*request.lora_files, *(name for name, _ in found)),
        lora_scales=(*request.lora_scales, *[1.0] * given, *(scale for _, scale in found)),
    )


def remove_tags(prompt: str) -> str:
    """Return a prompt without its tags and the blanks before them, save a space between two words."""
    kept, end = list[str](), 0
    for tag in _TAG.finditer(prompt):
        before = prompt[end : tag.start()]
        # Not by the pattern: one that begins with blanks tries each run of them from each of its places.
        text = before.rstrip(_BLANKS)
        end = tag.end()
        kept += text, " " if text != before and prompt[end : end + 1].isalnum() else ""
    return "".join(kept) + prompt[end:]


def _read(tag: str) -> tuple[str, float]:
    name, *arguments = (part.strip() for part in tag.split(":"))
    positional = [argument for argument in arguments if "=" not in argument]
    named = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    text = named.get("unet") or (positional[:2] or ["1"])[-1]
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not name or not MIN_LORA_SCALE <= scale <= MAX_LORA_SCALE:
        raise _invalid(f"tags such as <lora:name:0.8>, with a scale from {MIN_LORA_SCALE:g} to {MAX_LORA_SCALE:g}")
    return name, scale


def _invalid(expected: str) -> InvalidParameter:
    return InvalidParameter.for_field("prompt", f"is invalid: expected {expected}", value="…", limit=expected)
