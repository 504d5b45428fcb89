"""FLUX.2's transformer in numpy, one image of a batch after the other: mflux's ``Flux2Transformer`` on a CPU."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mflux.models.flux2.model.flux2_transformer.timestep_guidance_embeddings import Flux2TimestepGuidanceEmbeddings
from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer

from mflux_api.engine.kernels.cpu_blocks import Blocks, Modulation
from mflux_api.engine.kernels.cpu_layers import linear_tasks
from mflux_api.engine.kernels.cpu_ops import Complex, is_float32, silu, view
from mflux_api.engine.kernels.cpu_threads import Array, Threads


class CPUTransformer:
    """A transformer as a function like ``Predict``; what it does not know is left to mflux."""

    def __init__(self, transformer: Callable[[], Any], otherwise: Callable[..., mx.array], threads: Threads) -> None:
        """Take what is needed to compute.

        Args:
            transformer: gets mflux's module, which may not be in memory yet, with a pass's adapters on.
            otherwise: called instead where this one does not know how.
            threads: who computes.
        """
        self._transformer = transformer
        self._otherwise = otherwise
        self._threads = threads

    def __call__(
        self,
        latents: mx.array,
        ids: mx.array,
        embeddings: mx.array,
        text_ids: mx.array,
        timestep: mx.array,
        guidance: mx.array | None = None,
        cache: object | None = None,
    ) -> mx.array:
        """Return the velocity [batch, tokens, 128], computed; the arguments are those of mflux's module."""
        transformer = self._transformer()
        if cache is not None or not is_known(transformer, latents, embeddings):
            return self._otherwise(latents, ids, embeddings, text_ids, timestep, guidance, cache)
        count = latents.shape[0]
        times = _each(timestep, count)
        strengths = [None] * count if guidance is None else _each(guidance, count)
        rotation = _rotation(transformer, text_ids, ids)
        rows = [
            _run(
                transformer,
                self._threads,
                rotation,
                self._embed_time(transformer, times[row], strengths[row]),
                view(latents)[row],
                view(embeddings)[row],
            )
            for row in range(count)
        ]
        return mx.array(np.stack(rows))

    def _embed_time(self, transformer: Any, time: float, guidance: float | None) -> Array:
        """Return silu of the embedding that all blocks are modulated with, [1, width]."""
        embed = transformer.time_guidance_embed
        embedding = self._embed_number(embed, time, embed.linear_1, embed.linear_2)
        if guidance is not None and embed.guidance_linear_1 is not None:
            embedding += self._embed_number(embed, guidance, embed.guidance_linear_1, embed.guidance_linear_2)
        silu(embedding, embedding)
        return embedding

    def _embed_number(self, embed: Any, number: float, first: Any, second: Any) -> Array:
        scaled = mx.array([number * (1000.0 if number <= 1.0 else 1.0)], dtype=mx.float32)
        waves = view(Flux2TimestepGuidanceEmbeddings._timestep_embedding(scaled, embed.in_channels))
        hidden = np.empty((1, embed.embedding_dim), np.float32)
        out = np.empty_like(hidden)
        self._threads.run(linear_tasks(first, waves, hidden))
        silu(hidden, hidden)
        self._threads.run(linear_tasks(second, hidden, out))
        return out


def is_known(transformer: Any, *inputs: mx.array) -> bool:
    """Whether this module computes what mflux would compute."""
    if type(transformer) is not Flux2Transformer or not all(is_float32(array) for array in inputs):
        return False
    blocks = [block.attn for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)]
    # mflux can compute the inside of a block in float16.
    return bool(blocks) and all(attention.compute_precision.dtype is None for attention in blocks)


def _each(value: mx.array, count: int) -> list[float]:
    """Return a number for each row of a batch."""
    numbers = np.broadcast_to(np.asarray(view(value.astype(mx.float32))), (count,))
    return [float(number) for number in numbers]


def _rotation(transformer: Any, text_ids: mx.array, ids: mx.array) -> Complex:
    """Return cos + i sin of the positions, text before image: [tokens, head / 2]."""
    ids = mx.concatenate([text_ids.reshape(-1, text_ids.shape[-1]), ids.reshape(-1, ids.shape[-1])], axis=0)
    cosine, sine = transformer.pos_embed(ids)
    rotation = np.empty(cosine.shape, np.complex64)
    rotation.real, rotation.imag = view(cosine), view(sine)
    return rotation


def _run(
    transformer: Any, threads: Threads, rotation: Complex, time: Array, latents: Array, embeddings: Array
) -> Array:
    """Return the velocity [tokens, 128] of one image.

    Args:
        transformer: mflux's module.
        threads: who computes.
        rotation: of all tokens, the text first [text tokens + tokens, head / 2].
        time: silu of the time's embedding [1, width].
        latents: [tokens, 128].
        embeddings: of the prompt [text tokens, embedding width].
    """
    width, text = transformer.inner_dim, len(embeddings)
    states = np.empty((text + len(latents), width), np.float32)
    blocks = Blocks(threads, states, text, rotation)
    threads.run(
        linear_tasks(transformer.context_embedder, embeddings, states[:text])
        + linear_tasks(transformer.x_embedder, latents, states[text:])
    )

    def modulations(layer: Any, count: int) -> list[Modulation]:
        out = np.empty((1, 3 * count * width), np.float32)
        threads.run(linear_tasks(layer.linear, time, out))
        return [Modulation(shift, 1 + scale, gate) for shift, scale, gate in out.reshape(count, 3, width)]

    both = [
        modulations(transformer.double_stream_modulation_txt, 2),
        modulations(transformer.double_stream_modulation_img, 2),
    ]
    mlp_width = transformer.single_transformer_blocks[0].attn.mlp_hidden_dim
    for block in transformer.transformer_blocks:
        blocks.double(block, both, mlp_width)
    (modulation,) = modulations(transformer.single_stream_modulation, 1)
    for block in transformer.single_transformer_blocks:
        blocks.single(block, modulation)
    final = np.empty((1, 2 * width), np.float32)
    threads.run(linear_tasks(transformer.norm_out.linear, time, final))
    normed = blocks.norm(slice(text, len(states)), shift=final[0, width:], scale=1 + final[0, :width])
    velocity = np.empty((len(latents), transformer.out_channels), np.float32)
    threads.run(linear_tasks(transformer.proj_out, normed, velocity))
    return velocity
