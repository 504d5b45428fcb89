"""Queries, keys and values of a stream as one matrix product in place of three."""

import copy
from typing import Any

import mlx.core as mx
from mlx import nn

from mflux_api.engine.weights.quantization import DequantizedLinear, UnpackedLinear

_JOINED = (nn.Linear, DequantizedLinear, UnpackedLinear)


class JointProjections:
    """The three projections of each attention of the double blocks as one layer, of which the layers have parts."""

    def __init__(self, transformer: Any) -> None:
        """Join them; the layers' weights become views of the joint ones, so that nothing is in memory twice."""
        self._joint: dict[int, tuple[tuple[Any, ...], Any]] = {}
        for block in transformer.transformer_blocks:
            attention = block.attn
            self._join(attention.to_q, attention.to_k, attention.to_v)
            self._join(attention.add_q_proj, attention.add_k_proj, attention.add_v_proj)

    def _join(self, *layers: Any) -> None:
        kind = type(layers[0])
        if kind not in _JOINED or any(type(layer) is not kind for layer in layers):
            return
        names = [name for name, _ in layers[0].items()]
        if "bias" in names or any(_bits(layer) != _bits(layers[0]) for layer in layers):
            return
        joint = copy.copy(layers[0])
        for name in names:
            joint[name] = mx.concatenate([layer[name] for layer in layers], axis=0)
            parts = mx.split(joint[name], len(layers), axis=0)
            mx.eval(joint[name], *parts)
            for layer, part in zip(layers, parts, strict=True):
                layer[name] = part
        self._joint[id(layers[0])] = layers, joint

    @property
    def layers(self) -> list[Any]:
        """The joint layers."""
        return [joint for _, joint in self._joint.values()]

    def __call__(self, rows: mx.array, *layers: Any) -> mx.array:
        """Return the outputs of all layers side by side; an adapter on one of them takes them apart."""
        joined, joint = self._joint.get(id(layers[0]), ((), None))
        if joint is not None and all(one is other for one, other in zip(joined, layers, strict=True)):
            product: mx.array = joint(rows)
            return product
        return mx.concatenate([layer(rows) for layer in layers], axis=-1)


def _bits(layer: Any) -> int | None:
    return layer.bits if isinstance(layer, nn.QuantizedLinear) else None
