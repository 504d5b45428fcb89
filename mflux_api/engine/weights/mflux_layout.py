"""Folders that mflux saved: recognised, quantized layers found, missing configuration worked out from shapes.

Tensors have the module's own names and shapes, and weights may be quantized. Where there are no configuration files
the dimensions follow from the tensors' shapes.
"""

import re
from collections.abc import Callable, Mapping

from mlx import nn

from mflux_api.catalog.files import GROUP_SIZE
from mflux_api.engine.checkpoint import CheckpointError, JsonConfig
from mflux_api.engine.stored_tensors import StoredTensor
from mflux_api.engine.weights.parameters import COMPUTED, ExpectedTensor, named_arrays

_BITS = (2, 3, 4, 5, 6, 8)
_GROUP_SIZES = (32, 64, 128)
_TEXT_LAYER = re.compile(r"layers\.(\d+)\.")


def restructure(component: str, module: nn.Module, tensors: Mapping[str, StoredTensor]) -> None:
    """Put a quantized layer wherever the files hold one, with the bits and the group size that the shapes show.

    Raises:
        CheckpointError: the shapes of a quantized weight and its scales do not fit the layer.
    """

    def find_stored(path: str, layer: nn.Module) -> bool | dict[str, int]:
        scales = tensors.get(f"{path}.scales")
        if scales is None or not hasattr(layer, "to_quantized"):
            return False
        return _precision(component, path, layer.weight.shape[-1], tensors.get(f"{path}.weight"), scales)

    nn.quantize(module, class_predicate=find_stored)


def expected_saved(module: nn.Module) -> dict[str, ExpectedTensor]:
    """Return what the files must hold for every parameter of a module that has its quantized layers."""
    quantized = {name for name, layer in module.named_modules() if hasattr(layer, "bits") and "scales" in layer}
    return {
        name: ExpectedTensor(
            name, tuple(array.shape), transform=None, packed=name.endswith(".weight") and name[:-7] in quantized
        )
        for name, array in named_arrays(module)
        if name not in COMPUTED
    }


def without_unused_layers(tensors: Mapping[str, StoredTensor], used: int) -> dict[str, StoredTensor]:
    """Return the text encoder's tensors without its layers from ``used`` on, which are never read."""
    kept = {}
    for name, tensor in tensors.items():
        layer = _TEXT_LAYER.match(name)
        if layer is None or int(layer.group(1)) < used:
            kept[name] = tensor
    return kept


def _precision(
    component: str, path: str, inputs: int, weight: StoredTensor | None, scales: StoredTensor
) -> dict[str, int]:
    groups = scales.shape[-1] if scales.ndim == 2 else 0
    words = weight.shape[-1] if weight is not None and weight.ndim == 2 else 0
    for group_size in _GROUP_SIZES:
        for bits in _BITS:
            if groups * group_size == inputs and words * 32 == inputs * bits:
                return {"bits": bits, "group_size": group_size}
    raise CheckpointError(
        f"{component}: {path} is quantized in a way that its shapes do not explain ({words} words and {groups} groups "
        f"for {inputs} inputs)."
    )


# --- dimensions without configuration files ---


def transformer_config(tensors: Mapping[str, StoredTensor]) -> JsonConfig:
    """Derive diffusers' configuration of a transformer from the shapes of its tensors."""
    shapes = _Shapes("transformer", tensors)
    width = shapes.rows("x_embedder.weight")
    head = shapes.first("norm_q.weight")
    return JsonConfig(
        "transformer",
        {
            "num_layers": shapes.layers("transformer_blocks"),
            "num_single_layers": shapes.layers("single_transformer_blocks"),
            "attention_head_dim": head,
            "num_attention_heads": width // head,
            "joint_attention_dim": shapes.inputs("context_embedder"),
            "timestep_guidance_channels": shapes.inputs("time_guidance_embed.linear_1"),
            "mlp_ratio": shapes.mlp_inputs(width) / width,
            "axes_dims_rope": [head // 4] * 4,
            "guidance_embeds": any(".guidance_" in name for name in tensors),
        },
    )


def text_encoder_config(tensors: Mapping[str, StoredTensor]) -> JsonConfig:
    """Derive transformers' configuration of a Qwen3 text encoder from the shapes of its tensors."""
    shapes = _Shapes("text_encoder", tensors)
    head = shapes.rows("layers.0.self_attn.q_norm.weight")
    return JsonConfig(
        "text_encoder",
        {
            "vocab_size": shapes.rows("embed_tokens.weight"),
            "hidden_size": shapes.rows("norm.weight"),
            # Layers after the last used one are not always saved, so how many there were does not show.
            "num_hidden_layers": shapes.layers("layers") + 1,
            "num_attention_heads": shapes.rows("layers.0.self_attn.q_proj.weight") // head,
            "num_key_value_heads": shapes.rows("layers.0.self_attn.k_proj.weight") // head,
            "head_dim": head,
            "intermediate_size": shapes.rows("layers.0.mlp.gate_proj.weight"),
        },
    )


def vae_config(tensors: Mapping[str, StoredTensor]) -> JsonConfig:
    """Derive diffusers' configuration of a VAE from the shapes of its tensors."""
    shapes = _Shapes("vae", tensors)
    return JsonConfig(
        "vae",
        {
            "block_out_channels": shapes.widths("encoder.down_blocks.{}.resnets.0.conv1"),
            "decoder_block_out_channels": shapes.widths("decoder.up_blocks.{}.resnets.0.conv1")[::-1],
            "layers_per_block": shapes.layers("encoder.down_blocks.0.resnets"),
            "mid_block_add_attention": "decoder.mid_block.attentions.0.group_norm.weight" in tensors,
        },
    )


DIMENSIONS: Mapping[str, Callable[[Mapping[str, StoredTensor]], JsonConfig]] = {
    "transformer": transformer_config,
    "text_encoder": text_encoder_config,
    "vae": vae_config,
}
"""How to tell each component's configuration from its tensors."""


class _Shapes:
    """The dimensions that the shapes of one component's tensors show."""

    def __init__(self, component: str, tensors: Mapping[str, StoredTensor]) -> None:
        self._component = component
        self._tensors = tensors

    def rows(self, name: str) -> int:
        tensor = self._tensors.get(name)
        if tensor is None or not tensor.ndim or not tensor.size:
            raise CheckpointError(f"{self._component}: {name} is missing, and there is no configuration file.")
        return int(tensor.shape[0])

    def first(self, ending: str) -> int:
        name = next((name for name in sorted(self._tensors) if name.endswith(ending)), ending)
        return self.rows(name)

    def inputs(self, layer: str) -> int:
        self.rows(f"{layer}.weight")
        weight, scales = self._tensors[f"{layer}.weight"], self._tensors.get(f"{layer}.scales")
        # Which group size was used does not show in one layer alone; mflux has one for all.
        return int(weight.shape[-1]) if scales is None else int(scales.shape[-1]) * GROUP_SIZE

    def mlp_inputs(self, width: int) -> int:
        for name in sorted(self._tensors):
            if name.endswith(".ff.linear_out.weight"):
                return self.inputs(name.removesuffix(".weight"))
            if name.startswith("single_transformer_blocks.") and name.endswith(".attn.to_out.weight"):
                return self.inputs(name.removesuffix(".weight")) - width
        return 3 * width

    def layers(self, prefix: str) -> int:
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        numbers = [int(match.group(1)) for name in self._tensors if (match := pattern.match(name))]
        return max(numbers, default=-1) + 1

    def widths(self, template: str) -> list[int]:
        return [self.rows(f"{template.format(block)}.weight") for block in range(4)]
