"""MLX's CPU backend ends the process (SIGFPE) on the running sums of an empty array, and mflux's SeedVR2 asks for them
wherever an image has one window.
"""

from typing import Any

import mlx.core as mx
from mflux.models.seedvr2.model.seedvr2_transformer import attention, window


class _GuardedMlx:
    """mlx.core as those two modules see it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(mx, name)

    @staticmethod
    def cumsum(values: mx.array) -> mx.array:
        """Running sums; those of nothing are nothing."""
        return mx.cumsum(values) if values.size else values


def guard() -> None:
    """Give mflux's two modules that sum window sizes a sum that can take nothing; mlx.core itself stays as it is."""
    guarded = _GuardedMlx()
    attention.mx = window.mx = guarded
