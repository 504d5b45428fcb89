"""What the stage ``edit`` shows for itself: given, asked and drawn, and how often the results hold."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tests.semantic.edit_cases import EDIT_CASES, EditCase, seed_of
from training.demo.contact import contact_sheet
from training.demo.edit_measures import judge_edit, shuffled_edit_rates
from training.demo.report import to_pixels
from training.demo.sampler import draw, encode_reference
from training.demo.tokenizer import PromptTokenizer
from training.demo.train_edit import shipped
from training.demo.trainee import Trainee
from training.demo.world.render import render
from training.demo.world.spec import Scene

_SEED = 41
# (height, width) of the result and of the references.
_RUNS = (
    ((256, 256), (256, 256)),
    ((256, 384), (256, 384)),
    ((384, 256), (256, 256)),
    ((512, 512), (256, 256)),
    ((512, 512), (512, 512)),
)
Pixels = npt.NDArray[np.uint8]


@torch.no_grad()
def report_edit(
    trainee: Trainee, out: Path, device: torch.device, log: Callable[[str], None], *, tiny: bool
) -> dict[str, Any]:
    """Write ``edit-sheet.webp`` and return the measures of the 256 x 256 results."""
    models = shipped(trainee)
    tokenizer, generator = PromptTokenizer(), torch.Generator(device).manual_seed(1)

    def generate_case(case: EditCase, target: tuple[int, int], given: list[Tensor]) -> Pixels:
        references = [encode_reference(trainee.vae, image) for image in given]
        tokens = torch.from_numpy(tokenizer([case.instruction])).long().to(device)
        found = draw(*models, trainee.vae, tokens, *target, seed=_SEED, references=references)
        return to_pixels(found)[0]

    def given_to(cases: Sequence[EditCase], size: tuple[int, int]) -> list[list[Tensor]]:
        """Each case's references [1, 3, H, W], drawn in one call."""
        scenes = [(Scene(**fields), seed_of(case, i)) for case in cases for i, fields in enumerate(case.before)]  # type: ignore[arg-type]
        rows = torch.tensor([scene.row() for scene, _ in scenes], device=device)
        seeds = torch.tensor([seed for _, seed in scenes], device=device)
        drawn = iter(render(rows, *size, generator, seeds).split(1))
        return [[next(drawn) for _ in case.before] for case in cases]

    images, captions, failed = list[Pixels](), list[str](), list[bool]()
    befores, results = list[Pixels](), list[Pixels]()
    for number, (target, given) in enumerate((((64, 64), (64, 64)), ((64, 96), (64, 64))) if tiny else _RUNS):
        cases = EDIT_CASES if number == 0 else [case for case in EDIT_CASES if case.fast]
        for case, references in zip(cases, given_to(cases, given), strict=True):
            shown, found = to_pixels(torch.cat(references)), generate_case(case, target, references)
            verdict = judge_edit(case, shown[case.base] if target == given else None, found)
            images += [*shown, found]
            captions += [f"{height}x{width} given" for height, width in [given] * len(shown)]
            captions.append(case.instruction + ("" if verdict.holds else f" [{verdict}]"))
            failed += [False] * len(shown) + [not verdict.holds]
            if number == 0:
                befores.append(shown[case.base])
                results.append(found)
    contact_sheet(images, captions, 12, 176, failed).save(out / "edit-sheet.webp", quality=86)
    verdicts = [
        judge_edit(case, before, result) for case, before, result in zip(EDIT_CASES, befores, results, strict=True)
    ]
    held = sum(verdict.holds for verdict in verdicts) / len(verdicts)
    shuffled = shuffled_edit_rates(EDIT_CASES, befores, results)
    log(f"edits hold in {held:.1%}; of other images, layouts in {shuffled[0]:.1%}, changes in {shuffled[1]:.1%}")
    return {
        "edits_hold": round(held, 4),
        "shuffled_layouts_hold": round(shuffled[0], 4),
        "shuffled_changes_hold": round(shuffled[1], 4),
        "edits_failed": [
            f"{case.instruction}: {verdict}"
            for case, verdict in zip(EDIT_CASES, verdicts, strict=True)
            if not verdict.holds
        ],
    }
