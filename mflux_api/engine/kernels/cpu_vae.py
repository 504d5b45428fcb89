"""FLUX.2's VAE in numpy: mflux's ``Flux2VAE`` on a CPU, block by block, so that it can be stopped between blocks."""

import functools
from collections.abc import Callable
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
from mflux.models.flux2.model.flux2_vae.decoder.decoder import Flux2Decoder
from mflux.models.flux2.model.flux2_vae.encoder.encoder import Flux2Encoder
from mflux.models.flux2.model.flux2_vae.vae import Flux2VAE
from mlx import nn
from mlx.utils import tree_flatten

from mflux_api.engine.kernels.cpu_convolution import Affine, FeatureMap, convolve, downsample, measure, strips, upsample
from mflux_api.engine.kernels.cpu_layers import attention_tasks, linear_tasks
from mflux_api.engine.kernels.cpu_ops import is_float32, view
from mflux_api.engine.kernels.cpu_threads import Array, Threads

Check = Callable[[], None]
"""Called between blocks; what it raises passes through."""


def is_known(vae: nn.Module) -> bool:
    """Whether this module computes what mflux would compute."""
    if type(vae) is not Flux2VAE or type(vae.decoder) is not Flux2Decoder or type(vae.encoder) is not Flux2Encoder:
        return False
    # An attention's layers may be quantized, which are called as they are.
    parameters: Any = tree_flatten(vae.parameters())
    return all(is_float32(array) for name, array in parameters if ".attentions." not in name)


def decode(vae: Any, latents: mx.array, threads: Threads, check: Check) -> mx.array:
    """Decode latents [B, 32, H/8, W/8] to [B, 3, H, W] in about [-1, 1]."""
    images = [_decode(vae, image, threads, check) for image in view(mx.transpose(latents, (0, 2, 3, 1)))]
    return mx.array(np.stack(images).transpose(0, 3, 1, 2))


def encode(vae: Any, image: mx.array, threads: Threads, check: Check) -> mx.array:
    """Return the moments [B, 64, H/8, W/8] of images [B, 3, H, W] in [-1, 1]: the means, then what is not used."""
    moments = [_encode(vae, pixels, threads, check) for pixels in view(mx.transpose(image, (0, 2, 3, 1)))]
    return mx.array(np.stack(moments).transpose(0, 3, 1, 2))


def _decode(vae: Any, latents: Array, threads: Threads, check: Check) -> Array:
    decoder = vae.decoder
    x = measure(threads, _pointwise(threads, vae.post_quant_conv, latents))
    x = convolve(threads, decoder.conv_in, x)
    x = _mid_block(decoder.mid_block, x, threads, check)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            check()
            x = _resnet(resnet, x, threads)
        for upsampler in block.upsamplers:
            check()
            x = upsample(threads, upsampler.conv, x)
    check()
    return convolve(threads, decoder.conv_out, x, Affine.from_norm(decoder.conv_norm_out, x)).pixels


def _encode(vae: Any, pixels: Array, threads: Threads, check: Check) -> Array:
    encoder = vae.encoder
    x = convolve(threads, encoder.conv_in, measure(threads, np.ascontiguousarray(pixels)))
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            check()
            x = _resnet(resnet, x, threads)
        for downsampler in block.downsamplers:
            check()
            x = downsample(threads, downsampler.conv, x)
    check()
    x = _mid_block(encoder.mid_block, x, threads, check)
    check()
    x = convolve(threads, encoder.conv_out, x, Affine.from_norm(encoder.conv_norm_out, x))
    return _pointwise(threads, vae.quant_conv, x.pixels)


def _mid_block(block: Any, x: FeatureMap, threads: Threads, check: Check) -> FeatureMap:
    first, second = block.resnets
    x = _resnet(first, x, threads)
    for attention in block.attentions:
        check()
        x = _attention(attention, x, threads)
    check()
    return _resnet(second, x, threads)


def _resnet(block: Any, x: FeatureMap, threads: Threads) -> FeatureMap:
    """Return a residual block of a map, which is overwritten where it may be."""
    hidden = convolve(threads, block.conv1, x, Affine.from_norm(block.norm1, x))
    if block.conv_shortcut is not None:
        x = attrs.evolve(x, pixels=_pointwise(threads, block.conv_shortcut, x.pixels))
    return convolve(threads, block.conv2, hidden, Affine.from_norm(block.norm2, hidden), onto=x)


def _attention(block: Any, x: FeatureMap, threads: Threads) -> FeatureMap:
    """Return a map with its attention over all pixels added."""
    height, width, channels = x.pixels.shape
    normed = np.empty((height * width, channels), np.float32)
    Affine.from_norm(block.group_norm, x).apply(x.pixels, normed.reshape(height, -1))
    queries, keys, values, attended = np.empty((4, *normed.shape), np.float32)
    layers = ((block.to_q, queries), (block.to_k, keys), (block.to_v, values))
    threads.run([task for layer, out in layers for task in linear_tasks(layer, normed, out)])
    threads.run(attention_tasks(queries, keys, values, 1, attended))
    threads.run(linear_tasks(block.to_out, attended, queries))
    np.add(x.pixels, queries.reshape(x.pixels.shape), out=x.pixels)
    return measure(threads, x.pixels)


def _pointwise(threads: Threads, conv: Any, pixels: Array) -> Array:
    """Return mflux's 1 x 1 ``Conv2d`` of pixels [height, width, channels]."""
    height, width, channels = pixels.shape
    weight, bias = view(conv.weight).reshape(-1, channels).T, view(conv.bias)
    out = np.empty((height, width, weight.shape[1]), np.float32)

    def multiply(rows: slice) -> None:
        part = out[rows].reshape(-1, weight.shape[1])
        np.matmul(pixels[rows].reshape(-1, channels), weight, out=part)
        part += bias

    threads.run([functools.partial(multiply, rows) for rows in strips(pixels)])
    return out
