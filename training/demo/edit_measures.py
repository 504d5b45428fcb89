"""Whether an edit kept the layout of its reference and shows what was asked; numpy only."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from training.demo.measures import Check, Verdict, judge

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

# Chosen on rendered pairs (tests/semantic/test_edit_measures.py), before the last training run.
LEAST_LAYOUT = 0.35
_GRID = 48


class _Case(Protocol):
    @property
    def checks(self) -> Sequence[Check]: ...

    @property
    def kept(self) -> bool: ...


def layout(before: Pixels, after: Pixels) -> float:
    """Measure how much the shapes of two images of one size coincide, -1..1.

    It is the correlation of where colour changes at low frequencies: the same place by day, at night and as a drawing
    differs in brightness, but its skyline and its shore run in the same places.
    """
    one, other = _outline(before), _outline(after)
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / (np.sqrt((one**2).sum() * (other**2).sum()) + 1e-9))


def _outline(pixels: Pixels) -> Floats:
    small = _shrink(pixels)
    down, across = np.zeros_like(small[..., 0]), np.zeros_like(small[..., 0])
    down[1:-1] = np.abs(small[2:] - small[:-2]).max(-1)
    across[:, 1:-1] = np.abs(small[:, 2:] - small[:, :-2]).max(-1)
    edges = np.sqrt(down**2 + across**2)
    # Without the rim, which may become paper; the root keeps a few strong edges from outweighing all others.
    inner = edges[3:-3, 3:-3]
    outline: Floats = np.sqrt(_blur(inner))
    return outline


def _shrink(pixels: Pixels) -> Floats:
    """Average an image [H, W, 3] over square blocks, of which the shorter side has about 48."""
    block = max(1, min(pixels.shape[:2]) // _GRID)
    rows, columns = pixels.shape[0] // block, pixels.shape[1] // block
    cut = pixels[: rows * block, : columns * block].astype(np.float64) / 255
    means: Floats = cut.reshape(rows, block, columns, block, 3).mean((1, 3))
    return means


def _blur(values: Floats) -> Floats:
    padded = np.pad(values, 1, mode="edge")
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    blurred: Floats = (across[:-2] + 2 * across[1:-1] + across[2:]) / 16
    return blurred


def change(before: Pixels, after: Pixels) -> float:
    """Return the mean absolute difference of two images of one size, 0..1."""
    return float(np.abs(before.astype(np.float64) - after.astype(np.float64)).mean() / 255)


def judge_edit(case: _Case, before: Pixels | None, after: Pixels) -> Verdict:
    """Judge the result of an edit.

    Args:
        case: What has to hold.
        before: The reference whose layout has to be kept, in the size of the result; None where there is none.
        after: The result [H, W, 3].

    Returns:
        The checks that fail on the result, the layout among them.
    """
    failures = list(judge(case.checks, after).failures)
    if before is not None and case.kept and (found := layout(before, after)) < LEAST_LAYOUT:
        failures.append(f"layout: {found:.2f}")
    return Verdict(tuple(failures))


def shuffled_edit_rates(
    cases: Sequence[_Case], befores: Sequence[Pixels], afters: Sequence[Pixels], offsets: int = 7
) -> tuple[float, float]:
    """Measure how often the results of other cases pass for a case's own.

    Args:
        cases: The cases.
        befores: The reference of each, whose layout has to be kept.
        afters: The result of each.
        offsets: How many other results a case meets.

    Returns:
        How often another result has the layout, and how often it shows what was asked.
    """
    layouts, changes = [], []
    for index, case in enumerate(cases):
        for number in range(1, offsets + 1):
            at = (index + number * len(cases) // (offsets + 1)) % len(cases)
            if cases[at].checks == case.checks:
                continue
            changes.append(judge(case.checks, afters[at]).holds)
            if not np.array_equal(befores[index], befores[at]):
                layouts.append(layout(befores[index], afters[at]) >= LEAST_LAYOUT)
    return float(np.mean(layouts)), float(np.mean(changes))
