"""Convolutions and group norms in numpy, in strips of rows; maps are [height, width, channels].

A 3 x 3 convolution is three matrix products, one for each row of the kernel, of rows in which each pixel has its left
and right neighbours beside it. A strip is normed, convolved and measured for the next norm while it is in a core's
caches. One core convolves 75 to 100 GFLOP/s like that, MLX's CPU backend 8 to 12 on two.
"""

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np

from mflux_api.engine.kernels.cpu_ops import silu, view
from mflux_api.engine.kernels.cpu_threads import Array, Task, Threads, blocks, scratch

# A strip's numbers: three times that, each pixel with its neighbours, is 1.5 MB. Half and twice were as fast.
_NUMBERS = 1 << 17
# With many channels a strip is larger: its weights are brought into OpenBLAS's order once a strip.
_LEAST_PIXELS = 512
# So that several cores have something to do in small maps.
_LEAST_STRIPS = 4
# Fewer outputs than these are computed for all rows of the kernel in one product, and then added.
_FEW_OUTPUTS = 16


@attrs.frozen(eq=False)
class FeatureMap:
    """A map and what is known of its numbers."""

    pixels: Array
    """[height, width, channels]."""
    means: Array
    """Of each channel in each strip [strips, channels]."""
    squares: Array
    """Sums of the squared distances from these means [strips, channels]."""
    counts: tuple[int, ...]
    """Pixels of each strip."""


