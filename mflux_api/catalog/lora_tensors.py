"""What the tensors of a LoRA's file are called: every trainer's spelling of FLUX.2's layers, read in one place.

A name is prefixes, a layer, a part of its update and, from PEFT, the adapter's name. Dots and underscores are the same
in a layer's name. The layers are those of black-forest-labs/flux2 and of diffusers' ``Flux2Transformer2DModel``; which
is which is in diffusers' ``convert_flux2_to_diffusers.py``.
"""

import re
from collections.abc import Iterator, Mapping

import attrs


@attrs.frozen
class Rows:
    """Which rows of an update belong to a layer: the update's are cut into equal parts, and some are taken."""

    parts: int
    taken: tuple[int, ...]
    """In the order in which the layer has them."""


WHOLE = Rows(1, (0,))
SWAPPED = Rows(2, (1, 0))
"""Of the last norm's modulation: BFL has shift before scale, and diffusers scale before shift."""


@attrs.frozen
class Target:
    """A linear layer of mflux's ``Flux2Transformer`` that an update is for."""

    path: str
    rows: Rows = WHOLE


@attrs.frozen
class TensorName:
    """What a tensor is called, taken apart."""

    layer: str
    """The layer as the file calls it; the whole name where no part of an update ends it."""
    part: str | None
    """A value of :data:`PARTS`, another part of an update by its own name, or ``None``."""
    targets: tuple[Target, ...]
    """The layer's places in the transformer; none where it is not known, three for query, key and value in one."""
    text_encoder: bool
    """Whether the layer is a text encoder's."""


