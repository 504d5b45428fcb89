"""Quantizing a module's weights here, as mflux does: which layers, in groups of how many numbers, under which names."""

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

from mflux_api.catalog.files import GROUP_SIZE
from mflux_api.engine.device import detect_device

_SOUND_INPUTS = 2 * GROUP_SIZE
"""Fewest inputs for which ``mx.quantized_matmul`` is right on CUDA.

Measured with MLX 0.32.2 on an H200, bfloat16 and float32, 2 to 96 rows: with 64 inputs, 4 and 8 bits give
anything up to NaN; with 128 and more, and at 6 bits, they are right. The narrowest layer of a released FLUX.2 has 128.
"""


class DequantizedLinear(nn.QuantizedLinear):
    """A quantized layer that multiplies by the dequantized weights: for shapes that the fused product gets wrong."""

    def __call__(self, x: mx.array) -> mx.array:
        """Return ``x`` [..., inputs] times the weights, plus the bias where there is one."""
        weight = mx.dequantize(self.weight, self.scales, self.biases, group_size=self.group_size, bits=self.bits)
        product = x @ weight.T
        return product + self.bias if "bias" in self else product


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
    if detect_device().kind == "cuda":
        replace_narrow_layers(module)
    return weights


def replace_narrow_layers(module: nn.Module) -> None:
    """Put a :class:`DequantizedLinear` in place of every quantized layer that is too narrow for CUDA's product."""

    def replace(layer: nn.Module) -> nn.Module:
        if not isinstance(layer, nn.QuantizedLinear) or layer.scales.shape[1] * layer.group_size >= _SOUND_INPUTS:
            return layer
        outputs, groups = layer.scales.shape
        sound = DequantizedLinear(
            groups * layer.group_size, outputs, "bias" in layer, group_size=layer.group_size, bits=layer.bits
        )
        sound.update(layer.parameters())
        return sound

    module.update_modules(tree_map(replace, module.leaf_modules(), is_leaf=nn.Module.is_module))


def quantize_weight(parameter: str, weight: mx.array, bits: int) -> list[tuple[str, mx.array]]:
    """Return packed numbers, scales and biases by the names that they have in the module; they are not computed yet."""
    layer = parameter.removesuffix(".weight")
    packed, scales, biases = mx.quantize(weight, group_size=GROUP_SIZE, bits=bits)
    return [(parameter, packed), (f"{layer}.scales", scales), (f"{layer}.biases", biases)]
