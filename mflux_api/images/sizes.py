"""How many pixels an image may have, and the sizes that FLUX.2's edit mode conditions on. Arithmetic alone."""

import math

MAX_PIXELS = 32_000_000
"""Most pixels of an image that a client sends."""
MAX_AREA = 1024 * 1024
"""Pixels of a reference; a larger one is scaled down. An output without a size has the same limit."""
MULTIPLE = 16


def reference_size(width: int, height: int) -> tuple[int, int]:
    """Return the size of an image as a reference: its own shape, at most 1 MP, snapped down to multiples of 16.

    It is also the output's size where a request names none. A side of less than 16 pixels becomes 0.
    """
    scaled = scale_to_limit(width, height)
    return scaled[0] - scaled[0] % MULTIPLE, scaled[1] - scaled[1] % MULTIPLE


def scale_to_limit(width: int, height: int) -> tuple[int, int]:
    """Return the size of an image that was scaled down to 1 MP, where it has more."""
    area = width * height
    if area <= MAX_AREA:
        return width, height
    scale = math.sqrt(MAX_AREA / area)
    return round(width * scale), round(height * scale)
