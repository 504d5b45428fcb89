"""Which layers a LoRA's file holds, by the names of its tensors: what can be used of it, and what is left over.

Nothing here opens a file, or looks at a model.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Literal, TypeAlias

import attrs

from mflux_api.catalog.lora_tensors import PARTS, PARTS_OF_RANK, Target, TensorName, parse_name
from mflux_api.catalog.safetensors_rules import Header, TensorPlace
from mflux_api.ipc.printable import printable

Format: TypeAlias = Literal["lora", "lokr", "loha", "dora", "unknown"]

EXAMPLES = 3
"""Names that are shown of many."""

CHECKPOINT_KIND = "checkpoint"
"""What whole weights are, which are not updates."""

_UPDATES = frozenset(PARTS.values()) - {"alpha", "magnitude"}
_UNSUPPORTED = {
    **dict.fromkeys(("oft_blocks", "oft_diag", "oft_R", "oft_r"), "OFT"),
    **dict.fromkeys(("boft_R", "boft_s", "boft_blocks"), "BOFT"),
    **dict.fromkeys(("a1", "a2", "b1", "b2"), "GLoRA"),
    **dict.fromkeys(("vera_lambda_b", "vera_lambda_d"), "VeRA"),
    "lora_E": "AdaLoRA",
    **dict.fromkeys(("ia3_l", "on_input"), "(IA)³"),
    **dict.fromkeys(("hada_t1", "hada_t2", "lora_mid"), "Tucker decomposition"),
    **dict.fromkeys(("lora_embedding_A", "lora_embedding_B"), "LoRA of an embedding"),
    **dict.fromkeys(("weight", "bias"), CHECKPOINT_KIND),
}
"""Parts that other adapters have."""

_TRANSFORMERS = re.compile(
    r"(?:base_model\.model|(?:model\.)?diffusion_model|transformer|unet)\.|lora_(?:unet|transformer)_"
)
"""Prefixes that say of a tensor that it is the transformer's, whatever it is."""

_BASES = ("modelspec.architecture", "ss_base_model_version", "base_model", "ss_sd_model_name")
"""Where trainers write what they trained on: Stability's model specification, kohya, ai-toolkit."""


