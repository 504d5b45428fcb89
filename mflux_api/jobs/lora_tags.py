"""``<lora:name:0.8>`` in a prompt, as A1111's users write it: taken out of the text, put among the request's LoRAs.

``<lyco:…>`` is the same. A tag of another kind, or a part of a tag, that has no effect here becomes a warning: none of
them is taken for text in silence.
"""

import math
import re

import attrs

from mflux_api.errors import InvalidParameter
from mflux_api.ipc.printable import printable
from mflux_api.jobs.request import MAX_LORA_SCALE, MIN_LORA_SCALE, GenerateRequest

_TAG = re.compile(r"<(\w+):([^<>]*)>")
_LIKE_A_TAG = re.compile(
    r"(?:[<\uff1c\u2039]|&lt;)[ \t]*(\w+)(?:[ \t]*[:\uff1a=])?"
    r"|\b(lora|lyco):[\w ./\\-]{1,80}:[-+]?\.?[0-9]|\b(with)Lora[ \t]*\(",
    re.IGNORECASE,
)
"""A tag that is not one: not closed, in a web page's or another width's brackets, without brackets, or InvokeAI's."""
_MAY_BE_A_TAG = re.compile(r"[<\uff1c\u2039]|&lt;|lora|lyco:", re.IGNORECASE)
_BLANKS = " \t"

_LORAS = frozenset({"lora", "lyco"})
"""Kinds of tags that name a LoRA: A1111's own, and its LyCORIS extension's."""
_WITHOUT_EFFECT = frozenset(
    {
        "hypernet",
        "hypernetwork",
        "locon",
        "loha",
        "lokr",
        "dora",
        "embedding",
        "embed",
        "ti",
        "textual_inversion",
        "vae",
    }
)
"""Kinds that other programs have; they leave the text, as in A1111."""

_KNOWN = _LORAS | _WITHOUT_EFFECT

_MOST_WARNINGS = 8
_MOST_CHARACTERS = 64
_SHAPE = "<lora:name:0.8>"


@attrs.frozen
class Untagged:
    """A request whose prompt has no tags any more."""

    request: GenerateRequest
    warnings: tuple[str, ...] = ()
    """Sentences about tags that have no effect, or not all of it."""


@attrs.frozen
class _Tag:
    name: str
    scale: float
    without_effect: tuple[str, ...]
    """What of it has none, as clauses."""


def without_tags(request: GenerateRequest) -> Untagged:
    """Return the request with the LoRA tags of its prompt as further ``lora_files`` and ``lora_scales``.

    A tag is ``<lora:name>`` (scale 1), ``<lora:name:0.8>``, or one of A1111's longer ones, ``<lora:name:TEXT:0.8>`` and
    ``<lora:name:te=TEXT:unet=0.8>``, where only the scale for the diffusion model counts here.

    Raises:
        InvalidParameter: a tag cannot be read, or nothing but tags is there.
    """
    if not any(_MAY_BE_A_TAG.search(text) for text in (request.prompt, request.negative_prompt or "")):
        return Untagged(request)
    warnings = _Warnings()
    negative = _negative(request.negative_prompt, warnings)
    found = list[_Tag]()
    for tag in _TAG.finditer(request.prompt):
        kind, shown = tag[1].lower(), _shown(tag[0])
        if kind in _LORAS:
            read = _read(tag[2])
            found.append(read)
            for clause in read.without_effect:
                warnings.add(f"'{shown}': {clause}")
        elif kind in _WITHOUT_EFFECT:
            warnings.add(f"'{shown}' has no effect and was left out of the prompt: {_SHAPE} is the tag that is known")
    rest = remove_tags(request.prompt)
    for text in (rest, negative or ""):
        _tell_of_text(text, warnings)
    if rest != request.prompt and not (rest := rest.strip()):
        raise _invalid("a text beside its <lora:…> tags")
    given = len(request.lora_files) - len(request.lora_scales)
    untagged = attrs.evolve(
        request,
        prompt=rest,
        negative_prompt=negative,
        lora_files=(*request.lora_files, *(tag.name for tag in found)),
        lora_scales=(*request.lora_scales, *[1.0] * given, *(tag.scale for tag in found)),
    )
    return Untagged(untagged, warnings.sentences())


