"""Quantizing a module's weights here, as mflux does: which layers, in groups of how many numbers, under which names."""

import mlx.core as mx
from mlx import nn

from mflux_api.catalog.files import GROUP_SIZE


def quantize_layers(module: nn.Module, bits: int) -> dict[str, int]:
    """Put quantized layers in place of those that can be; return their weights' names with the bits of each.

    As mflux does it: every linear layer and embedding, except those whose rows are not whole groups.
    """
    weights: dict[str, int] = {}

    def choose(path: str, layer: nn.Module) -> bool:
        if not hasattr(layer, "to_quantized") or layer.weight.shape[-1] % GROUP_SIZE:
            return False
        weights[f"{path}.weight"] = bits
        return True

    nn.quantize(module, group_size=GROUP_SIZE, bits=bits, class_predicate=choose)
    return weights


def quantize_weight(parameter: str, weight: mx.array, bits: int) -> list[tuple[str, mx.array]]:
    """Return packed numbers, scales and biases by the names that they have in the module; they are not computed yet."""
    layer = parameter.removesuffix(".weight")
    packed, scales, biases = mx.quantize(weight, group_size=GROUP_SIZE, bits=bits)
    return [(parameter, packed), (f"{layer}.scales", scales), (f"{layer}.biases", biases)]
