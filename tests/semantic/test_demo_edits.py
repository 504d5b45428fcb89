"""The demo model changes what the instruction says and keeps the rest: a few of the cases of ``edit_cases``."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.semantic import edit_pairs
from tests.semantic.edit_cases import EDIT_CASES
from tests.semantic.generation import WEIGHTS, generate_edit, open_pipeline
from training.demo.edit_measures import change, judge_edit, layout, shuffled_edit_rates

pytestmark = pytest.mark.slow

_SIDE = 128
_SEED = 1
# Of one reference: the other cases need a second image, which the full check generates.
_FAST = [(number, case) for number, case in enumerate(EDIT_CASES) if case.fast and len(case.before) == 1]
_CASES = [case for _, case in _FAST]
Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def befores() -> list[Pixels]:
    return [edit_pairs.base(number, _SIDE) for number, _ in _FAST]


@pytest.fixture(scope="module")
def results(befores: list[Pixels]) -> list[Pixels]:
    pipeline: Any = open_pipeline(WEIGHTS)
    return [
        generate_edit(pipeline, case.instruction, [before], _SEED) for case, before in zip(_CASES, befores, strict=True)
    ]


def test_most_edits_show_what_is_asked_and_keep_the_layout(befores: list[Pixels], results: list[Pixels]) -> None:
    verdicts = [judge_edit(*triple) for triple in zip(_CASES, befores, results, strict=True)]
    failures = {
        case.instruction: str(verdict) for case, verdict in zip(_CASES, verdicts, strict=True) if not verdict.holds
    }
    assert len(failures) <= len(_FAST) // 8, failures


def test_other_cases_results_neither_fit_nor_show_it(befores: list[Pixels], results: list[Pixels]) -> None:
    layouts, changes = shuffled_edit_rates(_CASES, befores, results)
    assert layouts <= 0.4
    assert changes <= 0.6


def test_a_result_is_nearer_to_its_own_reference_than_to_others(befores: list[Pixels], results: list[Pixels]) -> None:
    own = [layout(*pair) for pair in zip(befores, results, strict=True)]
    others = [layout(befores[i], results[(i + 1) % len(results)]) for i in range(len(results))]
    assert np.mean(own) >= np.mean(others) + 0.2


def test_a_result_is_not_its_reference(befores: list[Pixels], results: list[Pixels]) -> None:
    assert min(change(*pair) for pair in zip(befores, results, strict=True)) > 0.004