def remove_tags(prompt: str) -> str:
    """Return a prompt without its tags and the blanks before them, save a space between two words."""
    kept, end = list[str](), 0
    for tag in _TAG.finditer(prompt):
        if tag[1].lower() not in _KNOWN:
            continue
        before = prompt[end : tag.start()]
        # Not by the pattern: one that begins with blanks tries each run of them from each of its places.
        text = before.rstrip(_BLANKS)
        end = tag.end()
        kept += text, " " if text != before and prompt[end : end + 1].isalnum() else ""
    return "".join(kept) + prompt[end:]


class _Warnings:
    """Sentences, each once, and a bounded number of them."""

    def __init__(self) -> None:
        self._sentences: dict[str, None] = {}
        self._more = 0

    def add(self, sentence: str) -> None:
        if sentence in self._sentences:
            return
        if len(self._sentences) < _MOST_WARNINGS:
            self._sentences[sentence] = None
        else:
            self._more += 1

    def sentences(self) -> tuple[str, ...]:
        more = (f"{self._more} more tags of the prompt have no effect, or not all of it",) if self._more else ()
        return (*self._sentences, *more)


def _negative(prompt: str | None, warnings: _Warnings) -> str | None:
    """Return a negative prompt without its tags: A1111 has no use for them there either."""
    rest = None if prompt is None else remove_tags(prompt)
    if rest != prompt:
        warnings.add("Tags in 'negative_prompt' have no effect and were left out; write <lora:name:0.8> in the prompt")
    return rest


def _tell_of_text(text: str, warnings: _Warnings) -> None:
    """Tell of what stays in a prompt and may have been meant as a tag."""
    for tag in _TAG.finditer(text):
        warnings.add(f"'{_shown(tag[0])}' was taken for text: {_SHAPE} is the tag that is known")
    for start in _LIKE_A_TAG.finditer(_TAG.sub("", text)):
        if start[1] is None or start[1].lower() in _KNOWN:
            warnings.add(f"'{_shown(start[0])}…' was taken for text: write it as {_SHAPE}")


def _read(text: str) -> _Tag:
    """Read what stands behind ``<lora:``, with the meaning that A1111 gives it."""
    name, *arguments = (part.strip() for part in text.split(":"))
    arguments = list(filter(None, arguments))
    positional = [argument for argument in arguments if "=" not in argument]
    named = {key.strip(): value.strip() for key, _, value in (each.partition("=") for each in arguments if "=" in each)}
    # A1111: the first number is the text encoder's, and the diffusion model's where that has none of its own.
    encoder = named.pop("te", positional[0] if positional else "1")
    # What other extensions write in that place, such as a preset of weights by block, is not a number.
    second = positional[1] if len(positional) > 1 and _number(positional[1]) is not None else None
    scale, text_scale = _number(named.pop("unet", second or encoder)), _number(encoder)
    if not name or scale is None or text_scale is None or not MIN_LORA_SCALE <= scale <= MAX_LORA_SCALE:
        raise _invalid(f"tags such as {_SHAPE}, with a scale from {MIN_LORA_SCALE:g} to {MAX_LORA_SCALE:g}")
    clauses = list[str]()
    if text_scale != scale:
        clauses.append(f"its scale {text_scale:g} for the text encoder has no effect; {scale:g} counts")
    others = [*positional[1 if second is None else 2 :], *(f"{key}=" for key in named)]
    clauses += (f"its part '{_shown(other)}' has no effect" for other in others[:_MOST_WARNINGS])
    return _Tag(name, scale, tuple(clauses))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _shown(text: str) -> str:
    return printable(text, _MOST_CHARACTERS)


def _invalid(expected: str) -> InvalidParameter:
    return InvalidParameter.for_field("prompt", f"is invalid: expected {expected}", value="…", limit=expected)