_OTHER_MODELS = re.compile(
    r"flux[-_. ]?1(?![0-9])|schnell|kontext|sdxl|stable[-_ ]?diffusion|qwen[-_ ]?image|z[-_ ]?image|chroma|hunyuan",
    re.IGNORECASE,
)
"""Models of which some layers may have the names and shapes of FLUX.2's."""
_FLUX2 = re.compile(r"flux[-_. ]?2|klein", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class LoraContents:
    """What a LoRA's file holds, as far as its header says."""

    format: Format
    rank: int | None
    """The most frequent one; ``None`` where factors are whole matrices."""
    base: str | None
    """The model that it was trained on, where the metadata says so."""
    layers: int
    """The transformer's layers that the file names."""
    understood: int
    """How many of them have names and parts that are known here."""
    text_encoder_layers: int
    unknown: tuple[str, ...]
    """Names that are not known, at most three."""


@attrs.frozen(kw_only=True)
class LoraNames:
    """The names in one file, sorted by what can be done with them."""

    used: Mapping[str, TensorName]
    """The tensors of layers that are understood."""
    layers: int
    understood: int
    text_encoder_layers: int
    left_over: tuple[str, ...]
    """Layers that are not understood, and tensors that are not part of one; no single numbers."""
    unsupported: tuple[str, ...]
    """Kinds of adapters that are known by their tensors' names and cannot be used."""

    @property
    def examples(self) -> tuple[str, ...]:
        """The first of what is left over, fit to be shown."""
        return tuple(printable(each, 80) for each in self.left_over[:EXAMPLES])

    @property
    def mostly_understood(self) -> bool:
        """Whether at least half of the transformer's layers in the file can be used, and one is there."""
        return 0 < self.layers <= 2 * self.understood


def sort_names(tensors: Mapping[str, TensorPlace]) -> LoraNames:
    """Sort the tensors of a file by what can be done with them."""
    by_layer: dict[tuple[Target, ...] | str, dict[str, TensorName]] = defaultdict(dict)
    for key in tensors:
        name = parse_name(key)
        # One layer may be spelled in two ways, a factor in one and alpha in the other.
        by_layer[name.targets or name.layer][key] = name
    used: dict[str, TensorName] = {}
    left_over: list[str] = []
    unsupported: dict[str, None] = {}
    layers = understood = text_encoder_layers = 0
    for names in by_layer.values():
        parts = {name.part for name in names.values()}
        first = next(iter(names.values()))
        if first.text_encoder:
            text_encoder_layers += 1
            continue
        if first.targets and parts & _UPDATES and not parts & _UNSUPPORTED.keys() - {"weight", "bias"}:
            layers, understood = layers + 1, understood + 1
            known = {key: name for key, name in names.items() if name.part in PARTS.values()}
            used |= known
            left_over += [key for key in names if key not in known]
            continue
        # A single number, such as a trainer's count of its steps, does not change an image.
        large = [key for key in names if math.prod(tensors[key].shape) > 1]
        if first.targets or any(part is not None and part not in ("weight", "bias") for part in parts):
            layers += 1
            left_over.append(first.layer)
        else:
            layers += 1 if large and _TRANSFORMERS.match(first.layer) else 0
            left_over += large
        if first.targets:
            # Of a layer that is not known, too little is known to say what it is.
            unsupported |= dict.fromkeys(kind for part, kind in _UNSUPPORTED.items() if part in parts)
    return LoraNames(
        used=used,
        layers=layers,
        understood=understood,
        text_encoder_layers=text_encoder_layers,
        left_over=tuple(left_over),
        unsupported=tuple(unsupported),
    )


def describe(header: Header) -> LoraContents:
    """Say what a LoRA's file holds."""
    names = sort_names(header.tensors)
    parts = Counter(name.part for name in names.used.values())
    ranks = Counter(
        header.tensors[key].shape[0]
        for key, name in names.used.items()
        if name.part in PARTS_OF_RANK and header.tensors[key].shape
    )
    return LoraContents(
        format=_format(parts),
        rank=ranks.most_common(1)[0][0] if ranks else None,
        base=_base(header.metadata),
        layers=names.layers,
        understood=names.understood,
        text_encoder_layers=names.text_encoder_layers,
        unknown=names.examples,
    )


def other_model(metadata: Mapping[str, str]) -> str | None:
    """Return the model that a file was trained on, as its trainer wrote it, where that is not FLUX.2."""
    base = _base(metadata)
    return base if base is not None and _OTHER_MODELS.search(base) and not _FLUX2.search(base) else None


def _format(parts: Mapping[str | None, int]) -> Format:
    """Return the format that most layers have."""
    counts: dict[Format, int] = {
        "lora": max(parts.get(part, 0) for part in ("lora_A", "diff", "diff_b")),
        "lokr": max(parts.get(part, 0) for part in ("lokr_w1", "lokr_w1_a")),
        "loha": parts.get("hada_w1_a", 0),
    }
    best = max(counts, key=lambda each: counts[each])
    if not counts[best]:
        return "unknown"
    return "dora" if best == "lora" and parts.get("magnitude") else best


def _base(metadata: Mapping[str, str]) -> str | None:
    said = (_model(metadata[key].strip()) for key in _BASES if key in metadata)
    return next((printable(text, 80) for text in said if text), None)


def _model(text: str) -> str:
    """Return a model's name out of ``flux-2-klein/lora``, ``owner/name`` or a path on the trainer's machine."""
    text = text.removesuffix("/lora").replace("\\", "/")
    return text.rsplit("/", 1)[-1] if text.startswith("/") or text[1:3] == ":/" else text
