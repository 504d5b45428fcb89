"""CUDA's kernels beside MLX's own operations, in bfloat16 and against float32: on a GPU, in this process."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mflux.models.common.config.model_config import ModelConfig
from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer
from mlx import nn
from mlx.utils import tree_map

from mflux_api.engine.checkpoint import JsonConfig
from mflux_api.engine.demo import layout
from mflux_api.engine.demo.layout import CheckpointShape
from mflux_api.engine.kernels import cuda_dequantize, cuda_operations, cuda_vae
from mflux_api.engine.kernels.cuda_kernels import kernel, usable
from mflux_api.engine.kernels.cuda_operations import CudaOperations
from mflux_api.engine.kernels.fused_transformer import FusedTransformer
from mflux_api.engine.kernels.joint_projections import JointProjections
from mflux_api.engine.kernels.row_operations import HeadNorms, Modulation, PortableOperations, Rope
from mflux_api.engine.sampling.decoding import decode_packed
from mflux_api.engine.sampling.denoising import new_cache
from mflux_api.engine.weights.building import build_vae
from mflux_api.engine.weights.quantization import quantize_layers, replace_quantized_layers, unpack_layers

HEADS, WIDTH, MLP = 2, 256, 768
ROUNDING = 1 / 128
"""Of a number near 1 in bfloat16, twice."""


@pytest.fixture(autouse=True)
def _on_the_gpu() -> Iterator[None]:
    before = ModelConfig.precision
    mx.set_default_device(mx.gpu)
    ModelConfig.precision = mx.bfloat16
    mx.random.seed(3)
    yield
    ModelConfig.precision = before


def random(*shape: int) -> mx.array:
    return mx.random.normal(shape).astype(mx.bfloat16)


def distance(one: mx.array, other: mx.array) -> float:
    """The largest difference, relative to the other's largest number."""
    assert one.shape == other.shape
    one, other = one.astype(mx.float32), other.astype(mx.float32)
    assert mx.isfinite(one).all().item()
    return float(np.array(mx.abs(one - other).max() / mx.abs(other).max()))


def in_type(module: Any, dtype: mx.Dtype) -> Any:
    """Have the numbers of a module in a type; packed ones stay."""

    def convert(array: mx.array) -> mx.array:
        return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array

    module.update(tree_map(convert, module.parameters()))
    mx.eval(module.parameters())
    return module


def float32(module: Any) -> Any:
    return in_type(module, mx.float32)


def bfloat16(module: Any) -> Any:
    return in_type(module, mx.bfloat16)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("text_tokens", [0, 5])
def test_row_operations_are_the_portable_ones(batch: int, text_tokens: int) -> None:
    ours, portable = CudaOperations(HEADS), PortableOperations(HEADS, 128)
    image = random(batch, 21, 3 * WIDTH if text_tokens else 3 * WIDTH + 2 * MLP)
    text = random(batch, text_tokens, 3 * WIDTH) if text_tokens else None
    norms = tuple(HeadNorms(1 + 0.1 * random(128), 1 + 0.1 * random(128)) for _ in range(2))
    angles = mx.random.normal((21 + text_tokens, 64))
    rope = Rope(mx.cos(angles), mx.sin(angles))
    heads = [each.heads(text, image, (norms[0], norms[1]), rope) for each in (ours, portable)]
    for one, other in zip(*heads, strict=True):
        assert distance(one, other) < ROUNDING
    query, key, value = heads[1]
    attention = mx.fast.scaled_dot_product_attention(query, key, value, scale=0.1)
    for one, other in zip(ours.split(attention, 4), portable.split(attention, 4), strict=True):
        assert distance(one, other) == 0.0
    rows = random(batch, attention.shape[2], 3 * WIDTH + 2 * MLP)
    for given in (attention, None):
        assert distance(ours.gated(given, rows, MLP), portable.gated(given, rows, MLP)) < ROUNDING


