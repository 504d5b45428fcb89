"""What a fused transformer does to its rows between two matrix products, in operations of MLX that every device has.

It is also the measure for :mod:`mflux_api.engine.kernels.cuda`, which has a kernel for each of these.
"""

from typing import Protocol

import attrs
import mlx.core as mx

NORM_EPS = 1e-6
HEAD_EPS = 1e-5


@attrs.frozen(eq=False)
class Modulation:
    """AdaLN's numbers for one residual addition and the norm after it, from the timestep alone."""

    gate: mx.array
    """[sets, width]; 1 set, or 2: the second is for reference tokens whose model sees them without noise."""
    scale: mx.array
    shift: mx.array
    plain_tokens: int = 0
    """With 2 sets: how many tokens of each image have the first one."""


@attrs.frozen(eq=False)
class HeadNorms:
    """The weights of RMSNorm on each head of queries and keys, [head_dim] each."""

    query: mx.array
    key: mx.array


@attrs.frozen(eq=False)
class Rope:
    """Rotary position embedding of all tokens, the text's first."""

    cos: mx.array
    """[tokens, head_dim / 2], float32, like ``sin``."""
    sin: mx.array


Heads = tuple[mx.array, mx.array, mx.array]
"""Queries, keys and values, [batch, heads, tokens, head_dim] each."""


class RowOperations(Protocol):
    """The operations; ``rows`` are [batch, tokens, numbers]."""

    def heads(self, text: mx.array | None, image: mx.array, norms: tuple[HeadNorms, HeadNorms], rope: Rope) -> Heads:
        """Return the heads of joined rows whose first numbers are queries, keys and values.

        Args:
            text: rows that come before ``image``'s, where they are not in them.
            image: rows.
            norms: those of the text and of the image.
            rope: of all rows together.
        """
        ...

    def split(self, attention: mx.array, text_tokens: int) -> tuple[mx.array, mx.array]:
        """Return the attention [batch, heads, tokens, head_dim] of text and image as rows of all heads."""
        ...

    def gated(self, attention: mx.array | None, rows: mx.array, width: int) -> mx.array:
        """Return SwiGLU of each row's last 2 × ``width`` numbers, after the attention of all its heads, if given."""
        ...

    def normed(self, x: mx.array, modulation: Modulation) -> mx.array:
        """Return the modulated LayerNorm of rows."""
        ...

    def added(self, x: mx.array, y: mx.array, modulation: Modulation) -> tuple[mx.array, mx.array]:
        """Return ``x + gate y``, and its modulated LayerNorm."""
        ...


class PortableOperations:
    """:class:`RowOperations` in MLX's own operations."""

    def __init__(self, heads: int, head_dim: int) -> None:
        self._heads = heads
        self._head_dim = head_dim

    def heads(self, text: mx.array | None, image: mx.array, norms: tuple[HeadNorms, HeadNorms], rope: Rope) -> Heads:
        """See :class:`RowOperations`."""
        of_text, of_image = norms
        query, key, value = self._normed_heads(image, of_image)
        if text is not None:
            before = self._normed_heads(text, of_text)
            query, key, value = (
                mx.concatenate([*pair], axis=2) for pair in zip(before, (query, key, value), strict=True)
            )
        return _rotated(query, rope), _rotated(key, rope), value

    def split(self, attention: mx.array, text_tokens: int) -> tuple[mx.array, mx.array]:
        """See :class:`RowOperations`."""
        rows = _joined(attention)
        return rows[:, :text_tokens], rows[:, text_tokens:]

    def gated(self, attention: mx.array | None, rows: mx.array, width: int) -> mx.array:
        """See :class:`RowOperations`."""
        gate, up = mx.split(rows[..., -2 * width :], 2, axis=-1)
        product = gate * mx.sigmoid(gate) * up
        return product if attention is None else mx.concatenate([_joined(attention), product], axis=-1)

    def normed(self, x: mx.array, modulation: Modulation) -> mx.array:
        """See :class:`RowOperations`."""
        if modulation.scale.shape[0] == 1:
            return mx.fast.layer_norm(x, 1 + modulation.scale[0], modulation.shift[0], NORM_EPS)
        scale, shift = (_by_token(each, modulation, x) for each in (modulation.scale, modulation.shift))
        return (1 + scale) * mx.fast.layer_norm(x, None, None, NORM_EPS) + shift

    def added(self, x: mx.array, y: mx.array, modulation: Modulation) -> tuple[mx.array, mx.array]:
        """See :class:`RowOperations`."""
        gate = modulation.gate if modulation.gate.shape[0] == 1 else _by_token(modulation.gate, modulation, x)
        total = x + gate * y
        return total, self.normed(total, modulation)

    def _normed_heads(self, rows: mx.array, norms: HeadNorms) -> Heads:
        batch, tokens, _ = rows.shape
        size = self._heads * self._head_dim
        query, key, value = (
            rows[..., at : at + size].reshape(batch, tokens, self._heads, self._head_dim).transpose(0, 2, 1, 3)
            for at in (0, size, 2 * size)
        )
        return mx.fast.rms_norm(query, norms.query, HEAD_EPS), mx.fast.rms_norm(key, norms.key, HEAD_EPS), value


def _rotated(heads: mx.array, rope: Rope) -> mx.array:
    pairs = heads.reshape(*heads.shape[:-1], -1, 2)
    real, imaginary = pairs[..., 0], pairs[..., 1]
    rotated = mx.stack(
        [real * rope.cos - imaginary * rope.sin, imaginary * rope.cos + real * rope.sin],
        axis=-1,
    )
    return rotated.reshape(heads.shape).astype(heads.dtype)


def _joined(attention: mx.array) -> mx.array:
    batch, _, tokens, _ = attention.shape
    return attention.transpose(0, 2, 1, 3).reshape(batch, tokens, -1)


def _by_token(sets: mx.array, modulation: Modulation, x: mx.array) -> mx.array:
    """Return the set of each token, [1, tokens, width]."""
    return sets[(mx.arange(x.shape[1]) >= modulation.plain_tokens).astype(mx.uint32)][None]
