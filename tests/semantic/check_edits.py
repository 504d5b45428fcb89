"""Carry out every edit with the real engine, measure what the results show and keep, and write a contact sheet.

    python -m tests.semantic.check_edits

It prints each failure, the share of edits that hold, and how often the results of other edits would; it exits with 1
where a limit is missed. The sheet (references, result) goes to docs/images/demo-edits-sheet.webp, failures framed.
"""

import argparse
import sys
from pathlib import Path

from tests.semantic import edit_pairs
from tests.semantic.edit_cases import EDIT_CASES
from tests.semantic.edit_pairs import Pixels
from tests.semantic.generation import WEIGHTS, generate_edit, open_pipeline
from training.demo.contact import contact_sheet
from training.demo.edit_measures import judge_edit, shuffled_edit_rates

LEAST_HOLDING = 0.85
MOST_SHUFFLED_LAYOUTS = 0.30
MOST_SHUFFLED_CHANGES = 0.15
SHEET = Path(__file__).parents[2] / "docs" / "images" / "demo-edits-sheet.webp"


def main() -> int:
    arguments = _arguments()
    pipeline = open_pipeline(arguments.checkpoint)
    befores, results = list[Pixels](), list[Pixels]()
    images, labels, failed = list[Pixels](), list[str](), list[bool]()
    failures = 0
    for number, case in enumerate(EDIT_CASES):
        given = edit_pairs.references(number)
        result = generate_edit(pipeline, case.instruction, given, arguments.seed, like=case.base)
        befores.append(given[case.base])
        results.append(result)
        verdict = judge_edit(case, given[case.base], result)
        failures += not verdict.holds
        if not verdict.holds:
            print(f"fails: {case.instruction}: {verdict}")  # noqa: T201 - a script's result
        images += [*given, result]
        labels += [f"given {place}" if len(given) > 1 else "given" for place in range(1, len(given) + 1)]
        labels.append(case.instruction if verdict.holds else f"{case.instruction} [{verdict}]")
        failed += [False] * len(given) + [not verdict.holds]
    holding = 1 - failures / len(EDIT_CASES)
    layouts, changes = shuffled_edit_rates(EDIT_CASES, befores, results)
    print(f"{len(EDIT_CASES)} edits: {holding:.1%} hold (at least {LEAST_HOLDING:.0%})")  # noqa: T201
    print(  # noqa: T201
        f"results of other edits: layout in {layouts:.1%} (at most {MOST_SHUFFLED_LAYOUTS:.0%}), "
        f"what is asked in {changes:.1%} (at most {MOST_SHUFFLED_CHANGES:.0%})"
    )
    arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(images, labels, 12, 160, failed).save(arguments.sheet, quality=88, method=6)
    good = holding >= LEAST_HOLDING and layouts <= MOST_SHUFFLED_LAYOUTS and changes <= MOST_SHUFFLED_CHANGES
    return 0 if good else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what the demo model's edits show and keep.")
    parser.add_argument("--checkpoint", type=Path, default=WEIGHTS)
    parser.add_argument("--sheet", type=Path, default=SHEET)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
