"""Paint the pictures that the measures of edits are tested on: before and after by the renderer, no model.

    python -m training.demo.paint_pairs

Writes tests/semantic/painted_pairs.webp, a row for each case; only after the cases changed.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.semantic.edit_cases import EDIT_CASES, seed_of
from training.demo.report import to_pixels
from training.demo.world.render import render
from training.demo.world.spec import Scene

SIDE = 128
FILE = Path(__file__).parents[2] / "tests" / "semantic" / "painted_pairs.webp"


def main() -> None:
    rows, seeds = [], []
    for case in EDIT_CASES:
        for fields in (case.before[case.base], case.scene):
            rows.append(Scene(**fields).row())  # type: ignore[arg-type]
            seeds.append(seed_of(case, case.base))
    pictures = to_pixels(render(torch.tensor(rows), SIDE, SIDE, torch.Generator(), torch.tensor(seeds)))
    strips = [np.concatenate(pair, axis=1) for pair in zip(pictures[::2], pictures[1::2], strict=True)]
    Image.fromarray(np.concatenate(strips)).save(FILE, quality=90, method=6)


if __name__ == "__main__":
    main()
