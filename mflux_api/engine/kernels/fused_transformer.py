"""FLUX.2's transformer in fewer and larger operations: the maths of mflux's ``Flux2Transformer``, rounded less often.

Queries, keys and values of a stream are one matrix product; each residual addition and the AdaLN after it are one
operation, which is possible because FLUX.2's modulation is the same for all blocks of a kind; the attention's heads are
normed, rotated, joined and split without copies. What depends on a pass alone (positions, the embedded prompt) is
computed once for it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import mlx.core as mx
from mflux.models.flux2.model.flux2_transformer.flux2_kv_cache import Flux2KVCache, StreamType

from mflux_api.engine.kernels import cuda_operations
from mflux_api.engine.kernels.compiling import CompiledFunction
from mflux_api.engine.kernels.cuda_operations import CudaOperations
from mflux_api.engine.kernels.joint_projections import JointProjections
from mflux_api.engine.kernels.modulation import modulations_of
from mflux_api.engine.kernels.row_operations import (
    HeadNorms,
    Heads,
    PortableOperations,
    Rope,
    RowOperations,
)

KeyValues = list[tuple[mx.array, mx.array]]
"""Keys and values of reference tokens, [batch, heads, tokens, head_dim], for each block: first the double ones."""


@attrs.frozen(eq=False)
class _Constants:
    """What all steps of a pass share, and the arrays that it was computed from."""

    of: tuple[mx.array, ...]
    rope: Rope
    context: mx.array


class FusedTransformer:
    """A function of arrays like mflux's transformer, for batches whose rows have one timestep."""

    def __init__(
        self,
        transformer: Callable[[], Any],
        projections: Callable[[], JointProjections],
        *,
        cuda: bool,
        compiled: bool,
        spoiled: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare the function.

        Args:
            transformer: returns mflux's ``Flux2Transformer``, whose layers may have adapters on; it is not kept.
            projections: returns its joint projections.
            cuda: whether CUDA's kernels are used, where they fit.
            compiled: whether MLX compiles it, for each shape of its arrays.
            spoiled: see :class:`CompiledFunction`.
        """
        self._transformer = transformer
        self._projections = projections
        self._cuda = cuda
        self._constants: _Constants | None = None
        self._function: Callable[..., tuple[mx.array, KeyValues]] = self._run
        if compiled:
            self._function = CompiledFunction(self._run, self._weights, spoiled)

    def __call__(
        self,
        latents: mx.array,
        ids: mx.array,
        embeddings: mx.array,
        text_ids: mx.array,
        timestep: mx.array,
        guidance: mx.array | None = None,
        cache: Flux2KVCache | None = None,
    ) -> mx.array:
        """Return the velocity [batch, tokens, 128], not yet computed; see ``transformer_function.Predict``."""
        constants = self._prepare(ids, embeddings, text_ids)
        times = [timestep] if guidance is None else [timestep, guidance]
        extracted = cache.num_ref_tokens if cache is not None and cache.is_extracting else 0
        kept = _load(cache) if cache is not None and cache.is_cached else []
        velocity, keys_values = self._function(
            latents, constants.context, constants.rope.cos, constants.rope.sin, times, extracted, kept
        )
        if cache is not None and extracted:
            _store(cache, keys_values)
        return velocity

    def _weights(self) -> list[Any]:
        return [self._transformer(), *self._projections().layers]

    def _prepare(self, ids: mx.array, embeddings: mx.array, text_ids: mx.array) -> _Constants:
        """Return what the arrays of a pass make, computed when they are others than before."""
        of, known = (ids, embeddings, text_ids), self._constants
        if known is None or any(one is not other for one, other in zip(known.of, of, strict=True)):
            model = self._transformer()
            tables = [model.pos_embed(each[0] if each.ndim == 3 else each) for each in (text_ids, ids)]
            cos, sin = (mx.concatenate([*pair], axis=0) for pair in zip(*tables, strict=True))
            self._constants = known = _Constants(of, Rope(cos, sin), model.context_embedder(embeddings))
            mx.eval(known.rope.cos, known.rope.sin, known.context)
        return known

    def _run(
        self,
        latents: mx.array,
        text: mx.array,
        cos: mx.array,
        sin: mx.array,
        times: Sequence[mx.array],
        extracted: int,
        kept: KeyValues,
    ) -> tuple[mx.array, KeyValues]:
        """Return the velocity, and the keys and values of the last ``extracted`` tokens, which are references.

        Args:
            latents: [batch, tokens, 128].
            text: the embedded prompt [batch, tokens, width].
            cos: of all tokens, the text's first, like ``sin``.
            sin: see ``cos``.
            times: the timestep, and the guidance where the model takes it.
            extracted: how many tokens at the end are seen without noise, and by each other alone.
            kept: keys and values of references that are not among the tokens.
        """
        model, joint, rope = self._transformer(), self._projections(), Rope(cos, sin)
        operations = self._operations(model)
        image = model.x_embedder(latents)
        before, plain = text.shape[1], latents.shape[1] - extracted
        modulations = modulations_of(model, times, latents.dtype, before, plain, extracted)
        attend = _Attention(extracted, kept)
        (image_attended, image_fed), (text_attended, text_fed) = modulations.image, modulations.text
        image_rows, text_rows = operations.normed(image, image_fed), operations.normed(text, text_fed)
        for block in model.transformer_blocks:
            layers = block.attn
            norms = (
                HeadNorms(layers.norm_added_q.weight, layers.norm_added_k.weight),
                HeadNorms(layers.norm_q.weight, layers.norm_k.weight),
            )
            heads = operations.heads(
                joint(text_rows, layers.add_q_proj, layers.add_k_proj, layers.add_v_proj),
                joint(image_rows, layers.to_q, layers.to_k, layers.to_v),
                norms,
                rope,
            )
            of_text, of_image = operations.split(attend(heads), before)
            image, image_rows = operations.added(image, layers.to_out(of_image), image_attended)
            text, text_rows = operations.added(text, layers.to_add_out(of_text), text_attended)
            image, image_rows = operations.added(image, _feed(block.ff, image_rows, operations), image_fed)
            text, text_rows = operations.added(text, _feed(block.ff_context, text_rows, operations), text_fed)
        rows = mx.concatenate([text, image], axis=1)
        blocks = model.single_transformer_blocks
        normed = operations.normed(rows, modulations.single if blocks else modulations.last)
        for number, block in enumerate(blocks, 1):
            layers = block.attn
            projected = layers.to_qkv_mlp_proj(normed)
            norm = HeadNorms(layers.norm_q.weight, layers.norm_k.weight)
            attention = attend(operations.heads(None, projected, (norm, norm), rope))
            output = layers.to_out(operations.gated(attention, projected, layers.mlp_hidden_dim))
            following = modulations.last if number == len(blocks) else modulations.single
            rows, normed = operations.added(rows, output, following)
        return model.proj_out(normed[:, before : before + plain]), attend.extracted

    def _operations(self, model: Any) -> RowOperations:
        block = model.single_transformer_blocks[0].attn if model.single_transformer_blocks else None
        if block is None:
            block = model.transformer_blocks[0].attn
        heads, head_dim = block.heads, block.dim_head
        mlp_width = getattr(block, "mlp_hidden_dim", 0)
        if self._cuda and cuda_operations.fits(heads, head_dim, model.inner_dim, mlp_width):
            return CudaOperations(heads)
        return PortableOperations(heads, head_dim)


class _Attention:
    """The attention of all blocks, one call each in their order; notes what later steps need of references."""

    def __init__(self, extracted: int, kept: KeyValues) -> None:
        self._references = extracted
        self._kept = kept
        self.extracted: KeyValues = []
        self._calls = 0

    def __call__(self, heads: Heads) -> mx.array:
        query, key, value = heads
        scale, count = query.shape[-1] ** -0.5, self._references
        if self._kept:
            key, value = (
                mx.concatenate([*pair], axis=2) for pair in zip((key, value), self._kept[self._calls], strict=True)
            )
        self._calls += 1
        if not count:
            return mx.fast.scaled_dot_product_attention(query, key, value, scale=scale)
        # References see each other alone, so that the image's steps do not change them.
        of_references = [mx.contiguous(each[:, :, -count:]) for each in (query, key, value)]
        self.extracted.append((of_references[1], of_references[2]))
        return mx.concatenate(
            [
                mx.fast.scaled_dot_product_attention(query[:, :, :-count], key, value, scale=scale),
                mx.fast.scaled_dot_product_attention(*of_references, scale=scale),
            ],
            axis=2,
        )


def _feed(layer: Any, rows: mx.array, operations: RowOperations) -> mx.array:
    projected = layer.linear_in(rows)
    output: mx.array = layer.linear_out(operations.gated(None, projected, projected.shape[-1] // 2))
    return output


def _slots(cache: Flux2KVCache) -> list[tuple[StreamType, int]]:
    double: list[tuple[StreamType, int]] = [("double", index) for index in range(len(cache._double))]
    return [*double, *(("single", index) for index in range(len(cache._single)))]


def _load(cache: Flux2KVCache) -> KeyValues:
    return [cache._load(stream, index) for stream, index in _slots(cache)]


def _store(cache: Flux2KVCache, keys_values: KeyValues) -> None:
    for (stream, index), (keys, values) in zip(_slots(cache), keys_values, strict=True):
        cache.store_reference(stream, index, keys, values)
