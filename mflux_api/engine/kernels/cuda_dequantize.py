"""Unpacking quantized weights on CUDA at the speed of its memory, before each product with them."""

import mlx.core as mx
from mlx import nn

from mflux_api.engine.kernels.cuda_kernels import PER_THREAD, kernel, launched, numbers
from mflux_api.engine.weights.quantization import DequantizedLinear


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
    threads = outputs * inputs // PER_THREAD
    source = _SOURCE.replace("BITS", str(bits)).replace("GROUP", str(group_size))
    (unpacked,) = kernel(f"dequantize_{bits}", ("packed", "scales", "biases", "sizes"), ("out",), source)(
        inputs=[weight, scales, biases.astype(scales.dtype), numbers(threads)],
        **launched(threads, [(outputs, inputs)], scales.dtype),
    )
    return unpacked


# 8 numbers a thread, which are as many bytes as a number has bits; they begin at the lowest bit of the first byte.
_SOURCE = """
    size_t thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= sizes[0]) return;
    unsigned long long bytes = 0;
    #if BITS == 8
        bytes = ((const unsigned long long*)packed)[thread];
    #elif BITS == 4
        bytes = ((const unsigned int*)packed)[thread];
    #else
        const unsigned char* from = (const unsigned char*)packed + thread * BITS;
        #pragma unroll
        for (int i = 0; i < BITS; i++) bytes |= (unsigned long long)from[i] << (8 * i);
    #endif
    size_t group = thread * 8 / GROUP;
    float scale = (float)scales[group], bias = (float)biases[group];
    uint4 result;
    T* numbers = (T*)&result;
    #pragma unroll
    for (int i = 0; i < 8; i++)
        numbers[i] = (T)((float)((unsigned int)(bytes >> (BITS * i)) & ((1u << BITS) - 1)) * scale + bias);
    *(uint4*)(out + thread * 8) = result;
"""
