"""Whether an edit kept the layout of what it was given and shows what was asked; numpy only."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from training.demo.measures import Check, Verdict, judge

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

# Chosen on drawn pairs (tests/semantic/test_edit_measures.py), before the last training run.
LEAST_LAYOUT = 0.35
_GRID = 48


class _Case(Protocol):
    @property
    def checks(self) -> Sequence[Check]: ...

    @property
    def kept(self) -> bool: ...


def layout(before: Pixels, after: Pixels) -> float:
    """How much the shapes of two images of one size coincide, -1..1.

    The correlation of where brightness changes at low frequencies: day and night, paper and draw have other
    brightness, but their skylines and shores run in the same places.
    """
    one, other = _outline(before), _outline(after)
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / (np.sqrt((one**2).sum() * (other**2).sum()) + 1e-9))


def _outline(pixels: Pixels) -> Floats:
    small = _shrunk(pixels)
    down, across = np.zeros_like(small[..., 0]), np.zeros_like(small[..., 0])
    down[1:-1] = np.abs(small[2:] - small[:-2]).max(-1)
    across[:, 1:-1] = np.abs(small[:, 2:] - small[:, :-2]).max(-1)
    edges = np.sqrt(down**2 + across**2)
    # The rim may become paper; and a strong edge counts not much more than a weak one.
    inner = edges[3:-3, 3:-3]
    shown: Floats = np.sqrt(_blurred(inner))
    return shown


def _shrunk(pixels: Pixels) -> Floats:
    """Means of square blocks, the shorter side about 48 of them."""
    block = max(1, min(pixels.shape[:2]) // _GRID)
    rows, columns = pixels.shape[0] // block, pixels.shape[1] // block
    cut = pixels[: rows * block, : columns * block].astype(np.float64) / 255
    means: Floats = cut.reshape(rows, block, columns, block, 3).mean((1, 3))
    return means


def _blurred(values: Floats) -> Floats:
    padded = np.pad(values, 1, mode="edge")
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    blurred: Floats = (across[:-2] + 2 * across[1:-1] + across[2:]) / 16
    return blurred


def change(before: Pixels, after: Pixels) -> float:
    """The mean difference of two images of one size, 0..1."""
    return float(np.abs(before.astype(np.float64) - after.astype(np.float64)).mean() / 255)


def judge_edit(case: _Case, before: Pixels | None, after: Pixels) -> Verdict:
    """The case's checks on the result and, where ``before`` is given in the same size, whether the layout is kept."""
    failures = list(judge(case.checks, after).failures)
    if before is not None and case.kept and (found := layout(before, after)) < LEAST_LAYOUT:
        failures.append(f"layout: {found:.2f}")
    return Verdict(tuple(failures))


def shuffled_edit_rates(
    cases: Sequence[_Case], befores: Sequence[Pixels], afters: Sequence[Pixels], offsets: int = 7
) -> tuple[float, float]:
    """How often a layout fits another case's result, and another case's result shows what was asked."""
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
