"""What the stage ``edit`` shows of itself: references, instructions and results, and how often these hold."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tests.semantic.edit_cases import EDIT_CASES, EditCase, seed_of
from training.demo.contact import contact_sheet
from training.demo.distillation import copy_shipped_models
from training.demo.edit_measures import judge_edit, shuffled_edit_rates
from training.demo.report import to_pixels
from training.demo.sampler import encode_reference, generate
from training.demo.tokenizer import PromptTokenizer
from training.demo.train_state import TrainState
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
    state: TrainState, out: Path, device: torch.device, log: Callable[[str], None], *, tiny: bool
) -> dict[str, Any]:
    """Write ``edit-sheet.webp``, and return the figures of the results of 256 x 256 for metrics.json."""
    models = copy_shipped_models(state)
    tokenizer, generator = PromptTokenizer(), torch.Generator(device).manual_seed(1)

    def generate_case(case: EditCase, target: tuple[int, int], given: list[Tensor]) -> Pixels:
        references = [encode_reference(state.vae, image) for image in given]
        tokens = torch.from_numpy(tokenizer([case.instruction])).long().to(device)
        found = generate(*models, state.vae, tokens, *target, seed=_SEED, references=references)
        return to_pixels(found)[0]

    def render_references(cases: Sequence[EditCase], size: tuple[int, int]) -> list[list[Tensor]]:
        """Render the references [1, 3, H, W] of every case, in one call."""
        scenes = [(Scene(**fields), seed_of(case, i)) for case in cases for i, fields in enumerate(case.before)]  # type: ignore[arg-type]
        rows = torch.tensor([scene.row() for scene, _ in scenes], device=device)
        seeds = torch.tensor([seed for _, seed in scenes], device=device)
        rendered = iter(render(rows, *size, generator, seeds).split(1))
        return [[next(rendered) for _ in case.before] for case in cases]

    images, captions, failed = list[Pixels](), list[str](), list[bool]()
    befores, results = list[Pixels](), list[Pixels]()
    for number, (target, given) in enumerate((((64, 64), (64, 64)), ((64, 96), (64, 64))) if tiny else _RUNS):
        cases = EDIT_CASES if number == 0 else [case for case in EDIT_CASES if case.fast]
        for case, references in zip(cases, render_references(cases, given), strict=True):
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
