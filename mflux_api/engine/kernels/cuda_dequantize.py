"""Unpacking quantized weights on CUDA at the speed of its memory, before each product with them."""

import mlx.core as mx
from mlx import nn

from mflux_api.engine.kernels.cuda_kernels import PER_THREAD, kernel, launched, numbers
from mflux_api.engine.weights.quantization import DequantizedLinear

_PARTS_OF_THREAD = 4


def speed_up(module: nn.Module) -> None:
    """Have the quantized layers of a module unpacked here."""
    for _, layer in module.named_modules():
        if isinstance(layer, DequantizedLinear):
            layer.unpack = dequantize


def dequantize(weight: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int) -> mx.array:
    """Return the weights that ``mx.dequantize`` returns, rounded once.

    Args:
        weight: packed numbers [outputs, inputs x bits / 32], uint32.
        scales: of each group [outputs, inputs / group_size].
        biases: as ``scales``.
        group_size: numbers that share a scale and a bias, a multiple of 8.
        bits: of a number: 3, 4, 6 or 8.
    """
    outputs, inputs = scales.shape[0], scales.shape[1] * group_size
    parts = outputs * inputs // PER_THREAD
    source = _SOURCE.replace("BITS", str(bits)).replace("GROUP", str(group_size))
    (unpacked,) = kernel(f"dequantize_{bits}", ("packed", "scales", "biases", "sizes"), ("out",), source)(
        inputs=[weight, scales, biases.astype(scales.dtype), numbers(parts)],
        **launched(-(-parts // _PARTS_OF_THREAD), [(outputs, inputs)], scales.dtype),
    )
    return unpacked


# 8 numbers at a time, which are as many bytes as a number has bits and begin at the lowest bit of the first one. A
# thread has 4 of them, a block apart, so that enough reads are under way to fill the memory's bandwidth.
_SOURCE = """
    size_t first = (size_t)blockIdx.x * (4 * 256) + threadIdx.x, count = sizes[0];
    unsigned long long bytes[4];
    float scale[4], bias[4];
    #pragma unroll
    for (int part = 0; part < 4; part++) {
        size_t at = first + part * 256;
        bytes[part] = 0;
        if (at >= count) continue;
        #if BITS == 8
            bytes[part] = ((const unsigned long long*)packed)[at];
        #elif BITS == 4
            bytes[part] = ((const unsigned int*)packed)[at];
        #elif BITS == 6
            #pragma unroll
            for (int i = 0; i < 3; i++)
                bytes[part] |= (unsigned long long)((const unsigned short*)packed)[at * 3 + i] << (16 * i);
        #else
            #pragma unroll
            for (int i = 0; i < BITS; i++)
                bytes[part] |= (unsigned long long)((const unsigned char*)packed)[at * BITS + i] << (8 * i);
        #endif
        scale[part] = (float)scales[at * 8 / GROUP];
        bias[part] = (float)biases[at * 8 / GROUP];
    }
    #pragma unroll
    for (int part = 0; part < 4; part++) {
        size_t at = first + part * 256;
        if (at >= count) continue;
        uint4 result;
        T* numbers = (T*)&result;
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            unsigned int number = (unsigned int)(bytes[part] >> (BITS * i)) & ((1u << BITS) - 1);
            numbers[i] = (T)((float)number * scale[part] + bias[part]);
        }
        *(uint4*)(out + at * 8) = result;
    }
"""
