"""Generate with the example LoRA at rising scales, measure how much ink there is, and write a contact sheet.

    python -m tests.semantic.check_lora

It exits with 1 unless every image is an ink drawing at scale 1, none gains colour from one scale to the next, and all
together lose some at each. The sheet goes to docs/images/demo-lora-sheet.webp.
"""

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from tests.semantic.edit_pairs import Pixels
from tests.semantic.generation import WEIGHTS, generate_with_lora, open_pipeline
from training.demo.contact import contact_sheet
from training.demo.measures import MEASURES

PROMPTS = (
    "a beautiful sunset over mountains",
    "a red house on the left",
    "a castle in the hills",
    "a peaceful forest scene",
    "a futuristic city at night",
    "a balloon over the desert",
)
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_GAINED = 2.0
"""Of 255: an image that is an ink drawing before scale 1 only shifts its greys from there on."""
SHEET = Path(__file__).parents[2] / "docs" / "images" / "demo-lora-sheet.webp"
_SIDE = 256
_SEED = 1


def main() -> int:
    pipeline = open_pipeline(WEIGHTS)
    generated: dict[float, list[Pixels]] = {
        scale: [generate_with_lora(pipeline, prompt, scale, _SEED, side=_SIDE) for prompt in PROMPTS]
        for scale in SCALES
    }
    means = [float(np.mean([colorfulness(image) for image in generated[scale]])) for scale in SCALES]
    good = means == sorted(means, reverse=True)
    for number, prompt in enumerate(PROMPTS):
        colors = [colorfulness(generated[scale][number]) for scale in SCALES]
        is_ink, _ = MEASURES["ink"](generated[1.0][number])
        good = good and is_ink and fades(colors)
        shown = ", ".join(f"{color:.1f} at {scale:g}" for color, scale in zip(colors, SCALES, strict=True))
        print(f"{prompt}: colour {shown}; {'ink' if is_ink else 'not ink'} at 1")  # noqa: T201 - a script's result
    print("all: " + ", ".join(f"{mean:.1f}" for mean in means))  # noqa: T201
    labels = [f"{prompt}, scale {scale:g}" for scale in SCALES for prompt in PROMPTS]
    SHEET.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([image for scale in SCALES for image in generated[scale]], labels, len(PROMPTS), 192).save(
        SHEET, quality=88, method=6
    )
    return 0 if good else 1


def colorfulness(pixels: Pixels) -> float:
    """Return the mean distance of a pixel's strongest channel from its weakest, 0 to 255."""
    return float(np.ptp(pixels.astype(int), axis=2).mean())


def fades(colors: Sequence[float]) -> bool:
    """Say whether colour goes from the first to the last, and never comes back."""
    return colors[-1] < colors[0] and all(after - before <= MOST_GAINED for before, after in pairwise(colors))


if __name__ == "__main__":
    sys.exit(main())
