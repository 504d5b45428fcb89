"""The CPU's kernels beside mflux's modules in float32: the same maths to rounding, on any number of cores."""

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mflux.models.common.lora.layer.fused_linear_lora_layer import FusedLoRALinear
from mflux.models.common.lora.layer.linear_lora_layer import LoRALinear
from mflux.models.flux2.model.flux2_transformer.flux2_kv_cache import Flux2KVCache
from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer
from mflux.models.flux2.model.flux2_vae.common.downsample_2d import Flux2Downsample2D
from mflux.models.flux2.model.flux2_vae.common.upsample_2d import Flux2Upsample2D
from mlx import nn

from mflux_api.engine.kernels import cpu_layers, cpu_vae
from mflux_api.engine.kernels.cpu_convolution import Affine, convolve, downsample, measure, upsample
from mflux_api.engine.kernels.cpu_layers import attention_tasks, linear_tasks
from mflux_api.engine.kernels.cpu_ops import layer_norm, norm_and_rotate, silu, swiglu
from mflux_api.engine.kernels.cpu_threads import Array, Threads, blocks
from mflux_api.engine.kernels.cpu_transformer import CPUTransformer
from mflux_api.engine.sampling.denoising import new_cache
from mflux_api.engine.weights.components import Components

pytestmark = pytest.mark.usefixtures("device")
NEAR = 2e-5
"""How far single operations on numbers around 1 may be from mflux's."""


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[Threads]:
    made = Threads(request.param)
    yield made
    made.close()


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def far(ours: Any, theirs: Any) -> float:
    return float(np.abs(np.array(ours) - np.array(theirs)).max())


def build(**dimensions: Any) -> Any:
    shape = {
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "axes_dims_rope": (8, 8, 8, 8),
    }
    mx.random.seed(5)
    transformer = Flux2Transformer(**(shape | {"guidance_embeds": False} | dimensions))
    mx.eval(transformer.parameters())
    return transformer


