"""Decoding latents to pixels with mflux's VAE, block by block, so that a decode can be stopped between blocks."""

from collections.abc import Callable
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mflux.models.common.config.model_config import ModelConfig
from mflux.models.common.vae.block_decoder import VAEBlockDecoder
from mlx import nn

from mflux_api.engine.device import Device
from mflux_api.engine.kernels import cpu_vae, cuda_vae
from mflux_api.engine.kernels.cpu_threads import Threads

DecodeMode = Literal["legacy", "low_memory", "full_precision", "kernels"]
"""One of mflux's, or CUDA's kernels where they fit."""
Pixels = npt.NDArray[np.uint8]

_SMALL_PIXELS = 512 * 512
_MEDIUM_PIXELS = 1024 * 1024
_PIXELS_OF_CELL = 16 * 16
"""Of a cell of packed latents."""


class NotFiniteError(Exception):
    """The numbers of an image overflowed, or are none: there is nothing to be seen in it."""


def decode_mode(device: Device, width: int, height: int, low_ram: bool) -> DecodeMode:
    """Choose mflux's decode mode for an image of ``width`` by ``height`` pixels.

    A function of its arguments alone, never of free memory, so that the same request gives the same bits.
    """
    # In float32, as on a CPU, low_memory rounds as well as the others, and its strips fit the processor's caches: at
    # 512 x 512 45.6 s and 1.3 GB on two cores, against 60.5 s, 5.0 GB (full_precision) and 61.1 s, 7.7 GB (legacy).
    if device.kind == "cpu":
        return "low_memory"
    if low_ram:
        # H200: strips take 1.6 s at 512 x 512. The kernels take 3.6 GB at 1024 x 1024, where Klein 4B's transformer,
        # which has left by now, took 7.8.
        kernels = device.kind == "cuda" and device.fast_path and width * height <= _MEDIUM_PIXELS
        return "kernels" if kernels else "low_memory"
    if device.kind == "cuda":
        return "kernels" if device.fast_path else _mode_on_cuda(width * height)
    # A Mac at 1024 x 1024: 1.6 GB and 1.27 s against 7.3 GB and 0.96 s, beside steps of seconds.
    return "full_precision" if width * height <= _SMALL_PIXELS else "low_memory"


def _mode_on_cuda(pixels: int) -> DecodeMode:
    # H200: 22.6 against 34 ms at 512 x 512; at 1024 x 1024 11 ms more save 14 GB.
    return "legacy" if pixels <= _SMALL_PIXELS else "full_precision"


def decode_packed(
    vae: nn.Module, packed: mx.array, mode: DecodeMode, check: Callable[[], None], threads: Threads | None = None
) -> mx.array:
    """Decode packed latents [B, 128, H/16, W/16] to [B, 3, H, W] in about [-1, 1].

    Args:
        vae: mflux's.
        packed: the latents.
        mode: the one of stock mflux's whose bits the result has.
        check: called between blocks, each of which is evaluated before it; what it raises passes through.
        threads: who decodes instead, on a CPU; the mode does not matter then.
    """
    latents = (vae.unpack_packed_latents(packed) / vae.scaling_factor) + vae.shift_factor
    if threads is not None and cpu_vae.is_known(vae):
        return cpu_vae.decode(vae, latents, threads, check)
    if mode == "kernels":
        if cuda_vae.fits(vae):
            return cuda_vae.decode(vae, latents, check)
        mode = _mode_on_cuda(packed.shape[2] * packed.shape[3] * _PIXELS_OF_CELL)
    if mode == "legacy":
        return _decode_modules(vae, latents, check)
    return _decode_strips(vae, latents, mode == "low_memory", check)


def to_pixels(decoded: mx.array) -> Pixels:
    """Return the first image of a decoded batch [B, 3, H, W] as RGB8 (H, W, 3), contiguous, rounded as in mflux.

    Raises:
        NotFiniteError: a value is infinite or not a number, which would become a black pixel.
    """
    finite = mx.isfinite(decoded[0]).all()
    image = mx.transpose(mx.clip(decoded / 2 + 0.5, 0, 1)[0], (1, 2, 0)).astype(mx.float32)
    pixels = mx.contiguous(mx.round(image * 255).astype(mx.uint8))
    mx.eval(finite, pixels)
    if not finite.item():
        raise NotFiniteError
    return np.array(pixels)


def _decode_modules(vae: nn.Module, latents: mx.array, check: Callable[[], None]) -> mx.array:
    # Flux2VAE.decode's own modules in its order; evaluating in between changes no bit and frees each block's memory.
    decoder = vae.decoder
    x = mx.transpose(vae.post_quant_conv(mx.transpose(latents, (0, 2, 3, 1))), (0, 3, 1, 2))
    x = decoder.conv_in(x)
    mid = decoder.mid_block
    blocks = [mid.resnets[0], *mid.attentions, mid.resnets[1]]
    for up_block in decoder.up_blocks:
        blocks += [*up_block.resnets, *up_block.upsamplers]
    for block in blocks:
        check()
        x = block(x)
        mx.eval(x)
    check()
    x = nn.silu(decoder.conv_norm_out(x)).astype(ModelConfig.precision)
    decoded: mx.array = decoder.conv_out(x)
    return decoded


def _decode_strips(vae: nn.Module, latents: mx.array, strips: bool, check: Callable[[], None]) -> mx.array:
    # VAEBlockDecoder.decode offers no place to stop, so this is its loop over its own block functions.
    decoder = vae.decoder
    if strips:
        latents = latents.astype(ModelConfig.precision)
    x = vae.post_quant_conv(mx.transpose(latents, (0, 2, 3, 1)))
    x = nn.Conv2d.__call__(decoder.conv_in, x)
    mx.eval(x)
    mid = decoder.mid_block
    x = VAEBlockDecoder._resnet(mid.resnets[0], x, strips, True)
    for attention in mid.attentions:
        check()
        x = VAEBlockDecoder._attention(attention, x)
    check()
    x = VAEBlockDecoder._resnet(mid.resnets[1], x, strips, True)
    for up_block in decoder.up_blocks:
        for resnet in up_block.resnets:
            check()
            x = VAEBlockDecoder._resnet(resnet, x, strips, True)
        for upsampler in up_block.upsamplers:
            check()
            x = VAEBlockDecoder._upsample(upsampler, x, strips)
    check()

    def conv_out(source: Any, start: int, end: int, height: int) -> mx.array:
        rows: mx.array = VAEBlockDecoder._conv3x3_rows(decoder.conv_out, source, start, end, height)
        return rows

    decoded = VAEBlockDecoder._map_rows(x, decoder.conv_norm_out, conv_out, strips, norm_fp32=True)
    return mx.transpose(decoded, (0, 3, 1, 2))
