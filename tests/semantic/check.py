"""Generate every prompt with the real engine, measure what the images show, and write a contact sheet.

    python -m tests.semantic.check

It prints each failure, the share of images that hold, and how often the same measures hold on the images of other
prompts; it exits with 1 where a limit is missed. The sheet goes to docs/images/demo-contact-sheet.webp, with the
failures framed.
"""

import argparse
import sys
from pathlib import Path

from tests.semantic.generation import WEIGHTS, generate, open_pipeline
from tests.semantic.prompts import CASES
from training.demo.contact import contact_sheet
from training.demo.measures import Verdict, judge, shuffled_rates

LEAST_HOLDING = 0.90
MOST_SHUFFLED = 0.60
MOST_SHUFFLED_EACH = 0.75
SHEET = Path(__file__).parents[2] / "docs" / "images" / "demo-contact-sheet.webp"
_MOST_BYTES = 2_000_000


def main() -> int:
    arguments = _arguments()
    pipeline = open_pipeline(arguments.checkpoint)
    cases, images, verdicts, labels = [], [], list[Verdict](), []
    for case in CASES:
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        for image in generate(pipeline, case.prompt, seeds, width=arguments.size, height=arguments.size):
            verdict = judge(case.checks, image)
            cases.append(case)
            images.append(image)
            verdicts.append(verdict)
            labels.append(case.prompt if verdict.holds else f"{case.prompt} [{verdict}]")
            if not verdict.holds:
                print(f"fails: {case.prompt}: {verdict}")  # noqa: T201
    failed = [not verdict.holds for verdict in verdicts]
    holding = 1 - sum(failed) / len(failed)
    shuffled, each = shuffled_rates(cases, images)
    worst = max(each, key=lambda name: each[name])
    print(f"{len(images)} images: {holding:.1%} hold (at least {LEAST_HOLDING:.0%})")  # noqa: T201
    print(f"shuffled prompts: {shuffled:.1%} hold (at most {MOST_SHUFFLED:.0%}), worst {worst} {each[worst]:.1%}")  # noqa: T201
    arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet(images, labels, 12, 160, failed)
    for quality in (88, 75, 60):
        sheet.save(arguments.sheet, quality=quality, method=6)
        if arguments.sheet.stat().st_size <= _MOST_BYTES:
            break
    good = holding >= LEAST_HOLDING and shuffled <= MOST_SHUFFLED and each[worst] <= MOST_SHUFFLED_EACH
    return 0 if good else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what the demo model's images show.")
    parser.add_argument("--checkpoint", type=Path, default=WEIGHTS)
    parser.add_argument("--sheet", type=Path, default=SHEET)
    parser.add_argument("--seeds", type=int, default=2, help="images per prompt")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=256)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
