"""A transformer's layers in numpy: a linear layer with whatever stands in its place, and attention."""

import weakref
from collections.abc import Callable
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
from mflux.models.common.lora.layer.fused_linear_lora_layer import FusedLoRALinear
from mflux.models.common.lora.layer.linear_lora_layer import LoRALinear
from mlx import nn

from mflux_api.engine.kernels.cpu_ops import is_float32, view
from mflux_api.engine.kernels.cpu_threads import Array, Task, blocks, scratch

# A block of a product: enough rows that bringing the weight into OpenBLAS's order (once a block) costs little, and
# enough blocks for several cores. Where there are many columns, they make the blocks.
_ROWS = 160
_ROWS_OF_WIDE = 512
_COLUMNS = 1024
# Numbers of a block of scores: 1 MiB, a core's second cache.
_SCORES = 1 << 18
_LEAST_QUERIES = 128
# Numbers of a weight that is kept transposed as well. OpenBLAS then needs less time to bring it into its order:
# products with 160 rows run at 98 instead of 85 GFLOP/s. Large weights would take too much memory, and meet more rows.
_COPIED = 1 << 20


_copies: dict[int, tuple[weakref.ref[mx.array], Array]] = {}
"""Small weights transposed, by the identity of the array, for as long as it lives."""


@attrs.frozen(eq=False)
class _Product:
    """A layer as matrix products: x W + bias + the sum of x A B."""

    weight: Array
    """[inputs, outputs]."""
    bias: Array | None
    updates: tuple[tuple[Array, Array], ...]
    """A [inputs, rank] and B [rank, outputs] of each LoRA."""

    @classmethod
    def from_layer(cls, layer: Any) -> "_Product | None":
        """Return a layer's matrices; None where it is not made of such."""
        base, loras = layer, []
        if type(layer) is LoRALinear:
            base, loras = layer.linear, [layer]
        elif type(layer) is FusedLoRALinear:
            base, loras = layer.base_linear, layer.loras
        arrays = [array for lora in loras if type(lora) is LoRALinear for array in (lora.lora_A, lora.lora_B)]
        if type(base) is not nn.Linear or len(arrays) < 2 * len(loras):
            return None
        if not all(is_float32(array) for array in [*arrays, base.weight]):
            return None
        updates = tuple((view(lora.lora_A) * np.float32(lora.scale), view(lora.lora_B)) for lora in loras)
        return cls(_factor(base.weight), view(base.bias) if "bias" in base else None, updates)

    def multiply(self, x: Array, out: Array, column: slice) -> None:
        """Write the columns of the layer of ``x`` [rows, inputs] to ``out``."""
        np.matmul(x, self.weight[:, column], out=out)
        if self.bias is not None:
            out += self.bias[column]
        for down, up in self.updates:
            out += (x @ down) @ up[:, column]


def linear_tasks(layer: Any, x: Array, out: Array) -> list[Task]:
    """Return tasks that write ``layer`` of ``x`` [rows, inputs] to ``out`` [rows, outputs].

    A plain layer is a product in numpy, and so is one with LoRAs. Anything else (quantized weights, other adapters)
    is called now as it is, through MLX, and leaves no task.
    """
    product = _Product.from_layer(layer)
    if product is None:
        result: mx.array = layer(mx.array(x)[None])
        out[...] = view(result.astype(mx.float32))[0]
        return []

    def task(row: slice, column: slice) -> Task:
        return lambda: product.multiply(x[row], out[row, column], column)

    rows = _ROWS if out.shape[1] <= _COLUMNS else _ROWS_OF_WIDE
    return [task(row, column) for row in blocks(len(x), rows) for column in blocks(out.shape[1], _COLUMNS)]


def attention_tasks(queries: Array, keys: Array, values: Array, heads: int, out: Array) -> list[Task]:
    """Return tasks that write softmax(q kᵀ / √d) v of each head.

    Args:
        queries: [tokens, heads · d]; like ``values`` and ``out`` a view whose rows are contiguous.
        keys: likewise, of as many tokens as ``values``.
        values: likewise.
        heads: how many heads stand side by side.
        out: like ``queries``.
    """
    width = queries.shape[1] // heads
    scale = np.float32(1 / np.sqrt(width))

    def task(row: slice, head: slice) -> Task:
        def attend() -> None:
            scores = scratch("scores", row.stop - row.start, len(keys))
            np.matmul(queries[row, head] * scale, keys[:, head].T, out=scores)
            scores -= scores.max(axis=1, keepdims=True)
            np.exp(scores, out=scores)
            # The quotient is taken of the result, which is smaller.
            sums = scores.sum(axis=1, keepdims=True)
            part = out[row, head]
            np.matmul(scores, values[:, head], out=part)
            part /= sums

        return attend

    rows = blocks(len(queries), max(_LEAST_QUERIES, _SCORES // len(keys)))
    columns = [slice(width * head, width * (head + 1)) for head in range(heads)]
    return [task(row, head) for head in columns for row in rows]


def row_tasks(rows: Array, numbers: int, function: Callable[[slice], None]) -> list[Task]:
    """Return a task for each block of rows that has at most so many numbers."""

    def task(row: slice) -> Task:
        return lambda: function(row)

    return [task(row) for row in blocks(len(rows), max(1, numbers // rows.shape[1]))]


def _factor(weight: mx.array) -> Array:
    """Return a layer's weight [outputs, inputs] as [inputs, outputs]; it must not be changed in place afterwards."""
    if weight.size > _COPIED:
        return view(weight).T
    key = id(weight)
    if key not in _copies:
        copy = np.ascontiguousarray(view(weight).T)
        _copies[key] = weakref.ref(weight, lambda _: _copies.pop(key, None)), copy
    return _copies[key][1]