@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("width", [256, 3072, 8192])
def test_norms_are_the_portable_ones(sets: int, width: int) -> None:
    ours, portable = CudaOperations(width // 128), PortableOperations(width // 128, 128)
    modulation = Modulation(random(sets, width), random(sets, width), random(sets, width), plain_tokens=4)
    x, y = 3 + random(2, 7, width), random(2, 7, width)
    assert distance(ours.normed(x, modulation), portable.normed(x, modulation)) < ROUNDING
    for one, other in zip(ours.added(x, y, modulation), portable.added(x, y, modulation), strict=True):
        # MLX rounds the norm before it is scaled.
        assert distance(one, other) < 2 * ROUNDING
    # An adapter may answer in float32.
    total, _ = ours.added(x, y.astype(mx.float32), modulation)
    assert total.dtype == mx.bfloat16
    assert distance(total, portable.added(x, y, modulation)[0]) < ROUNDING


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("shape", [(8, 64), (3, 640), (3072, 3072)])
def test_dequantized_weights_are_mlxs(bits: int, shape: tuple[int, int]) -> None:
    weight, scales, biases = mx.quantize(random(*shape), group_size=64, bits=bits)
    ours = cuda_dequantize.dequantize(weight, scales, biases, group_size=64, bits=bits)
    assert ours.dtype == mx.bfloat16
    assert distance(ours, mx.dequantize(weight, scales, biases, group_size=64, bits=bits)) < ROUNDING
    wide = (scales.astype(mx.float32), biases.astype(mx.float32))
    exact = mx.dequantize(weight, *wide, group_size=64, bits=bits)
    assert distance(ours, exact) < ROUNDING / 2


def transformer() -> Any:
    return Flux2Transformer(
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=128,
        num_attention_heads=HEADS,
        joint_attention_dim=192,
        guidance_embeds=False,
    )


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("batch", [1, 2])
def test_transformer_is_no_further_from_float32_than_mfluxs(bits: int | None, batch: int) -> None:
    model = bfloat16(transformer())
    assert cuda_operations.fits(HEADS, 128, model.inner_dim, MLP)
    if bits is not None:
        quantize_layers(model, bits)
        replace_quantized_layers(model)
    ids = mx.array([[[0, place // 6, place % 6, 0] for place in range(30)]])
    words = mx.array([[[0, 0, 0, place] for place in range(9)]])
    latents, text, timestep = random(batch, 30, 128), random(batch, 9, 192), mx.array(600.0)

    def stock(kind: mx.Dtype) -> mx.array:
        velocity: mx.array = model(
            hidden_states=latents.astype(kind),
            encoder_hidden_states=text.astype(kind),
            timestep=timestep,
            img_ids=ids,
            txt_ids=words,
        )
        mx.eval(velocity)
        return velocity

    theirs = stock(mx.bfloat16)
    joint = JointProjections(model)
    cuda_dequantize.speed_up(model)
    ours = FusedTransformer(lambda: model, lambda: joint, cuda=True, compiled=True)(latents, ids, text, words, timestep)
    mx.eval(ours)
    ModelConfig.precision = mx.float32
    for _, layer in model.named_modules():
        if isinstance(layer, nn.QuantizedLinear):
            layer.unpack = mx.dequantize
    float32(model)
    exact = stock(mx.float32)
    assert distance(ours, exact) <= 1.3 * distance(theirs, exact)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_weights_unpacked_once_give_the_bits_of_those_unpacked_each_step(bits: int) -> None:
    model = bfloat16(transformer())
    quantize_layers(model, bits)
    replace_quantized_layers(model)
    ids = mx.array([[[0, place // 6, place % 6, 0] for place in range(30)]])
    words = mx.array([[[0, 0, 0, place] for place in range(9)]])
    arguments = (random(1, 30, 128), ids, random(1, 9, 192), words, mx.array(600.0))

    def velocity() -> mx.array:
        joint = JointProjections(model)
        made = FusedTransformer(lambda: model, lambda: joint, cuda=True, compiled=True)(*arguments)
        mx.eval(made)
        return made

    cuda_dequantize.speed_up(model)
    packed = velocity()
    unpack_layers(model, cuda_dequantize.dequantize)
    assert not any(isinstance(layer, nn.QuantizedLinear) for _, layer in model.named_modules())
    assert mx.array_equal(velocity(), packed).item()


def test_references_that_are_kept_after_the_first_step() -> None:
    model = bfloat16(transformer())
    joint = JointProjections(model)
    function = FusedTransformer(lambda: model, lambda: joint, cuda=True, compiled=True)
    caches = [new_cache(model) for _ in range(2)]
    ids = mx.array([[[0, place // 6, place % 6, 0] for place in range(30)]])
    kept = mx.array([[[10, place // 6, place % 6, 0] for place in range(12)]])
    words, text = mx.array([[[0, 0, 0, place] for place in range(9)]]), random(1, 9, 192)
    for cache in caches:
        cache.configure(mode="extract", num_ref_tokens=12)
    joined, all_ids = random(1, 42, 128), mx.concatenate([ids, kept], axis=1)
    arguments = {"encoder_hidden_states": text, "txt_ids": words}
    theirs = model(hidden_states=joined, img_ids=all_ids, timestep=mx.array(900.0), kv_cache=caches[0], **arguments)
    assert distance(function(joined, all_ids, text, words, mx.array(900.0), None, caches[1]), theirs) < 2 * ROUNDING
    for cache in caches:
        cache.configure(mode="cached", num_ref_tokens=12)
    latents = random(1, 30, 128)
    theirs = model(hidden_states=latents, img_ids=ids, timestep=mx.array(300.0), kv_cache=caches[0], **arguments)
    assert distance(function(latents, ids, text, words, mx.array(300.0), None, caches[1]), theirs) < 2 * ROUNDING


@pytest.mark.parametrize("widths", [(128, 256, 512, 512), (32, 64, 128, 128)])
def test_decoder_is_no_further_from_float32_than_mfluxs(widths: tuple[int, int, int, int]) -> None:
    groups = 32 if widths[0] == 128 else 8
    shape = CheckpointShape(vae_widths=widths, vae_layers_per_block=2, vae_norm_groups=groups)
    vae: Any = build_vae(JsonConfig("vae", layout.vae_config(shape)))
    vae.update(tree_map(lambda array: array + 0.1 * mx.random.normal(array.shape), vae.parameters()))
    assert not cuda_vae.fits(vae)
    packed = random(1, 128, 6, 10)
    bfloat16(vae)
    assert cuda_vae.fits(vae)
    ours, theirs = (decode_packed(vae, packed, mode, lambda: None) for mode in ("kernels", "legacy"))
    mx.eval(ours, theirs)
    ModelConfig.precision = mx.float32
    exact = decode_packed(float32(vae), packed.astype(mx.float32), "legacy", lambda: None)
    apart = [float(np.array(mx.abs(each.astype(mx.float32) - exact).mean())) for each in (ours, theirs)]
    assert apart[0] <= 1.2 * apart[1]


def test_every_kernel_is_named_by_its_source() -> None:
    """MLX keeps what it compiled under the name alone, also from one version of ours to the next."""
    one, other = (kernel("twice", ("x",), ("out",), f"out[threadIdx.x] = x[threadIdx.x] * {by}.f;") for by in (2, 3))
    results = [
        each(
            inputs=[mx.ones((32,))],
            grid=(32, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(32,)],
            output_dtypes=[mx.float32],
        )[0]
        for each in (one, other)
    ]
    assert [result[0].item() for result in results] == [2.0, 3.0]


def test_kernels_are_usable_here() -> None:
    assert usable()
