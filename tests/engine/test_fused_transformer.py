"""The fused transformer beside mflux's, on a CPU in float32: the same maths, whatever it is asked for."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mflux.models.flux2.model.flux2_transformer.flux2_kv_cache import Flux2KVCache
from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer

from mflux_api.engine.kernels.cuda_operations import fits
from mflux_api.engine.kernels.fused_transformer import FusedTransformer
from mflux_api.engine.kernels.joint_projections import JointProjections
from mflux_api.engine.sampling.denoising import new_cache
from mflux_api.engine.weights.quantization import quantize_layers, replace_quantized_layers, unpack_layers

NEAR = 5e-5
TEXT, IMAGE, REFERENCE = 7, 12, 6


def build(**dimensions: Any) -> Any:
    shape = {
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "axes_dims_rope": (8, 8, 8, 8),
        "guidance_embeds": False,
    }
    mx.random.seed(5)
    transformer = Flux2Transformer(**(shape | dimensions))
    mx.eval(transformer.parameters())
    return transformer


def fused(transformer: Any) -> FusedTransformer:
    projections = JointProjections(transformer)
    return FusedTransformer(lambda: transformer, lambda: projections, cuda=False, compiled=False)


def tokens(count: int, batch: int = 1, width: int = 128) -> mx.array:
    return mx.random.normal((batch, count, width))


def ids(count: int, time: int = 0) -> mx.array:
    return mx.array([[[time, place // 4, place % 4, 0] for place in range(count)]])


def stock(transformer: Any, arguments: Sequence[Any]) -> mx.array:
    latents, image_ids, embeddings, text_ids, timestep, *others = arguments
    guidance, cache = (*others, None, None)[:2]
    velocity: mx.array = transformer(
        hidden_states=latents,
        encoder_hidden_states=embeddings,
        timestep=timestep,
        img_ids=image_ids,
        txt_ids=text_ids,
        guidance=guidance,
        kv_cache=cache,
    )
    return velocity


def difference(one: mx.array, other: mx.array) -> float:
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    return float(np.abs(np.array(one - other)).max() / np.abs(np.array(other)).max())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("timestep", [0.25, 1.0, 731.0])
def test_velocity_is_that_of_mflux(batch: int, timestep: float) -> None:
    transformer = build()
    arguments = (tokens(IMAGE, batch), ids(IMAGE), tokens(TEXT, batch, 48), ids(TEXT), mx.array(timestep))
    expected = stock(transformer, arguments)
    assert difference(fused(transformer)(*arguments), expected) < NEAR
    # The layers' weights are parts of the joint ones now, and mflux's own way still works.
    assert difference(stock(transformer, arguments), expected) == 0.0


@pytest.mark.parametrize(("double", "single"), [(0, 2), (2, 0), (1, 1)])
def test_kinds_of_blocks_that_a_model_does_not_have(double: int, single: int) -> None:
    transformer = build(num_layers=double, num_single_layers=single)
    arguments = (tokens(IMAGE), ids(IMAGE), tokens(TEXT, 1, 48), ids(TEXT), mx.array(500.0))
    assert difference(fused(transformer)(*arguments), stock(transformer, arguments)) < NEAR


def test_guidance_as_an_input() -> None:
    transformer = build(guidance_embeds=True)
    arguments = (tokens(IMAGE), ids(IMAGE), tokens(TEXT, 1, 48), ids(TEXT), mx.array(500.0), mx.array(3500.0))
    expected = stock(transformer, arguments)
    assert difference(fused(transformer)(*arguments), expected) < NEAR
    assert difference(fused(transformer)(*arguments[:5], mx.array(1000.0)), expected) > 100 * NEAR


@pytest.mark.parametrize("batch", [1, 2])
def test_references_that_are_kept_after_the_first_step(batch: int) -> None:
    transformer = build()
    function, caches = fused(transformer), [new_cache(transformer) for _ in range(2)]
    text, places = tokens(TEXT, batch, 48), ids(IMAGE)
    image, references = tokens(IMAGE, batch), tokens(REFERENCE, batch)
    joined = mx.concatenate([image, references], axis=1)
    joined_ids = mx.concatenate([places, ids(REFERENCE, time=10)], axis=1)
    first = (joined, joined_ids, text, ids(TEXT), mx.array(900.0), None)
    for cache in caches:
        cache.configure(mode="extract", num_ref_tokens=REFERENCE)
    expected = stock(transformer, (*first, caches[0]))
    assert difference(function(*first, caches[1]), expected) < NEAR
    later = (tokens(IMAGE, batch), places, text, ids(TEXT), mx.array(400.0), None)
    for cache in caches:
        cache.configure(mode="cached", num_ref_tokens=REFERENCE)
    expected = stock(transformer, (*later, caches[0]))
    assert difference(function(*later, caches[1]), expected) < NEAR
    empty = Flux2KVCache(num_double_layers=2, num_single_layers=3)
    empty.configure(mode="cached", num_ref_tokens=REFERENCE)
    with pytest.raises(RuntimeError, match="empty"):
        function(*later, empty)


def test_pass_is_told_from_the_one_before() -> None:
    transformer = build()
    function = fused(transformer)
    image, text, text_ids = tokens(IMAGE), tokens(TEXT, 1, 48), ids(TEXT)
    for changed in range(3):
        arguments = (image, ids(IMAGE, time=changed), text, text_ids, mx.array(500.0))
        assert difference(function(*arguments), stock(transformer, arguments)) < NEAR
        text = tokens(TEXT, 1, 48)


def test_projections_are_taken_apart_where_one_is_another_layer() -> None:
    transformer = build()
    function = fused(transformer)
    arguments = (tokens(IMAGE), ids(IMAGE), tokens(TEXT, 1, 48), ids(TEXT), mx.array(500.0))
    before = function(*arguments)
    attention = transformer.transformer_blocks[0].attn
    plain = attention.to_k

    def doubled(rows: mx.array) -> mx.array:
        scaled: mx.array = 2 * plain(rows) + rows
        return scaled

    attention.to_k = doubled
    adapted = function(*arguments)
    assert difference(adapted, stock(transformer, arguments)) < NEAR
    assert difference(adapted, before) > 10 * NEAR
    attention.to_k = plain
    assert difference(function(*arguments), before) == 0.0


@pytest.mark.parametrize(
    ("dimensions", "expected"),
    [
        ((24, 128, 3072, 9216), True),
        ((32, 128, 4096, 12288), True),
        ((48, 128, 6144, 18432), True),
        ((4, 64, 256, 768), False),
        ((2, 128, 256, 772), False),
        ((3, 128, 384, 1152), False),
        ((72, 128, 9216, 27648), False),
    ],
)
def test_kernels_are_used_for_the_dimensions_that_they_take(
    dimensions: tuple[int, int, int, int], expected: bool
) -> None:
    assert fits(*dimensions) is expected


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_projections_are_joined_too(bits: int) -> None:
    transformer = build(attention_head_dim=64, axes_dims_rope=(16, 16, 16, 16), joint_attention_dim=64)
    quantize_layers(transformer, bits)
    replace_quantized_layers(transformer)
    arguments = (tokens(IMAGE), ids(IMAGE), tokens(TEXT, 1, 64), ids(TEXT), mx.array(500.0))
    expected = stock(transformer, arguments)
    before = [transformer.transformer_blocks[0].attn.to_k.scales, transformer.transformer_blocks[0].attn.to_k.weight]
    assert difference(fused(transformer)(*arguments), expected) < NEAR
    after = [transformer.transformer_blocks[0].attn.to_k.scales, transformer.transformer_blocks[0].attn.to_k.weight]
    assert all(mx.array_equal(one, other).item() for one, other in zip(before, after, strict=True))
    assert difference(stock(transformer, arguments), expected) == 0.0


@pytest.mark.parametrize("precision", [mx.float32, mx.bfloat16])
def test_projections_unpacked_once_are_joined_and_give_the_same_bits(precision: mx.Dtype) -> None:
    transformer = build(attention_head_dim=64, axes_dims_rope=(16, 16, 16, 16), joint_attention_dim=64)
    transformer.set_dtype(precision)
    quantize_layers(transformer, 4)
    replace_quantized_layers(transformer)
    image, text = tokens(IMAGE).astype(precision), tokens(TEXT, 1, 64).astype(precision)
    arguments = (image, ids(IMAGE), text, ids(TEXT), mx.array(500.0))
    packed = fused(transformer)(*arguments)
    unpack_layers(transformer, mx.dequantize)
    joint = JointProjections(transformer)
    assert len(joint._joint) == 2 * len(transformer.transformer_blocks)
    unpacked = FusedTransformer(lambda: transformer, lambda: joint, cuda=False, compiled=False)(*arguments)
    assert mx.array_equal(unpacked, packed).item()