PARTS: Mapping[str, str] = {
    **dict.fromkeys(("lora_A", "lora_down", "lora_linear_layer_down"), "lora_A"),
    **dict.fromkeys(("lora_B", "lora_up", "lora_linear_layer_up"), "lora_B"),
    **dict.fromkeys(("lora_B_bias", "lora_up_bias"), "lora_B_bias"),
    **dict.fromkeys(("dora_scale", "lora_magnitude_vector", "magnitude"), "magnitude"),
    **{name: name for name in ("alpha", "diff", "diff_b")},
    **{f"lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **{f"hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b")},
}
"""The parts of an update, by their names with underscores, and what they are called here."""

PARTS_OF_RANK = ("lora_A", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
"""Parts that have the update's rank as their first side."""

# --- layers ---

_GLOBAL = {
    **dict.fromkeys(("x_embedder", "img_in"), "x_embedder"),
    **dict.fromkeys(("context_embedder", "txt_in"), "context_embedder"),
    **dict.fromkeys(("proj_out", "final_layer_linear"), "proj_out"),
    **dict.fromkeys(("norm_out_linear", "final_layer_adaLN_modulation_1"), "norm_out.linear"),
    **{
        f"{layer}_{last}": f"{layer}.linear"
        for layer in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
        for last in ("linear", "lin")
    },
    **{
        name: f"time_guidance_embed.{ours}_{number}"
        for number, bfls in ((1, "in"), (2, "out"))
        for ours, theirs, bfl in (
            ("linear", "timestep_embedder", "time_in"),
            ("guidance_linear", "guidance_embedder", "guidance_in"),
        )
        for name in (
            f"time_guidance_embed_{theirs}_linear_{number}",
            f"time_guidance_embed_{ours}_{number}",
            f"{bfl}_{bfls}_layer",
        )
    },
}
_IMAGE_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_TEXT_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_FUSED = {
    **dict.fromkeys(("img_attn_qkv", "attn_to_qkv", "attn_qkv"), _IMAGE_QKV),
    **dict.fromkeys(("txt_attn_qkv", "attn_to_added_qkv", "attn_added_qkv"), _TEXT_QKV),
}
_DOUBLE = {
    **{name.replace(".", "_"): name for name in (*_IMAGE_QKV, *_TEXT_QKV)},
    **dict.fromkeys(("img_attn_proj", "attn_to_out_0", "attn_to_out"), "attn.to_out"),
    **dict.fromkeys(("txt_attn_proj", "attn_to_add_out"), "attn.to_add_out"),
    **dict.fromkeys(("img_mlp_0", "ff_linear_in"), "ff.linear_in"),
    **dict.fromkeys(("img_mlp_2", "ff_linear_out"), "ff.linear_out"),
    **dict.fromkeys(("txt_mlp_0", "ff_context_linear_in"), "ff_context.linear_in"),
    **dict.fromkeys(("txt_mlp_2", "ff_context_linear_out"), "ff_context.linear_out"),
}
_SINGLE = {
    **dict.fromkeys(("linear1", "attn_to_qkv_mlp_proj"), "attn.to_qkv_mlp_proj"),
    **dict.fromkeys(("linear2", "attn_to_out", "attn_to_out_0"), "attn.to_out"),
}
_BLOCKS = {
    **dict.fromkeys(("double_blocks", "transformer_blocks", "sformer_blocks"), "transformer_blocks"),
    **dict.fromkeys(("single_blocks", "single_transformer_blocks"), "single_transformer_blocks"),
}
_PREFIX_WORDS = frozenset(
    {
        *("base", "model", "diffusion", "transformer", "lora", "lycoris", "unet", "net", "dit", "mmdit"),
        *("flux", "flux2", "klein", "pipe", "pipeline", "module", "orig", "mod", "forward", "denoiser", "network"),
        *("student", "generator", "backbone"),
    }
)
"""What prefixes are made of: base_model.model., transformer., lora_unet_, _forward_module., student. …

"ema" is not among them: averages lie beside the weights that they are of, and there would be two of each."""
_MAX_PREFIX_WORDS = 8

_WRAPPERS = re.compile(r"_orig_mod\.|_(?:fsdp|checkpoint)_wrapped_module\.")
"""Modules of PyTorch around a model or each of its blocks: compiled, sharded, computed again."""

# A block's number. With more digits it is not one, and int() takes no more than 4,300. "sformer_blocks" is in files
# that diffusers reads, too.
_BLOCK_LAYER = re.compile(
    r"(double_blocks|(?:tran)?sformer_blocks|single(?:_transformer)?_blocks)_([0-9]{1,4})_(\w+)", re.ASCII
)
_TEXT_ENCODER_LAYER = re.compile(
    r"(?:te[0-9]?|text_encoder(?:s|_[0-9])?|text_model|language_model|clip(?:_[a-z0-9]+)?|t5\w*|qwen\w*|conditioner|"
    r"cond_stage_model|layers_[0-9]+_(?:self_attn|mlp))_",
    re.ASCII,
)
_PEFT_PARTS = (
    r"lora[._](?:A|B|E|down|up|mid|linear_layer[._](?:down|up)|embedding_[AB]|magnitude_vector)|lokr_(?:w[12](?:_[ab])?|t2)|"
    r"hada_(?:w[12]_[ab]|t[12])|b?oft_(?:blocks|diag|[Rrs])|vera_lambda_[bd]|ia3_l"
)
"""The parts behind which PEFT puts the adapter's name, in which there is no dot."""
_PART_AT_END = re.compile(
    r"[._](?:(?P<named>"
    + _PEFT_PARTS
    + r")(?:\.(?!(?:weight|bias)$)[^.]+)?|(?P<unnamed>alpha|diff_b|diff|dora_scale|magnitude|on_input|[ab][12]))"
    r"(?P<leaf>[._](?:weight|bias))?$",
    re.ASCII,
)
_WEIGHT_AT_END = re.compile(r"\.(weight|bias)$")


def parse_name(name: str) -> TensorName:
    """Take a tensor's name apart."""
    layer, part = name, None
    if match := _PART_AT_END.search(name):
        part = (match["named"] or match["unnamed"]).replace(".", "_")
        if match["leaf"] and match["leaf"].endswith("bias"):
            part += "_bias"
        layer, part = name[: match.start()], PARTS.get(part, part)
    elif match := _WEIGHT_AT_END.search(name):
        layer, part = name[: match.start()], match[1]
    targets: tuple[Target, ...] = ()
    text_encoder = False
    # Some trainers write an underscore behind the name.
    for plain in _without_prefixes(_WRAPPERS.sub("", layer).replace(".", "_").rstrip("_")):
        if targets := _targets(plain):
            break
        text_encoder = text_encoder or _TEXT_ENCODER_LAYER.match(f"{plain}_") is not None
    return TensorName(layer, part, targets, text_encoder and not targets)


def _without_prefixes(layer: str) -> Iterator[str]:
    """Yield a layer's name as it is, and without one word of its prefixes after another."""
    for _ in range(_MAX_PREFIX_WORDS):
        layer = layer.lstrip("_")
        yield layer
        word, _, rest = layer.partition("_")
        if word not in _PREFIX_WORDS:
            return
        layer = rest


def _targets(layer: str) -> tuple[Target, ...]:
    """Return the places of a layer whose name has underscores for dots."""
    if layer in _GLOBAL:
        return (Target(_GLOBAL[layer], SWAPPED if "adaLN" in layer else WHOLE),)
    match = _BLOCK_LAYER.fullmatch(layer)
    if match is None:
        return ()
    blocks, inner = _BLOCKS[match[1]], match[3]
    block = f"{blocks}.{int(match[2])}"
    if blocks == "single_transformer_blocks":
        return (Target(f"{block}.{_SINGLE[inner]}"),) if inner in _SINGLE else ()
    if inner in _FUSED:
        return tuple(Target(f"{block}.{path}", Rows(3, (third,))) for third, path in enumerate(_FUSED[inner]))
    return (Target(f"{block}.{_DOUBLE[inner]}"),) if inner in _DOUBLE else ()
