"""Elementwise functions and norms in numpy, in place and on blocks of rows that fit a core's cache.

MLX's CPU backend computes exp, sigmoid and tanh one number at a time (35 ns each); numpy's float32 exp takes 1 ns.
"""

from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mflux_api.engine.kernels.cpu_threads import Array, scratch

Complex = npt.NDArray[np.complex64]


def view(array: mx.array) -> Array:
    """Return an MLX float32 array's numbers without a copy, computed; never write to them."""
    numbers: Array = np.array(array, copy=False)
    return numbers


def is_float32(array: Any) -> bool:
    """Whether it is an MLX array that :func:`view` can show."""
    return isinstance(array, mx.array) and array.dtype == mx.float32


def silu(x: Array, out: Array) -> None:
    """Write x · sigmoid(x), as x / (1 + exp(-x)); ``out`` may be ``x``."""
    # Below -88 exp is infinite and the quotient 0, as it should be.
    denominator = scratch("silu", *x.shape)
    np.negative(x, out=denominator)
    np.exp(denominator, out=denominator)
    denominator += 1
    np.divide(x, denominator, out=out)


def swiglu(x: Array, out: Array) -> None:
    """Write silu of the first half of ``x`` [rows, 2n] times the second half: [rows, n]."""
    half = x.shape[-1] // 2
    denominator = scratch("silu", x.shape[0], half)
    np.negative(x[:, :half], out=denominator)
    np.exp(denominator, out=denominator)
    denominator += 1
    np.divide(x[:, :half], denominator, out=denominator)
    np.multiply(denominator, x[:, half:], out=out)


def layer_norm(x: Array, scale: Array, shift: Array, eps: float, out: Array) -> None:
    """Write each row of ``x`` [rows, n] with mean 0 and variance 1, times ``scale`` plus ``shift``, each [n]."""
    np.subtract(x, x.mean(axis=1, keepdims=True), out=out)
    variance = np.einsum("ij,ij->i", out, out) / np.float32(x.shape[1])
    out *= (1 / np.sqrt(variance + np.float32(eps)))[:, None]
    out *= scale
    out += shift


def norm_and_rotate(x: Array, heads: int, weight: Array, eps: float, rotation: Complex, out: Array) -> None:
    """Write the heads of ``x`` [rows, heads · d], each RMS-normed and turned by its position (RoPE).

    Args:
        x: queries or keys; a view whose rows are contiguous.
        heads: how many there are in a row.
        weight: the norm's weight, once for each head [heads · d].
        eps: the norm's.
        rotation: cos + i sin for each pair of neighbours [rows, d / 2].
        out: like ``x``; may be ``x``.
    """
    rows = x.shape[0]
    parts = x.reshape(rows, heads, -1)
    squares = np.einsum("rhd,rhd->rh", parts, parts) / np.float32(parts.shape[2])
    factors = 1 / np.sqrt(squares + np.float32(eps))
    np.multiply(parts, factors[:, :, None], out=out.reshape(parts.shape))
    out *= weight
    pairs = out.view(np.complex64).reshape(rows, heads, -1)
    pairs *= rotation[:, None, :]