def arguments(batch: int = 1, tokens: int = 12, text: int = 7) -> list[mx.array]:
    ids = mx.array([[[0, place // 4, place % 4, 0] for place in range(tokens)]])
    text_ids = mx.array([[[0, 0, 0, place] for place in range(text)]])
    latents, embeddings = mx.array(draw(batch, tokens, 128)), mx.array(draw(batch, text, 48, seed=1))
    return [latents, ids, embeddings, text_ids, mx.array(700.0)]


def mflux_velocity(transformer: Any, latents: Any, ids: Any, embeddings: Any, text_ids: Any, *rest: Any) -> mx.array:
    timestep, guidance, cache = (*rest, None, None)[:3]
    velocity: mx.array = transformer(latents, embeddings, timestep, ids, text_ids, guidance, cache)
    return velocity


def refuse(*_: Any) -> mx.array:
    raise AssertionError("left to mflux")


def test_elementwise_functions_are_those_of_mflux() -> None:
    # Beyond 88 exp overflows in float32.
    x = np.concatenate([draw(6, 64), np.linspace(-200, 200, 64, dtype=np.float32)[None]])
    out = np.empty_like(x)
    with np.errstate(over="ignore"):
        silu(x, out)
    assert far(out, nn.silu(mx.array(x))) < NEAR
    gated = np.empty((6, 32), np.float32)
    swiglu(x[:6], gated)
    assert far(gated, nn.silu(mx.array(x[:6, :32])) * mx.array(x[:6, 32:])) < NEAR


def test_layer_norm_is_mfluxs_with_its_modulation() -> None:
    x, scale, shift = 40 + 3 * draw(5, 64), draw(64, seed=1), draw(64, seed=2)
    out = np.empty_like(x)
    layer_norm(x, scale, shift, 1e-6, out)
    expected = nn.LayerNorm(64, eps=1e-6, affine=False)(mx.array(x)) * mx.array(scale) + mx.array(shift)
    assert far(out, expected) < NEAR


@pytest.mark.parametrize("bias", [False, True])
def test_linear_layer_is_mfluxs(threads: Threads, bias: bool) -> None:
    layer, x, out = nn.Linear(40, 2100, bias=bias), draw(500, 40), np.empty((500, 2100), np.float32)
    threads.run(linear_tasks(layer, x, out))
    assert far(out, layer(mx.array(x))) < NEAR


def _lora(linear: Any, scale: float) -> Any:
    layer = LoRALinear.from_linear(linear, r=4, scale=scale)
    layer.lora_B = mx.array(draw(4, 64, seed=3))
    return layer


@pytest.mark.parametrize(
    "wrap",
    [
        lambda linear: _lora(linear, 0.7),
        lambda linear: FusedLoRALinear(linear, [_lora(linear, 0.7), _lora(linear, -1.5)]),
        lambda linear: _lora(nn.QuantizedLinear.from_linear(linear, 32, 4), 0.7),
        lambda linear: nn.QuantizedLinear.from_linear(linear, 32, 8),
        lambda linear: nn.Sequential(linear),
    ],
    ids=["lora", "two loras", "lora on quantized", "quantized", "unknown"],
)
def test_whatever_stands_in_a_layers_place_is_obeyed(threads: Threads, wrap: Callable[[Any], Any]) -> None:
    layer, x = wrap(nn.Linear(32, 64, bias=False)), draw(10, 32)
    out = np.empty((10, 64), np.float32)
    threads.run(linear_tasks(layer, x, out))
    assert far(out, layer(mx.array(x))) < NEAR


def test_copies_of_weights_are_freed_with_them() -> None:
    layer = nn.Linear(40, 50)
    Threads(1).run(linear_tasks(layer, draw(2, 40), np.empty((2, 50), np.float32)))
    key = id(layer.weight)
    assert key in cpu_layers._copies
    del layer
    gc.collect()
    assert key not in cpu_layers._copies


def test_attention_is_mfluxs(threads: Threads) -> None:
    queries, keys, values = draw(300, 64), draw(2500, 64, seed=1), draw(2500, 64, seed=2)
    out = np.empty_like(queries)
    threads.run(attention_tasks(queries, keys, values, 2, out))

    def heads(x: Array) -> mx.array:
        return mx.array(x).reshape(1, len(x), 2, 32).transpose(0, 2, 1, 3)

    expected = mx.fast.scaled_dot_product_attention(heads(queries), heads(keys), heads(values), scale=32**-0.5)
    assert far(out, expected.transpose(0, 2, 1, 3).reshape(300, 64)) < NEAR


def test_attention_survives_large_scores() -> None:
    large = 100 * draw(8, 16)
    out = np.empty_like(large)
    Threads(1).run(attention_tasks(large, large, draw(8, 16, seed=1), 1, out))
    assert np.isfinite(out).all()


def test_norm_and_rotation_work_in_place_on_a_part_of_a_row() -> None:
    joint, weight = draw(5, 40), draw(16, seed=1)
    angles = draw(5, 8, seed=2)
    rows = joint[:, 4:36].copy()
    out = joint[:, 4:36]
    norm_and_rotate(out, 2, np.tile(weight, 2), 1e-5, np.exp(1j * angles).astype(np.complex64), out)
    heads = rows.reshape(5, 2, 16).astype(np.float64)
    heads = heads / np.sqrt((heads**2).mean(axis=2, keepdims=True) + 1e-5) * weight
    turned = (heads[..., 0::2] + 1j * heads[..., 1::2]) * np.exp(1j * angles)[:, None]
    assert far(out.reshape(5, 2, 16)[..., 0::2], turned.real) < NEAR
    assert far(out.reshape(5, 2, 16)[..., 1::2], turned.imag) < NEAR


@pytest.mark.parametrize("outputs", [3, 48])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 40), (50, 130)])
def test_convolution_with_its_norm_is_mfluxs(threads: Threads, height: int, width: int, outputs: int) -> None:
    norm, conv = nn.GroupNorm(4, 32, eps=1e-6, pytorch_compatible=True), nn.Conv2d(32, outputs, 3, padding=1)
    norm.weight, norm.bias = mx.array(draw(32, seed=1)), mx.array(draw(32, seed=2))
    x = 20 + draw(height, width, 32)
    measured = measure(threads, x)
    ours = convolve(threads, conv, measured, Affine.from_norm(norm, measured))
    expected = conv(nn.silu(norm(mx.array(x)[None])))[0]
    # The mean of 20 costs float32 a digit.
    assert far(ours.pixels, expected) < 10 * NEAR
    total = (ours.means.T * ours.counts).sum(axis=1) / (height * width)
    assert far(total, np.array(expected).mean(axis=(0, 1))) < 10 * NEAR
    added = measure(threads, draw(height, width, outputs, seed=3))
    before = added.pixels.copy()
    assert (
        far(convolve(threads, conv, measured, onto=added).pixels, before + np.array(conv(mx.array(x)[None])[0])) < 2e-4
    )


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 6), (36, 70)])
def test_upsampling_is_mfluxs(threads: Threads, height: int, width: int) -> None:
    block, x = Flux2Upsample2D(32), draw(height, width, 32)
    ours = upsample(threads, block.conv, measure(threads, x)).pixels
    assert far(ours, block(mx.array(x)[None].transpose(0, 3, 1, 2))[0].transpose(1, 2, 0)) < NEAR


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 6), (72, 140)])
def test_downsampling_is_mfluxs(threads: Threads, height: int, width: int) -> None:
    block, x = Flux2Downsample2D(32), draw(height, width, 32)
    ours = downsample(threads, block.conv, measure(threads, x)).pixels
    assert far(ours, block(mx.array(x)[None].transpose(0, 3, 1, 2))[0].transpose(1, 2, 0)) < NEAR


