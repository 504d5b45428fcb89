"""Draw the pairs that the measures of edits are tested on: the renderer draws before and after, without a model.

    python -m training.demo.draw_pairs

It writes tests/semantic/edit_pairs.webp with a row for each case: its two references (the second is blank where there
is only one) and what the renderer makes of the instruction. Run it only after the cases or the world changed.
"""

import numpy as np
import torch
from PIL import Image

from tests.semantic.edit_cases import EDIT_CASES, seed_of
from tests.semantic.edit_pairs import FILE, SIDE
from training.demo.report import to_pixels
from training.demo.world.render import render
from training.demo.world.spec import Scene


def main() -> None:
    """Render the images of all cases in one call, and write the file."""
    rows, seeds = [], []
    for case in EDIT_CASES:
        # Where there is one reference it is rendered twice, so that each case has three images.
        for number, fields in ((0, case.before[0]), (1, case.before[-1]), (case.base, case.scene)):
            rows.append(Scene(**fields).row())  # type: ignore[arg-type]
            seeds.append(seed_of(case, number))
    images = to_pixels(render(torch.tensor(rows), SIDE, SIDE, torch.Generator(), torch.tensor(seeds)))
    strips = []
    for number, case in enumerate(EDIT_CASES):
        first, second, after = images[3 * number : 3 * number + 3]
        strips.append(np.concatenate([first, second if len(case.before) == 2 else np.full_like(first, 255), after], 1))
    Image.fromarray(np.concatenate(strips)).save(FILE, quality=95, method=6)


if __name__ == "__main__":
    main()
