"""Quantizing a module's weights here, as mflux does: which layers, in groups of how many numbers, under which names."""

from collections.abc import Callable
from typing import TypeAlias

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map, tree_unflatten

from mflux_api.catalog.files import GROUP_SIZE

Unpack: TypeAlias = Callable[..., mx.array]
"""Dequantizes weights, called as ``mx.dequantize`` is."""


class DequantizedLinear(nn.QuantizedLinear):
    """A quantized layer that multiplies by the dequantized weights, in place of ``mx.quantized_matmul``.

    Measured with MLX 0.32.2 on an H200: that product of 4 or 8 bits is noise, NaN at worst, where a layer has 64
    inputs. With more inputs both give the same, but for 1536 rows in Klein 4B's shapes it takes 1.6 to 3.1 ms a layer,
    and this 0.4 to 1.0; and each kind of it is compiled for 20 to 42 s when it is first used.
    """

    unpack: Unpack = staticmethod(mx.dequantize)
    """How the weights are dequantized; an instance may have a faster way of its own."""

    def __call__(self, x: mx.array) -> mx.array:
        """Return ``x`` [..., inputs] times the weights, plus the bias where there is one."""
        weight = self.unpack(self.weight, self.scales, self.biases, group_size=self.group_size, bits=self.bits)
        product = x @ weight.T
        return product + self.bias if "bias" in self else product


class UnpackedLinear(nn.Linear):
    """A layer whose weights were quantized: its product is a :class:`DequantizedLinear`'s, to the bit.

    MLX's own linear layer adds the bias within the product, which rounds otherwise.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """Return ``x`` [..., inputs] times the weights, plus the bias where there is one."""
        product = x @ self.weight.T
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
    return weights


def replace_quantized_layers(module: nn.Module) -> None:
    """Put a :class:`DequantizedLinear` in place of every quantized layer."""

    def replace(layer: nn.Module) -> nn.Module:
        if not isinstance(layer, nn.QuantizedLinear):
            return layer
        outputs, groups = layer.scales.shape
        replaced = DequantizedLinear(
            groups * layer.group_size, outputs, "bias" in layer, group_size=layer.group_size, bits=layer.bits
        )
        replaced.update(layer.parameters())
        return replaced

    module.update_modules(tree_map(replace, module.leaf_modules(), is_leaf=nn.Module.is_module))


def unpack_layers(module: nn.Module, unpack: Unpack) -> None:
    """Put an :class:`UnpackedLinear` in place of every :class:`DequantizedLinear`, with its weights as they are now."""
    layers = [(path, layer) for path, layer in module.named_modules() if isinstance(layer, DequantizedLinear)]
    while layers:
        # One at a time, so that packed and unpacked weights exist together for one layer only.
        path, layer = layers.pop()
        weight = unpack(layer.weight, layer.scales, layer.biases, group_size=layer.group_size, bits=layer.bits)
        mx.eval(weight)
        unpacked = UnpackedLinear(weight.shape[1], weight.shape[0], bias="bias" in layer)
        unpacked.update({"weight": weight, **({"bias": layer.bias} if "bias" in layer else {})})
        module.update_modules(tree_unflatten([(path, unpacked)]))


def quantize_weight(parameter: str, weight: mx.array, bits: int) -> list[tuple[str, mx.array]]:
    """Return packed numbers, scales and biases by the names that they have in the module; they are not computed yet."""
    layer = parameter.removesuffix(".weight")
    packed, scales, biases = mx.quantize(weight, group_size=GROUP_SIZE, bits=bits)
    return [(parameter, packed), (f"{layer}.scales", scales), (f"{layer}.biases", biases)]