def test_transformer_is_mfluxs(threads: Threads) -> None:
    transformer, given = build(), arguments(batch=2)
    ours = CPUTransformer(lambda: transformer, refuse, threads)(*given)
    expected = mflux_velocity(transformer, *given)
    assert far(ours, expected) < NEAR
    assert float(expected.std()) > 0.1


def test_transformer_takes_timesteps_and_guidance_as_mflux_does(threads: Threads) -> None:
    transformer = build(guidance_embeds=True)
    *given, _ = arguments(batch=2)
    given += [mx.array([700.0, 0.5]), mx.array(4000.0)]
    ours = CPUTransformer(lambda: transformer, refuse, threads)(*given)
    assert far(ours[:1], mflux_velocity(transformer, *[x[:1] for x in given[:5]], given[5])) < NEAR


@pytest.mark.parametrize("reason", ["cache", "bfloat16", "subclass", "compute precision"])
def test_what_is_not_known_is_left_to_mflux(reason: str) -> None:
    transformer, given = build(), arguments()
    others: tuple[Any, ...] = ()
    if reason == "cache":
        cache: Flux2KVCache = new_cache(transformer)
        others = (None, cache)
    elif reason == "bfloat16":
        given[0] = given[0].astype(mx.bfloat16)
    elif reason == "subclass":
        transformer.__class__ = type("Other", (Flux2Transformer,), {})
    else:
        transformer.single_transformer_blocks[0].attn.compute_precision.dtype = mx.float16
    left = mx.zeros((1,))
    assert CPUTransformer(lambda: transformer, lambda *_: left, Threads(1))(*given, *others) is left


def test_vae_with_other_weights_is_left_to_mflux(tiny: Components) -> None:
    vae = tiny.vae
    assert cpu_vae.is_known(vae)
    weight = vae.decoder.conv_in.weight
    vae.decoder.conv_in.weight = weight.astype(mx.bfloat16)
    try:
        assert not cpu_vae.is_known(vae)
    finally:
        vae.decoder.conv_in.weight = weight


def test_bits_do_not_depend_on_the_number_of_threads(tiny: Components) -> None:
    latents, transformer, given = mx.array(draw(1, 32, 20, 14)), build(), arguments(tokens=300, text=40)
    results = []
    for count in (1, 2, 5):
        threads = Threads(count)
        velocity = CPUTransformer(lambda: transformer, refuse, threads)(*given)
        decoded = cpu_vae.decode(tiny.vae, latents, threads, lambda: None)
        results.append(np.array(velocity).tobytes() + np.array(decoded).tobytes())
        threads.close()
    assert len(set(results)) == 1


def test_error_of_a_task_is_raised_when_the_others_are_done() -> None:
    done: list[int] = []

    def fail() -> None:
        raise MemoryError

    threads = Threads(2)
    with pytest.raises(MemoryError):
        threads.run([fail, *[lambda number=number: done.append(number) for number in range(20)]])
    assert sorted(done) == list(range(20))
    threads.run([])


def test_threads_end_with_their_owner() -> None:
    threads = Threads(4)
    helpers = threads._helpers
    assert threads.count == 4
    assert all(helper.daemon and helper in threading.enumerate() for helper in helpers)
    del threads
    for helper in helpers:
        helper.join(5)
    assert not any(helper.is_alive() for helper in helpers)


def test_blocks_cover_a_length_in_even_numbers() -> None:
    for length in range(1, 300):
        parts = blocks(length, 64)
        assert [row for part in parts for row in range(part.start, part.stop)] == list(range(length))
        assert max(part.stop - part.start for part in parts) <= 64