@attrs.frozen(eq=False)
class Affine:
    """A group norm as one multiplication and one addition for each channel, repeated along a row [width · channels]."""

    factor: Array
    offset: Array

    @classmethod
    def from_norm(cls, norm: Any, x: FeatureMap) -> "Affine":
        """Return what mflux's ``GroupNorm`` does to a map."""
        height, width, channels = x.pixels.shape
        counts = np.array(x.counts, np.float64)[:, None, None]
        shape = (len(x.counts), norm.num_groups, channels // norm.num_groups)
        means, squares = x.means.astype(np.float64).reshape(shape), x.squares.astype(np.float64).reshape(shape)
        total = height * width * shape[2]
        mean = (means * counts).sum(axis=(0, 2)) / total
        variance = (squares + counts * (means - mean[:, None]) ** 2).sum(axis=(0, 2)) / total
        deviation = np.repeat(np.sqrt(variance + norm.eps), shape[2])
        factor = view(norm.weight) / deviation
        offset = view(norm.bias) - np.repeat(mean, shape[2]) * factor
        return cls(np.tile(factor.astype(np.float32), width), np.tile(offset.astype(np.float32), width))

    def apply(self, rows: Array, out: Array) -> None:
        """Write rows [n, width, channels] normed to ``out`` [n, width · channels]."""
        np.multiply(rows.reshape(out.shape), self.factor, out=out)
        out += self.offset


def strips(pixels: Array) -> list[slice]:
    """Return the rows of each strip of a map [height, width, channels]; a function of its shape alone."""
    height, width, channels = pixels.shape
    rows = max(_LEAST_PIXELS, _NUMBERS // channels) // width
    return blocks(height, max(1, min(rows, -(-height // _LEAST_STRIPS))))


def convolve(
    threads: Threads, conv: Any, x: FeatureMap, norm: Affine | None = None, *, onto: FeatureMap | None = None
) -> FeatureMap:
    """Return mflux's 3 x 3 ``Conv2d`` with stride 1 of a map.

    Args:
        threads: who computes.
        conv: the layer.
        x: the map.
        norm: applied to it before, followed by SiLU.
        onto: a map that the result is added to, and that it replaces.
    """
    height, width, channels = x.pixels.shape
    outputs = conv.weight.shape[0]
    weights = view(conv.weight).reshape(outputs, 3, 3 * channels)
    joint = np.concatenate([weights[:, row].T for row in range(3)], axis=1) if outputs < _FEW_OUTPUTS else None
    bias = np.tile(view(conv.bias), width)

    def one(rows: slice, out: Array) -> None:
        taps = _taps(x.pixels, rows.start - 1, rows.stop + 1, norm).reshape(-1, 3 * channels)
        count = (rows.stop - rows.start) * width
        if joint is not None:
            sums = (taps @ joint).reshape(-1, 3, outputs)
            result = sums[:count, 0] + sums[width : width + count, 1] + sums[2 * width :, 2]
        else:
            result, more = scratch("result", count, outputs), scratch("more", count, outputs)
            np.matmul(taps[:count], weights[:, 0].T, out=result)
            for row in (1, 2):
                np.matmul(taps[row * width : row * width + count], weights[:, row].T, out=more)
                result += more
        flat = out.reshape(-1, width * outputs)
        result = result.reshape(flat.shape)
        if onto is None:
            np.add(result, bias, out=flat)
        else:
            result += bias
            flat += result

    out = np.empty((height, width, outputs), np.float32) if onto is None else onto.pixels
    return _map_strips(threads, strips(x.pixels), out, one)


def upsample(threads: Threads, conv: Any, x: FeatureMap) -> FeatureMap:
    """Return a 3 x 3 convolution of a map of twice the size, in which each pixel is repeated.

    Of three rows of such a map two are equal, and of three columns: what an even or odd pixel becomes is a 2 x 2
    convolution of the small map, with weights added up.
    """
    height, width, channels = x.pixels.shape
    outputs = conv.weight.shape[0]
    weights = _upsampling_weights(view(conv.weight))
    bias = np.tile(view(conv.bias), 2 * width)

    def one(rows: slice, out: Array) -> None:
        taps = _taps(x.pixels, rows.start - 1, rows.stop + 1, None).reshape(-1, 3 * channels)
        size = rows.stop - rows.start
        first, second = (scratch(name, size * width, 2, outputs) for name in ("result", "more"))
        for odd_row in range(2):
            for odd_column in range(2):
                columns = slice(odd_column * channels, (odd_column + 2) * channels)
                for row, result in enumerate((first, second)):
                    start = (odd_row + row) * width
                    part = taps[start : start + size * width, columns]
                    np.matmul(part, weights[odd_row, odd_column, row].T, out=result[:, odd_column])
            flat = out[odd_row::2].reshape(size, 2 * width * outputs)
            np.add(first.reshape(flat.shape), second.reshape(flat.shape), out=flat)
            flat += bias

    small = strips(x.pixels)
    large = [slice(2 * rows.start, 2 * rows.stop) for rows in small]
    out = np.empty((2 * height, 2 * width, outputs), np.float32)
    return _map_strips(threads, small, out, one, large)


def downsample(threads: Threads, conv: Any, x: FeatureMap) -> FeatureMap:
    """Return mflux's 3 x 3 ``Conv2d`` with stride 2 of a map with a row and a column of zeros after its last ones."""
    height, width, channels = x.pixels.shape
    outputs = conv.weight.shape[0]
    weights, bias = view(conv.weight).reshape(outputs, -1).T, view(conv.bias)

    def one(rows: slice, out: Array) -> None:
        size = rows.stop - rows.start
        taps = scratch("taps", size, width // 2, 3, 3, channels)
        for row in range(3):
            source = x.pixels[2 * rows.start + row : 2 * rows.stop + row : 2]
            # The last one of a map has no row below it.
            taps[len(source) :, :, row] = 0
            for column in range(3):
                pixels = source[:, column::2]
                taps[: len(source), : pixels.shape[1], row, column] = pixels
                taps[:, pixels.shape[1] :, row, column] = 0
        flat = out.reshape(-1, outputs)
        np.matmul(taps.reshape(len(flat), -1), weights, out=flat)
        flat += bias

    out = np.empty((height // 2, width // 2, outputs), np.float32)
    return _map_strips(threads, strips(out), out, one)


def measure(threads: Threads, pixels: Array) -> FeatureMap:
    """Return a map of pixels, which are not copied."""
    return _map_strips(threads, strips(pixels), pixels, lambda rows, out: None)


def _map_strips(
    threads: Threads,
    rows: list[slice],
    out: Array,
    function: Callable[[slice, Array], None],
    targets: list[slice] | None = None,
) -> FeatureMap:
    """Call a function for each strip and the rows of ``out`` that it is to write, and measure these."""
    targets = rows if targets is None else targets
    means, squares = np.empty((2, len(rows), out.shape[2]), np.float32)

    def task(number: int) -> Task:
        def compute() -> None:
            target = out[targets[number]]
            function(rows[number], target)
            means[number], squares[number] = _measure(target)

        return compute

    threads.run([task(number) for number in range(len(rows))])
    counts = tuple((target.stop - target.start) * out.shape[1] for target in targets)
    return FeatureMap(out, means, squares, counts)


def _measure(rows: Array) -> tuple[Array, Array]:
    """Return each channel's mean, and the sum of the squared distances from it."""
    height, width, channels = rows.shape
    ones = np.ones(height * width, np.float32)
    mean = (ones @ rows.reshape(-1, channels)) / np.float32(height * width)
    distances = scratch("distances", height, width * channels)
    np.subtract(rows.reshape(height, -1), np.tile(mean, width), out=distances)
    distances *= distances
    return mean, ones @ distances.reshape(-1, channels)


def _taps(pixels: Array, start: int, stop: int, norm: Affine | None) -> Array:
    """Return rows in which each pixel lies between its neighbours [stop - start, width, 3, channels].

    Outside the map there are zeros. This thread's next call overwrites them.
    """
    height, width, channels = pixels.shape
    rows = pixels[max(start, 0) : min(stop, height)]
    if norm is not None:
        normed = scratch("normed", len(rows), width * channels)
        norm.apply(rows, normed)
        silu(normed, normed)
        rows = normed.reshape(rows.shape)
    taps = scratch("taps", stop - start, width, 3, channels)
    first = max(-start, 0)
    inside = taps[first : first + len(rows)]
    inside[:, :, 1] = rows
    inside[:, 1:, 0] = rows[:, :-1]
    inside[:, :-1, 2] = rows[:, 1:]
    inside[:, 0, 0] = 0
    inside[:, -1, 2] = 0
    taps[:first] = 0
    taps[first + len(rows) :] = 0
    return taps


def _upsampling_weights(weights: Array) -> Array:
    """Return [odd row, odd column, row, outputs, 2 channels] of 3 x 3 weights [outputs, 3, 3, channels]."""

    def halves(three: Array, axis: int) -> list[list[Array]]:
        first, middle, last = np.moveaxis(three, axis, 0)
        return [[first, middle + last], [first + middle, last]]

    return np.stack(
        [
            np.stack(
                [
                    np.stack([np.concatenate(columns[odd], axis=-1) for columns in (halves(row, 1) for row in rows)])
                    for odd in range(2)
                ]
            )
            for rows in halves(weights, 1)
        ]
    )
