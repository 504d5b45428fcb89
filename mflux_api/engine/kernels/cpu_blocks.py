"""The blocks of FLUX.2's transformer in numpy, for one image: they change its hidden states in place."""

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from mflux_api.engine.kernels.cpu_layers import attention_tasks, linear_tasks, row_tasks
from mflux_api.engine.kernels.cpu_ops import Complex, layer_norm, norm_and_rotate, swiglu, view
from mflux_api.engine.kernels.cpu_threads import Array, Task, Threads

# Numbers that are normed in one go. A core's second cache has room for them, and for fewer a second core would not pay:
# two threads hinder each other between numpy's calls.
_NUMBERS = 1 << 17
_NORM_EPS = 1e-6


@attrs.frozen(eq=False)
class Modulation:
    """What a norm is scaled and moved with, and how much is added of what is made of it; each [width]."""

    shift: Array
    scale: Array
    """1 is added already."""
    gate: Array


class Blocks:
    """One image's hidden states, and what all blocks use."""

    def __init__(self, threads: Threads, states: Array, text: int, rotation: Complex) -> None:
        """Take the states.

        Args:
            threads: who computes.
            states: of the text's tokens, then the image's [tokens, width].
            text: how many of them are the text's.
            rotation: cos + i sin of each token's position [tokens, head / 2].
        """
        self._threads = threads
        self._states = states
        self._normed = np.empty_like(states)
        self._added = np.empty_like(states)
        self._rotation = rotation
        self._streams = (slice(0, text), slice(text, len(states)))

    def norm(self, part: slice, shift: Array, scale: Array) -> Array:
        """Return the normed and modulated states of some tokens; the next call overwrites them."""
        self._threads.run(self._norm_tasks(part, shift, scale))
        return self._normed[part]

    def double(self, block: Any, modulations: Sequence[Sequence[Modulation]], mlp_width: int) -> None:
        """Apply a block that has weights of its own for the text.

        Args:
            block: mflux's ``Flux2TransformerBlock``.
            modulations: of the text, then of the image; of the attention, then of the feed-forward.
            mlp_width: the feed-forward's.
        """
        attention = block.attn
        (text, image), run = self._streams, self._threads.run
        (text_first, text_second), (image_first, image_second) = modulations
        run([*self._modulate_tasks(text, text_first), *self._modulate_tasks(image, image_first)])
        queries, keys, values, attended = np.empty((4, *self._states.shape), np.float32)
        run(
            [
                *self._linear_tasks(attention.to_q, image, queries),
                *self._linear_tasks(attention.to_k, image, keys),
                *self._linear_tasks(attention.to_v, image, values),
                *self._linear_tasks(attention.add_q_proj, text, queries),
                *self._linear_tasks(attention.add_k_proj, text, keys),
                *self._linear_tasks(attention.add_v_proj, text, values),
            ]
        )
        run(
            [
                *self._rotate_tasks(attention.norm_q, attention.heads, queries, image),
                *self._rotate_tasks(attention.norm_k, attention.heads, keys, image),
                *self._rotate_tasks(attention.norm_added_q, attention.heads, queries, text),
                *self._rotate_tasks(attention.norm_added_k, attention.heads, keys, text),
            ]
        )
        run(attention_tasks(queries, keys, values, attention.heads, attended))
        run(
            [
                *linear_tasks(attention.to_out, attended[image], self._added[image]),
                *linear_tasks(attention.to_add_out, attended[text], self._added[text]),
            ]
        )
        run(
            [
                *self._modulate_tasks(text, text_second, text_first),
                *self._modulate_tasks(image, image_second, image_first),
            ]
        )
        hidden = np.empty((len(self._states), 2 * mlp_width), np.float32)
        run(
            [
                *self._linear_tasks(block.ff.linear_in, image, hidden),
                *self._linear_tasks(block.ff_context.linear_in, text, hidden),
            ]
        )
        gated = np.empty((len(self._states), mlp_width), np.float32)
        run(row_tasks(gated, _NUMBERS, lambda row: swiglu(hidden[row], gated[row])))
        run(
            [
                *linear_tasks(block.ff.linear_out, gated[image], self._added[image]),
                *linear_tasks(block.ff_context.linear_out, gated[text], self._added[text]),
            ]
        )
        run([*self._add_tasks(text, text_second), *self._add_tasks(image, image_second)])

    def single(self, block: Any, modulation: Modulation) -> None:
        """Apply a block that treats text and image alike (mflux's ``Flux2SingleTransformerBlock``)."""
        attention, run = block.attn, self._threads.run
        every, inner = slice(0, len(self._states)), attention.inner_dim
        run(self._modulate_tasks(every, modulation))
        joint = np.empty((len(self._states), 3 * inner + 2 * attention.mlp_hidden_dim), np.float32)
        run(self._linear_tasks(attention.to_qkv_mlp_proj, every, joint))
        queries, keys, values = (joint[:, inner * index : inner * (index + 1)] for index in range(3))
        run(
            [
                *self._rotate_tasks(attention.norm_q, attention.heads, queries, every),
                *self._rotate_tasks(attention.norm_k, attention.heads, keys, every),
            ]
        )
        # The attention and the gated feed-forward side by side, as the next layer takes them.
        results = np.empty((len(joint), inner + attention.mlp_hidden_dim), np.float32)
        run(
            [
                *attention_tasks(queries, keys, values, attention.heads, results[:, :inner]),
                *row_tasks(results, _NUMBERS, lambda row: swiglu(joint[row, 3 * inner :], results[row, inner:])),
            ]
        )
        run(linear_tasks(attention.to_out, results, self._added))
        run(self._add_tasks(every, modulation))

    def _linear_tasks(self, layer: Any, part: slice, out: Array) -> list[Task]:
        return linear_tasks(layer, self._normed[part], out[part])

    def _norm_tasks(self, part: slice, shift: Array, scale: Array) -> list[Task]:
        states, normed = self._states[part], self._normed[part]
        return row_tasks(states, _NUMBERS, lambda row: layer_norm(states[row], scale, shift, _NORM_EPS, normed[row]))

    def _modulate_tasks(self, part: slice, modulation: Modulation, before: Modulation | None = None) -> list[Task]:
        """Norm the states for a layer; where there was a layer before, first add what it made."""
        states, normed, added = self._states[part], self._normed[part], self._added[part]

        def modulate(row: slice) -> None:
            if before is not None:
                added[row] *= before.gate
                states[row] += added[row]
            layer_norm(states[row], modulation.scale, modulation.shift, _NORM_EPS, normed[row])

        return row_tasks(states, _NUMBERS, modulate)

    def _add_tasks(self, part: slice, modulation: Modulation) -> list[Task]:
        states, added = self._states[part], self._added[part]

        def add(row: slice) -> None:
            added[row] *= modulation.gate
            states[row] += added[row]

        return row_tasks(states, _NUMBERS, add)

    def _rotate_tasks(self, norm: Any, heads: int, x: Array, part: slice) -> list[Task]:
        rows, rotation = x[part], self._rotation[part]
        weight = np.tile(view(norm.weight), heads)
        return row_tasks(
            rows,
            _NUMBERS,
            lambda row: norm_and_rotate(rows[row], heads, weight, norm.eps, rotation[row], rows[row]),
        )
