"""A layer with updates on it: what stands in its place while the transformer is called.

mflux's ``FusedLoRALinear`` puts several on one layer. It knows mflux's LoRA and LoKr layers, so the others derive from
the latter. With magnitudes among them :class:`_InTurn` does it.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mflux.models.common.config.model_config import ModelConfig
from mflux.models.common.lora.layer.dense_weight import dense_weight
from mflux.models.common.lora.layer.fused_linear_lora_layer import FusedLoRALinear
from mflux.models.common.lora.layer.linear_lokr_layer import LoKrLinear
from mflux.models.common.lora.layer.linear_lora_layer import LoRALinear
from mlx import nn

from mflux_api.catalog.lora_tensors import WHOLE
from mflux_api.engine.lora.factors import (
    BiasUpdate,
    Difference,
    Factors,
    Hadamard,
    Kronecker,
    LowRank,
    Product,
    take,
)

_LOW = 4
"""How much smaller than a layer's sides a rank is at which two thin products cost much less than the layer itself."""


def with_updates(linear: Any, updates: Sequence[tuple[Factors, float]]) -> Any:
    """Return a layer that does what ``linear`` does with the updates added, each by its scale.

    Args:
        linear: the layer, plain or quantized; it is not changed.
        updates: at least one; their shapes fit.
    """
    layers = [_layer(linear, factors, scale) for factors, scale in updates if not isinstance(factors, BiasUpdate)]
    vectors = [
        scale * factors.vector.astype(mx.float32) for factors, scale in updates if isinstance(factors, BiasUpdate)
    ]
    layer = linear
    if len(layers) == 1:
        layer = layers[0]
    elif any(getattr(each, "dora_scale", None) is not None for each in layers):
        layer = _InTurn(linear, layers)
    elif layers:
        layer = FusedLoRALinear(base_linear=linear, loras=layers)
    return _WithBias(layer, sum(vectors[1:], vectors[0])) if vectors else layer


def column_norms(linear: Any, factors: Product) -> mx.array:
    """Return the norms of a weight's columns with an update that has magnitudes, before them: [1, inputs]."""
    merged = dense_weight(linear).astype(mx.float32) + _layer(linear, factors, 1.0).matrix().astype(mx.float32)
    norms: mx.array = mx.linalg.norm(merged, axis=0, keepdims=True)
    return norms


class _WithBias(nn.Module):
    """A layer whose outputs are moved by a vector."""

    def __init__(self, layer: Any, vector: mx.array) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layer = layer
        self.vector = vector

    def __call__(self, x: mx.array) -> mx.array:
        outputs: mx.array = self.layer(x)
        return outputs + self.vector.astype(outputs.dtype)


