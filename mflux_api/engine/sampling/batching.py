"""How many images share one pass of the transformer: a function of device, model and size alone.

Never of free memory: rows that share a batch may differ from a single run in the last bit, and the same request must
give the same bits.
"""

from typing import Literal

import attrs

MAX_IMAGES = 4


@attrs.frozen
class _Limits:
    """What one step may take on a device."""

    operations: float
    """Multiply-adds of all tokens, doubled. A cancel is seen between steps, so a step has to stay short."""
    activation_bytes: int
    itemsize: int


_LIMITS = {
    # A few seconds per step at about 100 GFLOP/s (two cores), 10 TFLOP/s and 500 TFLOP/s.
    "cpu": _Limits(operations=5e11, activation_bytes=1 << 29, itemsize=4),
    "metal": _Limits(operations=4e13, activation_bytes=1 << 30, itemsize=2),
    "cuda": _Limits(operations=1e15, activation_bytes=1 << 32, itemsize=2),
}
# A single block holds its input, the fused projection (3 + 2 * 3 widths), its output and temporary copies of them.
_WIDTHS_PER_TOKEN = 20


@attrs.frozen
class PassCost:
    """What one image of a run asks of the transformer at each step."""

    parameters: int
    """The transformer's parameters."""
    width: int
    """Width of the transformer's hidden states."""
    tokens: int
    """Tokens of the text, of the generated image and of its references."""
    branches: Literal[1, 2]
    """2 with classifier-free guidance."""


def images_per_pass(device: Literal["cpu", "metal", "cuda"], cost: PassCost) -> int:
    """Return how many images share a pass, 1 to 4."""
    limits = _LIMITS[device]
    rows = cost.branches * cost.tokens
    by_time = limits.operations / (2.0 * cost.parameters * rows)
    by_memory = limits.activation_bytes / (limits.itemsize * _WIDTHS_PER_TOKEN * cost.width * rows)
    return max(1, min(MAX_IMAGES, int(by_time), int(by_memory)))
