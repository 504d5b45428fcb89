"""The VAE's decoder on CUDA: mflux's modules with GroupNorm, SiLU, biases and residuals in few passes over the rows.

Each pass reads and writes bfloat16; what is added up is float32, always in the same order.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx import nn

from mflux_api.engine.kernels.cuda_kernels import BLOCK, PER_THREAD, WARP, kernel, launched, numbers

_QUAD = 4
# Enough for every multiprocessor to have some, and few enough that adding them up is nothing.
_PARTS = 512


def fits(vae: Any) -> bool:
    """Whether the kernels take the norms of a VAE's decoder."""
    norms = [module for _, module in vae.decoder.named_modules() if isinstance(module, nn.GroupNorm)]
    return all(_takes(norm) for norm in norms) and vae.decoder.conv_in.weight.dtype != mx.float32


def _takes(norm: nn.GroupNorm) -> bool:
    threads, left_over = divmod(norm.dims, PER_THREAD)
    whole = left_over == 0 and threads <= BLOCK and BLOCK % threads == 0
    return whole and norm.dims % norm.num_groups == 0 and norm.dims // norm.num_groups % _QUAD == 0


def decode(vae: Any, latents: mx.array, check: Callable[[], None]) -> mx.array:
    """Decode latents [batch, 32, rows, columns] to [batch, 3, 8 rows, 8 columns], as mflux's ``Flux2VAE`` does.

    ``check`` is called between blocks; what it raises passes through. Each is evaluated before the next begins, so that
    little is in memory at once.
    """
    decoder = vae.decoder
    x = vae.post_quant_conv(latents.transpose(0, 2, 3, 1))
    x = _conv(decoder.conv_in, x) + decoder.conv_in.bias
    mid = decoder.mid_block
    x = _resnet(mid.resnets[0], x)
    for attention in mid.attentions:
        x = attention(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    x = _resnet(mid.resnets[1], x)
    for block in decoder.up_blocks:
        mx.eval(x)
        check()
        for resnet in block.resnets:
            x = _resnet(resnet, x)
        for upsampler in block.upsamplers:
            x = _conv(upsampler.conv, _twice(x)) + upsampler.conv.bias
    mx.eval(x)
    check()
    decoded: mx.array = _conv(decoder.conv_out, _norm_silu(decoder.conv_norm_out, x)) + decoder.conv_out.bias
    return decoded.transpose(0, 3, 1, 2)


def _resnet(block: Any, x: mx.array) -> mx.array:
    hidden = _conv(block.conv1, _norm_silu(block.norm1, x))
    hidden = _conv(block.conv2, _norm_silu(block.norm2, hidden, block.conv1.bias))
    shortcut = block.conv_shortcut
    if shortcut is None:
        return _added(hidden, block.conv2.bias, x)
    return _added(hidden, block.conv2.bias + shortcut.bias, mx.conv2d(x, shortcut.weight))


def _conv(conv: Any, x: mx.array) -> mx.array:
    """Return a convolution [batch, rows, columns, channels] without its bias."""
    return mx.conv2d(x, conv.weight, conv.stride, conv.padding)


def _twice(x: mx.array) -> mx.array:
    batch, rows, columns, channels = x.shape
    wide = mx.broadcast_to(x[:, :, None, :, None, :], (batch, rows, 2, columns, 2, channels))
    return wide.reshape(batch, 2 * rows, 2 * columns, channels)


def _norm_silu(norm: nn.GroupNorm, x: mx.array, bias: mx.array | None = None) -> mx.array:
    """Return SiLU of the GroupNorm of ``x + bias``, [batch, rows, columns, channels]."""
    batch, rows, columns, channels = x.shape
    bias = mx.zeros((channels,), dtype=x.dtype) if bias is None else bias.astype(x.dtype)
    parts = min(_PARTS, rows)
    sizes = numbers(rows * columns, channels, channels // norm.num_groups, parts, x.size)
    (sums,) = kernel("sums", ("x", "bias", "sizes"), ("sums",), _SUMS)(
        inputs=[x, bias, sizes],
        **launched(batch * parts * BLOCK, [(batch, parts, channels // _QUAD, 2)], x.dtype)
        | {"output_dtypes": [mx.float32]},
    )
    weights = (norm.weight.astype(x.dtype), norm.bias.astype(x.dtype))
    scale, offset = kernel("statistics", _STATISTICS_INPUTS, ("scale", "offset"), _STATISTICS)(
        inputs=[x, bias, sums, *weights, sizes, mx.array([norm.eps], dtype=mx.float32)],
        **launched(batch * norm.num_groups * WARP, [(batch, channels)] * 2, x.dtype, block=WARP)
        | {"output_dtypes": [mx.float32] * 2},
    )
    (normed,) = kernel("norm_silu", ("x", "bias", "scale", "offset", "sizes"), ("normed",), _APPLY)(
        inputs=[x, bias, scale, offset, sizes], **launched(x.size // PER_THREAD, [x.shape], x.dtype)
    )
    return normed


def _added(x: mx.array, bias: mx.array, residual: mx.array) -> mx.array:
    """Return ``x + bias + residual``, [batch, rows, columns, channels]."""
    (total,) = kernel("added", ("x", "bias", "residual", "sizes"), ("total",), _ADDED)(
        inputs=[x, bias.astype(x.dtype), residual, numbers(x.size, x.shape[-1])],
        **launched(x.size // PER_THREAD, [x.shape], x.dtype),
    )
    return total


# A block has a part of an image's pixels, a thread 8 channels of every few of them; what it adds up is shifted by the
# group's first number, so that squares do not swallow the variance.
_SUMS = """
    __shared__ float kept[256][4];
    unsigned int pixels = sizes[0], channels = sizes[1], group = sizes[2], parts = sizes[3];
    unsigned int threads = channels / 8, lines = 256 / threads;
    unsigned int image = blockIdx.x / parts, part = blockIdx.x % parts;
    unsigned int line = threadIdx.x / threads, column = threadIdx.x % threads * 8;
    unsigned int each = (pixels + parts - 1) / parts, first = part * each, last = min(first + each, pixels);
    const T* base = x + (size_t)image * pixels * channels;
    float added[8], shift[2], sum[2] = {0.f, 0.f}, squares[2] = {0.f, 0.f};
    #pragma unroll
    for (int i = 0; i < 8; i++) added[i] = (float)bias[column + i];
    #pragma unroll
    for (int half = 0; half < 2; half++) {
        unsigned int from = (column + half * 4) / group * group;
        shift[half] = (float)(T)((float)base[from] + (float)bias[from]);
    }
    for (unsigned int pixel = first + line; pixel < last; pixel += lines) {
        uint4 packed = *(const uint4*)(base + (size_t)pixel * channels + column);
        T* numbers = (T*)&packed;
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            float v = (float)(T)((float)numbers[i] + added[i]) - shift[i / 4];
            sum[i / 4] += v;
            squares[i / 4] += v * v;
        }
    }
    kept[threadIdx.x][0] = sum[0]; kept[threadIdx.x][1] = squares[0];
    kept[threadIdx.x][2] = sum[1]; kept[threadIdx.x][3] = squares[1];
    __syncthreads();
    if (line > 0) return;
    float total[4] = {0.f, 0.f, 0.f, 0.f};
    for (unsigned int other = 0; other < lines; other++)
        for (int i = 0; i < 4; i++) total[i] += kept[other * threads + threadIdx.x][i];
    float* to = sums + ((size_t)blockIdx.x * (channels / 4) + column / 4) * 2;
    for (int i = 0; i < 4; i++) to[i] = total[i];
"""

_STATISTICS_INPUTS = ("x", "bias", "sums", "weight", "norm_bias", "sizes", "epsilon")

# A warp is one group of one image: what every channel is multiplied with, and what is added to it.
_STATISTICS = """
    unsigned int pixels = sizes[0], channels = sizes[1], group = sizes[2], parts = sizes[3];
    unsigned int groups = channels / group, image = blockIdx.x / groups, which = blockIdx.x % groups;
    unsigned int quads = group / 4;
    float sum = 0.f, squares = 0.f;
    for (unsigned int i = threadIdx.x; i < parts * quads; i += 32) {
        size_t at = ((size_t)(image * parts + i / quads) * (channels / 4) + which * quads + i % quads) * 2;
        sum += sums[at];
        squares += sums[at + 1];
    }
    #pragma unroll
    for (int step = 16; step > 0; step >>= 1) {
        sum += __shfl_xor_sync(0xffffffff, sum, step);
        squares += __shfl_xor_sync(0xffffffff, squares, step);
    }
    unsigned int from = which * group;
    float count = (float)pixels * group, shifted = sum / count;
    float shift = (float)(T)((float)x[(size_t)image * pixels * channels + from] + (float)bias[from]);
    float mean = shifted + shift, deviation = rsqrtf(fmaxf(squares / count - shifted * shifted, 0.f) + epsilon[0]);
    for (unsigned int i = threadIdx.x; i < group; i += 32) {
        float factor = deviation * (float)weight[from + i];
        scale[image * channels + from + i] = factor;
        offset[image * channels + from + i] = (float)norm_bias[from + i] - mean * factor;
    }
"""

_APPLY = """
    size_t first = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (first >= sizes[4]) return;
    unsigned int pixels = sizes[0], channels = sizes[1];
    unsigned int image = first / ((size_t)pixels * channels), column = first % channels;
    uint4 packed = *(const uint4*)(x + first), result;
    T *numbers = (T*)&packed, *out = (T*)&result;
    #pragma unroll
    for (int i = 0; i < 8; i++) {
        float v = (float)(T)((float)numbers[i] + (float)bias[column + i]);
        v = (float)(T)(v * scale[image * channels + column + i] + offset[image * channels + column + i]);
        out[i] = (T)(v / (1.f + __expf(-v)));
    }
    *(uint4*)(normed + first) = result;
"""

_ADDED = """
    size_t first = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (first >= sizes[0]) return;
    unsigned int column = first % sizes[1];
    uint4 packed = *(const uint4*)(x + first), others = *(const uint4*)(residual + first), result;
    T *numbers = (T*)&packed, *other = (T*)&others, *out = (T*)&result;
    #pragma unroll
    for (int i = 0; i < 8; i++) {
        T biased = (T)((float)numbers[i] + (float)bias[column + i]);
        out[i] = (T)((float)biased + (float)other[i]);
    }
    *(uint4*)(total + first) = result;
"""
