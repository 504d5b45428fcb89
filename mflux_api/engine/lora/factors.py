"""What one layer's tensors of an adapter mean: the updates of its weight and its bias, as MLX arrays.

Nothing here looks at a model, so nothing is checked against one yet.
"""

from collections.abc import Iterator, Mapping, Set
from typing import Any, TypeAlias

import attrs
import mlx.core as mx
from mflux.models.common.lora.mapping.lokr_factors import LOKR_MATRIX_KEYS, rebuild_lokr_factors

from mflux_api.catalog.lora_tensors import WHOLE, Rows

_OF_ROWS = frozenset({"lora_B", "lora_B_bias", "diff", "diff_b", "hada_w1_a", "hada_w2_a", "magnitude"})
"""Parts with a row for each output: cutting them cuts the update. A Kronecker product is cut where it is applied."""
_MATRICES = frozenset({"lora_A", "lora_B", "diff", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})


@attrs.frozen(eq=False)
class LowRank:
    """The update ``transpose(down @ up)`` of a weight (Hu et al., arXiv:2106.09685); alpha is in ``up``."""

    down: mx.array
    """[inputs, rank]."""
    up: mx.array
    """[rank, outputs]."""
    magnitude: mx.array | None = None
    """DoRA's magnitudes (arXiv:2402.09353), where the file has them: [outputs, 1], or [1, inputs]."""


@attrs.frozen(eq=False)
class Kronecker:
    """The update ``alpha * kron(left, right)`` of a weight (LyCORIS' LoKr, arXiv:2309.14859)."""

    left: mx.array
    right: mx.array
    alpha: float
    magnitude: mx.array | None
    rows: Rows
    """Which of the product's rows belong to the layer."""


@attrs.frozen(eq=False)
class Hadamard:
    """The update ``(left @ right) * (other_left @ other_right)`` (LyCORIS' LoHa, arXiv:2108.06098)."""

    left: mx.array
    """[outputs, rank]; alpha is in it."""
    right: mx.array
    """[rank, inputs]."""
    other_left: mx.array
    other_right: mx.array
    magnitude: mx.array | None

    @property
    def rank(self) -> int:
        """The most that the update's rank can be."""
        return int(self.left.shape[1] * self.other_left.shape[1])

    def as_low_rank(self) -> LowRank:
        """Return the same update as two factors of that rank (products of Khatri and Rao, 1968)."""
        rows = self.left[:, :, None].astype(mx.float32) * self.other_left[:, None, :]
        columns = self.right[:, None, :].astype(mx.float32) * self.other_right[None, :, :]
        outputs, inputs = self.left.shape[0], self.right.shape[1]
        return LowRank(columns.reshape(-1, inputs).T, rows.reshape(outputs, -1).T, self.magnitude)


@attrs.frozen(eq=False)
class Difference:
    """The update of a weight as it is: [outputs, inputs]."""

    matrix: mx.array


@attrs.frozen(eq=False)
class BiasUpdate:
    """What is added to a layer's outputs: [outputs]."""

    vector: mx.array


class UnusableParts(Exception):
    """Parts of one layer that make no update together; the message is a clause that says why."""


Product: TypeAlias = LowRank | Kronecker | Hadamard
"""An update that is made of factors, and may have magnitudes."""
Factors: TypeAlias = Product | Difference | BiasUpdate


def cut(part: str, tensor: mx.array, rows: Rows) -> mx.array:
    """Return a part as a matrix or a vector, with the rows that belong to one layer.

    Raises:
        ValueError: it has another number of axes, or of rows.
    """
    if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) and part != "lokr_t2":
        # LyCORIS writes a linear layer as a 1 x 1 convolution's kernel.
        tensor = tensor.reshape(tensor.shape[:2])
    if part in _MATRICES and tensor.ndim != 2:
        raise ValueError("it is not a matrix")
    if part in ("diff_b", "lora_B_bias"):
        tensor = tensor.reshape(-1)
    if part == "magnitude":
        tensor = tensor.reshape(-1, 1) if tensor.ndim != 2 else tensor
    if rows == WHOLE or part not in _OF_ROWS or (part == "magnitude" and tensor.shape[0] == 1):
        return tensor
    if tensor.ndim < 1 or tensor.shape[0] % rows.parts:
        raise ValueError(f"its rows cannot be cut into {rows.parts}")
    return take(tensor, rows, axis=0)


def take(whole: mx.array, rows: Rows, axis: int) -> mx.array:
    """Return the part of an update, or of what it adds to a layer's outputs, that belongs to one layer."""
    pieces = mx.split(whole, rows.parts, axis=axis)
    taken = [pieces[index] for index in rows.taken]
    return taken[0] if len(taken) == 1 else mx.concatenate(taken, axis=axis)


def updates(parts: Mapping[str, mx.array], rows: Set[Rows]) -> Iterator[Factors]:
    """Put the parts of one layer together.

    Args:
        parts: by their names in :data:`mflux_api.catalog.lora_tensors.PARTS`'s values, cut.
        rows: how the file's layers are cut that they come from.

    Raises:
        KeyError: a part is missing.
        UnusableParts: alpha is not one number, or the factors do not fit each other.
        ValueError: the same, as MLX finds it.
    """
    if "alpha" in parts and parts["alpha"].size != 1:
        raise UnusableParts("its alpha is not one number")
    magnitude = parts.get("magnitude")
    rank = 1
    if parts.keys() & LOKR_MATRIX_KEYS:
        for factor in ("lokr_w1", "lokr_w2"):
            if factor not in parts and not parts.keys() >= {f"{factor}_a", f"{factor}_b"}:
                raise KeyError(factor)
        (cutting,) = rows
        left, right, alpha = rebuild_lokr_factors(dict(parts))
        yield Kronecker(left, cut("lokr_w2", right, WHOLE), alpha, magnitude, cutting)
    if parts.keys() & {"lora_A", "lora_B"}:
        down, up = parts["lora_A"].T, parts["lora_B"].T
        rank = _rank(down, up)
        yield LowRank(down, _scaled(up, parts, rank), magnitude)
    if any(part.startswith("hada_") for part in parts):
        left, right, other_left, other_right = (parts[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
        _rank(other_left, other_right)
        yield Hadamard(_scaled(left, parts, _rank(left, right)), right, other_left, other_right, magnitude)
    if "diff" in parts:
        yield Difference(parts["diff"])
    if "diff_b" in parts:
        yield BiasUpdate(parts["diff_b"])
    if "lora_B_bias" in parts:
        # PEFT scales the bias of its last factor as it scales the factor.
        yield BiasUpdate(_scaled(parts["lora_B_bias"], parts, rank))


def _rank(first: mx.array, second: mx.array) -> int:
    if first.shape[1] != second.shape[0]:
        raise UnusableParts(f"the ranks of its factors differ, {first.shape[1]} and {second.shape[0]}")
    return int(first.shape[1])


def _scaled(factor: mx.array, parts: Mapping[str, mx.array], rank: int) -> mx.array:
    if "alpha" not in parts:
        return factor
    alpha: Any = parts["alpha"].item()
    scaled: mx.array = factor.astype(mx.float32) * (float(alpha) / rank)
    return scaled
