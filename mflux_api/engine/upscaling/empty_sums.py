"""A guard for mflux's SeedVR2, which asks for the running sums of an empty array wherever an image has one window.

MLX's CPU backend ends the process (SIGFPE) on those.
"""

from typing import Any

import mlx.core as mx
from mflux.models.seedvr2.model.seedvr2_transformer import attention, window


class _GuardedMlx:
    """What those two modules see in place of mlx.core."""

    def __getattr__(self, name: str) -> Any:
        return getattr(mx, name)

    @staticmethod
    def cumsum(values: mx.array) -> mx.array:
        """Return running sums; those of an empty array are empty."""
        return mx.cumsum(values) if values.size else values


def guard() -> None:
    """Give mflux's two modules that sum window sizes a sum that takes empty arrays; mlx.core itself stays as it is."""
    guarded = _GuardedMlx()
    attention.mx = window.mx = guarded