class _InTurn(nn.Module):
    """Updates of which some have magnitudes: each is made for the weight with those before it.

    mflux's class adds them up in the weight's precision. In bfloat16 that lost a quarter of a LoRA of 1% of the weight,
    and all of one of 0.1%.
    """

    def __init__(self, linear: Any, updates: Sequence[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear = linear
        self.updates = list(updates)

    def __call__(self, x: mx.array) -> mx.array:
        base = dense_weight(self.linear).astype(mx.float32)
        weight = base
        for update in self.updates:
            if isinstance(update, LoRALinear):
                delta = mx.matmul(update.lora_A.astype(mx.float32), update.lora_B.astype(mx.float32)).T
            else:
                delta = update.delta_weight(base_weight=weight)
            weight = weight + update.scale * delta.astype(mx.float32)
        outputs: mx.array = self.linear(x)
        return outputs + mx.matmul(x, (weight - base).astype(x.dtype).T)


class _Update(LoKrLinear):  # type: ignore[misc]  # mflux has no types
    """An update that is a whole matrix, made anew in each call."""

    def __init__(self, linear: Any, scale: float, magnitude: mx.array | None) -> None:
        nn.Module.__init__(self)
        self.linear = linear
        self.scale = scale
        self.dora_scale = magnitude

    def matrix(self) -> mx.array:
        """Return the update of the weight, before its magnitudes: [outputs, inputs]."""
        raise NotImplementedError

    def can_use_factorized_matmul(self) -> bool:
        return False

    def delta_weight(self, base_weight: mx.array | None = None, dtype: mx.Dtype | None = None) -> mx.array:
        delta = self.matrix() if dtype is None else self.matrix().astype(dtype)
        if self.dora_scale is None:
            return delta
        # In bfloat16 a norm has three digits, and every weight would be scaled by what is missing.
        base = (dense_weight(self.linear) if base_weight is None else base_weight).astype(mx.float32)
        merged = base + delta.astype(mx.float32)
        # Of each output, or of each input, whichever the magnitudes are for.
        norm = mx.linalg.norm(merged, axis=0 if self.dora_scale.shape[0] == 1 else 1, keepdims=True)
        return merged * self.dora_scale / (norm + mx.finfo(merged.dtype).eps) - base


class _LowRankUpdate(_Update):
    """A LoRA with magnitudes."""

    def __init__(self, linear: Any, factors: LowRank, scale: float) -> None:
        super().__init__(linear, scale, factors.magnitude)
        self.down, self.up = factors.down, factors.up

    def matrix(self) -> mx.array:
        return mx.matmul(self.down, self.up).T


class _KroneckerUpdate(_Update):
    """A LoKr of which the layer has some rows, or one with magnitudes."""

    def __init__(self, linear: Any, factors: Kronecker, scale: float) -> None:
        # Magnitudes are of the weight with the whole update, so alpha belongs into it.
        inside = factors.magnitude is not None
        super().__init__(linear, scale if inside else scale * factors.alpha, factors.magnitude)
        self.lokr_w1 = factors.left * factors.alpha if inside else factors.left
        self.lokr_w2 = factors.right
        self.rows = factors.rows

    def delta_matmul(self, x: mx.array) -> mx.array:
        if self.dora_scale is None:
            return take(self.lokr_matmul(x), self.rows, axis=-1)
        whole: mx.array = super().delta_matmul(x)
        return whole

    def matrix(self) -> mx.array:
        return take(mx.kron(self.lokr_w1, self.lokr_w2), self.rows, axis=0)


class _HadamardUpdate(_Update):
    """A LoHa whose ranks are too large for thin products."""

    def __init__(self, linear: Any, factors: Hadamard, scale: float) -> None:
        super().__init__(linear, scale, factors.magnitude)
        self.left, self.right = _in_precision(factors.left), _in_precision(factors.right)
        self.other_left, self.other_right = _in_precision(factors.other_left), _in_precision(factors.other_right)

    def matrix(self) -> mx.array:
        return (self.left @ self.right) * (self.other_left @ self.other_right)


class _DifferenceUpdate(_Update):
    """A difference of weights."""

    def __init__(self, linear: Any, factors: Difference, scale: float) -> None:
        super().__init__(linear, scale, None)
        self.difference = _in_precision(factors.matrix)

    def matrix(self) -> mx.array:
        return self.difference


def _layer(linear: Any, factors: Product | Difference, scale: float) -> Any:
    match factors:
        case LowRank(magnitude=None):
            # LoRALinear's own constructor would draw random weights from MLX's global state.
            layer = LoRALinear.__new__(LoRALinear)
            nn.Module.__init__(layer)
            layer.linear, layer.scale = linear, scale
            layer.lora_A, layer.lora_B = _in_precision(factors.down), _in_precision(factors.up)
            return layer
        case LowRank():
            return _LowRankUpdate(linear, factors, scale)
        case Kronecker(magnitude=None, rows=rows) if rows == WHOLE:
            outputs = factors.left.shape[0] * factors.right.shape[0]
            inputs = factors.left.shape[1] * factors.right.shape[1]
            return LoKrLinear(linear, outputs, inputs, factors.left, factors.right, None, scale * factors.alpha)
        case Kronecker():
            return _KroneckerUpdate(linear, factors, scale)
        case Hadamard(magnitude=None, left=left, right=right) if _LOW * factors.rank <= min(len(left), right.shape[1]):
            return _layer(linear, factors.as_low_rank(), scale)
        case Hadamard():
            return _HadamardUpdate(linear, factors, scale)
        case Difference():
            return _DifferenceUpdate(linear, factors, scale)


def _in_precision(array: mx.array) -> mx.array:
    return array.astype(ModelConfig.precision)
