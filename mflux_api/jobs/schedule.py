"""Which part of the denoising schedule a request runs: pure arithmetic for both sides of the engine's pipes."""

import math

# A product such as 0.7 * 10 lies above 7 by the rounding of floating-point numbers, and must not cost a step.
_ROUNDING = 9


def steps_to_run(steps: int, strength: float) -> int:
    """Return how many of ``steps`` an image strength of 0 to 1 runs: ``ceil(steps * strength)``.

    They are the schedule's last ones: all of them at 1, none at 0.
    """
    return min(steps, math.ceil(round(steps * strength, _ROUNDING)))
