"""Which part of the denoising schedule a request runs: pure arithmetic for both sides of the engine's pipes."""

import math

MAX_PARTIAL_IMAGES = 3
"""Of each image, as in OpenAI's API."""
# A product such as 0.7 * 10 lies above 7 by the rounding of floating-point numbers, and must not cost a step.
_ROUNDING = 9


def steps_to_run(steps: int, strength: float) -> int:
    """Return how many of ``steps`` an image strength of 0 to 1 runs: ``ceil(steps * strength)``.

    They are the schedule's last ones: all of them at 1, none at 0.
    """
    return min(steps, math.ceil(round(steps * strength, _ROUNDING)))


def partial_steps(steps_run: int, count: int) -> tuple[int, ...]:
    """Return after which of so many steps (from 1) partial images are made: evenly spread, none after the last.

    There are fewer than ``count`` where there are not as many steps before the last one.
    """
    count = max(0, min(count, steps_run - 1))
    return tuple(round(number * steps_run / (count + 1)) for number in range(1, count + 1))
