"""What both comparisons with diffusers share: reference pictures, measures and the line about a case."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

MIN_DECIBELS = 60.0
SEED = 20_240_607

Size = tuple[int, int]


def reference(width: int, height: int, index: int) -> npt.NDArray[np.uint8]:
    """A picture with large shapes and some noise; diffusers scales none of these sizes."""
    random = np.random.default_rng(SEED + index)
    rows, columns = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(random.uniform(2, 9) * rows + random.uniform(2, 9) * columns + index) for _ in range(3)]
    levels = 127.5 + 110 * np.stack(waves, axis=-1) + random.normal(0, 8, (height, width, 3))
    return np.clip(levels, 0, 255).astype(np.uint8)


def psnr(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB of two 8-bit pictures; infinite for equal ones."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def comparison(case: Mapping[str, Any], ours: npt.NDArray[np.uint8], theirs: npt.NDArray[np.uint8]) -> str:
    """Return a line about a case and its two pictures."""
    level = int(np.abs(ours.astype(np.int16) - theirs).max())
    return (
        f"{case['width']:4}x{case['height']:<4} {case['steps']:2} steps, guidance {case['guidance']}, "
        f"{len(case['references'])} references: "
        f"{psnr(ours, theirs):6.1f} dB, at most {level} of 255, std {ours.std():.0f}"
    )
